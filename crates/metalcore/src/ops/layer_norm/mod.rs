//! # layer_norm, add_layer_norm
//! y = (h - m) r w + b, m = mean(h), r = 1 / sqrt(mean((h - m)^2) + eps) for each row; h = x, or h = round(x + residual),
//! which is returned too.
//!
//! | symbol | shape | |
//! |---|---|---|
//! | x, residual, y, h | (rows, cols) | float16, bfloat16, float32, float64 (not on Metal); one type |
//! | w, b | (cols) | any of these types (float64 only with float64), or none |
//! | m, r | (rows) | float32; float64 for float64 |
//!
//! **Gradient**, n = (h - m) r, g = dy w: dh = r (g - mean(g) - n mean(g n)) + d_h; dw = sum over rows of dy n;
//! db = sum over rows of dy.
//!
//! **Rounding**: sums, m, r and products in float32 (float64 for float64); one rounding, to nearest even, at the end. The
//! variance is that of centred values.
//!
//! **Error**: forward rho |y| + gamma ((|h| + |m|) r |w| + |b|), gamma = (8 + log2 cols) 2^-24.
//!
//! **Cost**: forward reads x and writes y, backward reads dy and x and writes dx: bound by memory. One launch forward;
//! backward two with a weight or a bias (partial sums per row slot, then their ordered sum: the same bits every time),
//! else one. A row that the registers of a group do not hold (16384 elements) is read three times forward, twice
//! backward. No host read. Workspace of backward: 2 slots * cols values of r's type.
//!
//! **Source**: Ba, Kiros & Hinton, arXiv 1607.06450.

pub mod cpu;
mod gpu;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use gpu::units;

use crate::device::cpu::{Cpu, rows::widened};
use crate::device::{Problem, Run};
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
    /// Added to the variance.
    pub eps: f64,
    /// Type of x.
    pub dtype: DType,
    /// Type of the weight, if there is one.
    pub weight: Option<DType>,
    /// Type of the bias, if there is one.
    pub bias: Option<DType>,
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
    /// (cols); present as the problem says.
    pub bias: Option<&'a B>,
    /// (rows, cols).
    pub y: &'a B,
    /// (rows).
    pub mean: &'a B,
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
    pub mean: &'a B,
    /// (rows), from the forward pass.
    pub rstd: &'a B,
    /// Gradient of the rounded sum itself, for the residual form.
    pub d_sum: Option<&'a B>,
    /// (rows, cols).
    pub dx: &'a B,
    /// (cols); present as the problem says.
    pub dw: Option<&'a B>,
    /// (cols); present as the problem says.
    pub db: Option<&'a B>,
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
        (shape, dtype): (&[usize], DType),
        normalized: usize,
        weight: Option<(&[usize], DType)>,
        bias: Option<(&[usize], DType)>,
        eps: f64,
    ) -> Result<Norm> {
        if normalized == 0 || normalized > shape.len() {
            let expected = format!("1 to {} trailing dimensions of x", shape.len());
            return Err(Error::argument(op, "normalized_shape", format!("{normalized} dimensions"), expected));
        }
        let (batch, row) = shape.split_at(shape.len() - normalized);
        for (argument, given) in [("weight", weight), ("bias", bias)] {
            let Some((given, given_dtype)) = given else { continue };
            if given != row {
                return Err(Error::argument(op, argument, format!("shape {given:?}"), format!("shape {row:?}")));
            }
            if given_dtype == DType::F64 && dtype != DType::F64 {
                let expected = format!("float32, float16 or bfloat16 for x of {dtype}");
                return Err(Error::DType { op, argument, got: given_dtype.to_string(), expected });
            }
        }
        let (rows, cols) = (batch.iter().product(), row.iter().product());
        Ok(Norm { rows, cols, eps, dtype, weight: weight.map(|(_, dtype)| dtype), bias: bias.map(|(_, dtype)| dtype) })
    }
}

impl Run<Forward> for Cpu {
    fn run(&self, Forward(norm): &Forward, args: ForwardArgs<'_, Self::Buffer>) -> Result<()> {
        let Norm { rows, cols, dtype, .. } = *norm;
        // SAFETY: the caller's buffers have the sizes of the problem, and the outputs are different ones.
        unsafe {
            with_dtype!(norm.weight.unwrap_or(dtype), W => with_dtype!(norm.bias.unwrap_or(dtype), B => with_dtype!(dtype, T => {
                let bias = args.bias.map(|b| widened(Some(b.slice::<B>(cols)), cols));
                cpu::forward::<T>(
                    self.threads(),
                    args.x.slice(rows * cols),
                    args.residual.map(|(residual, sum)| (residual.slice(rows * cols), sum.slice_mut(rows * cols))),
                    &widened(args.weight.map(|w| w.slice::<W>(cols)), cols),
                    bias.as_deref(),
                    args.y.slice_mut(rows * cols),
                    args.mean.slice_mut(rows),
                    args.rstd.slice_mut(rows),
                    norm.eps,
                );
            })));
        }
        Ok(())
    }
}

