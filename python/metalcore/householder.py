"""Householder reflections as PyTorch operations, on any device; differentiable, but for the form in place.

H = I - tau v v' and, for blocks, Q = H1 H2 ... = I - V T V' (Golub & Van Loan, Matrix Computations, 5.1; Schreiber & Van
Loan, A storage-efficient WY representation). float32 and float64; half types are computed in float32 and rounded once.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from ._errors import wrong
from ._linalg import product
from ._operators import HALVES, check_tensors, needs_grad, takes_metal
from ._originals import torch_solve_triangular

__all__ = [
    "apply_householder",
    "apply_householder_inplace",
    "apply_householder_wy",
    "householder_vector",
    "householder_wy",
]


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.float() if t.dtype in HALVES else t for t in tensors)


def _check(op: str, **tensors: Tensor) -> None:
    check_tensors(op, optional=(), **tensors)
    (first, one), *others = tensors.items()
    for name, tensor in others:
        if tensor.dtype != one.dtype:
            raise TypeError(f"{op}: {name}: got dtype {tensor.dtype}, expected {one.dtype} as {first}")


def _expect(op: str, argument: str, tensor: Tensor, fits: bool, expected: str) -> None:
    if not fits:
        raise ValueError(wrong(op, argument, f"shape {tuple(tensor.shape)}", expected))


def _batch(op: str, *shapes: torch.Size) -> torch.Size:
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        text = " and ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(wrong(op, "A", f"batch dimensions {text}", "ones that broadcast")) from None


def _check_side(op: str, side: str) -> None:
    if side not in ("left", "right"):
        raise ValueError(wrong(op, "side", repr(side), "'left' or 'right'"))


def _check_reflection(op: str, A: Tensor, v: Tensor, tau: Tensor, side: str) -> None:
    _check(op, A=A, v=v, tau=tau)
    _check_side(op, side)
    _expect(op, "A", A, A.ndim >= 2, "at least 2 dimensions")
    length = A.shape[-2 if side == "left" else -1]
    _expect(op, "v", v, v.ndim >= 1 and v.shape[-1] == length, f"(..., {length})")
    _expect(op, "tau", tau, tau.shape == v.shape[:-1], f"{tuple(v.shape[:-1])}, one for each v")
    _batch(op, A.shape[:-2], tau.shape)


def householder_vector(x: Tensor) -> tuple[Tensor, Tensor]:
    """(v, tau) of the reflection H = I - tau v v' with H x = -sign(x[0]) \\|x\\| e1, for x (..., N).

    v (..., N) with v[..., 0] = 1, tau (...). Where the tail x[..., 1:] is exactly zero, H = I: tau = 0. No overflow for
    large or tiny x; NaN and Inf propagate. ValueError for N = 0.
    """
    _check("householder_vector", x=x)
    _expect("householder_vector", "x", x, x.ndim >= 1 and x.shape[-1] > 0, "a last dimension of at least 1")
    v, tau = _householder_vector(*_wide(x))
    return v.to(x.dtype), tau.to(x.dtype)


def _householder_vector(x: Tensor) -> tuple[Tensor, Tensor]:
    # v and tau do not depend on the scale of x, so neither does their derivative.
    largest = x.detach().abs().amax(-1, keepdim=True)
    x = x / torch.where(largest == 0, 1, largest)
    first, tail = x[..., :1], x[..., 1:]
    plain = (tail == 0).all(-1, keepdim=True)
    # Where H = I the formula is for a vector that has a derivative; its results are not taken.
    safe = torch.where(plain, 1, tail)
    beta = -torch.copysign(torch.sqrt((first * first) + (safe * safe).sum(-1, keepdim=True)), first)
    tau = torch.where(plain, 0, (beta - first) / beta)
    rest = torch.where(plain, 0, safe / (first - beta))
    return torch.cat([torch.ones_like(first), rest], -1), tau.squeeze(-1)


def apply_householder(A: Tensor, v: Tensor, tau: Tensor, side: str = "left") -> Tensor:
    """H A, or A H with side='right', for H = I - tau v v'.

    A (..., M, N), v (..., M) for the left side and (..., N) for the right, tau (...); batch dimensions broadcast.
    ValueError for shapes that do not fit, TypeError for mixed dtypes.
    """
    _check_reflection("apply_householder", A, v, tau, side)
    return _reflected(*_wide(A, v, tau), side).to(A.dtype)


def _reflected(A: Tensor, v: Tensor, tau: Tensor, side: str) -> Tensor:
    if side == "right":
        return _reflected(A.mT, v, tau, "left").mT.contiguous()
    v = v[..., None]
    return A - v * (tau[..., None, None] * (v * A).sum(-2, keepdim=True))


def apply_householder_inplace(
    A: Tensor, v: Tensor, tau: Tensor, side: str = "left", start_row: int = 0, start_col: int = 0
) -> None:
    """:func:`apply_householder` to A[..., start_row:, start_col:], in place. Not differentiable (RuntimeError)."""
    op = "apply_householder_inplace"
    check_tensors(op, optional=(), A=A, v=v, tau=tau)
    if needs_grad(A, v, tau):
        raise RuntimeError(f"{op} is not differentiable; use metalcore.apply_householder, or torch.no_grad()")
    _expect(op, "A", A, A.ndim >= 2, "at least 2 dimensions")
    for name, start, size in (("start_row", start_row, A.shape[-2]), ("start_col", start_col, A.shape[-1])):
        if not isinstance(start, int) or not 0 <= start <= size:
            raise ValueError(wrong(op, name, repr(start), f"an integer from 0 to {size}"))
    part = A[..., start_row:, start_col:]
    _check_reflection(op, part, v, tau, side)
    _expect(op, "v", v, _batch(op, A.shape[:-2], tau.shape) == A.shape[:-2], f"batch dimensions of A, {tuple(A.shape[:-2])}")
    part.copy_(_reflected(*_wide(part, v, tau), side))


def _check_block(op: str, V: Tensor, T: Tensor, A: Optional[Tensor] = None, side: str = "left") -> None:
    _check(op, V=V, T=T, **({} if A is None else {"A": A}))
    _check_side(op, side)
    _expect(op, "V", V, V.ndim >= 2, "(..., M, K)")
    k = V.shape[-1]
    _expect(op, "T", T, T.ndim >= 2 and T.shape[-2:] == (k, k), f"(..., {k}, {k})")
    shapes = [V.shape[:-2], T.shape[:-2]]
    if A is not None:
        fits = A.ndim >= 2 and A.shape[-2 if side == "left" else -1] == V.shape[-2]
        _expect(op, "A", A, fits, f"(..., {V.shape[-2]}, N)" if side == "left" else f"(..., M, {V.shape[-2]})")
        shapes.append(A.shape[:-2])
    _batch(op, *shapes)


def householder_wy(V: Tensor, T: Tensor) -> Tensor:
    """Q = I - V T V' (..., M, M), for V (..., M, K), which holds its unit diagonal and the zeros above, and T (..., K, K)."""
    _check_block("householder_wy", V, T)
    wide, block = _wide(V, T)
    eye = torch.eye(V.shape[-2], dtype=wide.dtype, device=V.device)
    return (eye - product(product(wide, block), wide.mT)).to(V.dtype)


