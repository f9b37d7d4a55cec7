"""Pseudo-inverse of batches, by singular values, and least squares, by QR or singular values."""

from typing import Any, NamedTuple, Optional, Union

import torch
from torch import Tensor

from ._errors import wrong
from ._linalg import EXACT, broadcast, check_matrix, product, right_side
from ._operators import takes_metal
from ._originals import torch_lstsq
from .qr import qr
from .svd import _prefers_torch, svd
from .trsm import trsm

Rcond = Union[None, float, Tensor]


class Lstsq(NamedTuple):
    """Result of :func:`lstsq`."""

    solution: Tensor
    residuals: Tensor
    rank: Tensor
    singular_values: Tensor


def _limit(op: str, A: Tensor, rcond: Rcond) -> Tensor:
    """rcond as a tensor (..., 1) of A's dtype."""
    if rcond is None:
        rcond = max(A.shape[-2:]) * torch.finfo(A.dtype).eps
    if not isinstance(rcond, Tensor):
        if isinstance(rcond, bool) or not isinstance(rcond, (int, float)):
            raise TypeError(wrong(op, "rcond", type(rcond).__name__, "a number or a tensor"))
        return torch.full((1,), rcond, dtype=A.dtype, device=A.device)
    if rcond.device != A.device and rcond.ndim:
        raise ValueError(wrong(op, "rcond", f"device {rcond.device}", str(A.device)))
    shape = torch.broadcast_shapes(rcond.shape, A.shape[:-2]) if _fits(rcond.shape, A.shape[:-2]) else None
    if shape != A.shape[:-2]:
        raise ValueError(wrong(op, "rcond", f"shape {list(rcond.shape)}", f"one that broadcasts to {list(A.shape[:-2])}"))
    return rcond.to(A.device, A.dtype).unsqueeze(-1)


def _fits(a: tuple, b: tuple) -> bool:
    return all(x == y or x == 1 or y == 1 for x, y in zip(reversed(a), reversed(b)))


def _inverse_values(S: Tensor, limit: Tensor) -> Tensor:
    """1 / S, 0 where S <= limit max(S)."""
    kept = S > limit * S[..., :1] if S.shape[-1] else S > 0
    return torch.where(kept, 1 / torch.where(kept, S, 1), 0)


def _pinv_gradient(gP: Tensor, P: Tensor, A: Tensor) -> Tensor:
    """Of dP = -P dA P + P P' dA' (I - A P) + (I - P A) dA' P' P (Golub and Pereyra 1973, constant rank)."""
    gPt, Pt = gP.mT, P.mT
    if A.shape[-2] <= A.shape[-1]:
        K = gPt @ P
        KPt = K @ Pt
        return KPt - (P @ K).mT - (A @ P) @ KPt + (Pt @ P) @ (gPt - K @ A)
    K = P @ gPt
    PtK = Pt @ K
    return PtK - (K @ P).mT - (PtK @ P) @ A + (gPt - A @ K) @ P @ Pt


class _Pinv(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(A: Tensor, limit: Tensor) -> Tensor:
        U, S, V = svd(A)
        return product(V * _inverse_values(S, limit).unsqueeze(-2), U.mT.contiguous())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, gP: Tensor) -> tuple:
        A, P = ctx.saved_tensors
        return _pinv_gradient(gP, P, A), None


def pinv(A: Tensor, *, rcond: Rcond = None, hermitian: bool = False) -> Tensor:
    """P (..., N, M), the pseudo-inverse of A (..., M, N): A P A = A, P A P = P, A P and P A symmetric.

    Singular values up to ``rcond`` times the largest count as zero; ``rcond`` is a number or a tensor that broadcasts to the
    batch, by default max(M, N) 2 u. ``hermitian=True`` takes A as symmetric and looks at its lower triangle alone. float32
    and float64; half types are computed in float32 and rounded once. Differentiable as ``torch.linalg.pinv``, for
    constant rank. Waits for the GPU.

    Raises torch.linalg.LinAlgError for NaN or Inf, naming the batch item; ValueError for wrong shapes.

    >>> P = metalcore.pinv(torch.randn(500, 32, 16))
    """
    check_matrix("pinv", "A", A, square=bool(hermitian))
    if A.dtype not in EXACT:
        rcond = max(A.shape[-2:]) * torch.finfo(A.dtype).eps if rcond is None else rcond
        return pinv(A.float(), rcond=rcond, hermitian=hermitian).to(A.dtype)
    limit = _limit("pinv", A, rcond)
    if A.numel() == 0:
        return A.mT.clone(memory_format=torch.contiguous_format)
    if hermitian:
        lower = A.tril(-1)
        A = lower + lower.mT + torch.diag_embed(A.diagonal(dim1=-2, dim2=-1))
    return _named("pinv", lambda: _Pinv.apply(A, limit))


def _named(op: str, call: Any) -> Any:
    try:
        return call()
    except torch.linalg.LinAlgError as error:
        raise torch.linalg.LinAlgError(str(error).replace("svd:", f"{op}:", 1)) from None


