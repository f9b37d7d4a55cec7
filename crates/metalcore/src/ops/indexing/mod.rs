//! # indexing: gather, index_select, scatter_add
//! `gather`: out\[..., i, ...\] = src\[..., index\[..., i, ...\], ...\]. `index_select` is the same of an index that is
//! repeated along the other dimensions. `scatter_add`: out = dst, then out\[..., index\[..., i, ...\], ...\] +=
//! src\[..., i, ...\].
//!
//! | symbol | shape | |
//! |---|---|---|
//! | index | any | int32 or int64, any strides |
//! | gather's src, out | the index's but along `dim`; the index's | elements of 1, 2, 4, 8 or 16 bytes; src of any strides |
//! | scatter_add's dst, out | the index's or more, but along `dim` | float16, bfloat16, float32, float64 (not on Metal) |
//! | scatter_add's src | the index's or more | the type of dst, any strides |
//!
//! **Gradient**: each is the other's: `gather` gives its terms back by `scatter_add` to zeros, `scatter_add` those of its
//! src by `gather`, with 0 for an index out of range.
//!
//! **Rounding**: `gather` moves bytes. Sums in float32 (float64 for float64), one rounding, to nearest even, at the end.
//!
//! **Order**: free on a GPU, where terms are added by atomics: the last bits of a sum can differ from run to run. On the
//! host the order is that of the index.
//!
//! **Error**: `scatter_add` rho |out| + 2 gamma(n) sum |terms|, n the terms of an element; gamma = (8 + log2 n) w,
//! w = 2^-24 (2^-53 for float64).
//!
//! **Index out of range**: an error on the host. On a GPU the element is NaN (0 of integers), or is left out of the sum;
//! nothing outside a tensor is read or written.
//!
//! **Dimensions**: any number on the host; on a GPU at most 6 of those that are left when neighbours that lie as one are
//! joined.
//!
//! **Cost**: bound by memory. `gather`: one launch. `scatter_add`: two launches, one of which copies dst; of 16-bit types
//! three, and a workspace of 4 bytes for each element of dst, of which is touched what the index names. No host read.
//!
//! **Source**: ours; the definitions are PyTorch's.

pub mod cpu;
mod gpu;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use gpu::units;

use crate::device::{Problem, Run, cpu::Cpu};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, View};
use crate::{DType, Index, with_dtype, with_index};
use smallvec::SmallVec;

/// A dimension of the index: its size, and the distances, in elements, between neighbours in each tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dim {
    /// Number of elements.
    pub size: usize,
    /// In the tensor that the index points into; 0 along the dimension that it replaces.
    pub table: usize,
    /// In the index.
    pub index: usize,
    /// In the tensor that has an element for each of the index.
    pub values: usize,
}

/// Shape and strides of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a> {
    /// Sizes, slowest dimension first.
    pub shape: &'a [usize],
    /// Distances between neighbours, in elements.
    pub strides: &'a [usize],
}

/// Which elements of a table belong to the elements of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indexing {
    /// For errors.
    pub op: &'static str,
    /// The fastest first; at least one, none of size 1 beside another.
    pub dims: SmallVec<[Dim; 4]>,
    /// Number of elements of the index.
    pub total: usize,
    /// An index is 0 or more and less than this.
    pub limit: usize,
    /// Distance between neighbours in the table along the dimension that the index replaces.
    pub step: usize,
    /// Type of the index.
    pub index: Index,
}

/// Contiguous strides of a shape.
pub fn contiguous(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for d in (1..shape.len()).rev() {
        strides[d - 1] = strides[d] * shape[d].max(1);
    }
    strides
}

