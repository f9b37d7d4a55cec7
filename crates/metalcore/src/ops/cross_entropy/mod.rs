//! # cross_entropy
//! loss = (1 - eps) (lse - x_t) + eps (lse - mean(x)), lse = log sum e^x, for each row x with the target t.
//!
//! | symbol | shape | |
//! |---|---|---|
//! | logits x | (rows, cols) | float16, bfloat16, float32, float64 (not on Metal) |
//! | targets t | (rows) | int32, int64 |
//! | losses, lse | (rows) | float32; float64 for float64 |
//! | loss, count | one value | the same: sum or mean of the losses, and the number of rows not ignored |
//!
//! A row whose target is `ignore` has loss 0 and gradient 0, and is not read. The mean is over the other rows; NaN if
//! there are none. A target outside the row: `Error::Index` on the host; on a GPU the loss is NaN, the gradient 0.
//!
//! **Gradient**, g that of the row's loss: dx = (e^(x - lse) - (1 - eps) [j = t] - eps / cols) g.
//!
//! **Rounding**: all in float32 (float64 for float64); dx is rounded once.
//!
//! **Error**: loss gamma (|max| + |lse| + |x_t|), gamma = (8 + log2 cols) 2^-24.
//!
//! **Cost**: forward reads the logits once (the largest element and the sum together), backward reads them and writes
//! dx: bound by memory. One launch each, and a small one for a sum or mean. No host read.

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

/// What becomes of the rows' losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// They stay.
    None,
    /// Their mean over the rows that are not ignored.
    Mean,
    /// Their sum.
    Sum,
}

/// Sizes, types and options of a call, forward and backward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossEntropy {
    /// Number of rows.
    pub rows: usize,
    /// Number of classes.
    pub cols: usize,
    /// Type of the logits.
    pub dtype: DType,
    /// Type of the targets.
    pub index: Index,
    /// The target of rows that do not count.
    pub ignore: i64,
    /// eps.
    pub smoothing: f64,
    /// Of the losses.
    pub reduction: Reduction,
}

/// The forward pass.
pub struct Forward(pub CrossEntropy);
/// The backward pass.
pub struct Backward(pub CrossEntropy);

/// Tensors of the forward pass, contiguous.
pub struct ForwardArgs<'a, B> {
    /// (rows, cols).
    pub logits: &'a B,
    /// (rows).
    pub targets: &'a B,
    /// (rows).
    pub losses: &'a B,
    /// (rows).
    pub lse: &'a B,
    /// Their sum or mean, and the number of rows that count; where there is a reduction.
    pub reduced: Option<(&'a B, &'a B)>,
}

/// Tensors of the backward pass, contiguous.
pub struct BackwardArgs<'a, B> {
    /// Gradient of the losses (rows), or of their sum or mean.
    pub grad: &'a B,
    /// (rows, cols); None: they are in `dx`, and the gradient is written over them.
    pub logits: Option<&'a B>,
    /// (rows).
    pub targets: &'a B,
    /// (rows), from the forward pass.
    pub lse: &'a B,
    /// From the forward pass, for a mean.
    pub count: Option<&'a B>,
    /// (rows, cols).
    pub dx: &'a B,
}

impl Problem for Forward {
    type Args<'a, B: 'a> = ForwardArgs<'a, B>;
}
impl Problem for Backward {
    type Args<'a, B: 'a> = BackwardArgs<'a, B>;
}

impl CrossEntropy {
    /// Checks shapes and options.
    pub fn new(
        op: &'static str,
        (logits, dtype): (&[usize], DType),
        (targets, index): (&[usize], Index),
        ignore: i64,
        smoothing: f64,
        reduction: Reduction,
    ) -> Result<CrossEntropy> {
        let Some((cols, leading)) = logits.split_last() else {
            return Err(Error::argument(op, "logits", "shape []", "at least 1 dimension"));
        };
        if targets != leading {
            return Err(Error::argument(op, "targets", format!("shape {targets:?}"), format!("shape {leading:?}")));
        }
        if !(0.0..=1.0).contains(&smoothing) {
            return Err(Error::argument(op, "label_smoothing", smoothing, "a number from 0 to 1"));
        }
        let rows: usize = leading.iter().product();
        if rows > u32::MAX as usize || *cols > (i32::MAX as usize) {
            let reason = format!("{rows} rows of {cols}: more than 2^32 rows or 2^31 classes");
            return Err(Error::Unsupported { op, reason });
        }
        Ok(CrossEntropy { rows, cols: *cols, dtype, index, ignore, smoothing, reduction })
    }
}

