"""QR factorisation of batches of matrices."""

from typing import Any, NamedTuple

import torch

from . import _linalg
from ._errors import translate, wrong
from ._operators import check_tensors
from ._originals import torch_solve_triangular
from .trsm import trsm

_op = torch.ops.metalcore.qr.default
_MODES = {"reduced": 0, "complete": 1, "r": 2}


class QR(NamedTuple):
    """Result of :func:`qr`."""

    Q: torch.Tensor
    R: torch.Tensor


@torch.library.register_fake("metalcore::qr")
def _fake(A: torch.Tensor, mode: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    *batch, m, n = A.shape
    k = torch.sym_min(m, n)
    inner = m if mode == 1 else k
    q = A.new_empty((0,) if mode == 2 else (*batch, m, inner))
    return q, A.new_empty((*batch, inner, n))


def _triangle_and_mirror(X: torch.Tensor) -> torch.Tensor:
    """Symmetric, with the lower triangle of X."""
    lower = X.tril(-1)
    return lower + lower.mT + torch.diag_embed(X.diagonal(dim1=-2, dim2=-1))


def _backward_tall(Q: torch.Tensor, R: torch.Tensor, gQ: torch.Tensor, gR: torch.Tensor) -> torch.Tensor:
    """gA = (gQ + Q sym(R gR' - gQ' Q)) R^-T, M >= N (Seeger et al., arXiv 1710.08717)."""
    M = R @ gR.mT - gQ.mT @ Q
    return torch_solve_triangular(R.mT, gQ + Q @ _triangle_and_mirror(M), upper=False, left=False)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    A, mode = inputs
    ctx.mode, ctx.shape = mode, A.shape
    ctx.save_for_backward(A, *output)


def _backward(ctx: Any, gQ: torch.Tensor, gR: torch.Tensor) -> tuple[torch.Tensor, None]:
    A, Q, R = ctx.saved_tensors
    m, n = ctx.shape[-2:]
    if ctx.mode == 2:
        raise RuntimeError("qr: mode: the derivative depends on Q, which mode='r' does not compute; use mode='reduced'")
    if ctx.mode == 1 and m > n:
        raise RuntimeError("qr: mode: the derivative of mode='complete' is not defined for more rows than columns")
    gQ = torch.zeros_like(Q) if gQ is None else gQ
    gR = torch.zeros_like(R) if gR is None else gR
    gR = gR.triu()
    if m >= n:
        return _backward_tall(Q, R, gQ, gR), None
    # A = [X | Y], R = [U | V]: X = Q U decides Q, and V = Q' Y.
    Y, U, gU, gV = A[..., m:], R[..., :m], gR[..., :m], gR[..., m:]
    gX = _backward_tall(Q, U, gQ + Y @ gV.mT, gU)
    return torch.cat([gX, Q @ gV], -1), None


_factored = _linalg.differentiable("qr", 1, _setup_context, _backward)


@torch.library.register_vmap("metalcore::qr")
def _vmap(info: Any, in_dims: tuple, A: torch.Tensor, mode: int = 0) -> tuple[tuple, tuple]:
    q, r = _op(A.movedim(in_dims[0], 0), mode)
    return (q, r), (None if mode == 2 else 0, 0)


def qr(A: torch.Tensor, mode: str = "reduced") -> QR:
    """A = Q R, Q with orthonormal columns, R upper triangular.

    A is (..., M, N), any sizes; float32 and float64 (float16 and bfloat16: computed in float32, rounded once). K = min(M, N).

    ==============  ================  ================
    ``mode``        Q                 R
    ==============  ================  ================
    ``'reduced'``   (..., M, K)       (..., K, N)
    ``'complete'``  (..., M, M)       (..., M, N)
    ``'r'``         empty, (0,)       (..., K, N)
    ==============  ================  ================

    Signs are LAPACK's (geqrf): R's diagonal may be negative, as in ``torch.linalg.qr``. R is exactly zero below its
    diagonal. The error is that of single-precision LAPACK: \\|A - Q R\\| and \\|I - Q'Q\\| of a few n u. NaN and Inf
    propagate within their matrix. Differentiable as ``torch.linalg.qr``. Does not wait for the GPU.

    Raises ValueError for fewer than two dimensions or an unknown mode, TypeError for an integer dtype,
    NotImplementedError for a complex one.

    >>> Q, R = metalcore.qr(torch.randn(500, 16, 16))
    """
    code = _MODES.get(mode) if isinstance(mode, str) else None
    if code is None:
        raise ValueError(wrong("qr", "mode", repr(mode), "'reduced', 'complete' or 'r'"))
    if not isinstance(A, torch.Tensor) or A.dtype not in _linalg.EXACT:
        check_tensors("qr", A=A)
        q, r = qr(A.float(), mode)  # half types: computed in float32, rounded once
        return QR(q.to(A.dtype), r.to(A.dtype))
    try:
        return QR(*_factored(A, code))
    except RuntimeError as error:
        check_tensors("qr", A=A)
        raise translate(error) from None


def qr_batched(A: torch.Tensor) -> QR:
    """``qr(A)``, under the name it always had for batches (..., M, N)."""
    return qr(A)


def qr_solve(A: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """x that minimises \\|A x - b\\|, by the QR of A: R x = Q' b.

    A is (..., M, N) with M >= N and full rank; b a vector (..., M) or a matrix (..., M, K); x is (..., N) or (..., N, K).
    Batch dimensions broadcast. float32 and float64; half types through float32. Differentiable. Waits for the GPU.

    Raises ValueError for M < N (use lstsq) and shapes that do not fit, ``torch.linalg.LinAlgError`` for a zero on R's
    diagonal, with the batch item and its 1-based index.
    """
    op = "qr_solve"
    _linalg.check_matrix(op, "A", A)
    B, is_vector = _linalg.right_side(op, A, b)
    m, n = A.shape[-2:]
    if m < n:
        raise ValueError(wrong(op, "A", f"shape {list(A.shape)}", "at least as many rows as columns; lstsq takes others"))
    x = _linalg.through_float32(_qr_solve, *_linalg.broadcast(A, B))
    return x.squeeze(-1) if is_vector else x


def _qr_solve(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    Q, R = qr(A)
    x = trsm(R, _linalg.product(Q.mT, B), lower=False)
    zero = R.diagonal(dim1=-2, dim2=-1) == 0
    first = (~zero).to(torch.int32).cumprod(-1).sum(-1)  # how many come before the first zero
    info = torch.where(zero.any(-1), first + 1, 0)
    return _linalg.raise_for("qr_solve", info, "a zero in place {} of R's diagonal, expected columns of full rank", x)
