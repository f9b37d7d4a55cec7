"""Cross entropy of a linear layer's outputs, which are never held at once."""

import contextlib
from typing import Any, Optional

import torch
from torch import Tensor

from ._errors import translate, wrong
from ._operators import check_tensors, compute_dtype, needs_grad
from .cross_entropy import _rows, check_targets, cross_entropy, reduction_code

_ce_fwd = torch.ops.metalcore.cross_entropy_fwd.default
_ce_bwd_ = torch.ops.metalcore.cross_entropy_bwd_.default
_BelowAutograd = torch._C._AutoDispatchBelowAutograd

# Operators over torch's own matrix products. `grads` 7: gradients to hidden, weight and bias are formed with the losses
# (bits: 1 hidden, 2 weight, 4 bias); those that are not are empty.
_library = torch.library.Library("metalcore", "FRAGMENT")
_library.define(
    "linear_cross_entropy_fwd(Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, int ignore_index,"
    " float label_smoothing, int reduction, int chunk_size, int grads) -> (Tensor loss, Tensor dh, Tensor dw, Tensor db)"
)
_library.define(
    "linear_cross_entropy_bwd(Tensor grad, Tensor hidden, Tensor weight, Tensor targets, Tensor? bias, int ignore_index,"
    " float label_smoothing, int chunk_size, int grads) -> (Tensor dh, Tensor dw, Tensor db)"
)

# Below this, memory does not matter and small products cost time.
LEAST_CHUNK_BYTES = 64 << 20
# From here on a product of matrices does not gain.
MOST_CHUNK_ROWS = 1024


