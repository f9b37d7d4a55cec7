"""Low-level functions on tensors of any device, without gradients.

``import metalcore_backend as mc``. Arguments by position or by name; none of these can be differentiated: with gradient
recording on and an input that requires it, RuntimeError names the public function to use.
"""

from typing import Any, Optional

import metalcore
import torch
from metalcore import householder
from metalcore._errors import translate, wrong
from metalcore._linalg import check_matrix, column_signs, product
from metalcore._operators import HALVES, check_tensors, needs_grad
from metalcore.svd import column_order
from torch import Tensor

__all__ = [
    "bias_gelu_fwd",
    "bias_silu_fwd",
    "cholesky_batched",
    "cholesky_solve_batched",
    "column_norm_sort",
    "cross_entropy_fwd",
    "eigh_forward",
    "embedding_bag",
    "frobenius_norm_batched",
    "fused_add_layernorm",
    "fused_add_rmsnorm",
    "fused_softmax",
    "gather",
    "gelu_bwd",
    "gelu_fwd",
    "geqr2",
    "index_select",
    "kl_div_fwd",
    "kl_div_topk_fwd",
    "larfb",
    "larft",
    "layernorm_fwd",
    "lu_batched",
    "qr",
    "qr_batched",
    "qr_blocked",
    "rmsnorm_bwd",
    "rmsnorm_fwd",
    "rope_bwd",
    "rope_fwd",
    "rope_fwd_qk",
    "scatter_add",
    "sign_canonicalize",
    "silu_bwd",
    "silu_fwd",
    "softmax_bwd",
    "solve",
    "svd_forward",
    "swiglu_bwd_strided",
    "swiglu_fwd",
    "syrk_batched",
    "trace_batched",
    "trsm",
    "trsm_batched",
]


def _no_grad(name: str, instead: str, *tensors: Optional[Tensor]) -> None:
    if needs_grad(*tensors):
        raise RuntimeError(f"metalcore_backend.{name} is not differentiable; use metalcore.{instead}, or torch.no_grad()")


def _call(operator: Any, *args: Any) -> Any:
    try:
        return operator(*args)
    except RuntimeError as error:
        raise translate(error) from None


def eigh_forward(A: Tensor) -> tuple[Tensor, Tensor]:
    """(L, Q) of every symmetric matrix of A (..., N, N), of which the lower triangle is read; as :func:`metalcore.eigh`."""
    _no_grad("eigh_forward", "eigh", A)
    return tuple(metalcore.eigh(A))


def qr(A: Tensor) -> tuple[Tensor, Tensor]:
    """(Q, R), reduced, of every matrix of A (..., M, N); as :func:`metalcore.qr`."""
    _no_grad("qr", "qr", A)
    return tuple(metalcore.qr(A))


def qr_batched(A: Tensor) -> tuple[Tensor, Tensor]:
    """``qr(A)``."""
    _no_grad("qr_batched", "qr_batched", A)
    return tuple(metalcore.qr(A))


def geqr2(A: Tensor) -> tuple[Tensor, Tensor]:
    """(R_V, tau), the packed QR of every matrix of A (..., M, N): R on and above the diagonal, the reflections' vectors
    below it (their leading 1 implied), tau (..., K), K = min(M, N)."""
    _no_grad("geqr2", "qr", A)
    return householder.geqr2(A)


def larft(V: Tensor, tau: Tensor, panel_start: int = 0) -> Tensor:
    """T (..., K, K), upper triangular, with H1 H2 ... HK = I - V T V'.

    Column j of V (..., M, at least K) has its implied 1 in row panel_start + j; what is on and above that row is ignored, so
    the packed result of :func:`geqr2` may be given, and so are columns beyond K = tau.shape[-1].
    """
    _no_grad("larft", "householder_wy", V, tau)
    return householder.larft(V, tau, panel_start)


def larfb(C: Tensor, V: Tensor, T: Tensor, trans: bool = False, panel_start: int = 0) -> Tensor:
    """Q C, or Q' C with ``trans``, for C (..., M, N) and Q = I - V T V', V as in :func:`larft`; a new tensor."""
    _no_grad("larfb", "apply_householder_wy", C, V, T)
    return householder.larfb(C, V, T, trans, panel_start)


def qr_blocked(A: Tensor, block_size: int = 32) -> tuple[Tensor, Tensor]:
    """(Q, R), reduced, by panels of ``block_size`` columns (<= 0 means 32) through geqr2, larft and larfb."""
    _no_grad("qr_blocked", "qr", A)
    return householder.qr_blocked(A, block_size)


def _matrices(name: str, A: Tensor, square: bool = False) -> Tensor:
    check_tensors(name, optional=(), A=A)
    if A.ndim < 2 or (square and A.shape[-1] != A.shape[-2]):
        expected = "(..., N, N)" if square else "at least 2 dimensions"
        raise ValueError(wrong(name, "A", f"shape {tuple(A.shape)}", expected))
    return A.float() if A.dtype in HALVES else A


