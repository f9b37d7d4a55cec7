"""RMS normalisation, alone and fused with the addition of a residual."""

import math
from typing import Any, Optional, Sequence, Union

import torch
from torch import Tensor

from ._errors import translate, wrong
from ._operators import check_float64, check_tensors, compute_dtype, grad_tracked, needs_grad, same_device

_fwd = torch.ops.metalcore.rms_norm_fwd.default
_bwd = torch.ops.metalcore.rms_norm_bwd.default
_add_fwd = torch.ops.metalcore.add_rms_norm_fwd.default
_add_bwd = torch.ops.metalcore.add_rms_norm_bwd.default
# Looked up once: at the smallest sizes a call is its Python.
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active


def _fake_rstd(x: Tensor, normalized: int) -> Tensor:
    return x.new_empty(x.shape[: x.ndim - normalized], dtype=compute_dtype(x.dtype))


def _fake_dw(x: Tensor, weight: Optional[Tensor]) -> Tensor:
    return x.new_empty((0,)) if weight is None else weight.new_empty(weight.shape)


@torch.library.register_fake("metalcore::rms_norm_fwd")
def _(x, weight, normalized, eps):
    same_device("rms_norm", input=x, weight=weight)
    return x.new_empty(x.shape), _fake_rstd(x, normalized)


@torch.library.register_fake("metalcore::rms_norm_bwd")
def _(dy, x, weight, rstd, normalized):
    return x.new_empty(x.shape), _fake_dw(x, weight)


@torch.library.register_fake("metalcore::add_rms_norm_fwd")
def _(input, residual, weight, normalized, eps):
    same_device("fused_add_rmsnorm", input=input, residual=residual, weight=weight)
    return input.new_empty(input.shape), input.new_empty(input.shape), _fake_rstd(input, normalized)


@torch.library.register_fake("metalcore::add_rms_norm_bwd")
def _(dy, d_residual_out, residual_out, weight, rstd, normalized):
    return residual_out.new_empty(residual_out.shape), _fake_dw(residual_out, weight)


def _backward_formula(
    dy: Tensor, h: Tensor, weight: Optional[Tensor], rstd: Tensor, normalized: int
) -> tuple[Tensor, Optional[Tensor]]:
    """The backward pass in torch's own operations, differentiable again: r is formed anew from h, as rstd carries no
    gradient (eps is what rstd says it was)."""
    dims = tuple(range(-normalized, 0))
    compute = compute_dtype(h.dtype)
    x, g = h.to(compute), dy.to(compute)
    shape = rstd.shape + (1,) * normalized
    r = rstd.view(shape)
    size = math.prod(h.shape[h.ndim - normalized :])
    eps = (r.detach() ** -2 - (x.detach() ** 2).mean(dims, keepdim=True)).detach()
    r = ((x**2).mean(dims, keepdim=True) + eps) ** -0.5
    gw = g if weight is None else g * weight.to(compute)
    dx = r * gw - x * (r**3 / size) * (gw * x).sum(dims, keepdim=True)
    dw = None
    if weight is not None:
        rows = tuple(range(h.ndim - normalized))
        dw = ((g * x * r).sum(rows) if rows else g * x * r).to(weight.dtype)
    return dx.to(h.dtype), dw


def _dw(ctx: Any, weight: Optional[Tensor], dw: Optional[Tensor]) -> Optional[Tensor]:
    return dw if weight is not None and ctx.needs_input_grad[ctx.weight_at] else None


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, normalized, _ = inputs
    ctx.normalized, ctx.weight_at = normalized, 1
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, dy: Tensor, d_rstd: Any) -> tuple:
    x, weight, rstd = ctx.saved_tensors
    if needs_grad(dy, x, weight):
        dx, dw = _backward_formula(dy, x, weight, rstd, ctx.normalized)
    else:
        with _BelowAutograd():
            dx, dw = _bwd(dy, x, weight, rstd, ctx.normalized)
    return dx, _dw(ctx, weight, dw), None, None


def _add_setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, _, weight, normalized, _ = inputs
    ctx.normalized, ctx.weight_at = normalized, 2
    ctx.save_for_backward(output[1], weight, output[2])
    ctx.mark_non_differentiable(output[2])


def _add_backward(ctx: Any, dy: Tensor, d_sum: Tensor, d_rstd: Any) -> tuple:
    h, weight, rstd = ctx.saved_tensors
    if needs_grad(dy, d_sum, h, weight):
        dx, dw = _backward_formula(dy, h, weight, rstd, ctx.normalized)
        dx = dx + d_sum
    else:
        with _BelowAutograd():
            dx, dw = _add_bwd(dy, d_sum, h, weight, rstd, ctx.normalized)
    return dx, dx, _dw(ctx, weight, dw), None, None