impl Run<Forward> for Cpu {
    fn run(&self, Forward(problem): &Forward, args: ForwardArgs<'_, Self::Buffer>) -> Result<()> {
        let CrossEntropy { rows, cols, .. } = *problem;
        with_dtype!(problem.dtype, T => with_index!(problem.index, I => {
            // SAFETY: the caller's buffers have the sizes of the problem, and the outputs are different ones.
            unsafe {
                cpu::forward::<T, I>(
                    self.threads(),
                    problem,
                    args.logits.slice(rows * cols),
                    args.targets.slice(rows),
                    args.losses.slice_mut(rows),
                    args.lse.slice_mut(rows),
                    args.reduced.map(|(loss, count)| (&mut loss.slice_mut(1)[0], &mut count.slice_mut(1)[0])),
                )
            }
        }))
    }
}

impl Run<Backward> for Cpu {
    fn run(&self, Backward(problem): &Backward, args: BackwardArgs<'_, Self::Buffer>) -> Result<()> {
        let CrossEntropy { rows, cols, .. } = *problem;
        with_dtype!(problem.dtype, T => with_index!(problem.index, I => {
            // SAFETY: the caller's buffers have the sizes of the problem, and the output is a different one.
            unsafe {
                let grads = if problem.reduction == Reduction::None { rows } else { 1 };
                cpu::backward::<T, I>(
                    self.threads(),
                    problem,
                    args.grad.slice(grads),
                    args.logits.map(|logits| logits.slice(rows * cols)),
                    args.targets.slice(rows),
                    args.lse.slice(rows),
                    args.count.map(|count| count.slice(1)[0]),
                    args.dx.slice_mut(rows * cols),
                );
            }
        }));
        Ok(())
    }
}

/// What the forward pass returns.
pub struct Loss<D: crate::device::Device> {
    /// The losses (rows), or their sum or mean.
    pub loss: Tensor<D>,
    /// (rows).
    pub lse: Tensor<D>,
    /// The number of rows that count, where there is a reduction.
    pub count: Option<Tensor<D>>,
}

/// The loss over the last dimension of `logits`; `targets` holds as many `index` as there are rows.
pub fn cross_entropy<D: Run<Forward>>(
    logits: View<'_, D>,
    targets: (&D::Buffer, Index),
    ignore: i64,
    smoothing: f64,
    reduction: Reduction,
) -> Result<Loss<D>> {
    let leading = &logits.shape[..logits.shape.len().saturating_sub(1)];
    let (shape, targets) = ((logits.shape, logits.dtype), targets);
    let problem = CrossEntropy::new("cross_entropy", shape, (leading, targets.1), ignore, smoothing, reduction)?;
    let empty = |shape: &[usize]| Tensor::empty(logits.device, shape, logits.dtype.compute());
    let (losses, lse) = (empty(leading)?, empty(leading)?);
    let reduced = if reduction == Reduction::None { None } else { Some((empty(&[])?, empty(&[])?)) };
    let args = ForwardArgs {
        logits: logits.buffer,
        targets: targets.0,
        losses: losses.buffer(),
        lse: lse.buffer(),
        reduced: reduced.as_ref().map(|(loss, count)| (loss.buffer(), count.buffer())),
    };
    logits.device.run(&Forward(problem), args)?;
    Ok(match reduced {
        Some((loss, count)) => Loss { loss, lse, count: Some(count) },
        None => Loss { loss: losses, lse, count: None },
    })
}
