//! metalcore::cross_entropy_fwd, cross_entropy_bwd, and cross_entropy_bwd_, which writes over the logits.

use crate::host::Host;
use crate::operator::{Operator, operator};
use metalcore::device::Run;
use metalcore::ops::cross_entropy::{Backward, BackwardArgs, CrossEntropy, Forward, ForwardArgs, Reduction};
use metalcore::{Error, Result};

/// `reduction`: 0 none, 1 mean, 2 sum. `count`, the number of rows that are not ignored, is empty without a reduction.
/// The gradient is one number where there is a reduction. `cross_entropy_bwd_`, whose rows may be a part of those that
/// `count` counts, returns an empty tensor, as an operator returns something.
pub const OPERATORS: &[Operator] = &[
    operator!(cross_entropy_fwd: "(Tensor logits, Tensor targets, int ignore_index, float label_smoothing, int reduction) -> (Tensor loss, Tensor lse, Tensor count)"),
    operator!(cross_entropy_bwd: "(Tensor grad, Tensor logits, Tensor targets, Tensor lse, Tensor count, int ignore_index, float label_smoothing, int reduction) -> Tensor"),
    operator!(cross_entropy_bwd_: "(Tensor(a!) logits, Tensor grad, Tensor targets, Tensor lse, Tensor count, int ignore_index, float label_smoothing, int reduction) -> Tensor"),
];

const OP: &str = "cross_entropy";

fn problem<H: Host>(
    host: &H,
    logits: &H::Tensor,
    targets: &H::Tensor,
    ignore: i64,
    smoothing: f64,
    reduction: i64,
) -> Result<CrossEntropy> {
    host.check_place(OP, "targets", targets)?;
    let reduction = match reduction {
        0 => Reduction::None,
        1 => Reduction::Mean,
        2 => Reduction::Sum,
        other => {
            let (got, expected) = (other.to_string(), "0, 1 or 2".to_owned());
            return Err(Error::Argument { op: OP, argument: "reduction", got, expected });
        }
    };
    let (shape, targets_shape) = (host.shape(logits), host.shape(targets));
    let dtype = host.known_dtype(OP, "logits", logits)?;
    let index = host.known_index(OP, "targets", targets)?;
    CrossEntropy::new(OP, (&shape, dtype), (&targets_shape, index), ignore, smoothing, reduction)
}

fn cross_entropy_fwd<H: Host>(
    host: &H,
    logits: H::Tensor,
    targets: H::Tensor,
    ignore_index: i64,
    label_smoothing: f64,
    reduction: i64,
) -> Result<(H::Tensor, H::Tensor, H::Tensor)>
where
    H::Device: Run<Forward>,
{
    let problem = problem(host, &logits, &targets, ignore_index, label_smoothing, reduction)?;
    let (rows, real) = (host.shape(&targets), problem.dtype.compute());
    let (logits, targets) = (host.contiguous(logits)?, host.contiguous(targets)?);
    let (losses, lse) = (host.empty(&rows, real)?, host.empty(&rows, real)?);
    let reduces = problem.reduction != Reduction::None;
    let loss = if reduces { Some(host.empty(&[], real)?) } else { None };
    let count = host.empty(if reduces { &[] } else { &[0] }, real)?;
    let [logits_buffer, targets_buffer, losses_buffer, lse_buffer, count_buffer] =
        [&logits, &targets, &losses, &lse, &count].map(|t| host.buffer(t));
    let loss_buffer = loss.as_ref().map(|loss| host.buffer(loss));
    let args = ForwardArgs {
        logits: &logits_buffer,
        targets: &targets_buffer,
        losses: &losses_buffer,
        lse: &lse_buffer,
        reduced: loss_buffer.as_ref().map(|loss| (loss, &count_buffer)),
    };
    host.device().run(&Forward(problem), args)?;
    Ok((loss.unwrap_or(losses), lse, count))
}

fn cross_entropy_bwd<H: Host>(
    host: &H,
    grad: H::Tensor,
    logits: H::Tensor,
    targets: H::Tensor,
    lse: H::Tensor,
    count: H::Tensor,
    ignore_index: i64,
    label_smoothing: f64,
    reduction: i64,
) -> Result<H::Tensor>
where
    H::Device: Run<Backward>,
{
    host.check_place(OP, "logits", &logits)?;
    let problem = problem(host, &logits, &targets, ignore_index, label_smoothing, reduction)?;
    let dx = host.empty(&host.shape(&logits), problem.dtype)?;
    backward(host, problem, Some(logits), &dx, grad, targets, lse, count)?;
    Ok(dx)
}

fn cross_entropy_bwd_<H: Host>(
    host: &H,
    logits: H::Tensor,
    grad: H::Tensor,
    targets: H::Tensor,
    lse: H::Tensor,
    count: H::Tensor,
    ignore_index: i64,
    label_smoothing: f64,
    reduction: i64,
) -> Result<H::Tensor>
where
    H::Device: Run<Backward>,
{
    let problem = problem(host, &logits, &targets, ignore_index, label_smoothing, reduction)?;
    if !host.is_contiguous(&logits) {
        let (got, expected) = ("strided logits".to_owned(), "contiguous ones, which are written to".to_owned());
        return Err(Error::Argument { op: OP, argument: "logits", got, expected });
    }
    backward(host, problem, None, &logits, grad, targets, lse, count)?;
    host.empty(&[0], problem.dtype)
}

/// The gradient to `dx`, which holds the logits where there are none beside it.
fn backward<H: Host>(
    host: &H,
    problem: CrossEntropy,
    logits: Option<H::Tensor>,
    dx: &H::Tensor,
    grad: H::Tensor,
    targets: H::Tensor,
    lse: H::Tensor,
    count: H::Tensor,
) -> Result<()>
where
    H::Device: Run<Backward>,
{
    let rows = host.shape(&targets);
    let reduces = problem.reduction != Reduction::None;
    let real = problem.dtype.compute();
    host.check_same(OP, ("grad", &grad), (if reduces { &[] } else { &rows }, real))?;
    host.check_same(OP, ("lse", &lse), (&rows, real))?;
    host.check_same(OP, ("count", &count), (if reduces { &[] } else { &[0] }, real))?;
    let logits = logits.map(|logits| host.contiguous(logits)).transpose()?;
    let [grad, targets] = [host.contiguous(grad)?, host.contiguous(targets)?];
    let [lse, count] = [host.contiguous(lse)?, host.contiguous(count)?];
    let [grad_buffer, targets_buffer, lse_buffer, count_buffer, dx_buffer] =
        [&grad, &targets, &lse, &count, dx].map(|t| host.buffer(t));
    let logits_buffer = logits.as_ref().map(|logits| host.buffer(logits));
    let args = BackwardArgs {
        grad: &grad_buffer,
        logits: logits_buffer.as_ref(),
        targets: &targets_buffer,
        lse: &lse_buffer,
        count: (problem.reduction == Reduction::Mean).then_some(&count_buffer),
        dx: &dx_buffer,
    };
    host.device().run(&Backward(problem), args)
}
