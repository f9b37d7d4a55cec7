//! # softmax
//! y = e^(x - m) / s for each row, m its largest element, s = sum e^(x - m).
//!
//! | symbol | shape | |
//! |---|---|---|
//! | x, y, dy, dx | (rows, cols) | float16, bfloat16, float32, float64 (not on Metal); one type |
//!
//! **Gradient**: dx = y (dy - sum(y dy)).
//!
//! **Rounding**: exponentials, sums and products in float32 (float64 for float64); one rounding, to nearest even, at
//! the end. A row with NaN or infinity, or of -infinity alone, is NaN, as torch's.
//!
//! **Error**: forward (rho + gamma + w |x - m|) |y|, backward rho |dx| + 2 gamma (|y dy| + |y| sum |y dy|);
//! gamma = (8 + log2 cols) w, w = 2^-24 (2^-53 for float64).
//!
//! **Cost**: forward reads x and writes y, backward reads y and dy and writes dx: bound by memory. One launch each; a row
//! that the registers of a group do not hold (16384 elements forward) is read twice. No host read, no workspace.
//!
//! **Source**: Milakov & Gimelshein, arXiv 1805.02867, for the maximum and the sum in one pass.

pub mod cpu;
mod gpu;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use gpu::units;

use crate::device::{Problem, Run, cpu::Cpu};
use crate::error::{Error, Result};
use crate::tensor::{Tensor, View};
use crate::{DType, with_dtype};

/// Sizes and type of a call, forward and backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Number of rows.
    pub rows: usize,
    /// Elements in a row.
    pub cols: usize,
    /// Type of every tensor.
    pub dtype: DType,
}

/// The forward pass.
pub struct Forward(pub Rows);
/// The backward pass.
pub struct Backward(pub Rows);

/// Tensors of the forward pass, contiguous.
pub struct ForwardArgs<'a, B> {
    /// (rows, cols).
    pub x: &'a B,
    /// (rows, cols).
    pub y: &'a B,
}

/// Tensors of the backward pass, contiguous.
pub struct BackwardArgs<'a, B> {
    /// (rows, cols), from the forward pass.
    pub y: &'a B,
    /// (rows, cols).
    pub dy: &'a B,
    /// (rows, cols).
    pub dx: &'a B,
}

impl Problem for Forward {
    type Args<'a, B: 'a> = ForwardArgs<'a, B>;
}
impl Problem for Backward {
    type Args<'a, B: 'a> = BackwardArgs<'a, B>;
}

impl Rows {
    /// The last dimension is a row.
    pub fn new(op: &'static str, argument: &'static str, shape: &[usize], dtype: DType) -> Result<Rows> {
        let Some((&cols, batch)) = shape.split_last() else {
            return Err(Error::argument(op, argument, "shape []", "at least 1 dimension"));
        };
        Ok(Rows { rows: batch.iter().product(), cols, dtype })
    }
}

impl Run<Forward> for Cpu {
    fn run(&self, Forward(rows): &Forward, args: ForwardArgs<'_, Self::Buffer>) -> Result<()> {
        let len = rows.rows * rows.cols;
        with_dtype!(rows.dtype, T => {
            // SAFETY: the caller's buffers have the sizes of the problem, and the output is another one.
            let (x, y) = unsafe { (args.x.slice::<T>(len), args.y.slice_mut::<T>(len)) };
            cpu::forward(self.threads(), x, y, rows.cols);
        });
        Ok(())
    }
}

impl Run<Backward> for Cpu {
    fn run(&self, Backward(rows): &Backward, args: BackwardArgs<'_, Self::Buffer>) -> Result<()> {
        let len = rows.rows * rows.cols;
        with_dtype!(rows.dtype, T => {
            // SAFETY: the caller's buffers have the sizes of the problem, and the output is another one.
            let (y, dy, dx) = unsafe { (args.y.slice::<T>(len), args.dy.slice::<T>(len), args.dx.slice_mut::<T>(len)) };
            cpu::backward(self.threads(), y, dy, dx, rows.cols);
        });
        Ok(())
    }
}

/// Softmax of the last dimension of `x`.
pub fn softmax<D: Run<Forward>>(x: View<'_, D>) -> Result<Tensor<D>> {
    let rows = Rows::new("softmax", "x", x.shape, x.dtype)?;
    let y = Tensor::empty(x.device, x.shape, x.dtype)?;
    x.device.run(&Forward(rows), ForwardArgs { x: x.buffer, y: y.buffer() })?;
    Ok(y)
}

/// dx, from y of the forward pass and dy.
pub fn softmax_backward<D: Run<Backward>>(y: View<'_, D>, dy: View<'_, D>) -> Result<Tensor<D>> {
    let rows = Rows::new("softmax", "y", y.shape, y.dtype)?;
    if dy.shape != y.shape {
        let (got, expected) = (format!("shape {:?}", dy.shape), format!("shape {:?}", y.shape));
        return Err(Error::argument("softmax", "dy", got, expected));
    }
    if dy.dtype != y.dtype {
        let (got, expected) = (dy.dtype.to_string(), y.dtype.to_string());
        return Err(Error::DType { op: "softmax", argument: "dy", got, expected });
    }
    let dx = Tensor::empty(y.device, y.shape, y.dtype)?;
    y.device.run(&Backward(rows), BackwardArgs { y: y.buffer, dy: dy.buffer, dx: dx.buffer() })?;
    Ok(dx)
}
