"""Layer normalisation, alone and fused with the addition of a residual."""

from typing import Any, Optional, Sequence, Union

import torch
from torch import Tensor

from ._errors import translate, wrong
from ._operators import autocast_to_float32, check_float64, check_tensors, compute_dtype, grad_tracked, needs_grad, same_device

_fwd = torch.ops.metalcore.layer_norm_fwd.default
_bwd = torch.ops.metalcore.layer_norm_bwd.default
_add_fwd = torch.ops.metalcore.add_layer_norm_fwd.default
_add_bwd = torch.ops.metalcore.add_layer_norm_bwd.default
# Looked up once: at the smallest sizes a call is its Python.
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active

_OPTIONAL = ("weight", "bias")


def _fake_row(x: Tensor, normalized: int) -> Tensor:
    return x.new_empty(x.shape[: x.ndim - normalized], dtype=compute_dtype(x.dtype))


def _fake_sum(x: Tensor, weight: Optional[Tensor]) -> Tensor:
    return x.new_empty((0,)) if weight is None else weight.new_empty(weight.shape)


@torch.library.register_fake("metalcore::layer_norm_fwd")
def _(x, weight, bias, normalized, eps):
    same_device("layer_norm", input=x, weight=weight, bias=bias)
    return x.new_empty(x.shape), _fake_row(x, normalized), _fake_row(x, normalized)


@torch.library.register_fake("metalcore::layer_norm_bwd")
def _(dy, x, weight, bias, mean, rstd, normalized):
    return x.new_empty(x.shape), _fake_sum(x, weight), _fake_sum(x, bias)


@torch.library.register_fake("metalcore::add_layer_norm_fwd")
def _(input, residual, weight, bias, normalized, eps):
    same_device("fused_add_layernorm", input=input, residual=residual, weight=weight, bias=bias)
    rows = [_fake_row(input, normalized) for _ in range(2)]
    return input.new_empty(input.shape), input.new_empty(input.shape), *rows


@torch.library.register_fake("metalcore::add_layer_norm_bwd")
def _(dy, d_residual_out, residual_out, weight, bias, mean, rstd, normalized):
    return residual_out.new_empty(residual_out.shape), _fake_sum(residual_out, weight), _fake_sum(residual_out, bias)


def _backward_formula(
    dy: Tensor, h: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], rstd: Tensor, normalized: int
) -> tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
    """The backward pass in torch's own operations, differentiable again: mean and r are formed anew from h, as those that
    were saved carry no gradient (eps is what rstd says it was)."""
    dims = tuple(range(-normalized, 0))
    compute = compute_dtype(h.dtype)
    x, g = h.to(compute), dy.to(compute)
    centred = x - x.mean(dims, keepdim=True)
    variance = (centred**2).mean(dims, keepdim=True)
    saved = rstd.view(rstd.shape + (1,) * normalized)
    eps = (saved.detach() ** -2 - variance.detach()).detach()
    r = (variance + eps) ** -0.5
    n = centred * r
    gw = g if weight is None else g * weight.to(compute)
    dx = r * (gw - gw.mean(dims, keepdim=True) - n * (gw * n).mean(dims, keepdim=True))
    rows = tuple(range(h.ndim - normalized))
    total = lambda terms, like: None if like is None else (terms.sum(rows) if rows else terms).to(like.dtype)  # noqa: E731
    return dx.to(h.dtype), total(g * n, weight), total(g, bias)