impl Run<Backward> for Cpu {
    fn run(&self, Backward(norm): &Backward, args: BackwardArgs<'_, Self::Buffer>) -> Result<()> {
        let Norm { rows, cols, dtype, .. } = *norm;
        // SAFETY: the caller's buffers have the sizes of the problem, and the outputs are different ones.
        unsafe {
            with_dtype!(norm.weight.unwrap_or(dtype), W => with_dtype!(norm.bias.unwrap_or(dtype), B => with_dtype!(dtype, T => {
                let mut sums = cpu::backward::<T>(
                    self.threads(),
                    args.dy.slice(rows * cols),
                    args.h.slice(rows * cols),
                    &widened(args.weight.map(|w| w.slice::<W>(cols)), cols),
                    (args.mean.slice(rows), args.rstd.slice(rows)),
                    args.d_sum.map(|d| d.slice(rows * cols)),
                    args.dx.slice_mut(rows * cols),
                    args.dw.is_some() || args.db.is_some(),
                );
                sums.resize(2 * cols, Default::default());
                if let Some(dw) = args.dw {
                    cpu::rounded::<T, W>(&sums[..cols], dw.slice_mut(cols));
                }
                if let Some(db) = args.db {
                    cpu::rounded::<T, B>(&sums[cols..], db.slice_mut(cols));
                }
            })));
        }
        Ok(())
    }
}

/// y, mean and rstd of the last dimension of `x`.
pub fn layer_norm<D: Run<Forward>>(
    x: View<'_, D>,
    weight: Option<View<'_, D>>,
    bias: Option<View<'_, D>>,
    eps: f64,
) -> Result<(Tensor<D>, Tensor<D>, Tensor<D>)> {
    let [w, b] = [weight, bias].map(|t| t.map(|t| (t.shape, t.dtype)));
    let norm = Norm::new("layer_norm", (x.shape, x.dtype), 1, w, b, eps)?;
    let y = Tensor::empty(x.device, x.shape, x.dtype)?;
    let row = || Tensor::empty(x.device, &x.shape[..x.shape.len() - 1], x.dtype.compute());
    let (mean, rstd) = (row()?, row()?);
    let args = ForwardArgs {
        x: x.buffer,
        residual: None,
        weight: weight.map(|w| w.buffer),
        bias: bias.map(|b| b.buffer),
        y: y.buffer(),
        mean: mean.buffer(),
        rstd: rstd.buffer(),
    };
    x.device.run(&Forward(norm), args)?;
    Ok((y, mean, rstd))
}

/// Gradients of a layer norm.
pub struct Gradients<D: crate::device::Device> {
    /// Of x.
    pub dx: Tensor<D>,
    /// Of the weight, if there is one.
    pub dw: Option<Tensor<D>>,
    /// Of the bias, if there is one.
    pub db: Option<Tensor<D>>,
}

/// Gradients from dy, x, the weight, the bias (its type alone), and mean and rstd of the forward pass.
pub fn layer_norm_backward<D: Run<Backward>>(
    dy: View<'_, D>,
    x: View<'_, D>,
    weight: Option<View<'_, D>>,
    bias: Option<View<'_, D>>,
    mean: View<'_, D>,
    rstd: View<'_, D>,
) -> Result<Gradients<D>> {
    let [w, b] = [weight, bias].map(|t| t.map(|t| (t.shape, t.dtype)));
    let norm = Norm::new("layer_norm", (x.shape, x.dtype), 1, w, b, 0.0)?;
    let batch = &x.shape[..x.shape.len() - 1];
    for (argument, view, expected) in [("dy", &dy, x.shape), ("mean", &mean, batch), ("rstd", &rstd, batch)] {
        if view.shape != expected {
            let got = format!("shape {:?}", view.shape);
            return Err(Error::argument("layer_norm", argument, got, format!("shape {expected:?}")));
        }
    }
    let dx = Tensor::empty(x.device, x.shape, x.dtype)?;
    let dw = weight.map(|w| Tensor::empty(x.device, w.shape, w.dtype)).transpose()?;
    let db = bias.map(|b| Tensor::empty(x.device, b.shape, b.dtype)).transpose()?;
    let args = BackwardArgs {
        dy: dy.buffer,
        h: x.buffer,
        weight: weight.map(|w| w.buffer),
        mean: mean.buffer,
        rstd: rstd.buffer,
        d_sum: None,
        dx: dx.buffer(),
        dw: dw.as_ref().map(Tensor::buffer),
        db: db.as_ref().map(Tensor::buffer),
    };
    x.device.run(&Backward(norm), args)?;
    Ok(Gradients { dx, dw, db })
}