def chunk_rows(rows: int, classes: int, itemsize: int) -> int:
    """Rows whose logits are held at once: a fifth of all to a multiple of 128, within the bounds above. Logits become their
    gradient in place, so this is all the extra memory that grows with the number of classes; torch's form holds twice all:
    a quarter was 1/7.9 of that."""
    least = LEAST_CHUNK_BYTES // max(1, classes * itemsize)
    return max(1, min(rows, max(min(-(-rows // 640) * 128, MOST_CHUNK_ROWS), least)))


def _passes(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Optional[Tensor],
    ignore_index: int,
    label_smoothing: float,
    chunk_size: int,
    grads: int,
    grad: Tensor,
    count: Tensor,
    reduction: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses of the rows, and what ``grad``, the gradient of their reduction, gives the inputs, chunk by chunk."""
    rows, classes = hidden.shape[0], weight.shape[0]
    losses = []
    none = [hidden.new_empty((0,)) for _ in range(3)]
    dh = torch.empty_like(hidden, memory_format=torch.contiguous_format) if grads & 1 else none[0]
    dw = torch.empty_like(weight, memory_format=torch.contiguous_format) if grads & 2 else none[1]
    # Summed in float32: a bias of half type would lose what a chunk adds.
    db = torch.zeros(classes, dtype=compute_dtype(weight.dtype), device=weight.device) if grads & 4 else none[2]
    size = max(1, chunk_size)
    transposed = weight.t()
    logits_room = hidden.new_empty((min(size, rows), classes))
    for start in range(0, rows, size):
        part = slice(start, min(rows, start + size))
        h, t = hidden[part], targets[part]
        logits = logits_room[: h.shape[0]]
        if bias is None:
            torch.mm(h, transposed, out=logits)
        else:
            torch.addmm(bias.to(h.dtype), h, transposed, out=logits)
        loss, lse, _ = _ce_fwd(logits, t, ignore_index, label_smoothing, 0)
        losses.append(loss)
        if grads:
            _ce_bwd_(logits, grad if reduction else grad[part], t, lse, count, ignore_index, label_smoothing, reduction)
            if grads & 1:
                torch.mm(logits, weight, out=dh[part])
            if grads & 2 and start == 0:
                torch.mm(logits.t(), h, out=dw)
            elif grads & 2:
                dw.addmm_(logits.t(), h)
            if grads & 4:
                db += logits.sum(0, dtype=db.dtype)
    if grads & 2 and rows == 0:
        dw.zero_()
    losses = (
        losses[0]
        if len(losses) == 1
        else torch.cat(losses)
        if losses
        else hidden.new_empty((0,), dtype=compute_dtype(hidden.dtype))
    )
    return losses, dh, dw, (db.to(bias.dtype) if grads & 4 else db)


def _flat(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)


@torch.library.impl(_library, "linear_cross_entropy_fwd", "CompositeExplicitAutograd")
def _fwd_impl(hidden, weight, targets, bias, ignore_index, label_smoothing, reduction, chunk_size, grads):
    h, t = _flat(hidden, targets)
    real = compute_dtype(hidden.dtype)
    grad = torch.ones(() if reduction else t.shape, dtype=real, device=h.device)
    # Without a reduction there is none; a sum does not look at it.
    count = (t != ignore_index).sum(dtype=real) if reduction == 1 else grad if reduction else grad[:0]
    options = ignore_index, label_smoothing, chunk_size, grads
    with _BelowAutograd():
        losses, dh, dw, db = _passes(h, weight, t, bias, *options, grad, count, reduction)
    if reduction == 0:
        loss = losses.reshape(targets.shape)
    else:
        loss = losses.sum() if reduction == 2 else losses.sum() / count
    return loss, (dh.reshape(hidden.shape) if grads & 1 else dh), dw, db


@torch.library.impl(_library, "linear_cross_entropy_bwd", "CompositeExplicitAutograd")
def _bwd_impl(grad, hidden, weight, targets, bias, ignore_index, label_smoothing, chunk_size, grads):
    h, t = _flat(hidden, targets)
    rows = grad.reshape(-1).expand(t.shape[0]).contiguous()
    options = ignore_index, label_smoothing, chunk_size, grads
    with _BelowAutograd():
        _, dh, dw, db = _passes(h, weight, t, bias, *options, rows, rows[:0], 0)
    return (dh.reshape(hidden.shape) if grads & 1 else dh), dw, db


def _fake_gradients(hidden: Tensor, weight: Tensor, bias: Optional[Tensor], grads: int) -> tuple[Tensor, Tensor, Tensor]:
    empty = hidden.new_empty
    return (
        empty(hidden.shape if grads & 1 else (0,)),
        weight.new_empty(weight.shape) if grads & 2 else empty((0,)),
        bias.new_empty(bias.shape) if bias is not None and grads & 4 else empty((0,)),
    )


@torch.library.register_fake("metalcore::linear_cross_entropy_fwd", lib=_library)
def _(hidden, weight, targets, bias, ignore_index, label_smoothing, reduction, chunk_size, grads):
    real = compute_dtype(hidden.dtype)
    loss = hidden.new_empty(targets.shape if reduction == 0 else (), dtype=real)
    return loss, *_fake_gradients(hidden, weight, bias, grads)


@torch.library.register_fake("metalcore::linear_cross_entropy_bwd", lib=_library)
def _(grad, hidden, weight, targets, bias, ignore_index, label_smoothing, chunk_size, grads):
    return _fake_gradients(hidden, weight, bias, grads)


_fwd = torch.ops.metalcore.linear_cross_entropy_fwd.default
_bwd = torch.ops.metalcore.linear_cross_entropy_bwd.default


def _wanted(needs: tuple, bias: Optional[Tensor]) -> int:
    return int(needs[0]) | int(needs[1]) << 1 | int(bias is not None and needs[2]) << 2


def _second(ctx: Any, grad: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Optional[Tensor]) -> tuple:
    """The gradients in torch's own operations, differentiable again; the logits are held."""
    with torch.enable_grad():
        leaves = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in (hidden, weight)]
        if bias is not None:
            leaves.append(bias.view_as(bias) if bias.requires_grad else bias.detach().requires_grad_())
        logits = torch.nn.functional.linear(*leaves)
        loss, counts = _rows(logits, targets, ctx.ignore_index, ctx.label_smoothing)
        if ctx.reduction:
            loss = loss.sum() if ctx.reduction == 2 else loss.sum() / counts.sum()
        found = torch.autograd.grad(loss, leaves, grad, create_graph=True)
    return (*found, None) if bias is None else found


def _gradients(ctx: Any, grad: Tensor) -> tuple:
    """dh, dw, db from the gradients of the forward pass, or formed now."""
    hidden, weight, targets, bias, *formed = ctx.saved_tensors
    if needs_grad(grad, hidden, weight, bias):
        return _second(ctx, grad, hidden, weight, targets, bias)
    if ctx.reduction and formed:
        return tuple(t if t.numel() == 0 else (t * grad).to(t.dtype) for t in formed)
    if ctx.reduction == 1:
        counted = (targets != ctx.ignore_index).sum()
        grad = grad / counted
    with _BelowAutograd():
        return _bwd(grad, hidden, weight, targets, bias, ctx.ignore_index, ctx.label_smoothing, ctx.chunk_size, ctx.grads)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple:
    dh, dw, db = _gradients(ctx, grad)
    needs = ctx.needs_input_grad
    return (dh if needs[0] else None), (dw if needs[1] else None), None, (db if needs[3] else None), *(None,) * 5


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    hidden, weight, targets, bias, ctx.ignore_index, ctx.label_smoothing, ctx.reduction, ctx.chunk_size, grads = inputs
    needs = ctx.needs_input_grad
    ctx.grads = _wanted((needs[0], needs[1], needs[3]), bias)
    formed = output[1:] if ctx.reduction and grads & ctx.grads == ctx.grads else ()
    ctx.save_for_backward(hidden, weight, targets, bias, *formed)
    ctx.mark_non_differentiable(*output[1:])


torch.library.register_autograd("metalcore::linear_cross_entropy_fwd", _backward, setup_context=_setup_context, lib=_library)


class _Linear(torch.autograd.Function):
    """In eager mode: the gradients of the forward pass are scaled in place and given away, so that they are held once. A
    second backward pass over a retained graph forms them anew."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, bias, ignore_index, label_smoothing, reduction, chunk_size):
        needs = ctx.needs_input_grad
        ctx.grads = _wanted((needs[0], needs[1], needs[3]), bias)
        ctx.ignore_index, ctx.label_smoothing, ctx.reduction, ctx.chunk_size = (
            ignore_index,
            label_smoothing,
            reduction,
            chunk_size,
        )
        now = ctx.grads if reduction else 0
        loss, *formed = _fwd_impl(hidden, weight, targets, bias, ignore_index, label_smoothing, reduction, chunk_size, now)
        ctx.save_for_backward(hidden, weight, targets, bias)
        ctx.formed = formed if now else None
        return loss

    @staticmethod
    def backward(ctx, grad):
        if ctx.formed is None or needs_grad(grad, *ctx.saved_tensors):
            dh, dw, db = _gradients(ctx, grad)
        else:
            (dh, dw, db), ctx.formed = ctx.formed, None
            for tensor in (dh, dw, db):
                if tensor.numel():
                    tensor.mul_(grad)
        needs = ctx.needs_input_grad
        return (dh if needs[0] else None), (dw if needs[1] else None), None, (db if needs[3] else None), *(None,) * 4


# Without the wrapper of autograd.Function.apply, which looks for functorch transforms: the caller has looked already.
_linear_apply = super(torch.autograd.Function, _Linear).apply


def _check(op: str, hidden: Any, weight: Any, targets: Any, bias: Any, label_smoothing: float, chunk_size: Any) -> None:
    check_tensors(op, optional=("bias",), hidden=hidden, weight=weight, bias=bias)
    check_targets(op, targets, hidden)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype:
            raise TypeError(wrong(op, name, f"dtype {tensor.dtype}", f"that of hidden, {hidden.dtype}"))
    if hidden.ndim < 1:
        raise ValueError(wrong(op, "hidden", "shape []", "at least 1 dimension"))
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(wrong(op, "weight", f"shape {list(weight.shape)}", f"shape [classes, {hidden.shape[-1]}]"))
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(wrong(op, "bias", f"shape {list(bias.shape)}", f"shape {list(weight.shape[:1])}"))
    if targets.shape != hidden.shape[:-1]:
        raise ValueError(wrong(op, "targets", f"shape {list(targets.shape)}", f"shape {list(hidden.shape[:-1])}"))
    if not 0 <= label_smoothing <= 1:
        raise ValueError(wrong(op, "label_smoothing", label_smoothing, "a number from 0 to 1"))
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(wrong(op, "chunk_size", chunk_size, "a positive int or None"))


def fused_linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Optional[Tensor] = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    chunk_size: Optional[int] = None,
) -> Tensor:
    """:func:`cross_entropy` of ``hidden @ weight.T + bias``, whose rows are formed ``chunk_size`` at a time.

    hidden (..., H), weight (V, H), bias (V,) or None, of one floating dtype; targets (...) int32 or int64. Under autocast
    hidden, weight and bias are cast to its dtype. The gradients to hidden, weight and bias are formed with the losses
    (for 'none' in the backward pass, where the logits are formed again): extra memory is chunk_size x V. chunk_size None:
    a fifth of the rows, within bounds (:func:`chunk_rows`); rows that are one chunk are a product and a loss of their own,
    whose gradients are formed in the backward pass. Logits are rounded once to the dtype; statistics and losses
    are float32 (float64 for float64). Products are torch's, with its precision setting. Differentiable twice, the second
    time with all logits held.

    Raises as :func:`cross_entropy`.
    """
    op = "fused_linear_cross_entropy"
    code = reduction_code(op, reduction)
    autocast = isinstance(hidden, Tensor) and torch.is_autocast_enabled(hidden.device.type)
    if autocast:
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight, bias = (
            t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t
            for t in (hidden, weight, bias)
        )
    _check(op, hidden, weight, targets, bias, label_smoothing, chunk_size)
    rows = targets.numel()
    chunk = chunk_size or chunk_rows(rows, weight.shape[0], hidden.element_size())
    options = ignore_index, label_smoothing, code, chunk
    try:
        # The work itself is not to be cast again.
        with torch.autocast(hidden.device.type, enabled=False) if autocast else contextlib.nullcontext():
            if chunk >= rows and not torch.compiler.is_compiling():
                logits = torch.nn.functional.linear(hidden, weight, bias)
                return cross_entropy(logits, targets, ignore_index, label_smoothing, reduction)
            if torch._C._are_functorch_transforms_active():
                loss, counts = _rows(torch.nn.functional.linear(hidden, weight, bias), targets, ignore_index, label_smoothing)
                return loss if code == 0 else loss.sum() if code == 2 else loss.sum() / counts.sum()
            if torch.compiler.is_compiling():
                wants = [t is not None and needs_grad(t) for t in (hidden, weight, bias)]
                now = _wanted(tuple(wants), bias) if code else 0
                return _fwd(hidden, weight, targets, bias, *options, now)[0]
            if needs_grad(hidden, weight, bias):
                return _linear_apply(hidden, weight, targets, bias, *options)
            with _BelowAutograd():
                return _fwd_impl(hidden, weight, targets, bias, *options, 0)[0]
    except RuntimeError as error:
        raise translate(error) from None
