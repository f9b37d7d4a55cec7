//! metalcore::kl_div_fwd, kl_div_bwd.

use crate::host::Host;
use crate::operator::{Operator, operator};
use metalcore::Result;
use metalcore::device::Run;
use metalcore::ops::kl_div::{Backward, BackwardArgs, Forward, ForwardArgs, KlDiv};

/// Of the last dimension. `for_p`, `for_q`: which gradients are wanted; the other is empty.
pub const OPERATORS: &[Operator] = &[
    operator!(kl_div_fwd: "(Tensor log_p, Tensor log_q) -> Tensor"),
    operator!(kl_div_bwd: "(Tensor grad, Tensor log_p, Tensor log_q, bool for_p, bool for_q) -> (Tensor dp, Tensor dq)"),
];

const OP: &str = "kl_div";

fn problem<H: Host>(host: &H, log_p: &H::Tensor, log_q: &H::Tensor) -> Result<KlDiv> {
    host.check_place(OP, "log_q", log_q)?;
    let [p, q] = [("log_p", log_p), ("log_q", log_q)]
        .map(|(name, tensor)| host.known_dtype(OP, name, tensor).map(|dtype| (host.shape(tensor), dtype)));
    let (p, q) = (p?, q?);
    KlDiv::new((&p.0, p.1), (&q.0, q.1))
}

fn kl_div_fwd<H: Host>(host: &H, log_p: H::Tensor, log_q: H::Tensor) -> Result<H::Tensor>
where
    H::Device: Run<Forward>,
{
    let problem = problem(host, &log_p, &log_q)?;
    let shape = host.shape(&log_p);
    let (log_p, log_q) = (host.contiguous(log_p)?, host.contiguous(log_q)?);
    let losses = host.empty(&shape[..shape.len() - 1], problem.dtype.compute())?;
    let [x, y, out] = [&log_p, &log_q, &losses].map(|tensor| host.buffer(tensor));
    host.device().run(&Forward(problem), ForwardArgs { log_p: &x, log_q: &y, losses: &out })?;
    Ok(losses)
}

fn kl_div_bwd<H: Host>(
    host: &H,
    grad: H::Tensor,
    log_p: H::Tensor,
    log_q: H::Tensor,
    for_p: bool,
    for_q: bool,
) -> Result<(H::Tensor, H::Tensor)>
where
    H::Device: Run<Backward>,
{
    host.check_place(OP, "log_p", &log_p)?;
    let problem = problem(host, &log_p, &log_q)?;
    let shape = host.shape(&log_p);
    host.check_same(OP, ("grad", &grad), (&shape[..shape.len() - 1], problem.dtype.compute()))?;
    let [grad, log_p, log_q] = [host.contiguous(grad)?, host.contiguous(log_p)?, host.contiguous(log_q)?];
    let empty = |wanted: bool| host.empty(if wanted { &shape } else { &[0] }, problem.dtype);
    let (dp, dq) = (empty(for_p)?, empty(for_q)?);
    let [g, x, y, p, q] = [&grad, &log_p, &log_q, &dp, &dq].map(|tensor| host.buffer(tensor));
    let args = BackwardArgs { grad: &g, log_p: &x, log_q: &y, dp: for_p.then_some(&p), dq: for_q.then_some(&q) };
    host.device().run(&Backward(problem), args)?;
    Ok((dp, dq))
}