def _wanted(ctx: Any, *sums: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
    """dw and db, where they are asked for."""
    return tuple(t if wanted else None for t, wanted in zip(sums, ctx.needs_input_grad[ctx.weight_at :]))


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, bias, normalized, _ = inputs
    ctx.normalized, ctx.weight_at = normalized, 1
    ctx.save_for_backward(x, weight, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, dy: Tensor, *_: Any) -> tuple:
    x, weight, bias, mean, rstd = ctx.saved_tensors
    if needs_grad(dy, x, weight):
        dx, *sums = _backward_formula(dy, x, weight, bias, rstd, ctx.normalized)
    else:
        with _BelowAutograd():
            dx, *sums = _bwd(dy, x, weight, bias, mean, rstd, ctx.normalized)
    return dx, *_wanted(ctx, *sums), None, None


def _add_setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, _, weight, bias, normalized, _ = inputs
    ctx.normalized, ctx.weight_at = normalized, 2
    ctx.save_for_backward(output[1], weight, bias, *output[2:])
    ctx.mark_non_differentiable(*output[2:])


def _add_backward(ctx: Any, dy: Tensor, d_sum: Tensor, *_: Any) -> tuple:
    h, weight, bias, mean, rstd = ctx.saved_tensors
    if needs_grad(dy, d_sum, h, weight):
        dx, *sums = _backward_formula(dy, h, weight, bias, rstd, ctx.normalized)
        dx = dx + d_sum
    else:
        with _BelowAutograd():
            dx, *sums = _add_bwd(dy, d_sum, h, weight, bias, mean, rstd, ctx.normalized)
    return dx, dx, *_wanted(ctx, *sums), None, None


torch.library.register_autograd("metalcore::layer_norm_fwd", _backward, setup_context=_setup_context)
torch.library.register_autograd("metalcore::add_layer_norm_fwd", _add_backward, setup_context=_add_setup_context)


class _Norm(torch.autograd.Function):
    """The same derivative without the detour through torch.library: fewer Python calls."""

    @staticmethod
    def forward(ctx, x, weight, bias, normalized, eps):
        with _BelowAutograd():
            y, mean, rstd = _fwd(x, weight, bias, normalized, eps)
        ctx.normalized, ctx.weight_at = normalized, 1
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return y

    backward = staticmethod(_backward)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, residual, weight, bias, normalized, eps):
        with _BelowAutograd():
            y, total, mean, rstd = _add_fwd(input, residual, weight, bias, normalized, eps)
        ctx.normalized, ctx.weight_at = normalized, 2
        ctx.save_for_backward(total, weight, bias, mean, rstd)
        return y, total

    backward = staticmethod(_add_backward)