impl Indexing {
    /// Checks shapes, and joins dimensions. `table` and `values` are named for errors; without `values` they are
    /// contiguous and of the shape of the index. A tensor without dimensions counts as one of 1 element.
    pub fn new(
        op: &'static str,
        dim: i64,
        (table_name, table): (&'static str, Strided<'_>),
        (index, index_type): (Strided<'_>, Index),
        values: Option<(&'static str, Strided<'_>)>,
    ) -> Result<Indexing> {
        const SINGLE: Strided<'static> = Strided { shape: &[1], strides: &[1] };
        let one = |tensor: Strided<'_>| if tensor.shape.is_empty() { SINGLE.shape.len() } else { tensor.shape.len() };
        let rank = one(table);
        let wide = |dim: i64| usize::try_from(if dim < 0 { dim + rank as i64 } else { dim }).ok().filter(|d| *d < rank);
        let Some(along) = wide(dim) else {
            let expected = format!("one of the {} dimensions of {table_name}", table.shape.len());
            return Err(Error::argument(op, "dim", dim, expected));
        };
        let total = index.shape.iter().product();
        let limit = table.shape.get(along).copied().unwrap_or(1);
        let step = table.strides.get(along).copied().unwrap_or(1);
        let mut indexing = Indexing { op, dims: SmallVec::new(), total, limit, step, index: index_type };
        if total == 0 {
            return Ok(indexing);
        }
        let shape_of =
            |argument, got: &[usize], expected| Err(Error::argument(op, argument, format!("shape {got:?}"), expected));
        if one(index) != rank {
            return shape_of("index", index.shape, format!("{} dimensions", table.shape.len()));
        }
        if let Some((name, values)) = values
            && (one(values) != rank || index.shape.iter().zip(values.shape).any(|(index, values)| index > values))
        {
            return shape_of(name, values.shape, format!("at least the index's {:?}", index.shape));
        }
        let larger = |(d, (index, table)): (usize, (&usize, &usize))| d != along && index > table;
        if index.shape.iter().zip(table.shape).enumerate().any(larger) {
            let expected = format!("at most that of {table_name}, {:?}, but in dimension {along}", table.shape);
            return shape_of("index", index.shape, expected);
        }
        let dense = contiguous(index.shape);
        for d in (0..index.shape.len()).rev() {
            indexing.push(Dim {
                size: index.shape[d],
                table: if d == along { 0 } else { table.strides.get(d).copied().unwrap_or(0) },
                index: index.strides[d],
                // Without dimensions it counts as one of 1 element.
                values: values.map_or(dense[d], |(_, values)| values.strides.get(d).copied().unwrap_or(0)),
            });
        }
        if indexing.dims.is_empty() {
            indexing.dims.push(Dim { size: 1, table: 0, index: 0, values: 0 });
        }
        Ok(indexing)
    }

    /// Adds a slower dimension.
    fn push(&mut self, dim: Dim) {
        if dim.size == 1 {
            return;
        }
        match self.dims.last_mut() {
            Some(last)
                if [(dim.table, last.table), (dim.index, last.index), (dim.values, last.values)]
                    .iter()
                    .all(|(slow, fast)| *slow == fast * last.size) =>
            {
                last.size *= dim.size;
            }
            _ => self.dims.push(dim),
        }
    }

    /// The same in words of `factor` elements, if each is in the table and in the values at once.
    fn in_words(&self, factor: usize) -> Option<Indexing> {
        let whole = |n: usize| n.is_multiple_of(factor);
        let (fastest, others) = self.dims.split_first()?;
        let fits = (fastest.table, fastest.index, fastest.values) == (1, 0, 1)
            && whole(fastest.size)
            && whole(self.step)
            && others.iter().all(|dim| whole(dim.table) && whole(dim.values));
        fits.then(|| {
            let mut words = self.clone();
            words.total /= factor;
            words.step /= factor;
            for dim in &mut words.dims[1..] {
                dim.table /= factor;
                dim.values /= factor;
            }
            words.dims[0].size /= factor;
            words
        })
    }
}

/// out := the elements of src that the index names.
pub struct Gather {
    /// Which; src is the table, and out, which is contiguous, the values.
    pub indexing: Indexing,
    /// Size of an element: 1, 2, 4, 8 or 16.
    pub bytes: usize,
    /// What a GPU puts for an index out of range: elements in 16 bytes.
    pub missing: [u32; 4],
}

/// out += src, where the index says.
pub struct ScatterAdd {
    /// Where; out, which is contiguous, is the table, and src the values.
    pub indexing: Indexing,
    /// Type of both.
    pub dtype: DType,
    /// Elements of out.
    pub len: usize,
}

/// Tensors of `gather`.
pub struct GatherArgs<'a, B> {
    /// The table.
    pub src: &'a B,
    /// The index.
    pub index: &'a B,
    /// The shape of the index, contiguous.
    pub out: &'a B,
}

/// Tensors of `scatter_add`.
pub struct ScatterAddArgs<'a, B> {
    /// The index.
    pub index: &'a B,
    /// The terms.
    pub src: &'a B,
    /// Contiguous; None: out has its values already.
    pub dst: Option<&'a B>,
    /// Contiguous.
    pub out: &'a B,
}