def syrk_batched(A: Tensor) -> Tensor:
    """A'A (..., N, N) of A (..., M, N), exactly symmetric."""
    _no_grad("syrk_batched", "qr", A)
    wide = _matrices("syrk_batched", A)
    lower = product(wide.mT, wide).tril()
    return (lower + lower.tril(-1).mT).to(A.dtype)


def frobenius_norm_batched(A: Tensor) -> Tensor:
    """The Frobenius norm (...) of every matrix of A (..., M, N): no square overflows or vanishes."""
    _no_grad("frobenius_norm_batched", "qr", A)
    wide = _matrices("frobenius_norm_batched", A)
    if wide.shape[-1] * wide.shape[-2] == 0:
        return A.new_zeros(A.shape[:-2])
    largest = wide.abs().amax((-2, -1))
    scale = torch.where((largest == 0) | largest.isinf(), 1, largest)
    return ((wide / scale[..., None, None]).square().sum((-2, -1)).sqrt() * scale).to(A.dtype)


def trace_batched(A: Tensor) -> Tensor:
    """The trace (...) of every matrix of A (..., N, N)."""
    _no_grad("trace_batched", "qr", A)
    return _matrices("trace_batched", A, square=True).diagonal(dim1=-2, dim2=-1).sum(-1).to(A.dtype)


def trsm(A: Tensor, b: Tensor, lower: bool = True, transpose: bool = False, unit_diagonal: bool = False) -> Tensor:
    """X with op(A) X = b; as :func:`metalcore.trsm`."""
    _no_grad("trsm", "trsm", A, b)
    return metalcore.trsm(A, b, lower, transpose, unit_diagonal)


def trsm_batched(R: Tensor, B: Tensor, lower: bool = False, transpose: bool = False, unit_diagonal: bool = False) -> Tensor:
    """X with op(R) X = B, R **upper** triangular unless ``lower``; otherwise as :func:`metalcore.trsm`."""
    _no_grad("trsm_batched", "trsm", R, B)
    return metalcore.trsm(R, B, lower, transpose, unit_diagonal)


def cholesky_batched(A: Tensor) -> Tensor:
    """L with A = L L'; as :func:`metalcore.cholesky`, which waits for the GPU to raise LinAlgError."""
    _no_grad("cholesky_batched", "cholesky", A)
    return metalcore.cholesky(A)


def cholesky_solve_batched(L: Tensor, b: Tensor) -> Tensor:
    """X with L L' X = b, L **first**; otherwise as :func:`metalcore.cholesky_solve`."""
    _no_grad("cholesky_solve_batched", "cholesky_solve", L, b)
    return metalcore.cholesky_solve(b, L)


def solve(A: Tensor, b: Tensor) -> Tensor:
    """X with A X = b; as :func:`metalcore.solve`. **Waits** for the GPU."""
    _no_grad("solve", "solve", A, b)
    return metalcore.solve(A, b)


def lu_batched(A: Tensor) -> tuple[Tensor, Tensor]:
    """(LU, pivots) of every matrix of A (..., M, N); as :func:`metalcore.lu_factor_ex`, but pivots count from 0, and nothing
    is raised where a pivot is zero."""
    _no_grad("lu_batched", "lu_factor", A)
    LU, pivots, _ = metalcore.lu_factor_ex(A)
    return LU, pivots - 1