class _TransformedNorm(torch.autograd.Function):
    """For functorch transforms (vmap, grad): the backward pass in torch's own operations, which they know."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias, normalized, eps):
        return _fwd(x, weight, bias, normalized, eps)

    setup_context = staticmethod(_setup_context)

    @staticmethod
    def backward(ctx, dy, *_):
        x, weight, bias, _, rstd = ctx.saved_tensors
        dx, *sums = _backward_formula(dy, x, weight, bias, rstd, ctx.normalized)
        return dx, *_wanted(ctx, *sums), None, None


class _TransformedAddNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input, residual, weight, bias, normalized, eps):
        return _add_fwd(input, residual, weight, bias, normalized, eps)

    setup_context = staticmethod(_add_setup_context)

    @staticmethod
    def backward(ctx, dy, d_total, *_):
        h, weight, bias, _, rstd = ctx.saved_tensors
        dx, *sums = _backward_formula(dy, h, weight, bias, rstd, ctx.normalized)
        dx = dx + d_total
        return dx, dx, *_wanted(ctx, *sums), None, None


def _transformed_fwd(x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], normalized: int, eps: float) -> tuple:
    function = _TransformedNorm.apply if grad_tracked(x, weight, bias) else _fwd
    return function(x, weight, bias, normalized, eps)


# Without the wrapper of autograd.Function.apply, which looks for functorch transforms: the callers have looked already.
_norm_apply = super(torch.autograd.Function, _Norm).apply
_add_norm_apply = super(torch.autograd.Function, _AddNorm).apply


def _narrowed(op: str, name: str, weight: Optional[Tensor], x: Tensor) -> Optional[Tensor]:
    """A float64 weight in float32, unless x is float64."""
    if weight is None or weight.dtype is not torch.float64 or x.dtype is torch.float64:
        return weight
    check_float64(op, name, weight)
    return weight.float()


def layer_norm(
    x: Tensor,
    normalized_shape: Union[int, Sequence[int]],
    weight: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    eps: float = 1e-5,
) -> Tensor:
    """y = (x - m) r w + b, m = mean(x), r = (mean((x - m)^2) + eps)^(-1/2) over the last ``len(normalized_shape)``
    dimensions.

    Arguments as ``torch.nn.functional.layer_norm``: x float32, float16, bfloat16 or float64 of any leading shape; weight
    and bias of shape normalized_shape, any floating dtype. Returns the dtype of x.

    Sums, r and products in float32 (float64 for float64), the variance from centred values, one rounding. Differentiable
    twice. Under autocast half input is computed, and returned, in float32. Does not wait for the GPU.
    Source: Ba, Kiros & Hinton, arXiv 1607.06450.

    Raises ValueError where shapes do not fit, TypeError for an integer dtype.
    """
    op = "layer_norm"
    if not isinstance(x, Tensor) or x.is_nested:
        check_tensors(op, input=x)
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if x.shape[-len(shape) :] != shape or not shape:
        raise ValueError(wrong(op, "normalized_shape", list(shape), f"the last sizes of {list(x.shape)}"))
    normalized = len(shape)
    try:
        x = autocast_to_float32(x)
        weight, bias = _narrowed(op, "weight", weight, x), _narrowed(op, "bias", bias, x)
        if _is_compiling():
            return _fwd(x, weight, bias, normalized, eps)[0]
        if _transforms_active():
            return _transformed_fwd(x, weight, bias, normalized, eps)[0]
        if needs_grad(x, weight, bias):
            return _norm_apply(x, weight, bias, normalized, eps)
        with _BelowAutograd():
            return _fwd(x, weight, bias, normalized, eps)[0]
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        check_tensors(op, optional=_OPTIONAL, input=x, weight=weight, bias=bias)
        raise translate(error) from None


class MetalLayerNorm(torch.nn.Module):
    """Replaces ``torch.nn.LayerNorm``: same arguments, same parameters, same state_dict."""

    def __init__(
        self,
        normalized_shape: Union[int, Sequence[int]],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        *,
        bias: bool = True,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.normalized_shape = shape
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        for name, there in (("weight", elementwise_affine), ("bias", elementwise_affine and bias)):
            parameter = torch.nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if there else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the weight to ones and the bias to zeros."""
        if self.weight is not None:
            torch.nn.init.ones_(self.weight)
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., *normalized_shape) -> the same shape and dtype."""
        return layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        affine = f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
        return f"{self.normalized_shape}, eps={self.eps}, {affine}"


def fused_add_layernorm(
    input: Tensor, residual: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """(output, residual_out): residual_out = input + residual, rounded to the dtype; output = its layer norm.

    input and residual (..., H), one dtype; weight and bias (H,) or None. One pass over memory. Differentiable twice; inputs
    are not written to. Raises ValueError where shapes or devices differ, TypeError where dtypes do.
    """
    op = "fused_add_layernorm"
    try:
        weight, bias = _narrowed(op, "weight", weight, input), _narrowed(op, "bias", bias, input)
        if _is_compiling():
            return _add_fwd(input, residual, weight, bias, 1, eps)[:2]
        if _transforms_active():
            function = _TransformedAddNorm.apply if grad_tracked(input, residual, weight, bias) else _add_fwd
            return function(input, residual, weight, bias, 1, eps)[:2]
        if needs_grad(input, residual, weight, bias):
            return _add_norm_apply(input, residual, weight, bias, 1, eps)
        with _BelowAutograd():
            return _add_fwd(input, residual, weight, bias, 1, eps)[:2]
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        check_tensors(op, optional=_OPTIONAL, input=input, residual=residual, weight=weight, bias=bias)
        if input.ndim < 1:
            raise ValueError(wrong(op, "input", "shape []", "at least 1 dimension")) from None
        raise translate(error) from None


@torch.library.register_vmap("metalcore::layer_norm_fwd")
def _vmap(info: Any, in_dims: tuple, x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], normalized: int, eps: float):
    mapped = lambda t, dim: t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)  # noqa: E731
    x = mapped(x, in_dims[0])
    if (weight is None or in_dims[1] is None) and (bias is None or in_dims[2] is None):
        return _transformed_fwd(x, weight, bias, normalized, eps), (0, 0, 0)
    # A weight or a bias for each item: a call for each.
    items = [t if t is None else mapped(t, dim) for t, dim in zip((weight, bias), in_dims[1:3])]
    weights, biases = ([None] * info.batch_size if t is None else t for t in items)
    calls = [_transformed_fwd(*item, normalized, eps) for item in zip(x, weights, biases)]
    return tuple(map(torch.stack, zip(*calls))), (0, 0, 0)
