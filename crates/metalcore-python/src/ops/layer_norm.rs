//! metalcore::layer_norm_fwd, layer_norm_bwd and their residual forms add_layer_norm_fwd, add_layer_norm_bwd.

use crate::host::{Four, Host};
use crate::operator::{Operator, operator};
use metalcore::device::Run;
use metalcore::ops::layer_norm::{Backward, BackwardArgs, Forward, ForwardArgs, Norm};
use metalcore::{DType, Result};

/// `normalized`: how many trailing dimensions make a row. dw and db are empty without a weight or a bias.
pub const OPERATORS: &[Operator] = &[
    operator!(layer_norm_fwd: "(Tensor x, Tensor? weight, Tensor? bias, int normalized, float eps) -> (Tensor y, Tensor mean, Tensor rstd)"),
    operator!(layer_norm_bwd: "(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, int normalized) -> (Tensor dx, Tensor dw, Tensor db)"),
    operator!(add_layer_norm_fwd: "(Tensor input, Tensor residual, Tensor? weight, Tensor? bias, int normalized, float eps) -> (Tensor y, Tensor residual_out, Tensor mean, Tensor rstd)"),
    operator!(add_layer_norm_bwd: "(Tensor dy, Tensor d_residual_out, Tensor residual_out, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd, int normalized) -> (Tensor dx, Tensor dw, Tensor db)"),
];

type Three<H> = (<H as Host>::Tensor, <H as Host>::Tensor, <H as Host>::Tensor);
fn layer_norm_fwd<H: Host>(
    host: &H,
    x: H::Tensor,
    weight: Option<H::Tensor>,
    bias: Option<H::Tensor>,
    normalized: i64,
    eps: f64,
) -> Result<Three<H>>
where
    H::Device: Run<Forward>,
{
    Ok(forward(host, x, None, weight, bias, normalized, eps)?.0)
}

fn add_layer_norm_fwd<H: Host>(
    host: &H,
    input: H::Tensor,
    residual: H::Tensor,
    weight: Option<H::Tensor>,
    bias: Option<H::Tensor>,
    normalized: i64,
    eps: f64,
) -> Result<Four<H>>
where
    H::Device: Run<Forward>,
{
    let ((y, mean, rstd), sum) = forward(host, input, Some(residual), weight, bias, normalized, eps)?;
    Ok((y, sum.expect("the residual form has a sum"), mean, rstd))
}

fn layer_norm_bwd<H: Host>(
    host: &H,
    dy: H::Tensor,
    x: H::Tensor,
    weight: Option<H::Tensor>,
    bias: Option<H::Tensor>,
    mean: H::Tensor,
    rstd: H::Tensor,
    normalized: i64,
) -> Result<Three<H>>
where
    H::Device: Run<Backward>,
{
    backward(host, dy, None, x, (weight, bias), (mean, rstd), normalized)
}

fn add_layer_norm_bwd<H: Host>(
    host: &H,
    dy: H::Tensor,
    d_residual_out: H::Tensor,
    residual_out: H::Tensor,
    weight: Option<H::Tensor>,
    bias: Option<H::Tensor>,
    mean: H::Tensor,
    rstd: H::Tensor,
    normalized: i64,
) -> Result<Three<H>>
where
    H::Device: Run<Backward>,
{
    backward(host, dy, Some(d_residual_out), residual_out, (weight, bias), (mean, rstd), normalized)
}

fn norm<H: Host>(
    host: &H,
    op: &'static str,
    x: &H::Tensor,
    weight: Option<&H::Tensor>,
    bias: Option<&H::Tensor>,
    normalized: i64,
    eps: f64,
) -> Result<Norm> {
    let known = |argument, tensor: Option<&H::Tensor>| -> Result<Option<(Vec<usize>, DType)>> {
        let Some(tensor) = tensor else { return Ok(None) };
        host.check_place(op, argument, tensor)?;
        Ok(Some((host.shape(tensor), host.known_dtype(op, argument, tensor)?)))
    };
    let (weight, bias) = (known("weight", weight)?, known("bias", bias)?);
    let [weight, bias] = [&weight, &bias].map(|t| t.as_ref().map(|(shape, dtype)| (&shape[..], *dtype)));
    let normalized = usize::try_from(normalized).unwrap_or(0);
    Norm::new(op, (&host.shape(x), host.known_dtype(op, "input", x)?), normalized, weight, bias, eps)
}

