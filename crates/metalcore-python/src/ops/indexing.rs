//! metalcore::gather, index_select, scatter_add, scatter_add_bwd.

use crate::host::{Host, Stored};
use crate::operator::{Operator, operator};
use metalcore::device::Run;
use metalcore::ops::indexing::{Gather, GatherArgs, Indexing, ScatterAdd, ScatterAddArgs, Strided};
use metalcore::{Error, Result};

/// `scatter_add_bwd` is `gather` with 0, not NaN, for an index out of range: the gradient of what `scatter_add` added.
pub const OPERATORS: &[Operator] = &[
    operator!(gather: "(Tensor src, Tensor index, int dim=0) -> Tensor"),
    operator!(index_select: "(Tensor src, int dim, Tensor index) -> Tensor"),
    operator!(scatter_add: "(Tensor dst, Tensor index, Tensor src, int dim=0) -> Tensor"),
    operator!(scatter_add_bwd: "(Tensor d_out, Tensor index, int dim=0) -> Tensor"),
];

fn stored<H: Host>(host: &H, op: &'static str, src: &H::Tensor) -> Result<&'static Stored> {
    let (got, expected) = ("another one".to_owned(), "one whose elements can be moved".to_owned());
    host.stored(src).ok_or(Error::DType { op, argument: "src", got, expected })
}

/// The elements of `src` that an index of a shape and strides names.
fn take<H: Host>(
    host: &H,
    op: &'static str,
    (src, stored, missing): (&H::Tensor, &Stored, [u32; 4]),
    (index, shape, strides): (&H::Tensor, &[usize], &[usize]),
    dim: i64,
) -> Result<H::Tensor>
where
    H::Device: Run<Gather>,
{
    host.check_place(op, "index", index)?;
    let kind = host.known_index(op, "index", index)?;
    let (src_shape, src_strides) = (host.shape(src), host.strides(src));
    let table = Strided { shape: &src_shape, strides: &src_strides };
    let indexing = Indexing::new(op, dim, ("src", table), (Strided { shape, strides }, kind), None)?;
    let out = host.empty_stored(shape, stored)?;
    let args = GatherArgs { src: &host.buffer(src), index: &host.buffer(index), out: &host.buffer(&out) };
    host.device().run(&Gather { indexing, bytes: stored.bytes, missing }, args)?;
    Ok(out)
}

fn gather<H: Host>(host: &H, src: H::Tensor, index: H::Tensor, dim: i64) -> Result<H::Tensor>
where
    H::Device: Run<Gather>,
{
    let stored = stored(host, "gather", &src)?;
    let (shape, strides) = (host.shape(&index), host.strides(&index));
    take(host, "gather", (&src, stored, stored.nan), (&index, &shape, &strides), dim)
}

fn scatter_add_bwd<H: Host>(host: &H, d_out: H::Tensor, index: H::Tensor, dim: i64) -> Result<H::Tensor>
where
    H::Device: Run<Gather>,
{
    let op = "scatter_add_bwd";
    let stored = stored(host, op, &d_out)?;
    let (shape, strides) = (host.shape(&index), host.strides(&index));
    take(host, op, (&d_out, stored, [0; 4]), (&index, &shape, &strides), dim)
}

fn index_select<H: Host>(host: &H, src: H::Tensor, dim: i64, index: H::Tensor) -> Result<H::Tensor>
where
    H::Device: Run<Gather>,
{
    let op = "index_select";
    let stored = stored(host, op, &src)?;
    let (index_shape, mut shape) = (host.shape(&index), host.shape(&src));
    if index_shape.len() > 1 || (shape.is_empty() && index_shape.iter().any(|size| *size != 1)) {
        let expected = if shape.is_empty() { "1 element" } else { "1 dimension" };
        let (got, expected) = (format!("shape {index_shape:?}"), expected.to_owned());
        return Err(Error::Argument { op, argument: "index", got, expected });
    }
    // The index, repeated along the other dimensions; a dim that src does not have is named later.
    let mut strides = vec![0; shape.len()];
    let along = if dim < 0 { dim + shape.len() as i64 } else { dim } as usize;
    if along < shape.len() {
        shape[along] = index_shape.first().copied().unwrap_or(1);
        strides[along] = host.strides(&index).first().copied().unwrap_or(1);
    }
    take(host, op, (&src, stored, stored.nan), (&index, &shape, &strides), dim)
}

fn scatter_add<H: Host>(host: &H, dst: H::Tensor, index: H::Tensor, src: H::Tensor, dim: i64) -> Result<H::Tensor>
where
    H::Device: Run<ScatterAdd>,
{
    let op = "scatter_add";
    let dtype = host.known_dtype(op, "dst", &dst)?;
    host.check_place(op, "index", &index)?;
    host.check_place(op, "src", &src)?;
    let got = host.known_dtype(op, "src", &src)?;
    if got != dtype {
        return Err(Error::DType { op, argument: "src", got: got.to_string(), expected: dtype.to_string() });
    }
    let kind = host.known_index(op, "index", &index)?;
    let dense = host.is_contiguous(&dst);
    let out = if dense { host.empty(&host.shape(&dst), dtype)? } else { host.copy(&dst)? };
    let [table, indexed, terms] = [&out, &index, &src].map(|tensor| (host.shape(tensor), host.strides(tensor)));
    let indexing = Indexing::new(
        op,
        dim,
        ("dst", Strided { shape: &table.0, strides: &table.1 }),
        (Strided { shape: &indexed.0, strides: &indexed.1 }, kind),
        Some(("src", Strided { shape: &terms.0, strides: &terms.1 })),
    )?;
    let problem = ScatterAdd { indexing, dtype, len: table.0.iter().product() };
    let [dst, out_buffer] = [&dst, &out].map(|tensor| host.buffer(tensor));
    let (index, src) = (host.buffer(&index), host.buffer(&src));
    let args = ScatterAddArgs { index: &index, src: &src, dst: dense.then_some(&dst), out: &out_buffer };
    host.device().run(&problem, args)?;
    Ok(out)
}
