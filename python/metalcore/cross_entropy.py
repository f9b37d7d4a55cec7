"""Cross entropy of logits and class targets."""

from typing import Any, Optional

import torch
from torch import Tensor

from ._errors import translate, wrong
from ._operators import check_tensors, compute_dtype, needs_grad, same_device

_fwd = torch.ops.metalcore.cross_entropy_fwd.default
_bwd = torch.ops.metalcore.cross_entropy_bwd.default
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


@torch.library.register_fake("metalcore::cross_entropy_fwd")
def _(logits, targets, ignore_index, label_smoothing, reduction):
    same_device("cross_entropy", logits=logits, targets=targets)
    rows = logits.new_empty(targets.shape, dtype=compute_dtype(logits.dtype))
    if reduction == 0:
        return rows, torch.empty_like(rows), rows.new_empty((0,))
    return rows.new_empty(()), rows, rows.new_empty(())


@torch.library.register_fake("metalcore::cross_entropy_bwd")
def _(grad, logits, targets, lse, count, ignore_index, label_smoothing, reduction):
    return logits.new_empty(logits.shape)


@torch.library.register_fake("metalcore::cross_entropy_bwd_")
def _(logits, grad, targets, lse, count, ignore_index, label_smoothing, reduction):
    return logits.new_empty((0,))


def _rows(logits: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Losses of the rows in torch's own operations, and which rows count; for transforms and second derivatives."""
    x = logits.to(compute_dtype(logits.dtype))
    counts = targets != ignore_index
    valid = (targets >= 0) & (targets < logits.shape[-1])
    at = torch.where(valid & counts, targets, 0).long()
    lse = torch.logsumexp(x, -1)
    loss = (1 - label_smoothing) * (lse - x.gather(-1, at.unsqueeze(-1)).squeeze(-1))
    if label_smoothing != 0.0:
        loss = loss + label_smoothing * (lse - x.mean(-1))
    # A row that does not count has no gradient; nor has one whose target is none, and its loss is NaN.
    loss = torch.where(counts & valid, loss, 0.0)
    return loss.masked_fill(counts & ~valid, float("nan")), counts


def _formula(logits: Tensor, targets: Tensor, ignore_index: int, label_smoothing: float, reduction: int) -> Tensor:
    loss, counts = _rows(logits, targets, ignore_index, label_smoothing)
    if reduction == 0:
        return loss
    return loss.sum() if reduction == 2 else loss.sum() / counts.sum()


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    logits, targets, ctx.ignore_index, ctx.label_smoothing, ctx.reduction = inputs
    ctx.save_for_backward(logits, targets, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple:
    logits, targets, lse, count = ctx.saved_tensors
    options = ctx.ignore_index, ctx.label_smoothing, ctx.reduction
    if needs_grad(grad, logits):
        with torch.enable_grad():
            x = logits if logits.requires_grad else logits.detach().requires_grad_()
            # Another name of the same tensor: the graph of x itself is not walked twice.
            x = x.view_as(x)
            (dx,) = torch.autograd.grad(_formula(x, targets, *options), x, grad, create_graph=True)
    else:
        with _BelowAutograd():
            dx = _bwd(grad, logits, targets, lse, count, *options)
    return dx, None, None, None, None


torch.library.register_autograd("metalcore::cross_entropy_fwd", _backward, setup_context=_setup_context)


class _CrossEntropy(torch.autograd.Function):
    """The same derivative without the detour through torch.library: fewer Python calls."""

    @staticmethod
    def forward(ctx, logits, targets, ignore_index, label_smoothing, reduction):
        with _BelowAutograd():
            loss, lse, count = _fwd(logits, targets, ignore_index, label_smoothing, reduction)
        ctx.ignore_index, ctx.label_smoothing, ctx.reduction = ignore_index, label_smoothing, reduction
        ctx.save_for_backward(logits, targets, lse, count)
        return loss

    backward = staticmethod(_backward)


# Without the wrapper of autograd.Function.apply, which looks for functorch transforms: the caller has looked already.
_apply = super(torch.autograd.Function, _CrossEntropy).apply


def reduction_code(op: str, reduction: str) -> int:
    """The operators' number of a reduction."""
    if reduction not in REDUCTIONS:
        raise ValueError(wrong(op, "reduction", repr(reduction), "'none', 'mean' or 'sum'"))
    return REDUCTIONS[reduction]


def check_targets(op: str, targets: Any, like: Tensor, name: str = "targets") -> None:
    """TypeError unless ``targets`` is an int32 or int64 tensor; ValueError if it is on another device than ``like``."""
    if not isinstance(targets, Tensor):
        raise TypeError(wrong(op, name, type(targets).__name__, "a tensor"))
    if targets.dtype not in (torch.int32, torch.int64):
        raise TypeError(wrong(op, name, f"dtype {targets.dtype}", "int32 or int64"))
    same_device(op, input=like, **{name: targets})


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """(1 - eps) (lse - x_t) + eps (lse - mean x) with lse = log sum exp x over the last dimension, eps = label_smoothing.

    logits (..., V) float32, float16, bfloat16 or float64; targets (...) int32 or int64. Classes are the *last* dimension,
    unlike in torch. 'none' gives the losses (...), 'sum' their sum, 'mean' their mean over the rows whose target is not
    ignore_index (NaN if there are none). Losses are float32 (float64 for float64), also of half logits. The logits are
    read once, and once more for the gradient. Differentiable twice. Does not wait for the GPU.

    Error of a loss: (8 + log2 V) 2^-24 (|max| + |lse| + |x_t|).

    Raises ValueError where shapes or options do not fit, TypeError for wrong dtypes, IndexError on cpu for a target
    outside 0..V-1 that is not ignore_index; on a GPU that row's loss is NaN and its gradient 0.
    """
    op = "cross_entropy"
    code = REDUCTIONS.get(reduction)
    if code is None:
        code = reduction_code(op, reduction)
    try:
        if _transforms_active():
            _check(op, logits, targets, label_smoothing)
            return _formula(logits, targets, ignore_index, label_smoothing, code)
        if _is_compiling():
            return _fwd(logits, targets, ignore_index, label_smoothing, code)[0]
        if needs_grad(logits):
            return _apply(logits, targets, ignore_index, label_smoothing, code)
        with _BelowAutograd():
            return _fwd(logits, targets, ignore_index, label_smoothing, code)[0]
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        _check(op, logits, targets, label_smoothing)
        raise translate(error) from None


def _check(op: str, logits: Any, targets: Any, label_smoothing: Optional[float] = 0.0) -> None:
    check_tensors(op, logits=logits)
    check_targets(op, targets, logits)
    if logits.ndim < 1:
        raise ValueError(wrong(op, "logits", "shape []", "at least 1 dimension"))
    if targets.shape != logits.shape[:-1]:
        raise ValueError(wrong(op, "targets", f"shape {list(targets.shape)}", f"shape {list(logits.shape[:-1])}"))
    if not isinstance(label_smoothing, (int, float)):
        raise TypeError(wrong(op, "label_smoothing", type(label_smoothing).__name__, "a number from 0 to 1"))
    if not 0 <= label_smoothing <= 1:
        raise ValueError(wrong(op, "label_smoothing", label_smoothing, "a number from 0 to 1"))
