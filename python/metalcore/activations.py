"""GELU and SiLU: alone, of a sum with a bias, and as the gate of another tensor (GEGLU, SwiGLU)."""

from typing import Any, Callable, Optional

import torch
from torch import Tensor

from ._errors import translate, wrong
from ._operators import check_float64, check_tensors, compute_dtype, grad_tracked, needs_grad, same_device

_aten = torch.ops.aten
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In the type that the first is computed in."""
    dtype = compute_dtype(tensors[0].dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


# --- derivatives in torch's own operations, which have derivatives again ----------------------------


def _slope(dy: Tensor, x: Tensor, tanh: Optional[bool] = None) -> Tensor:
    """dy f'(x): of silu without ``tanh``, else of that form of gelu."""
    if tanh is None:
        h, d = _wide(x, dy)
        s = h.sigmoid()
        return (d * s * (1 + h * (1 - s))).to(x.dtype)
    return _aten.gelu_backward(dy, x, approximate="tanh" if tanh else "none")


def _value(x: Tensor, tanh: Optional[bool] = None) -> Tensor:
    return _aten.silu(x) if tanh is None else _aten.gelu(x, approximate="tanh" if tanh else "none")


def _plain_formula(dy: Tensor, x: Tensor, *tanh: bool) -> tuple[Tensor]:
    return (_slope(dy, x, *tanh),)


def _bias_formula(dy: Tensor, x: Tensor, bias: Tensor, *tanh: bool) -> tuple[Tensor, Tensor]:
    h, b, d = _wide(x, bias, dy)
    d = _slope(d, h + b, *tanh)
    return d.to(x.dtype), (d.sum(tuple(range(d.ndim - 1))) if d.ndim > 1 else d).to(bias.dtype)


def _gated_formula(d_h: Tensor, gate: Tensor, up: Tensor, *tanh: bool) -> tuple[Tensor, Tensor]:
    g, u, d = _wide(gate, up, d_h)
    return _slope(d * u, g, *tanh).to(gate.dtype), (d * _value(g, *tanh)).to(up.dtype)


# --- operators ------------------------------------------------------------------------------------


class _Activation:
    """The operators ``<name>_fwd`` and ``<name>_bwd``: tensors, then perhaps the flag ``tanh``.

    ``formula`` is the backward pass in torch's operations.
    """

    def __init__(self, op: str, name: str, tensors: tuple[str, ...], formula: Callable[..., tuple]) -> None:
        self.op, self.tensors, self.formula = op, tensors, formula
        self.fwd = getattr(torch.ops.metalcore, f"{name}_fwd").default
        self.bwd = getattr(torch.ops.metalcore, f"{name}_bwd").default
        self._register(f"metalcore::{name}")
        self.eager, self.transformed = _functions(self)

    def _register(self, name: str) -> None:
        count = len(self.tensors)

        def fake(*args: Any) -> Tensor:
            same_device(self.op, **dict(zip(self.tensors, args)))
            return args[0].new_empty(args[0].shape)

        def fake_backward(dy: Tensor, *args: Any) -> Any:
            grads = tuple(tensor.new_empty(tensor.shape) for tensor in args[:count])
            return grads if count > 1 else grads[0]

        torch.library.register_fake(f"{name}_fwd", fake)
        torch.library.register_fake(f"{name}_bwd", fake_backward)
        torch.library.register_autograd(f"{name}_fwd", self.backward, setup_context=self.setup_context)
        torch.library.register_vmap(f"{name}_fwd", self.vmap)

    def setup_context(self, ctx: Any, inputs: tuple, output: Tensor) -> None:
        count = len(self.tensors)
        ctx.flags = inputs[count:]
        ctx.save_for_backward(*inputs[:count])

    def backward(self, ctx: Any, dy: Tensor) -> tuple:
        tensors = ctx.saved_tensors
        if needs_grad(dy, *tensors):
            return self.wanted(ctx, self.formula(dy, *tensors, *ctx.flags))
        with _BelowAutograd():
            grads = self.bwd(dy, *tensors, *ctx.flags)
        return self.wanted(ctx, grads if len(tensors) > 1 else (grads,))

    @staticmethod
    def wanted(ctx: Any, grads: tuple) -> tuple:
        found = tuple(grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad))
        return found + (None,) * len(ctx.flags)

    def vmap(self, info: Any, in_dims: tuple, *args: Any) -> tuple[Tensor, int]:
        count = len(self.tensors)
        x, *others = (
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in zip(args[:count], in_dims)
        )
        if self.tensors[-1] != "bias":
            return self.transform(x, *others, *args[count:]), 0
        if in_dims[1] is None:
            return self.transform(x, *args[1:]), 0
        # A bias for each item: its sum with x is formed first, and not rounded.
        h, bias = _wide(x, others[0])
        h = h + bias.reshape(info.batch_size, *(1,) * (x.ndim - 2), -1)
        return _value(h, *args[count:]).to(x.dtype), 0

    def transform(self, *args: Any) -> Tensor:
        """Under functorch; torch.library's own autograd cannot be entered where its grad looks at a tensor."""
        return (self.transformed if grad_tracked(*args[: len(self.tensors)]) else self.fwd)(*args)

    def call(self, *args: Any) -> Tensor:
        """The function, differentiable."""
        try:
            if _is_compiling():
                return self.fwd(*args)
            if _transforms_active():
                return self.transform(*args)
            if needs_grad(*args[: len(self.tensors)]):
                return self.eager(*args)
            with _BelowAutograd():
                return self.fwd(*args)
        except (RuntimeError, AttributeError, TypeError, ValueError) as error:
            check_tensors(self.op, **dict(zip(self.tensors, args)))
            raise translate(error) from None


