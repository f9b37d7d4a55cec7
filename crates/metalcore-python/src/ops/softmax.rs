//! metalcore::softmax_fwd, softmax_bwd.

use crate::host::Host;
use crate::operator::{Operator, operator};
use metalcore::Result;
use metalcore::device::Run;
use metalcore::ops::softmax::{Backward, BackwardArgs, Forward, ForwardArgs, Rows};

/// Of the last dimension.
pub const OPERATORS: &[Operator] = &[
    operator!(softmax_fwd: "(Tensor x) -> Tensor"),
    operator!(softmax_bwd: "(Tensor probs, Tensor d_probs) -> Tensor"),
];

fn softmax_fwd<H: Host>(host: &H, x: H::Tensor) -> Result<H::Tensor>
where
    H::Device: Run<Forward>,
{
    let op = "fused_softmax";
    let shape = host.shape(&x);
    let rows = Rows::new(op, "x", &shape, host.known_dtype(op, "x", &x)?)?;
    let x = host.contiguous(x)?;
    let y = host.empty(&shape, rows.dtype)?;
    host.device().run(&Forward(rows), ForwardArgs { x: &host.buffer(&x), y: &host.buffer(&y) })?;
    Ok(y)
}

fn softmax_bwd<H: Host>(host: &H, probs: H::Tensor, d_probs: H::Tensor) -> Result<H::Tensor>
where
    H::Device: Run<Backward>,
{
    let op = "softmax_bwd";
    let shape = host.shape(&probs);
    let rows = Rows::new(op, "probs", &shape, host.known_dtype(op, "probs", &probs)?)?;
    host.check_same(op, ("d_probs", &d_probs), (&shape, rows.dtype))?;
    let [probs, d_probs] = [host.contiguous(probs)?, host.contiguous(d_probs)?];
    let dx = host.empty(&shape, rows.dtype)?;
    let [y, dy, out] = [&probs, &d_probs, &dx].map(|tensor| host.buffer(tensor));
    host.device().run(&Backward(rows), BackwardArgs { y: &y, dy: &dy, dx: &out })?;
    Ok(dx)
}
