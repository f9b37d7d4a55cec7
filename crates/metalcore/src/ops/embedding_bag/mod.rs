//! # embedding_bag
//! For each bag b of entries e: y_b = sum f_e w_r(e), their mean, or the largest of each column; r(e) is the entry's
//! index, f_e its factor (sum only; 1 where there are none). Entries of the padding row are left out.
//!
//! | symbol | shape | |
//! |---|---|---|
//! | weight, dw | (V, D) | float16, bfloat16, float32, float64 (not on Metal) |
//! | indices | (L) | int32 or int64 |
//! | offsets | (B) or, with the end of the last bag, (B + 1) | the type of the indices |
//! | samples (f), d_samples | (L) | the type of the weight |
//! | y, dy | (B, D) | the type of the weight |
//! | scale | (B) | float32 (float64 for float64): 1, 1 / count for a mean; 0 for a bag without a gradient |
//! | largest | (B, D) | int32: the entry that has the maximum, the first of equals; -1 where there is none |
//!
//! **Gradient**: dw_v = sum of f_e scale_b dy_b over the entries e of row v, b the entry's bag, for a maximum those in
//! `largest`; df_e = dy_b . w_r(e). dw is dense and, from the stably sorted indices, summed in the order of the entries:
//! the same bits in every run, without atomics. On a GPU that of a maximum of few bags needs no sorted indices: the first
//! bag of those whose maximum of a column is in the same row sums them.
//!
//! **Rounding**: products and sums in float32 (float64 for float64); one rounding, to nearest even, at the end. A
//! maximum is exact; NaN is larger than every number.
//!
//! **Error**: rho |y| + gamma sum |f w| (/ count); rho |dw| + 2 gamma(n) sum |terms|, n the row's entries;
//! gamma = (8 + log2 L) w, w = 2^-24 (2^-53 for float64).
//!
//! **Indices and offsets out of range**: an error on the host. On a GPU a bag with an index outside the weight is NaN and
//! contributes no gradient, offsets are clamped to 0..L, and nothing outside a tensor is read.
//!
//! **Cost**: bound by memory. Forward, one launch, reads the L rows and writes B; backward, two launches, reads B or more
//! rows and writes V. One more launch for df. No host read; workspace 12 L + 4 V bytes.
//!
//! **Source**: ours; the definition is PyTorch's.

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

const OP: &str = "embedding_bag";

/// What is made of a bag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The sum.
    Sum,
    /// The sum over the number of entries.
    Mean,
    /// The largest of each column.
    Max,
}

/// Sizes, types and options of a call, forward and backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddingBag {
    /// V.
    pub rows: usize,
    /// D.
    pub cols: usize,
    /// L.
    pub entries: usize,
    /// B.
    pub bags: usize,
    /// Number of offsets: B, or B + 1.
    pub offsets: usize,
    /// Type of the weight.
    pub dtype: DType,
    /// Type of indices and offsets.
    pub index: Index,
    /// What is made of a bag.
    pub mode: Mode,
    /// The row whose entries are left out.
    pub padding: Option<usize>,
}

/// The forward pass.
pub struct Forward(pub EmbeddingBag);
/// The backward pass.
pub struct Backward(pub EmbeddingBag);

/// Tensors of the forward pass, contiguous.
pub struct ForwardArgs<'a, B> {
    /// (V, D).
    pub weight: &'a B,
    /// (L).
    pub indices: &'a B,
    /// (B) or (B + 1).
    pub offsets: &'a B,
    /// (L); None: ones.
    pub samples: Option<&'a B>,
    /// (B, D).
    pub y: &'a B,
    /// (B).
    pub scale: &'a B,
    /// (B, D), int32; for a maximum.
    pub largest: Option<&'a B>,
}

/// Tensors of the backward pass, contiguous.
pub struct BackwardArgs<'a, B> {
    /// (B, D).
    pub dy: &'a B,
    /// (L).
    pub indices: &'a B,
    /// (B) or (B + 1).
    pub offsets: &'a B,
    /// (L); None: ones.
    pub samples: Option<&'a B>,
    /// (B), from the forward pass.
    pub scale: &'a B,
    /// (B, D), from the forward pass, for a maximum.
    pub largest: Option<&'a B>,
    /// (L) the indices in ascending order and (L), int64, where each was; equal ones in their order. Not needed without
    /// `dw`, nor on a GPU for a maximum, where the work of a call without them grows with the square of the bags.
    pub sorted: Option<(&'a B, &'a B)>,
    /// (V, D).
    pub dw: Option<&'a B>,
    /// The weight (V, D), and the gradient of the samples (L).
    pub d_samples: Option<(&'a B, &'a B)>,
}

impl Problem for Forward {
    type Args<'a, B: 'a> = ForwardArgs<'a, B>;
}
impl Problem for Backward {
    type Args<'a, B: 'a> = BackwardArgs<'a, B>;
}