def apply_householder_wy(A: Tensor, V: Tensor, T: Tensor, side: str = "left") -> Tensor:
    """Q A = A - V (T (V' A)), or with side='right' A Q = A - ((A V) T) V', for Q = I - V T V'.

    A (..., M, N); V (..., M, K) for the left side, (..., N, K) for the right; T (..., K, K); batch dimensions broadcast.
    """
    _check_block("apply_householder_wy", V, T, A, side)
    wide, V, T = _wide(A, V, T)
    if side == "left":
        return (wide - product(V, product(T, product(V.mT, wide)))).to(A.dtype)
    return (wide - product(product(product(wide, V), T), V.mT)).to(A.dtype)


# --- LAPACK's pieces, for metalcore_backend: not differentiable -----------------------------------


def geqr2(A: Tensor) -> tuple[Tensor, Tensor]:
    """(R_V, tau): R on and above the diagonal, v below it (its 1 implied); tau (..., K), K = min(M, N)."""
    _check("geqr2", A=A)
    _expect("geqr2", "A", A, A.ndim >= 2, "at least 2 dimensions")
    (work,) = _wide(A)
    k = min(A.shape[-2:])
    if work.numel() == 0:
        return A.clone(memory_format=torch.contiguous_format), A.new_zeros(*A.shape[:-2], k)
    if A.device.type == "cpu" and not takes_metal(A.device):
        work, tau = torch.geqrf(work)
    else:  # cuSOLVER's overflows and underflows where LAPACK's does not
        work = work.clone(memory_format=torch.contiguous_format)
        tau = work.new_empty(*A.shape[:-2], k)
        for j in range(k):
            v, tau[..., j] = _householder_vector(work[..., j:, j])
            work[..., j:, j:] = _reflected(work[..., j:, j:], v, tau[..., j], "left")
            work[..., j + 1 :, j] = v[..., 1:]
    return work.to(A.dtype).contiguous(), tau.to(A.dtype)


