//! # kl_div
//! loss = sum over classes of p (log p - log q) for each row of log-probabilities; log p is the teacher.
//!
//! | symbol | shape | |
//! |---|---|---|
//! | log_p, log_q, dp, dq | (rows, cols) | float16, bfloat16, float32, float64 (not on Metal); one type |
//! | losses, grad | (rows,) | float32 (float64 for float64) |
//!
//! **Gradient**: d log p = g p (1 + log p - log q), d log q = -g p.
//!
//! **Zeros**: where p is 0, or would be subnormal, it contributes 0 to the loss and to both gradients, whatever log q is.
//!
//! **Error**: gamma sum |terms|, gradients rho |d| + gamma |g p| (1 + |log p| + |log p - log q|); gamma =
//! (8 + log2 cols) w, w = 2^-24 (2^-53 for float64).
//!
//! **Cost**: forward reads both tensors, backward reads both and writes the gradients that are wanted: bound by memory.
//! One launch each.

pub mod cpu;
mod gpu;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use gpu::units;

use crate::device::{Device, Problem, Run, cpu::Cpu};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, View};
use crate::{DType, with_dtype};

/// Sizes and type of a call, forward and backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KlDiv {
    /// Number of rows.
    pub rows: usize,
    /// Classes.
    pub cols: usize,
    /// Type of the log-probabilities.
    pub dtype: DType,
}

/// The forward pass.
pub struct Forward(pub KlDiv);
/// The backward pass.
pub struct Backward(pub KlDiv);

/// Tensors of the forward pass, contiguous.
pub struct ForwardArgs<'a, B> {
    /// (rows, cols).
    pub log_p: &'a B,
    /// (rows, cols).
    pub log_q: &'a B,
    /// (rows,), in the type of sums.
    pub losses: &'a B,
}

/// Tensors of the backward pass, contiguous.
pub struct BackwardArgs<'a, B> {
    /// (rows,), in the type of sums.
    pub grad: &'a B,
    /// (rows, cols).
    pub log_p: &'a B,
    /// (rows, cols).
    pub log_q: &'a B,
    /// (rows, cols), where it is wanted.
    pub dp: Option<&'a B>,
    /// (rows, cols), where it is wanted.
    pub dq: Option<&'a B>,
}

impl Problem for Forward {
    type Args<'a, B: 'a> = ForwardArgs<'a, B>;
}
impl Problem for Backward {
    type Args<'a, B: 'a> = BackwardArgs<'a, B>;
}

impl KlDiv {
    /// The last dimension has the classes. Both tensors, shape and type, are to be alike.
    pub fn new(log_p: (&[usize], DType), log_q: (&[usize], DType)) -> Result<KlDiv> {
        let op = "kl_div";
        let (shape, dtype) = log_p;
        let Some((&cols, batch)) = shape.split_last() else {
            return Err(Error::argument(op, "log_p", "shape []", "at least 1 dimension"));
        };
        if log_q.0 != shape {
            return Err(Error::argument(op, "log_q", format!("shape {:?}", log_q.0), format!("shape {shape:?}")));
        }
        if log_q.1 != dtype {
            let (got, expected) = (log_q.1.to_string(), dtype.to_string());
            return Err(Error::DType { op, argument: "log_q", got, expected });
        }
        Ok(KlDiv { rows: batch.iter().product(), cols, dtype })
    }
}

impl Run<Forward> for Cpu {
    fn run(&self, Forward(problem): &Forward, args: ForwardArgs<'_, Self::Buffer>) -> Result<()> {
        let KlDiv { rows, cols, dtype } = *problem;
        with_dtype!(dtype, T => {
            // SAFETY: the caller's buffers have the sizes of the problem, and the output is another one.
            let (log_p, log_q, losses) = unsafe {
                (args.log_p.slice::<T>(rows * cols), args.log_q.slice::<T>(rows * cols), args.losses.slice_mut(rows))
            };
            cpu::forward(self.threads(), log_p, log_q, losses, cols);
        });
        Ok(())
    }
}

impl Run<Backward> for Cpu {
    fn run(&self, Backward(problem): &Backward, args: BackwardArgs<'_, Self::Buffer>) -> Result<()> {
        let KlDiv { rows, cols, dtype } = *problem;
        with_dtype!(dtype, T => {
            // SAFETY: the caller's buffers have the sizes of the problem, and the outputs are others.
            let (grad, log_p, log_q, dp, dq) = unsafe {
                (
                    args.grad.slice(rows),
                    args.log_p.slice::<T>(rows * cols),
                    args.log_q.slice::<T>(rows * cols),
                    args.dp.map(|dp| dp.slice_mut::<T>(rows * cols)),
                    args.dq.map(|dq| dq.slice_mut::<T>(rows * cols)),
                )
            };
            cpu::backward(self.threads(), grad, log_p, log_q, dp, dq, cols);
        });
        Ok(())
    }
}

/// Losses of the rows of `log_p` and `log_q`.
pub fn kl_div<D: Run<Forward>>(log_p: View<'_, D>, log_q: View<'_, D>) -> Result<Tensor<D>> {
    let problem = KlDiv::new((log_p.shape, log_p.dtype), (log_q.shape, log_q.dtype))?;
    let losses = Tensor::empty(log_p.device, &log_p.shape[..log_p.shape.len() - 1], problem.dtype.compute())?;
    let args = ForwardArgs { log_p: log_p.buffer, log_q: log_q.buffer, losses: losses.buffer() };
    log_p.device.run(&Forward(problem), args)?;
    Ok(losses)
}

/// Gradients, where they are wanted.
pub struct Gradients<D: Device> {
    /// d log p
    pub dp: Option<Tensor<D>>,
    /// d log q
    pub dq: Option<Tensor<D>>,
}

/// d log p and d log q, those that are wanted, from the gradient of the losses.
pub fn kl_div_backward<D: Run<Backward>>(
    grad: View<'_, D>,
    log_p: View<'_, D>,
    log_q: View<'_, D>,
    wanted: (bool, bool),
) -> Result<Gradients<D>> {
    let problem = KlDiv::new((log_p.shape, log_p.dtype), (log_q.shape, log_q.dtype))?;
    let rows = &log_p.shape[..log_p.shape.len() - 1];
    if grad.shape != rows {
        let (got, expected) = (format!("shape {:?}", grad.shape), format!("shape {rows:?}"));
        return Err(Error::argument("kl_div", "grad", got, expected));
    }
    if grad.dtype != problem.dtype.compute() {
        let (got, expected) = (grad.dtype.to_string(), problem.dtype.compute().to_string());
        return Err(Error::DType { op: "kl_div", argument: "grad", got, expected });
    }
    let empty = |wanted: bool| wanted.then(|| Tensor::empty(log_p.device, log_p.shape, problem.dtype)).transpose();
    let (dp, dq) = (empty(wanted.0)?, empty(wanted.1)?);
    let args = BackwardArgs {
        grad: grad.buffer,
        log_p: log_p.buffer,
        log_q: log_q.buffer,
        dp: dp.as_ref().map(Tensor::buffer),
        dq: dq.as_ref().map(Tensor::buffer),
    };
    log_p.device.run(&Backward(problem), args)?;
    Ok(Gradients { dp, dq })
}