impl EmbeddingBag {
    /// Checks shapes and options. `include_last`: the end of the last bag is among the offsets. A negative `padding` is
    /// none.
    pub fn new(
        (weight, dtype): (&[usize], DType),
        (indices, index): (&[usize], Index),
        offsets: &[usize],
        mode: Mode,
        include_last: bool,
        padding: i64,
    ) -> Result<EmbeddingBag> {
        let shape =
            |argument, got: &[usize], expected| Error::argument(OP, argument, format!("shape {got:?}"), expected);
        let [rows, cols] = *weight else {
            return Err(shape("weight", weight, "(V, D)"));
        };
        let [entries] = *indices else {
            return Err(shape("indices", indices, "(L,)"));
        };
        let [count] = *offsets else {
            return Err(shape("offsets", offsets, "1 dimension"));
        };
        if include_last && count == 0 {
            return Err(shape("offsets", offsets, "B + 1 entries"));
        }
        if padding >= rows as i64 {
            return Err(Error::argument(OP, "padding_idx", padding, format!("a row of {rows}")));
        }
        if rows >= u32::MAX as usize || cols > i32::MAX as usize || entries.max(count) > i32::MAX as usize {
            let reason =
                format!("{entries} indices of {rows} rows of {cols}: more than 2^31 indices or columns, or 2^32 rows");
            return Err(Error::Unsupported { op: OP, reason });
        }
        let padding = usize::try_from(padding).ok();
        let bags = if include_last { count - 1 } else { count };
        Ok(EmbeddingBag { rows, cols, entries, bags, offsets: count, dtype, index, mode, padding })
    }
}

impl Run<Forward> for Cpu {
    fn run(&self, Forward(bag): &Forward, args: ForwardArgs<'_, Self::Buffer>) -> Result<()> {
        with_dtype!(bag.dtype, T => with_index!(bag.index, I => {
            // SAFETY: the caller's buffers have the sizes of the problem, and the outputs are different ones.
            unsafe {
                cpu::forward::<T, I>(
                    self.threads(),
                    bag,
                    args.weight.slice(bag.rows * bag.cols),
                    args.indices.slice(bag.entries),
                    args.offsets.slice(bag.offsets),
                    args.samples.map(|samples| samples.slice(bag.entries)),
                    args.y.slice_mut(bag.bags * bag.cols),
                    args.scale.slice_mut(bag.bags),
                    args.largest.map(|largest| largest.slice_mut(bag.bags * bag.cols)),
                )
            }
        }))
    }
}

impl Run<Backward> for Cpu {
    fn run(&self, Backward(bag): &Backward, args: BackwardArgs<'_, Self::Buffer>) -> Result<()> {
        with_dtype!(bag.dtype, T => with_index!(bag.index, I => {
            // SAFETY: the caller's buffers have the sizes of the problem, and the outputs are different ones.
            unsafe {
                let gradient = cpu::Gradient::<T, I> {
                    bag,
                    dy: args.dy.slice(bag.bags * bag.cols),
                    offsets: args.offsets.slice(bag.offsets),
                    samples: args.samples.map(|samples| samples.slice(bag.entries)),
                    scale: args.scale.slice(bag.bags),
                    largest: args.largest.map(|largest| largest.slice(bag.bags * bag.cols)),
                };
                if let Some(dw) = args.dw {
                    let Some((keys, order)) = args.sorted else {
                        let (got, expected) = ("none".to_owned(), "the indices sorted".to_owned());
                        return Err(Error::Argument { op: OP, argument: "keys", got, expected });
                    };
                    let (keys, order) = (keys.slice(bag.entries), order.slice(bag.entries));
                    gradient.of_weight(self.threads(), keys, order, dw.slice_mut(bag.rows * bag.cols));
                }
                if let Some((weight, d_samples)) = args.d_samples {
                    let (weight, indices) = (weight.slice(bag.rows * bag.cols), args.indices.slice(bag.entries));
                    gradient.of_samples(self.threads(), weight, indices, d_samples.slice_mut(bag.entries));
                }
            }
        }));
        Ok(())
    }
}

/// Sum, mean or maximum of the rows of each bag; `indices` and `offsets` are buffers of `index`, and of as many entries as
/// said. The offsets have the end of the last bag.
pub fn embedding_bag<D: Run<Forward>>(
    weight: View<'_, D>,
    (indices, entries): (&D::Buffer, usize),
    (offsets, bags): (&D::Buffer, usize),
    index: Index,
    mode: Mode,
) -> Result<Tensor<D>> {
    let problem = EmbeddingBag::new((weight.shape, weight.dtype), (&[entries], index), &[bags + 1], mode, true, -1)?;
    let y = Tensor::empty(weight.device, &[bags, problem.cols], weight.dtype)?;
    let scale = Tensor::empty(weight.device, &[bags], weight.dtype.compute())?;
    let largest = weight.device.alloc(if mode == Mode::Max { y.numel() * 4 } else { 0 })?;
    let args = ForwardArgs {
        weight: weight.buffer,
        indices,
        offsets,
        samples: None,
        y: y.buffer(),
        scale: scale.buffer(),
        largest: (mode == Mode::Max).then_some(&largest),
    };
    weight.device.run(&Forward(problem), args)?;
    Ok(y)
}