def _explicit(V: Tensor, k: int, panel_start: int) -> Tensor:
    """The first k columns with the 1 of column j in row panel_start + j, and zeros above."""
    below = torch.arange(V.shape[-2], device=V.device)[:, None] - torch.arange(k, device=V.device) - panel_start
    return torch.where(below > 0, V[..., :k], (below == 0).to(V.dtype))


def _check_panel(op: str, V: Tensor, k: int, panel_start: int) -> None:
    _expect(op, "V", V, V.ndim >= 2 and V.shape[-1] >= k, f"(..., M, at least {k})")
    if not isinstance(panel_start, int) or not 0 <= panel_start <= max(V.shape[-2] - k, 0):
        raise ValueError(wrong(op, "panel_start", repr(panel_start), f"an integer from 0 to {max(V.shape[-2] - k, 0)}"))


def larft(V: Tensor, tau: Tensor, panel_start: int = 0) -> Tensor:
    """T (..., K, K) upper triangular with H1 H2 ... HK = I - V T V'."""
    _check("larft", V=V, tau=tau)
    _expect("larft", "tau", tau, tau.ndim >= 1 and tau.shape[:-1] == V.shape[:-2], f"{(*V.shape[:-2], 'K')}")
    _check_panel("larft", V, tau.shape[-1], panel_start)
    wide, scale = _wide(V, tau)
    wide = _explicit(wide, tau.shape[-1], panel_start)
    # T = (D^-1 + S)^-1 = (I + D S)^-1 D with D = diag(tau) and S the triangle of V'V above its diagonal.
    unit = scale[..., None] * product(wide.mT, wide).triu(1)
    T = torch_solve_triangular(unit, torch.diag_embed(scale), upper=True, unitriangular=True)
    return T.to(tau.dtype).contiguous()


def larfb(C: Tensor, V: Tensor, T: Tensor, trans: bool = False, panel_start: int = 0) -> Tensor:
    """Q C, or Q' C with ``trans``, for Q = I - V T V' and V as in :func:`larft`."""
    _check("larfb", C=C, V=V, T=T)
    _expect("larfb", "T", T, T.ndim >= 2 and T.shape[-1] == T.shape[-2], "(..., K, K)")
    _check_panel("larfb", V, T.shape[-1], panel_start)
    _expect("larfb", "C", C, C.ndim >= 2 and C.shape[-2] == V.shape[-2], f"(..., {V.shape[-2]}, N)")
    _batch("larfb", C.shape[:-2], V.shape[:-2], T.shape[:-2])
    wide, V, T = _wide(C, V, T)
    return apply_householder_wy(wide, _explicit(V, T.shape[-1], panel_start), T.mT if trans else T).to(C.dtype)


def qr_blocked(A: Tensor, block_size: int = 32) -> tuple[Tensor, Tensor]:
    """(Q, R), reduced, by panels of :func:`geqr2`, :func:`larft` and :func:`larfb`; block_size <= 0 means 32."""
    _check("qr_blocked", A=A)
    _expect("qr_blocked", "A", A, A.ndim >= 2, "at least 2 dimensions")
    (work,) = _wide(A)
    work = work.clone(memory_format=torch.contiguous_format)
    m, n = A.shape[-2:]
    k, step = min(m, n), block_size if block_size > 0 else 32
    panels = []
    for first in range(0, k, step):
        end = min(first + step, k)
        panel, tau = geqr2(work[..., first:, first:end])
        T = larft(panel, tau)
        work[..., first:, first:end] = panel
        work[..., first:, end:] = larfb(work[..., first:, end:], panel, T, trans=True)
        panels.append((first, panel, T))
    Q = torch.eye(m, k, dtype=work.dtype, device=A.device).expand(*A.shape[:-2], m, k).contiguous()
    for first, panel, T in reversed(panels):
        Q[..., first:, first:] = larfb(Q[..., first:, first:], panel, T)
    return Q.to(A.dtype), work[..., :k, :].triu().to(A.dtype)
