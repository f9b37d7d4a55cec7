"""Low-level functions on tensors of any device, without gradients.

``import metalcore_backend as mc``. Arguments by position or by name; none of these can be differentiated: with gradient
recording on and an input that requires it, RuntimeError names the public function to use.
"""

from typing import Any, Optional

import metalcore
import torch
from metalcore._errors import translate
from metalcore._operators import check_tensors, needs_grad
from torch import Tensor

__all__ = [
    "fused_add_layernorm",
    "fused_add_rmsnorm",
    "fused_softmax",
    "layernorm_fwd",
    "qr",
    "qr_batched",
    "rmsnorm_bwd",
    "rmsnorm_fwd",
    "softmax_bwd",
]


def _no_grad(name: str, instead: str, *tensors: Optional[Tensor]) -> None:
    if needs_grad(*tensors):
        raise RuntimeError(f"metalcore_backend.{name} is not differentiable; use metalcore.{instead}, or torch.no_grad()")


def _call(operator: Any, *args: Any) -> Any:
    try:
        return operator(*args)
    except RuntimeError as error:
        raise translate(error) from None


def qr(A: Tensor) -> tuple[Tensor, Tensor]:
    """(Q, R), reduced, of every matrix of A (..., M, N); as :func:`metalcore.qr`."""
    _no_grad("qr", "qr", A)
    return tuple(metalcore.qr(A))


def qr_batched(A: Tensor) -> tuple[Tensor, Tensor]:
    """``qr(A)``."""
    _no_grad("qr_batched", "qr_batched", A)
    return tuple(metalcore.qr(A))


def rmsnorm_fwd(X: Tensor, W: Optional[Tensor], eps: float) -> tuple[Tensor, Tensor]:
    """(Y, rstd): RMS norm of the last dimension of X (..., H), W (H,) or None; rstd (...) float32 (float64 for float64)."""
    _no_grad("rmsnorm_fwd", "rms_norm", X, W)
    check_tensors("rmsnorm_fwd", X=X, W=W)
    return tuple(_call(torch.ops.metalcore.rms_norm_fwd.default, X, W, 1, eps))


def rmsnorm_bwd(dY: Tensor, X: Tensor, rstd: Tensor, W: Optional[Tensor]) -> tuple[Tensor, Optional[Tensor]]:
    """(dX, dW) from the gradient of Y, the input and rstd of :func:`rmsnorm_fwd`; dW is None without W."""
    _no_grad("rmsnorm_bwd", "rms_norm", dY, X, rstd, W)
    check_tensors("rmsnorm_bwd", dY=dY, X=X, rstd=rstd, W=W)
    dx, dw = _call(torch.ops.metalcore.rms_norm_bwd.default, dY, X, W, rstd, 1)
    return dx, (None if W is None else dw)


def fused_add_rmsnorm(input: Tensor, residual: Tensor, W: Optional[Tensor], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(output, residual_out, rstd), out of place: residual_out = input + residual, output its RMS norm."""
    _no_grad("fused_add_rmsnorm", "fused_add_rmsnorm", input, residual, W)
    check_tensors("fused_add_rmsnorm", input=input, residual=residual, W=W)
    return tuple(_call(torch.ops.metalcore.add_rms_norm_fwd.default, input, residual, W, 1, eps))


def fused_softmax(x: Tensor, dim: int) -> Tensor:
    """Softmax over ``dim``; as :func:`metalcore.fused_softmax`."""
    _no_grad("fused_softmax", "fused_softmax", x)
    return metalcore.fused_softmax(x, dim)


def softmax_bwd(probs: Tensor, d_probs: Tensor) -> Tensor:
    """dx = probs (d_probs - sum of probs d_probs) over the last dimension: the gradient of softmax from its result."""
    _no_grad("softmax_bwd", "fused_softmax", probs, d_probs)
    check_tensors("softmax_bwd", probs=probs, d_probs=d_probs)
    return _call(torch.ops.metalcore.softmax_bwd.default, probs, d_probs)


def layernorm_fwd(input: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(out, mean, rstd): layer norm of the last dimension of input (..., H); mean, rstd (...) float32 (float64 for
    float64)."""
    _no_grad("layernorm_fwd", "layer_norm", input, weight, bias)
    check_tensors("layernorm_fwd", optional=("weight", "bias"), input=input, weight=weight, bias=bias)
    return tuple(_call(torch.ops.metalcore.layer_norm_fwd.default, input, weight, bias, 1, eps))


def fused_add_layernorm(
    input: Tensor, residual: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, residual_out, mean, rstd), out of place: residual_out = input + residual, out its layer norm."""
    _no_grad("fused_add_layernorm", "fused_add_layernorm", input, residual, weight, bias)
    tensors = {"input": input, "residual": residual, "weight": weight, "bias": bias}
    check_tensors("fused_add_layernorm", optional=("weight", "bias"), **tensors)
    return tuple(_call(torch.ops.metalcore.add_layer_norm_fwd.default, input, residual, weight, bias, 1, eps))
