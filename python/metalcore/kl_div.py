"""Kullback-Leibler divergence of rows of log-probabilities, over all classes or over chosen ones.

Over all of them by our kernels; over chosen ones in torch's own operations. What is saved for the gradient is the inputs
alone.
"""

from typing import Any, Optional

import torch
from torch import Tensor

from ._errors import wrong
from ._operators import check_tensors, compute_dtype, needs_grad, same_device, takes_metal

_BelowAutograd = torch._C._AutoDispatchBelowAutograd
REDUCTIONS = ("none", "sum", "mean", "batchmean")

_library = torch.library.Library("metalcore", "FRAGMENT")
_library.define("kl_div_topk_fwd(Tensor log_p, Tensor log_q, Tensor indices, int k) -> Tensor")
_library.define("kl_div_topk_bwd(Tensor grad, Tensor log_p, Tensor log_q, Tensor indices, int k) -> (Tensor dp, Tensor dq)")


def _terms(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """p, and log p - log q; where p is 0 the difference is 0 too, so that neither it nor a derivative of it is NaN."""
    compute = compute_dtype(log_p.dtype, log_q.dtype)
    x, y = log_p.to(compute), log_q.to(compute)
    p = x.exp()
    none = p == 0
    return p, x.masked_fill(none, 0.0) - y.masked_fill(none, 0.0)


def _losses(log_p: Tensor, log_q: Tensor) -> Tensor:
    p, difference = _terms(log_p, log_q)
    return (p * difference).sum(-1)


def _gradients(grad: Tensor, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    p, difference = _terms(log_p, log_q)
    weighted = p * grad.unsqueeze(-1)
    # With p = 0 both are 0, whatever the gradient of the row.
    weighted = weighted.masked_fill(p == 0, 0.0)
    return (weighted * (1 + difference)).to(log_p.dtype), -weighted.to(log_q.dtype)


def _chosen(indices: Tensor, k: int, classes: int) -> tuple[Tensor, Tensor]:
    """The first k columns, those that are no class replaced, and which rows have none such."""
    indices = indices[..., :k].long()
    valid = (indices >= 0) & (indices < classes)
    return indices.masked_fill(~valid, 0), valid.all(-1)


def _refuse_outside(indices: Tensor, k: int, classes: int) -> None:
    """IndexError on the host; a GPU gives NaN."""
    if indices.device.type != "cpu" or takes_metal(indices.device):
        return
    used = indices[..., :k]
    outside = used[(used < 0) | (used >= classes)]
    if outside.numel():
        raise IndexError(wrong("kl_div_topk", "indices", f"index {int(outside[0])}", f"0 to {classes - 1}"))


def _topk_losses(log_p: Tensor, log_q: Tensor, indices: Tensor, k: int) -> Tensor:
    if log_p.shape[-1] == 0:
        missing = float("nan") if k else 0.0
        return log_p.new_full(log_p.shape[:-1], missing, dtype=compute_dtype(log_p.dtype, log_q.dtype))
    at, valid = _chosen(indices, k, log_p.shape[-1])
    losses = _losses(log_p.gather(-1, at), log_q.gather(-1, at))
    return torch.where(valid, losses, 0.0).masked_fill(~valid, float("nan"))


def _topk_gradients(grad: Tensor, log_p: Tensor, log_q: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    compute = compute_dtype(log_p.dtype, log_q.dtype)
    zeros = [torch.zeros_like(t, dtype=compute, memory_format=torch.contiguous_format) for t in (log_p, log_q)]
    if log_p.shape[-1] == 0:
        return zeros[0].to(log_p.dtype), zeros[1].to(log_q.dtype)
    at, valid = _chosen(indices, k, log_p.shape[-1])
    found = _gradients(grad.to(compute), log_p.gather(-1, at).to(compute), log_q.gather(-1, at).to(compute))
    # A class may be chosen twice: gradients are added up before they are rounded.
    dp, dq = (z.scatter_add(-1, at, d.masked_fill(~valid.unsqueeze(-1), 0.0)) for z, d in zip(zeros, found))
    return dp.to(log_p.dtype), dq.to(log_q.dtype)


@torch.library.impl(_library, "kl_div_topk_fwd", "CompositeExplicitAutograd")
def _topk_fwd_impl(log_p, log_q, indices, k):
    with _BelowAutograd():
        _refuse_outside(indices, k, log_p.shape[-1])
        return _topk_losses(log_p, log_q, indices, k)


@torch.library.impl(_library, "kl_div_topk_bwd", "CompositeExplicitAutograd")
def _topk_bwd_impl(grad, log_p, log_q, indices, k):
    with _BelowAutograd():
        return _topk_gradients(grad, log_p, log_q, indices, k)


@torch.library.register_fake("metalcore::kl_div_fwd")
def _(log_p, log_q):
    return log_p.new_empty(log_p.shape[:-1], dtype=compute_dtype(log_p.dtype, log_q.dtype))


@torch.library.register_fake("metalcore::kl_div_topk_fwd", lib=_library)
def _(log_p, log_q, indices, k):
    return log_p.new_empty(log_p.shape[:-1], dtype=compute_dtype(log_p.dtype, log_q.dtype))


@torch.library.register_fake("metalcore::kl_div_bwd")
def _(grad, log_p, log_q, for_p, for_q):
    return log_p.new_empty(log_p.shape if for_p else (0,)), log_q.new_empty(log_q.shape if for_q else (0,))


@torch.library.register_fake("metalcore::kl_div_topk_bwd", lib=_library)
def _(grad, log_p, log_q, indices, k):
    return log_p.new_empty(log_p.shape), log_q.new_empty(log_q.shape)


_ops = torch.ops.metalcore


def _setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
    log_p, log_q, *ctx.chosen = inputs
    ctx.save_for_backward(log_p, log_q, *ctx.chosen[:1])
    ctx.chosen = ctx.chosen[1:]


def _backward(ctx: Any, grad: Tensor) -> tuple:
    inputs = (*ctx.saved_tensors, *ctx.chosen)
    needs = ctx.needs_input_grad
    if needs_grad(grad, *ctx.saved_tensors[:2]):
        # Operations of torch, differentiable again.
        dp, dq = _topk_gradients(grad, *inputs) if ctx.chosen else _gradients(grad, *inputs)
    else:
        with _BelowAutograd():
            if ctx.chosen:
                dp, dq = _ops.kl_div_topk_bwd.default(grad, *inputs)
            else:
                dp, dq = _ops.kl_div_bwd.default(grad, *inputs, needs[0], needs[1])
    return dp if needs[0] else None, dq if needs[1] else None, *(None,) * (len(inputs) - 2)


torch.library.register_autograd("metalcore::kl_div_fwd", _backward, setup_context=_setup_context)
torch.library.register_autograd("metalcore::kl_div_topk_fwd", _backward, setup_context=_setup_context, lib=_library)


class _KlDiv(torch.autograd.Function):
    """The same derivative without the detour through torch.library: fewer Python calls."""

    @staticmethod
    def forward(ctx, log_p, log_q):
        with _BelowAutograd():
            losses = _ops.kl_div_fwd.default(log_p, log_q)
        ctx.save_for_backward(log_p, log_q)
        ctx.chosen = []
        return losses

    backward = staticmethod(_backward)


# Without the wrapper of autograd.Function.apply, which looks for functorch transforms: the caller has looked already.
_apply = super(torch.autograd.Function, _KlDiv).apply


def _check(op: str, log_p: Any, log_q: Any, reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(wrong(op, "reduction", repr(reduction), "'none', 'sum', 'mean' or 'batchmean'"))
    check_tensors(op, log_p=log_p, log_q=log_q)
    if log_p.ndim < 1:
        raise ValueError(wrong(op, "log_p", "shape []", "at least 1 dimension"))
    if log_q.shape != log_p.shape:
        raise ValueError(wrong(op, "log_q", f"shape {list(log_q.shape)}", f"shape {list(log_p.shape)}"))


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()


def kl_div(log_p: Tensor, log_q: Tensor, reduction: str = "mean") -> Tensor:
    """Sum over the last dimension of p (log p - log q). ``log_p``, the teacher, comes first, unlike in torch.

    log_p and log_q (..., V) of one shape, any floating dtypes; the results are float32 (float64 if one of them is).
    'none' gives a value for each row, 'sum' their sum, 'mean' and 'batchmean' their mean over rows. p = 0 contributes 0.
    Gradients to both arguments: p (1 + log p - log q) and -p. Differentiable twice. Within (8 + log2 V) 2^-24 of the sum
    of the terms' magnitudes. Does not wait for the GPU.

    Raises ValueError where shapes or the reduction do not fit, TypeError for wrong dtypes.
    """
    _check("kl_div", log_p, log_q, reduction)
    if torch._C._are_functorch_transforms_active():
        with torch.autocast(log_p.device.type, enabled=False):
            return _reduced(_losses(log_p, log_q), reduction)
    if log_p.dtype != log_q.dtype:
        compute = compute_dtype(log_p.dtype, log_q.dtype)
        log_p, log_q = log_p.to(compute), log_q.to(compute)
    if torch.compiler.is_compiling():
        losses = _ops.kl_div_fwd.default(log_p, log_q)
    elif needs_grad(log_p, log_q):
        losses = _apply(log_p, log_q)
    else:
        with _BelowAutograd():
            losses = _ops.kl_div_fwd.default(log_p, log_q)
    return _reduced(losses, reduction)


def kl_div_topk(log_p: Tensor, log_q: Tensor, indices: Tensor, k: Optional[int] = None, reduction: str = "mean") -> Tensor:
    """:func:`kl_div` over the classes in the first k columns of ``indices`` (..., at least k) alone; not renormalised.

    k None: every column. int32 or int64 indices. The gradient of other classes is 0.

    Raises as :func:`kl_div`, and IndexError on cpu for an index outside 0..V-1; on a GPU that row is NaN, its gradient 0.
    """
    op = "kl_div_topk"
    _check(op, log_p, log_q, reduction)
    if not isinstance(indices, Tensor):
        raise TypeError(wrong(op, "indices", type(indices).__name__, "a tensor"))
    if indices.dtype not in (torch.int32, torch.int64):
        raise TypeError(wrong(op, "indices", f"dtype {indices.dtype}", "int32 or int64"))
    same_device(op, log_p=log_p, indices=indices)
    if indices.ndim < 1 or indices.shape[:-1] != log_p.shape[:-1]:
        expected = f"shape {[*log_p.shape[:-1], 'k']}"
        raise ValueError(wrong(op, "indices", f"shape {list(indices.shape)}", expected))
    count = indices.shape[-1] if k is None else k
    if not 0 <= count <= indices.shape[-1]:
        raise ValueError(wrong(op, "k", k, f"0 to {indices.shape[-1]}"))
    with torch.autocast(log_p.device.type, enabled=False):
        if torch._C._are_functorch_transforms_active():
            return _reduced(_topk_losses(log_p, log_q, indices, count), reduction)
        return _reduced(_ops.kl_div_topk_fwd.default(log_p, log_q, indices, count), reduction)
