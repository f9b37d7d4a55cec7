//! # rms_norm, add_rms_norm
//! y = h r w, r = 1 / sqrt(mean(h^2) + eps) for each row; h = x, or h = round(x + residual), which is returned too.
//!
//! | symbol | shape | |
//! |---|---|---|
//! | x, residual, y, h | (rows, cols) | float16, bfloat16, float32, float64 (not on Metal); one type |
//! | w | (cols) | any of these types (float64 only with float64), or none |
//! | r | (rows) | float32; float64 for float64 |
//!
//! **Gradient**, h_w = dy w: dh = r h_w - h (r^3 / cols) sum(h_w h) + d_h; dw = sum over rows of dy h r.
//!
//! **Rounding**: sums, r and products in float32 (float64 for float64); one rounding, to nearest even, at the end.
//!
//! **Error**: forward (rho + gamma) |y|, backward as CONTRACT 3.4; gamma = (8 + log2 cols) 2^-24.
//!
//! **Cost**: forward reads x and writes y, backward reads dy and x and writes dx: bound by memory. One launch forward;
//! backward two with a weight (partial sums per row slot, then their ordered sum: the same bits every time), else one.
//! No host read. Workspace of backward: slots * cols values of r's type.
//!
//! **Source**: Zhang & Sennrich, arXiv 1910.07467.

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

/// Sizes and types of a call, forward and backward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Number of rows.
    pub rows: usize,
    /// Elements in a row.
    pub cols: usize,
    /// Added to the mean square.
    pub eps: f64,
    /// Type of x.
    pub dtype: DType,
    /// Type of the weight, if there is one.
    pub weight: Option<DType>,
}

/// The forward pass.
pub struct Forward(pub Norm);
/// The backward pass.
pub struct Backward(pub Norm);

/// Tensors of the forward pass, contiguous.
pub struct ForwardArgs<'a, B> {
    /// (rows, cols).
    pub x: &'a B,
    /// What is added to x, and where the rounded sum goes.
    pub residual: Option<(&'a B, &'a B)>,
    /// (cols); present as the problem says.
    pub weight: Option<&'a B>,
    /// (rows, cols).
    pub y: &'a B,
    /// (rows).
    pub rstd: &'a B,
}

/// Tensors of the backward pass, contiguous.
pub struct BackwardArgs<'a, B> {
    /// (rows, cols).
    pub dy: &'a B,
    /// h: x, or the rounded sum.
    pub h: &'a B,
    /// (cols); present as the problem says.
    pub weight: Option<&'a B>,
    /// (rows), from the forward pass.
    pub rstd: &'a B,
    /// Gradient of the rounded sum itself, for the residual form.
    pub d_sum: Option<&'a B>,
    /// (rows, cols).
    pub dx: &'a B,
    /// (cols); present as the problem says.
    pub dw: Option<&'a B>,
}

impl Problem for Forward {
    type Args<'a, B: 'a> = ForwardArgs<'a, B>;
}
impl Problem for Backward {
    type Args<'a, B: 'a> = BackwardArgs<'a, B>;
}

impl Norm {
    /// Checks shapes and types; `normalized` is the number of trailing dimensions of x in a row.
    pub fn new(
        op: &'static str,
        x: (&[usize], DType),
        normalized: usize,
        weight: Option<(&[usize], DType)>,
        eps: f64,
    ) -> Result<Norm> {
        let (shape, dtype) = x;
        if normalized == 0 || normalized > shape.len() {
            let expected = format!("1 to {} trailing dimensions of x", shape.len());
            return Err(Error::argument(op, "normalized_shape", format!("{normalized} dimensions"), expected));
        }
        let row = &shape[shape.len() - normalized..];
        if let Some((weight, weight_dtype)) = weight {
            if weight != row {
                return Err(Error::argument(op, "weight", format!("shape {weight:?}"), format!("shape {row:?}")));
            }
            if weight_dtype == DType::F64 && dtype != DType::F64 {
                let expected = format!("float32, float16 or bfloat16 for x of {dtype}");
                return Err(Error::DType { op, argument: "weight", got: weight_dtype.to_string(), expected });
            }
        }
        let rows = shape[..shape.len() - normalized].iter().product();
        Ok(Norm { rows, cols: row.iter().product(), eps, dtype, weight: weight.map(|(_, dtype)| dtype) })
    }
}