impl Problem for Gather {
    type Args<'a, B: 'a> = GatherArgs<'a, B>;
}
impl Problem for ScatterAdd {
    type Args<'a, B: 'a> = ScatterAddArgs<'a, B>;
}

impl Run<Gather> for Cpu {
    fn run(&self, problem: &Gather, args: GatherArgs<'_, Self::Buffer>) -> Result<()> {
        macro_rules! words {
            ($($bytes:literal = $W:ty),*) => {
                match problem.bytes {
                    $($bytes => with_index!(problem.indexing.index, I => {
                        // SAFETY: the buffers hold what shapes and strides say, and the output is another one.
                        unsafe {
                            cpu::gather::<$W, I>(
                                self.threads(),
                                &problem.indexing,
                                args.src.slice(args.src.bytes() / $bytes),
                                args.index.slice(args.index.bytes() / size_of::<I>()),
                                args.out.slice_mut(problem.indexing.total),
                            )
                        }
                    }),)*
                    other => unreachable!("elements of {other} bytes"),
                }
            };
        }
        words!(1 = u8, 2 = u16, 4 = u32, 8 = u64, 16 = [u64; 2])
    }
}

impl Run<ScatterAdd> for Cpu {
    fn run(&self, problem: &ScatterAdd, args: ScatterAddArgs<'_, Self::Buffer>) -> Result<()> {
        with_dtype!(problem.dtype, T => with_index!(problem.indexing.index, I => {
            // SAFETY: the buffers hold what shapes and strides say, and the output is another one.
            unsafe {
                let out = args.out.slice_mut::<T>(problem.len);
                if let Some(dst) = args.dst {
                    cpu::copy(self.threads(), dst.slice(problem.len), out);
                }
                cpu::scatter_add::<T, I>(
                    self.threads(),
                    &problem.indexing,
                    args.index.slice(args.index.bytes() / size_of::<I>()),
                    args.src.slice(args.src.bytes() / size_of::<T>()),
                    out,
                )
            }
        }))
    }
}

/// The elements of `src`, along `dim`, that `index` names, a contiguous buffer of `index_type` and of a shape.
pub fn gather<D: Run<Gather>>(
    src: View<'_, D>,
    dim: i64,
    (index, shape): (&D::Buffer, &[usize]),
    index_type: Index,
) -> Result<Tensor<D>> {
    let (strides, index_strides) = (contiguous(src.shape), contiguous(shape));
    let table = Strided { shape: src.shape, strides: &strides };
    let indexed = Strided { shape, strides: &index_strides };
    let indexing = Indexing::new("gather", dim, ("src", table), (indexed, index_type), None)?;
    let nan = match src.dtype {
        DType::F64 => [0, 0x7ff8_0000, 0, 0x7ff8_0000],
        DType::F32 => [0x7fc0_0000; 4],
        DType::F16 => [0x7e00_7e00; 4],
        DType::BF16 => [0x7fc0_7fc0; 4],
    };
    let out = Tensor::empty(src.device, shape, src.dtype)?;
    let args = GatherArgs { src: src.buffer, index, out: out.buffer() };
    src.device.run(&Gather { indexing, bytes: src.dtype.size(), missing: nan }, args)?;
    Ok(out)
}

/// `dst` with `src` added where `index` says, a contiguous buffer of `index_type` and of the shape of `src`.
pub fn scatter_add<D: Run<ScatterAdd>>(
    dst: View<'_, D>,
    dim: i64,
    index: &D::Buffer,
    index_type: Index,
    src: View<'_, D>,
) -> Result<Tensor<D>> {
    let op = "scatter_add";
    if src.dtype != dst.dtype {
        let (got, expected) = (src.dtype.to_string(), dst.dtype.to_string());
        return Err(Error::DType { op, argument: "src", got, expected });
    }
    let (strides, src_strides) = (contiguous(dst.shape), contiguous(src.shape));
    let table = Strided { shape: dst.shape, strides: &strides };
    let terms = Strided { shape: src.shape, strides: &src_strides };
    let indexing = Indexing::new(op, dim, ("dst", table), (terms, index_type), Some(("src", terms)))?;
    let out = Tensor::empty(dst.device, dst.shape, dst.dtype)?;
    let problem = ScatterAdd { indexing, dtype: src.dtype, len: dst.numel() };
    let args = ScatterAddArgs { index, src: src.buffer, dst: Some(dst.buffer), out: out.buffer() };
    dst.device.run(&problem, args)?;
    Ok(out)
}