/// The forward pass, with or without a residual: (y, mean, rstd), and the rounded sum.
fn forward<H: Host>(
    host: &H,
    x: H::Tensor,
    residual: Option<H::Tensor>,
    weight: Option<H::Tensor>,
    bias: Option<H::Tensor>,
    normalized: i64,
    eps: f64,
) -> Result<(Three<H>, Option<H::Tensor>)>
where
    H::Device: Run<Forward>,
{
    let op = if residual.is_some() { "fused_add_layernorm" } else { "layer_norm" };
    let norm = norm(host, op, &x, weight.as_ref(), bias.as_ref(), normalized, eps)?;
    let shape = host.shape(&x);
    if let Some(residual) = &residual {
        host.check_same(op, ("residual", residual), (&shape, norm.dtype))?;
    }
    let x = host.contiguous(x)?;
    let residual = residual.map(|t| host.contiguous(t)).transpose()?;
    let weight = weight.map(|t| host.contiguous(t)).transpose()?;
    let bias = bias.map(|t| host.contiguous(t)).transpose()?;
    let y = host.empty(&shape, norm.dtype)?;
    let sum = residual.as_ref().map(|_| host.empty(&shape, norm.dtype)).transpose()?;
    let row = || host.empty(&shape[..shape.len() - normalized as usize], norm.dtype.compute());
    let (mean, rstd) = (row()?, row()?);
    let [x_buffer, y_buffer, mean_buffer, rstd_buffer] = [&x, &y, &mean, &rstd].map(|t| host.buffer(t));
    let [weight_buffer, bias_buffer] = [&weight, &bias].map(|t| t.as_ref().map(|t| host.buffer(t)));
    let pair = residual.as_ref().zip(sum.as_ref()).map(|(r, s)| (host.buffer(r), host.buffer(s)));
    let args = ForwardArgs {
        x: &x_buffer,
        residual: pair.as_ref().map(|(r, s)| (r, s)),
        weight: weight_buffer.as_ref(),
        bias: bias_buffer.as_ref(),
        y: &y_buffer,
        mean: &mean_buffer,
        rstd: &rstd_buffer,
    };
    host.device().run(&Forward(norm), args)?;
    Ok(((y, mean, rstd), sum))
}

/// dx, dw, db.
fn backward<H: Host>(
    host: &H,
    dy: H::Tensor,
    d_sum: Option<H::Tensor>,
    h: H::Tensor,
    (weight, bias): (Option<H::Tensor>, Option<H::Tensor>),
    (mean, rstd): (H::Tensor, H::Tensor),
    normalized: i64,
) -> Result<Three<H>>
where
    H::Device: Run<Backward>,
{
    let op = "layer_norm";
    host.check_place(op, "input", &h)?;
    let norm = norm(host, op, &h, weight.as_ref(), bias.as_ref(), normalized, 0.0)?;
    let shape = host.shape(&h);
    let batch = &shape[..shape.len() - normalized as usize];
    host.check_same(op, ("dy", &dy), (&shape, norm.dtype))?;
    host.check_same(op, ("mean", &mean), (batch, norm.dtype.compute()))?;
    host.check_same(op, ("rstd", &rstd), (batch, norm.dtype.compute()))?;
    if let Some(d_sum) = &d_sum {
        host.check_same(op, ("d_residual_out", d_sum), (&shape, norm.dtype))?;
    }
    let [dy, h, mean, rstd] =
        [host.contiguous(dy)?, host.contiguous(h)?, host.contiguous(mean)?, host.contiguous(rstd)?];
    let d_sum = d_sum.map(|t| host.contiguous(t)).transpose()?;
    let weight = weight.map(|t| host.contiguous(t)).transpose()?;
    let row = &shape[shape.len() - normalized as usize..];
    let gradient = |dtype: Option<DType>| match dtype {
        Some(dtype) => host.empty(row, dtype),
        None => host.empty(&[0], norm.dtype),
    };
    let (dx, dw, db) = (host.empty(&shape, norm.dtype)?, gradient(norm.weight)?, gradient(norm.bias)?);
    let [dy_buffer, h_buffer, mean_buffer, rstd_buffer] = [&dy, &h, &mean, &rstd].map(|t| host.buffer(t));
    let [dx_buffer, dw_buffer, db_buffer] = [&dx, &dw, &db].map(|t| host.buffer(t));
    let [weight_buffer, sum_buffer] = [&weight, &d_sum].map(|t| t.as_ref().map(|t| host.buffer(t)));
    let args = BackwardArgs {
        dy: &dy_buffer,
        h: &h_buffer,
        weight: weight_buffer.as_ref(),
        mean: &mean_buffer,
        rstd: &rstd_buffer,
        d_sum: sum_buffer.as_ref(),
        dx: &dx_buffer,
        dw: norm.weight.map(|_| &dw_buffer),
        db: norm.bias.map(|_| &db_buffer),
    };
    host.device().run(&Backward(norm), args)?;
    Ok((dx, dw, db))
}