def _solve(A: Tensor, B: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Solution of least norm and rank."""
    if A.device.type == "cpu" and limit.numel() == 1 and not takes_metal(A.device) and _prefers_torch(A):
        found = torch_lstsq(A, B, rcond=float(limit), driver="gelsy")
        return found.solution, found.rank
    X, regular = _by_qr(A, B, limit)
    rank = torch.full(A.shape[:-2], min(A.shape[-2:]), dtype=torch.int64, device=A.device)
    if bool(regular.all()):
        return X, rank
    rest = ~regular
    X[rest], rank[rest] = _by_svd(A[rest], B[rest], limit.expand(*rest.shape, 1)[rest])
    return X, rank


def _by_qr(A: Tensor, B: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Solution by A = Q R, or A' = Q R where A is wide; and where it holds: the product of the norms of R and its inverse, which
    is no less than the condition, says that no singular value counts as zero."""
    m, n = A.shape[-2:]
    k = B.shape[-1]
    Q, R = qr(A if m >= n else A.mT)
    eye = torch.eye(min(m, n), dtype=A.dtype, device=A.device).expand(R.shape)
    solved = trsm(R, torch.cat([product(Q.mT, B) if m >= n else B, eye], -1), lower=False, transpose=m < n)
    X = solved[..., :k] if m >= n else product(Q, solved[..., :k])
    condition = R.square().sum((-2, -1)).sqrt() * solved[..., k:].square().sum((-2, -1)).sqrt()
    return X.contiguous(), condition * limit.squeeze(-1) < 1  # false for NaN


def _by_svd(A: Tensor, B: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    U, S, V = svd(A)
    inverse = _inverse_values(S, limit)
    return product(V, inverse.unsqueeze(-1) * product(U.mT, B)), (inverse != 0).sum(-1)


class _Solution(torch.autograd.Function):
    """X and the rank, with the gradient of X = pinv(A) B."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, B: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        X, rank = _solve(A, B, limit)
        ctx.save_for_backward(A, B, limit)
        ctx.mark_non_differentiable(rank)
        return X, rank

    @staticmethod
    def backward(ctx: Any, gX: Tensor, _: Any) -> tuple:
        A, B, limit = ctx.saved_tensors
        P = _Pinv.apply(A, limit)
        return _pinv_gradient(gX @ B.mT, P, A), P.mT @ gX, None


def lstsq(A: Tensor, b: Tensor, *, rcond: Optional[float] = None, fast: bool = False) -> Lstsq:
    """The x of least norm among those that minimise \\|b - A x\\|, for every matrix of A (..., M, N).

    b is a vector (..., M) or a matrix (..., M, K), by the rule of ``torch.linalg``; batch dimensions broadcast.

    ===================  ===============  ==========================================================
    ``solution``         (..., N[, K])    also where A has fewer rows than columns, or less than full rank
    ``residuals``        (..., [K])       sums of squares of b - A x; empty (0,) if M <= N or ``fast``
    ``rank``             (...), int64     singular values above ``rcond`` (by default max(M, N) 2 u) times the largest
    ``singular_values``  (0,)             empty
    ===================  ===============  ==========================================================

    By Householder QR; items that may be of less than full rank, by their condition, through singular values. float32 and
    float64; half types are computed in float32 and rounded once. Differentiable as ``torch.linalg.lstsq``,
    through the pseudo-inverse, for constant rank. Waits for the GPU. On cpu single and large matrices are torch's (gelsy).

    Raises torch.linalg.LinAlgError for NaN or Inf, naming the batch item; ValueError for shapes that do not fit.

    >>> x = metalcore.lstsq(torch.randn(500, 32, 16), torch.randn(500, 32)).solution
    """
    check_matrix("lstsq", "A", A)
    B, is_vector = right_side("lstsq", A, b)
    dtype = A.dtype
    if dtype not in EXACT:
        rcond = max(A.shape[-2:]) * torch.finfo(dtype).eps if rcond is None else rcond
        A, B = A.float(), B.float()
    limit = _limit("lstsq", A, rcond)
    m, n = A.shape[-2:]
    A, B = broadcast(A, B)
    batch, k = A.shape[:-2], B.shape[-1]
    if A.numel() == 0 or B.numel() == 0:
        solution = A.new_zeros(*batch, n, k)
        rank = torch.zeros(batch, dtype=torch.int64, device=A.device)
        if A.numel():
            rank = (_inverse_values(_named("lstsq", lambda: svd(A.detach()).S), limit) != 0).sum(-1)
    else:
        _check_finite(A, B)
        solution, rank = _named("lstsq", lambda: _Solution.apply(A, B, limit))
    residuals = A.new_zeros(0)
    if m > n and not fast:
        residuals = (B - product(A, solution)).square().sum(-2)
        residuals = residuals.squeeze(-1) if is_vector else residuals
    solution = solution.squeeze(-1) if is_vector else solution
    return Lstsq(solution.to(dtype).contiguous(), residuals.to(dtype), rank, A.new_zeros(0, dtype=dtype))


def _check_finite(A: Tensor, B: Tensor) -> None:
    """LinAlgError for the first batch item with NaN or Inf."""
    finite = [X.detach().isfinite().flatten(-2).all(-1) for X in (A, B)]
    if bool((finite[0] & finite[1]).all()):
        return
    for name, good in zip(("A", "b"), finite):
        if not bool(good.all()):
            item = (~good).nonzero()[0].tolist()
            place = f"batch item {item[0] if len(item) == 1 else tuple(item)}: " if item else ""
            raise torch.linalg.LinAlgError(wrong("lstsq", name, f"{place}entries that are not finite", "finite entries"))