impl Run<Forward> for Cpu {
    fn run(&self, Forward(norm): &Forward, args: ForwardArgs<'_, Self::Buffer>) -> Result<()> {
        let Norm { rows, cols, .. } = *norm;
        with_dtype!(norm.dtype, T => with_dtype!(norm.weight.unwrap_or(norm.dtype), W => {
            // SAFETY: the caller's buffers have the sizes of the problem, and the outputs are different ones.
            unsafe {
                cpu::forward::<T, W>(
                    self.threads(),
                    args.x.slice(rows * cols),
                    args.residual.map(|(residual, _)| residual.slice(rows * cols)),
                    args.weight.map(|w| w.slice(cols)),
                    args.y.slice_mut(rows * cols),
                    args.residual.map(|(_, sum)| sum.slice_mut(rows * cols)),
                    args.rstd.slice_mut(rows),
                    rows,
                    cols,
                    norm.eps,
                );
            }
        }));
        Ok(())
    }
}

impl Run<Backward> for Cpu {
    fn run(&self, Backward(norm): &Backward, args: BackwardArgs<'_, Self::Buffer>) -> Result<()> {
        let Norm { rows, cols, .. } = *norm;
        with_dtype!(norm.dtype, T => with_dtype!(norm.weight.unwrap_or(norm.dtype), W => {
            // SAFETY: the caller's buffers have the sizes of the problem, and the outputs are different ones.
            unsafe {
                cpu::backward::<T, W>(
                    self.threads(),
                    args.dy.slice(rows * cols),
                    args.h.slice(rows * cols),
                    args.weight.map(|w| w.slice(cols)),
                    args.rstd.slice(rows),
                    args.d_sum.map(|d| d.slice(rows * cols)),
                    args.dx.slice_mut(rows * cols),
                    args.dw.map(|dw| dw.slice_mut(cols)),
                    rows,
                    cols,
                );
            }
        }));
        Ok(())
    }
}

/// y and rstd of the last dimension of `x`.
pub fn rms_norm<D: Run<Forward>>(
    x: View<'_, D>,
    weight: Option<View<'_, D>>,
    eps: f64,
) -> Result<(Tensor<D>, Tensor<D>)> {
    let norm = Norm::new("rms_norm", (x.shape, x.dtype), 1, weight.map(|w| (w.shape, w.dtype)), eps)?;
    let y = Tensor::empty(x.device, x.shape, x.dtype)?;
    let rstd = Tensor::empty(x.device, &x.shape[..x.shape.len() - 1], x.dtype.compute())?;
    let (y_buffer, rstd_buffer) = (y.buffer(), rstd.buffer());
    let weight = weight.map(|w| w.buffer);
    x.device
        .run(&Forward(norm), ForwardArgs { x: x.buffer, residual: None, weight, y: y_buffer, rstd: rstd_buffer })?;
    Ok((y, rstd))
}

/// dx and dw, from dy, x, the weight and rstd of the forward pass.
pub fn rms_norm_backward<D: Run<Backward> + Device>(
    dy: View<'_, D>,
    x: View<'_, D>,
    weight: Option<View<'_, D>>,
    rstd: View<'_, D>,
) -> Result<(Tensor<D>, Option<Tensor<D>>)> {
    let norm = Norm::new("rms_norm", (x.shape, x.dtype), 1, weight.map(|w| (w.shape, w.dtype)), 0.0)?;
    for (argument, view, expected) in [("dy", &dy, x.shape), ("rstd", &rstd, &x.shape[..x.shape.len() - 1])] {
        if view.shape != expected {
            let got = format!("shape {:?}", view.shape);
            return Err(Error::argument("rms_norm", argument, got, format!("shape {expected:?}")));
        }
    }
    let dx = Tensor::empty(x.device, x.shape, x.dtype)?;
    let dw = weight.map(|w| Tensor::empty(x.device, w.shape, w.dtype)).transpose()?;
    let args = BackwardArgs {
        dy: dy.buffer,
        h: x.buffer,
        weight: weight.map(|w| w.buffer),
        rstd: rstd.buffer,
        d_sum: None,
        dx: dx.buffer(),
        dw: dw.as_ref().map(Tensor::buffer),
    };
    x.device.run(&Backward(norm), args)?;
    Ok((dx, dw))
}
