//! metalcore::rms_norm_fwd, rms_norm_bwd and their residual forms add_rms_norm_fwd, add_rms_norm_bwd.

use crate::host::Host;
use crate::operator::{Operator, operator};
use metalcore::Result;
use metalcore::device::Run;
use metalcore::ops::rms_norm::{Backward, BackwardArgs, Forward, ForwardArgs, Norm};

/// `normalized`: how many trailing dimensions make a row.
pub const OPERATORS: &[Operator] = &[
    operator!(rms_norm_fwd: "(Tensor x, Tensor? weight, int normalized, float eps) -> (Tensor y, Tensor rstd)"),
    operator!(rms_norm_bwd: "(Tensor dy, Tensor x, Tensor? weight, Tensor rstd, int normalized) -> (Tensor dx, Tensor dw)"),
    operator!(add_rms_norm_fwd: "(Tensor input, Tensor residual, Tensor? weight, int normalized, float eps) -> (Tensor y, Tensor residual_out, Tensor rstd)"),
    operator!(add_rms_norm_bwd: "(Tensor dy, Tensor d_residual_out, Tensor residual_out, Tensor? weight, Tensor rstd, int normalized) -> (Tensor dx, Tensor dw)"),
];

fn rms_norm_fwd<H: Host>(
    host: &H,
    x: H::Tensor,
    weight: Option<H::Tensor>,
    normalized: i64,
    eps: f64,
) -> Result<(H::Tensor, H::Tensor)>
where
    H::Device: Run<Forward>,
{
    let Normed { y, rstd, .. } = forward(host, x, None, weight, normalized, eps)?;
    Ok((y, rstd))
}

fn add_rms_norm_fwd<H: Host>(
    host: &H,
    input: H::Tensor,
    residual: H::Tensor,
    weight: Option<H::Tensor>,
    normalized: i64,
    eps: f64,
) -> Result<(H::Tensor, H::Tensor, H::Tensor)>
where
    H::Device: Run<Forward>,
{
    let Normed { y, sum, rstd } = forward(host, input, Some(residual), weight, normalized, eps)?;
    Ok((y, sum.expect("the residual form has a sum"), rstd))
}

fn rms_norm_bwd<H: Host>(
    host: &H,
    dy: H::Tensor,
    x: H::Tensor,
    weight: Option<H::Tensor>,
    rstd: H::Tensor,
    normalized: i64,
) -> Result<(H::Tensor, H::Tensor)>
where
    H::Device: Run<Backward>,
{
    backward(host, dy, None, x, weight, rstd, normalized)
}

fn add_rms_norm_bwd<H: Host>(
    host: &H,
    dy: H::Tensor,
    d_residual_out: H::Tensor,
    residual_out: H::Tensor,
    weight: Option<H::Tensor>,
    rstd: H::Tensor,
    normalized: i64,
) -> Result<(H::Tensor, H::Tensor)>
where
    H::Device: Run<Backward>,
{
    backward(host, dy, Some(d_residual_out), residual_out, weight, rstd, normalized)
}

fn norm<H: Host>(
    host: &H,
    op: &'static str,
    x: &H::Tensor,
    weight: Option<&H::Tensor>,
    normalized: i64,
    eps: f64,
) -> Result<Norm> {
    let weight = match weight {
        Some(weight) => {
            host.check_place(op, "weight", weight)?;
            Some((host.shape(weight), host.known_dtype(op, "weight", weight)?))
        }
        None => None,
    };
    let weight = weight.as_ref().map(|(shape, dtype)| (&shape[..], *dtype));
    let normalized = usize::try_from(normalized).unwrap_or(0);
    Norm::new(op, (&host.shape(x), host.known_dtype(op, "input", x)?), normalized, weight, eps)
}

/// What the forward pass returns.
struct Normed<T> {
    /// The result.
    pub y: T,
    /// x + residual, rounded, where there is a residual.
    pub sum: Option<T>,
    /// 1 / sqrt(mean + eps) of each row.
    pub rstd: T,
}

