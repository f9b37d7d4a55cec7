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
    "cross_entropy_fwd",
    "fused_add_rmsnorm",
    "kl_div_fwd",
    "kl_div_topk_fwd",
    "qr",
    "qr_batched",
    "rmsnorm_bwd",
    "rmsnorm_fwd",
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


def cross_entropy_fwd(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Loss of each row of logits (..., V), float32 (float64 for float64); 0 where the target is ignore_index."""
    _no_grad("cross_entropy_fwd", "cross_entropy", logits)
    return metalcore.cross_entropy(logits, targets, ignore_index, 0.0, "none")


def kl_div_fwd(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Sum over the last dimension of p (log p - log q), float32 (...) (float64 for float64); log_p is the teacher."""
    _no_grad("kl_div_fwd", "kl_div", log_p, log_q)
    return metalcore.kl_div(log_p, log_q, "none")


def kl_div_topk_fwd(log_p: Tensor, log_q: Tensor, idx: Tensor, k: int) -> Tensor:
    """The same over the classes in the first k columns of idx (..., at least k)."""
    _no_grad("kl_div_topk_fwd", "kl_div_topk", log_p, log_q)
    return metalcore.kl_div_topk(log_p, log_q, idx, k, "none")