def _functions(activation: _Activation) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The same derivative with fewer Python calls than torch.library's, and one that functorch's transforms know."""

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            activation.setup_context(ctx, args, None)
            with _BelowAutograd():
                return activation.fwd(*args)

        backward = staticmethod(activation.backward)

    class Transformed(torch.autograd.Function):
        generate_vmap_rule = True
        setup_context = staticmethod(activation.setup_context)

        @staticmethod
        def forward(*args):
            return activation.fwd(*args)

        @staticmethod
        def backward(ctx, dy):
            return activation.wanted(ctx, activation.formula(dy, *ctx.saved_tensors, *ctx.flags))

    # Without the wrapper of autograd.Function.apply, which looks for functorch transforms: the caller has looked already.
    return super(torch.autograd.Function, Eager).apply, Transformed.apply


_gelu = _Activation("metal_gelu", "gelu", ("x",), _plain_formula)
_silu = _Activation("metal_silu", "silu", ("x",), _plain_formula)
_bias_gelu = _Activation("bias_gelu", "bias_gelu", ("x", "bias"), _bias_formula)
_bias_silu = _Activation("bias_silu", "bias_silu", ("x", "bias"), _bias_formula)
_geglu = _Activation("geglu", "geglu", ("gate", "up"), _gated_formula)
_swiglu = _Activation("swiglu", "swiglu", ("gate", "up"), _gated_formula)


# --- public functions -----------------------------------------------------------------------------


def _is_tanh(op: str, approximate: str) -> bool:
    if approximate == "none":
        return False
    if approximate == "tanh":
        return True
    raise ValueError(wrong(op, "approximate", repr(approximate), "'none' or 'tanh'"))


def metal_gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """x Phi(x), Phi the normal distribution function; with ``approximate='tanh'``
    0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).

    x float32, float16, bfloat16 or float64, any shape. Returns the shape and dtype of x.

    In float32 (float64 for float64), one rounding; error at most 8 w |x| besides, w = 2^-24 (2^-53). Values far below 0
    keep their digits. Differentiable twice. Does not wait for the GPU. Source: Hendrycks & Gimpel, arXiv 1606.08415.

    Raises ValueError for another ``approximate``, TypeError for an integer dtype.
    """
    return _gelu.call(x, _is_tanh("metal_gelu", approximate))


def metal_silu(x: Tensor) -> Tensor:
    """x sigma(x), sigma(x) = 1 / (1 + exp(-x)); types, rounding, error and exceptions as :func:`metal_gelu`."""
    return _silu.call(x)


def _fitting(op: str, x: Tensor, bias: Tensor) -> Tensor:
    """A float64 bias of a narrower x: in float32, which sums are kept in."""
    if isinstance(bias, Tensor) and bias.dtype is torch.float64 and isinstance(x, Tensor) and x.dtype is not torch.float64:
        check_float64(op, "bias", bias)
        return bias.float()
    return bias


def bias_gelu(x: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    """gelu(x + bias), the sum not rounded; x (..., n), bias (n,) of any floating dtype. Returns the dtype of x.

    ``approximate`` as :func:`metal_gelu`. The gradient of the bias is the sum over the leading dimensions, in a fixed
    order. Error at most 8 w (|x| + |bias|) besides one rounding. Differentiable twice. Raises ValueError where shapes or
    devices differ, TypeError for an integer dtype.
    """
    return _bias_gelu.call(x, _fitting("bias_gelu", x, bias), _is_tanh("bias_gelu", approximate))


def bias_silu(x: Tensor, bias: Tensor) -> Tensor:
    """silu(x + bias); as :func:`bias_gelu`."""
    return _bias_silu.call(x, _fitting("bias_silu", x, bias))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) up, in one pass; gate and up of one shape and dtype, which the result has.

    Error at most 8 w |gate up| besides one rounding. Differentiable twice. Source: Shazeer, arXiv 2002.05202. Raises
    ValueError where shapes or devices differ, TypeError where dtypes do.
    """
    return _swiglu.call(gate, up)


def geglu(gate: Tensor, up: Tensor, approximate: str = "none") -> Tensor:
    """gelu(gate) up, ``approximate`` as :func:`metal_gelu`; else as :func:`swiglu`."""
    return _geglu.call(gate, up, _is_tanh("geglu", approximate))


def swiglu_bwd(d_h: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """(d_gate, d_up) from the gradient of silu(gate) up: d_gate = d_h up s (1 + gate (1 - s)), d_up = d_h gate s,
    s = sigma(gate).

    One shape and dtype, which both results have. Not differentiable. Raises as :func:`swiglu`.
    """
    check_tensors("swiglu_bwd", d_h=d_h, gate=gate, up=up)
    if needs_grad(d_h, gate, up):
        raise RuntimeError("swiglu_bwd is not differentiable; use metalcore.swiglu, or torch.no_grad()")
    try:
        return tuple(_swiglu.bwd(d_h, gate, up))
    except RuntimeError as error:
        raise translate(error) from None


class MetalGELU(torch.nn.Module):
    """Replaces ``torch.nn.GELU``: :func:`metal_gelu` of its input."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        _is_tanh("MetalGELU", approximate)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """The shape and dtype of x."""
        return metal_gelu(x, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class MetalSiLU(torch.nn.Module):
    """Replaces ``torch.nn.SiLU``: :func:`metal_silu` of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """The shape and dtype of x."""
        return metal_silu(x)