/// The forward pass, with or without a residual.
fn forward<H: Host>(
    host: &H,
    x: H::Tensor,
    residual: Option<H::Tensor>,
    weight: Option<H::Tensor>,
    normalized: i64,
    eps: f64,
) -> Result<Normed<H::Tensor>>
where
    H::Device: Run<Forward>,
{
    let op = if residual.is_some() { "fused_add_rmsnorm" } else { "rms_norm" };
    let norm = norm(host, op, &x, weight.as_ref(), normalized, eps)?;
    let shape = host.shape(&x);
    if let Some(residual) = &residual {
        host.check_same(op, ("residual", residual), (&shape, norm.dtype))?;
    }
    let x = host.contiguous(x)?;
    let residual = residual.map(|t| host.contiguous(t)).transpose()?;
    let weight = weight.map(|t| host.contiguous(t)).transpose()?;
    let y = host.empty(&shape, norm.dtype)?;
    let sum = residual.as_ref().map(|_| host.empty(&shape, norm.dtype)).transpose()?;
    let rstd = host.empty(&shape[..shape.len() - normalized as usize], norm.dtype.compute())?;
    let (x_buffer, y_buffer, rstd_buffer) = (host.buffer(&x), host.buffer(&y), host.buffer(&rstd));
    let weight_buffer = weight.as_ref().map(|t| host.buffer(t));
    let pair = residual.as_ref().zip(sum.as_ref()).map(|(r, s)| (host.buffer(r), host.buffer(s)));
    let args = ForwardArgs {
        x: &x_buffer,
        residual: pair.as_ref().map(|(r, s)| (r, s)),
        weight: weight_buffer.as_ref(),
        y: &y_buffer,
        rstd: &rstd_buffer,
    };
    host.device().run(&Forward(norm), args)?;
    Ok(Normed { y, sum, rstd })
}

/// dx and dw; dw is empty without a weight.
fn backward<H: Host>(
    host: &H,
    dy: H::Tensor,
    d_sum: Option<H::Tensor>,
    h: H::Tensor,
    weight: Option<H::Tensor>,
    rstd: H::Tensor,
    normalized: i64,
) -> Result<(H::Tensor, H::Tensor)>
where
    H::Device: Run<Backward>,
{
    let op = "rms_norm";
    host.check_place(op, "input", &h)?;
    let norm = norm(host, op, &h, weight.as_ref(), normalized, 0.0)?;
    let shape = host.shape(&h);
    host.check_same(op, ("dy", &dy), (&shape, norm.dtype))?;
    host.check_same(op, ("rstd", &rstd), (&shape[..shape.len() - normalized as usize], norm.dtype.compute()))?;
    if let Some(d_sum) = &d_sum {
        host.check_same(op, ("d_residual_out", d_sum), (&shape, norm.dtype))?;
    }
    let [dy, h, rstd] = [host.contiguous(dy)?, host.contiguous(h)?, host.contiguous(rstd)?];
    let d_sum = d_sum.map(|t| host.contiguous(t)).transpose()?;
    let weight = weight.map(|t| host.contiguous(t)).transpose()?;
    let dx = host.empty(&shape, norm.dtype)?;
    let dw = match &weight {
        Some(weight) => host.empty(&host.shape(weight), norm.weight.unwrap_or(norm.dtype))?,
        None => host.empty(&[0], norm.dtype)?,
    };
    let [dy_buffer, h_buffer, rstd_buffer, dx_buffer, dw_buffer] = [&dy, &h, &rstd, &dx, &dw].map(|t| host.buffer(t));
    let weight_buffer = weight.as_ref().map(|t| host.buffer(t));
    let sum_buffer = d_sum.as_ref().map(|t| host.buffer(t));
    let args = BackwardArgs {
        dy: &dy_buffer,
        h: &h_buffer,
        weight: weight_buffer.as_ref(),
        rstd: &rstd_buffer,
        d_sum: sum_buffer.as_ref(),
        dx: &dx_buffer,
        dw: weight_buffer.as_ref().map(|_| &dw_buffer),
    };
    host.device().run(&Backward(norm), args)?;
    Ok((dx, dw))
}