torch.library.register_autograd("metalcore::rms_norm_fwd", _backward, setup_context=_setup_context)
torch.library.register_autograd("metalcore::add_rms_norm_fwd", _add_backward, setup_context=_add_setup_context)


class _Norm(torch.autograd.Function):
    """The same derivative without the detour through torch.library: fewer Python calls."""

    @staticmethod
    def forward(ctx, x, weight, normalized, eps):
        with _BelowAutograd():
            y, rstd = _fwd(x, weight, normalized, eps)
        ctx.normalized, ctx.weight_at = normalized, 1
        ctx.save_for_backward(x, weight, rstd)
        return y

    @staticmethod
    def backward(ctx, dy):
        return _backward(ctx, dy, None)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, residual, weight, normalized, eps):
        with _BelowAutograd():
            y, total, rstd = _add_fwd(input, residual, weight, normalized, eps)
        ctx.normalized, ctx.weight_at = normalized, 2
        ctx.save_for_backward(total, weight, rstd)
        return y, total

    @staticmethod
    def backward(ctx, dy, d_total):
        return _add_backward(ctx, dy, d_total, None)


class _TransformedNorm(torch.autograd.Function):
    """For functorch transforms (vmap, grad): the backward pass in torch's own operations, which they know."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, normalized, eps):
        return _fwd(x, weight, normalized, eps)

    setup_context = staticmethod(_setup_context)

    @staticmethod
    def backward(ctx, dy, d_rstd):
        x, weight, rstd = ctx.saved_tensors
        dx, dw = _backward_formula(dy, x, weight, rstd, ctx.normalized)
        return dx, _dw(ctx, weight, dw), None, None


class _TransformedAddNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input, residual, weight, normalized, eps):
        return _add_fwd(input, residual, weight, normalized, eps)

    setup_context = staticmethod(_add_setup_context)

    @staticmethod
    def backward(ctx, dy, d_total, d_rstd):
        h, weight, rstd = ctx.saved_tensors
        dx, dw = _backward_formula(dy, h, weight, rstd, ctx.normalized)
        dx = dx + d_total
        return dx, dx, _dw(ctx, weight, dw), None, None


def _transformed_fwd(x: Tensor, weight: Optional[Tensor], normalized: int, eps: float) -> tuple[Tensor, Tensor]:
    function = _TransformedNorm.apply if grad_tracked(x, weight) else _fwd
    return function(x, weight, normalized, eps)


# Without the wrapper of autograd.Function.apply, which looks for functorch transforms: the callers have looked already.
_norm_apply = super(torch.autograd.Function, _Norm).apply
_add_norm_apply = super(torch.autograd.Function, _AddNorm).apply


_EPS = {dtype: torch.finfo(compute_dtype(dtype)).eps for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}


def _norm(op: str, x: Tensor, weight: Optional[Tensor], normalized: int, eps: float) -> Tensor:
    try:
        if weight is not None and weight.dtype is torch.float64 and x.dtype is not torch.float64:
            check_float64(op, "weight", weight)
            weight = weight.float()
        if _is_compiling():
            return _fwd(x, weight, normalized, eps)[0]
        if _transforms_active():
            return _transformed_fwd(x, weight, normalized, eps)[0]
        if needs_grad(x, weight):
            return _norm_apply(x, weight, normalized, eps)
        with _BelowAutograd():
            return _fwd(x, weight, normalized, eps)[0]
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        check_tensors(op, input=x, weight=weight)
        raise translate(error) from None


def rms_norm(
    input: Tensor, normalized_shape: Union[int, Sequence[int]], weight: Optional[Tensor] = None, eps: Optional[float] = None
) -> Tensor:
    """y = x r w, r = (mean(x^2) + eps)^(-1/2) over the last ``len(normalized_shape)`` dimensions.

    Arguments as ``torch.nn.functional.rms_norm``: input float32, float16, bfloat16 or float64 of any leading shape;
    weight of shape normalized_shape, any floating dtype; eps None means the epsilon of the dtype sums are kept in
    (2^-23; 2^-52 for float64). Returns the dtype of input.

    Sums, r and products in float32 (float64 for float64), one rounding. Differentiable twice. Does not wait for the GPU.
    Source: Zhang & Sennrich, arXiv 1910.07467.

    Raises ValueError where shapes do not fit, TypeError for an integer dtype.
    """
    if not isinstance(input, Tensor) or input.is_nested:
        check_tensors("rms_norm", input=input)
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if input.shape[-len(shape) :] != shape or not shape:
        raise ValueError(wrong("rms_norm", "normalized_shape", list(shape), f"the last sizes of {list(input.shape)}"))
    return _norm("rms_norm", input, weight, len(shape), _EPS.get(input.dtype, 0.0) if eps is None else eps)


class RMSNormFunction:
    """``RMSNormFunction.apply(x, weight, eps)``: RMS norm of the last dimension; weight may be None."""

    @staticmethod
    def apply(x: Tensor, weight: Optional[Tensor], eps: float) -> Tensor:
        """y, the shape and dtype of x."""
        return _norm("RMSNormFunction", x, weight, 1, eps)


class MetalRMSNorm(torch.nn.Module):
    """Replaces ``torch.nn.RMSNorm``: same parameters, same state_dict; eps is 1e-6 unless given.

    Exactly one of normalized_shape (int or sequence) and its alias hidden_size. ``eps=None`` as in torch.
    """

    def __init__(
        self,
        normalized_shape: Union[int, Sequence[int], None] = None,
        eps: Optional[float] = 1e-6,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        *,
        hidden_size: Optional[int] = None,
    ) -> None:
        super().__init__()
        if (normalized_shape is None) == (hidden_size is None):
            got = f"{normalized_shape} and hidden_size {hidden_size}"
            raise ValueError(wrong("MetalRMSNorm", "normalized_shape", got, "exactly one of the two"))
        shape = hidden_size if normalized_shape is None else normalized_shape
        self.normalized_shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        if elementwise_affine:
            self.weight = torch.nn.Parameter(torch.empty(self.normalized_shape, device=device, dtype=dtype))
        else:
            self.register_parameter("weight", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the weight to ones."""
        if self.elementwise_affine:
            torch.nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., *normalized_shape) -> the same shape and dtype."""
        return rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


def fused_add_rmsnorm(input: Tensor, residual: Tensor, weight: Optional[Tensor], eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """(output, residual_out): residual_out = input + residual, rounded to the dtype; output = its RMS norm.

    input and residual (..., H), one dtype; weight (H,) or None. One pass over memory. Differentiable twice; inputs are
    not written to. Raises ValueError where shapes or devices differ, TypeError where dtypes do.
    """
    op = "fused_add_rmsnorm"
    try:
        if weight is not None and weight.dtype is torch.float64 and input.dtype is not torch.float64:
            check_float64(op, "weight", weight)
            weight = weight.float()
        if _is_compiling():
            return _add_fwd(input, residual, weight, 1, eps)[:2]
        if _transforms_active():
            function = _TransformedAddNorm.apply if grad_tracked(input, residual, weight) else _add_fwd
            return function(input, residual, weight, 1, eps)[:2]
        if needs_grad(input, residual, weight):
            return _add_norm_apply(input, residual, weight, 1, eps)
        with _BelowAutograd():
            return _add_fwd(input, residual, weight, 1, eps)[:2]
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        check_tensors(op, input=input, residual=residual, weight=weight)
        if input.ndim < 1:
            raise ValueError(wrong(op, "input", "shape []", "at least 1 dimension")) from None
        raise translate(error) from None


class FusedAddRMSNorm(torch.nn.Module):
    """:func:`fused_add_rmsnorm` with its weight."""

    def __init__(self, hidden_size: int, eps: float = 1e-6, device: Any = None, dtype: Optional[torch.dtype] = None) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))

    def forward(self, input: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(output, residual_out), both of the shape of input (..., hidden_size)."""
        return fused_add_rmsnorm(input, residual, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.hidden_size}, eps={self.eps}"


def _mapped(tensor: Optional[Tensor], dim: Optional[int], size: int) -> Optional[Tensor]:
    if tensor is None:
        return None
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


@torch.library.register_vmap("metalcore::rms_norm_fwd")
def _vmap(info, in_dims, x, weight, normalized, eps):
    x = _mapped(x, in_dims[0], info.batch_size)
    if weight is None or in_dims[1] is None:
        return _transformed_fwd(x, weight, normalized, eps), (0, 0)
    y, rstd = _transformed_fwd(x, None, normalized, eps)
    weight = weight.movedim(in_dims[1], 0)
    weight = weight.reshape(info.batch_size, *(1,) * (x.ndim - 1 - normalized), *weight.shape[1:])
    compute = compute_dtype(x.dtype)
    scaled = x.to(compute) * rstd.reshape(*rstd.shape, *(1,) * normalized) * weight.to(compute)
    return (scaled.to(y.dtype), rstd), (0, 0)