def svd_forward(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(U, S, V), thin, descending, with the signs of :func:`metalcore.svd`. Waits for the GPU."""
    _no_grad("svd_forward", "svd", A)
    return tuple(metalcore.svd(A))


def sign_canonicalize(U: Tensor, V: Tensor) -> None:
    """Negates, in both, the columns in which the entry of largest magnitude of U (..., M, K), the first one on a tie, is
    negative. In place on U and V (..., N, K), of any strides."""
    _no_grad("sign_canonicalize", "svd", U, V)
    check_tensors("sign_canonicalize", U=U, V=V)
    if U.ndim < 2 or V.ndim != U.ndim or U.shape[:-2] != V.shape[:-2] or U.shape[-1] != V.shape[-1]:
        expected = f"as many columns and the same batch as U of shape {list(U.shape)}"
        raise ValueError(wrong("sign_canonicalize", "V", f"shape {list(V.shape)}", expected))
    if U.numel() == 0:
        return
    signs = column_signs(U)
    U.mul_(signs)
    V.mul_(signs.to(V.dtype))


def column_norm_sort(A: Tensor) -> tuple[Tensor, Tensor]:
    """A (..., M, N) with its columns by descending 2-norm, equal ones in their order, and their numbers (..., N), int32."""
    _no_grad("column_norm_sort", "svd", A)
    check_matrix("column_norm_sort", "A", A)
    if A.shape[-2] == 0:
        order = torch.arange(A.shape[-1], device=A.device).expand(A.shape[:-2] + A.shape[-1:])
        return A.clone(memory_format=torch.contiguous_format), order.to(torch.int32).contiguous()
    wide = A if A.dtype == torch.float64 else A.float()
    order = column_order(wide)
    return A.gather(-1, order.unsqueeze(-2).expand(A.shape)), order.to(torch.int32)


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


def gelu_fwd(X: Tensor, approximate: str = "none") -> Tensor:
    """As :func:`metalcore.metal_gelu`."""
    _no_grad("gelu_fwd", "metal_gelu", X)
    return metalcore.metal_gelu(X, approximate)


def gelu_bwd(dY: Tensor, X: Tensor, approximate: str = "none") -> Tensor:
    """The gradient of X from that of ``gelu_fwd(X, approximate)``."""
    _no_grad("gelu_bwd", "metal_gelu", dY, X)
    check_tensors("gelu_bwd", dY=dY, X=X)
    if approximate not in ("none", "tanh"):
        raise ValueError(wrong("gelu_bwd", "approximate", repr(approximate), "'none' or 'tanh'"))
    return _call(torch.ops.metalcore.gelu_bwd.default, dY, X, approximate == "tanh")


def silu_fwd(X: Tensor) -> Tensor:
    """As :func:`metalcore.metal_silu`."""
    _no_grad("silu_fwd", "metal_silu", X)
    return metalcore.metal_silu(X)


def silu_bwd(dY: Tensor, X: Tensor) -> Tensor:
    """The gradient of X from that of ``silu_fwd(X)``."""
    _no_grad("silu_bwd", "metal_silu", dY, X)
    check_tensors("silu_bwd", dY=dY, X=X)
    return _call(torch.ops.metalcore.silu_bwd.default, dY, X)


def bias_gelu_fwd(X: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    """As :func:`metalcore.bias_gelu`."""
    _no_grad("bias_gelu_fwd", "bias_gelu", X, bias)
    return metalcore.bias_gelu(X, bias, approximate)


def bias_silu_fwd(X: Tensor, bias: Tensor) -> Tensor:
    """As :func:`metalcore.bias_silu`."""
    _no_grad("bias_silu_fwd", "bias_silu", X, bias)
    return metalcore.bias_silu(X, bias)


def swiglu_fwd(gate: Tensor, up: Tensor) -> Tensor:
    """As :func:`metalcore.swiglu`."""
    _no_grad("swiglu_fwd", "swiglu", gate, up)
    return metalcore.swiglu(gate, up)


def swiglu_bwd_strided(d_h: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`metalcore.swiglu_bwd`: any shape and strides."""
    _no_grad("swiglu_bwd_strided", "swiglu", d_h, gate, up)
    return metalcore.swiglu_bwd(d_h, gate, up)


def rope_fwd(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding of one tensor (B, S, H, D); as :func:`metalcore.rope_forward`."""
    _no_grad("rope_fwd", "rope_forward", x, cos, sin)
    return metalcore.rope_forward(x, cos, sin)


def rope_bwd(dy: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient of x from that of :func:`rope_fwd`'s result."""
    _no_grad("rope_bwd", "rope_forward", dy, cos, sin)
    check_tensors("rope_bwd", dy=dy, cos=cos, sin=sin)
    return _call(torch.ops.metalcore.rope_bwd.default, dy, None, cos, sin, None, 2)[0]


def rope_fwd_qk(Q: Tensor, K: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """(Q', K') of Q (B, S, Hq, D) and K (B, S, Hk, D), in one launch; as :func:`metalcore.rope_fwd`."""
    _no_grad("rope_fwd_qk", "rope_fwd", Q, K, cos, sin)
    return metalcore.rope_fwd(Q, K, cos, sin)


def fused_softmax(x: Tensor, dim: int) -> Tensor:
    """Softmax over ``dim``; as :func:`metalcore.fused_softmax`."""
    _no_grad("fused_softmax", "fused_softmax", x)
    return metalcore.fused_softmax(x, dim)


def softmax_bwd(probs: Tensor, d_probs: Tensor) -> Tensor:
    """dx = probs (d_probs - sum of probs d_probs) over the last dimension: the gradient of softmax from its result."""
    _no_grad("softmax_bwd", "fused_softmax", probs, d_probs)
    check_tensors("softmax_bwd", probs=probs, d_probs=d_probs)
    return _call(torch.ops.metalcore.softmax_bwd.default, probs, d_probs)


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


def embedding_bag(weight: Tensor, indices: Tensor, offsets: Tensor, mode: int = 0) -> Tensor:
    """(B, D) from offsets (B + 1,); mode 0 sum, 1 mean, 2 max; as :func:`metalcore.embedding_bag`."""
    _no_grad("embedding_bag", "embedding_bag", weight)
    names = ("sum", "mean", "max")
    return metalcore.embedding_bag(weight, indices, offsets, names[mode] if mode in (0, 1, 2) else mode)


def gather(src: Tensor, index: Tensor, dim: int) -> Tensor:
    """As :func:`metalcore.gather`."""
    _no_grad("gather", "gather", src)
    return metalcore.gather(src, index, dim)


def scatter_add(dst: Tensor, index: Tensor, src: Tensor, dim: int) -> Tensor:
    """As :func:`metalcore.scatter_add`."""
    _no_grad("scatter_add", "scatter_add", dst, src)
    return metalcore.scatter_add(dst, index, src, dim)


def index_select(src: Tensor, dim: int, index: Tensor) -> Tensor:
    """As :func:`metalcore.index_select`."""
    _no_grad("index_select", "index_select", src)
    return metalcore.index_select(src, dim, index)
