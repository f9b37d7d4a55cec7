"""Softmax over one dimension."""

from typing import Any, Optional

import torch
from torch import Tensor

from ._errors import translate, wrong
from ._operators import autocast_to_float32, check_tensors, compute_dtype, grad_tracked, needs_grad

_fwd = torch.ops.metalcore.softmax_fwd.default
_bwd = torch.ops.metalcore.softmax_bwd.default
# Looked up once: at the smallest sizes a call is its Python.
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active


@torch.library.register_fake("metalcore::softmax_fwd")
def _(x):
    return x.new_empty(x.shape)


@torch.library.register_fake("metalcore::softmax_bwd")
def _(probs, d_probs):
    return probs.new_empty(probs.shape)


def _backward_formula(p: Tensor, dp: Tensor) -> Tensor:
    """The backward pass in torch's own operations, differentiable again."""
    compute = compute_dtype(p.dtype)
    wide, d = p.to(compute), dp.to(compute)
    return (wide * (d - (wide * d).sum(-1, keepdim=True))).to(p.dtype)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(output)


def _backward(ctx: Any, dp: Tensor) -> Tensor:
    (p,) = ctx.saved_tensors
    if needs_grad(dp, p):
        return _backward_formula(p, dp)
    with _BelowAutograd():
        return _bwd(p, dp)


torch.library.register_autograd("metalcore::softmax_fwd", _backward, setup_context=_setup_context)


class _Softmax(torch.autograd.Function):
    """The same derivative without the detour through torch.library: fewer Python calls."""

    @staticmethod
    def forward(ctx, x):
        with _BelowAutograd():
            y = _fwd(x)
        ctx.save_for_backward(y)
        return y

    backward = staticmethod(_backward)


class _TransformedSoftmax(torch.autograd.Function):
    """For functorch transforms (vmap, grad): the backward pass in torch's own operations, which they know."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return _fwd(x)

    setup_context = staticmethod(_setup_context)

    @staticmethod
    def backward(ctx, dp):
        return _backward_formula(*ctx.saved_tensors, dp)


def _transformed_fwd(x: Tensor) -> Tensor:
    # torch.library's own autograd cannot be entered where functorch's grad looks at a tensor.
    return _TransformedSoftmax.apply(x) if grad_tracked(x) else _fwd(x)


# Without the wrapper of autograd.Function.apply, which looks for functorch transforms: the caller has looked already.
_softmax_apply = super(torch.autograd.Function, _Softmax).apply


def _last(x: Tensor) -> Tensor:
    """Softmax of the last dimension. Small ones are not torch's on cuda, whose call is shorter: its gradient of half types
    was 900 of the bound."""
    if _is_compiling():
        return _fwd(x)
    if _transforms_active():
        return _transformed_fwd(x)
    if needs_grad(x):
        return _softmax_apply(x)
    with _BelowAutograd():
        return _fwd(x)


def fused_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """p = e^(x - m) / sum e^(x - m) over ``dim``, m the largest element.

    x float32, float16, bfloat16 or float64, any shape; ``dim`` of any length. Returns a new contiguous tensor of the shape
    and dtype of x. A row of -inf alone, or with NaN or inf, is NaN, as in torch.

    Exponentials and sums in float32 (float64 for float64), one rounding: within (8 + log2 n + \\|x - m\\|) 2^-24 of p,
    relative. Differentiable twice: dx = p (dp - sum p dp). Under autocast half input is computed, and returned, in float32.
    Does not wait for the GPU.

    Raises ValueError for a ``dim`` that x does not have, TypeError for an integer dtype, NotImplementedError for a complex
    one.
    """
    try:
        x = autocast_to_float32(x)
        last = x.ndim - 1
        if dim == -1 or dim == last:
            return _last(x) if last >= 0 else _last(x.reshape(1)).reshape(())
        if -last - 1 <= dim < last:
            return _last(x.movedim(dim, -1)).movedim(-1, dim).contiguous()
        if last < 0 and dim == 0:
            return _last(x.reshape(1)).reshape(())
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        check_tensors("fused_softmax", x=x)
        raise translate(error) from None
    check_tensors("fused_softmax", x=x)
    raise ValueError(wrong("fused_softmax", "dim", dim, f"one of the {x.ndim} dimensions of x"))


class MetalSoftmax(torch.nn.Module):
    """:func:`fused_softmax` over ``dim``; replaces ``torch.nn.Softmax``."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """The shape and dtype of x."""
        return fused_softmax(x, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


@torch.library.register_vmap("metalcore::softmax_fwd")
def _vmap(info: Any, in_dims: tuple, x: Tensor) -> tuple[Tensor, Optional[int]]:
    return _transformed_fwd(x.movedim(in_dims[0], 0)), 0
