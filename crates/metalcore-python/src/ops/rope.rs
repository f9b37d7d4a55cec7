//! metalcore::rope_fwd, rope_bwd.

use crate::host::Host;
use crate::operator::{Operator, operator};
use metalcore::device::Run;
use metalcore::ops::rope::{Args, Direction, Layout, Operand, Rope};
use metalcore::{DType, Error, Result};

/// q and k, or q alone: the second result is then empty. unsqueeze_dim: 2 for (B, S, H, D), 1 for (B, H, S, D).
pub const OPERATORS: &[Operator] = &[
    operator!(rope_fwd: "(Tensor q, Tensor? k, Tensor cos, Tensor sin, Tensor? position_ids, int unsqueeze_dim) -> (Tensor q_out, Tensor k_out)"),
    operator!(rope_bwd: "(Tensor q, Tensor? k, Tensor cos, Tensor sin, Tensor? position_ids, int unsqueeze_dim) -> (Tensor q_out, Tensor k_out)"),
];

fn rope_fwd<H: Host>(
    host: &H,
    q: H::Tensor,
    k: Option<H::Tensor>,
    cos: H::Tensor,
    sin: H::Tensor,
    position_ids: Option<H::Tensor>,
    unsqueeze_dim: i64,
) -> Result<(H::Tensor, H::Tensor)>
where
    H::Device: Run<Rope>,
{
    rope(host, (q, k), [cos, sin], position_ids, unsqueeze_dim, Direction::Forward)
}

fn rope_bwd<H: Host>(
    host: &H,
    q: H::Tensor,
    k: Option<H::Tensor>,
    cos: H::Tensor,
    sin: H::Tensor,
    position_ids: Option<H::Tensor>,
    unsqueeze_dim: i64,
) -> Result<(H::Tensor, H::Tensor)>
where
    H::Device: Run<Rope>,
{
    rope(host, (q, k), [cos, sin], position_ids, unsqueeze_dim, Direction::Backward)
}

/// q or k, whose heads are read in place.
struct Heads<T> {
    tensor: T,
    shape: Vec<usize>,
    strides: Vec<usize>,
    dtype: DType,
}

impl<T> Heads<T> {
    /// Copies a tensor if the elements of a head are not neighbours.
    fn new<H: Host<Tensor = T>>(host: &H, op: &'static str, argument: &'static str, tensor: T) -> Result<Heads<T>> {
        host.check_place(op, argument, &tensor)?;
        let dtype = host.known_dtype(op, argument, &tensor)?;
        let shape = host.shape(&tensor);
        let neighbours = host.strides(&tensor).last() == Some(&1) || shape.last() == Some(&1);
        let tensor = if neighbours { tensor } else { host.contiguous(tensor)? };
        Ok(Heads { strides: host.strides(&tensor), tensor, shape, dtype })
    }

    fn operand(&self) -> Operand<'_> {
        Operand { shape: &self.shape, strides: &self.strides, dtype: self.dtype }
    }
}

fn rope<H: Host>(
    host: &H,
    (q, k): (H::Tensor, Option<H::Tensor>),
    tables: [H::Tensor; 2],
    position_ids: Option<H::Tensor>,
    unsqueeze_dim: i64,
    direction: Direction,
) -> Result<(H::Tensor, H::Tensor)>
where
    H::Device: Run<Rope>,
{
    let (op, first) = if k.is_some() { ("rope_fwd", "q") } else { ("rope_forward", "x") };
    let layout = match unsqueeze_dim {
        1 => Layout::HeadsFirst,
        2 => Layout::PositionsFirst,
        _ => {
            let (got, expected) = (unsqueeze_dim.to_string(), "1 or 2".to_owned());
            return Err(Error::Argument { op, argument: "unsqueeze_dim", got, expected });
        }
    };
    let q = Heads::new(host, op, first, q)?;
    let k = k.map(|k| Heads::new(host, op, "k", k)).transpose()?;
    for (argument, tensor) in ["cos", "sin"].into_iter().zip(&tables) {
        host.check_place(op, argument, tensor)?;
    }
    let [cos, sin] = tables;
    let (cos_shape, sin_shape) = (host.shape(&cos), host.shape(&sin));
    let (cos_dtype, sin_dtype) = (host.known_dtype(op, "cos", &cos)?, host.known_dtype(op, "sin", &sin)?);
    let ids = match &position_ids {
        None => None,
        Some(ids) => {
            host.check_place(op, "position_ids", ids)?;
            Some((host.shape(ids), host.known_index(op, "position_ids", ids)?.size()))
        }
    };
    let problem = Rope::new(
        q.operand(),
        k.as_ref().map(Heads::operand),
        [(&cos_shape, cos_dtype), (&sin_shape, sin_dtype)],
        ids.as_ref().map(|(shape, bytes)| (&shape[..], *bytes)),
        layout,
        direction,
    )?;
    let (cos, sin) = (host.contiguous(cos)?, host.contiguous(sin)?);
    let position_ids = position_ids.map(|ids| host.contiguous(ids)).transpose()?;
    let q_out = host.empty(&q.shape, q.dtype)?;
    let k_out = host.empty(k.as_ref().map_or(&[0], |k| &k.shape[..]), q.dtype)?;
    let [q_buffer, cos_buffer, sin_buffer, q_out_buffer, k_out_buffer] =
        [&q.tensor, &cos, &sin, &q_out, &k_out].map(|tensor| host.buffer(tensor));
    let k_buffer = k.as_ref().map(|k| host.buffer(&k.tensor));
    let ids_buffer = position_ids.as_ref().map(|ids| host.buffer(ids));
    let args = Args {
        q: &q_buffer,
        k: k_buffer.as_ref(),
        cos: &cos_buffer,
        sin: &sin_buffer,
        position_ids: ids_buffer.as_ref(),
        q_out: &q_out_buffer,
        k_out: k_buffer.as_ref().map(|_| &k_out_buffer),
    };
    host.device().run(&problem, args)?;
    Ok((q_out, k_out))
}
