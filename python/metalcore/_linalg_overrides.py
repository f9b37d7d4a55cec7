"""Adapters of torch's linear algebra for :mod:`metalcore.overrides`: torch's signature; ours does the call, or NotImplemented.

``unknown`` and ``more`` are arguments that torch's function does not have, or that ours lacks (``out=``, ``driver=``): the
original takes them. It also says what is wrong with a matrix that ours refuses.
"""

from typing import Any, Callable

import torch

from ._linalg import EXACT
from ._taking import PLAIN, taken


def _matrices(A: Any, square: bool = True) -> bool:
    """Matrices that ours takes as they are, with elements."""
    if type(A) not in PLAIN or A.dtype not in EXACT or A.layout is not torch.strided or A.ndim < 2 or A.is_neg():
        return False
    return A.numel() > 0 and (not square or A.shape[-1] == A.shape[-2])


def _alike(A: torch.Tensor, B: Any) -> bool:
    """Whether B is matrices with the batch dimensions, dtype and device of A."""
    if type(B) not in PLAIN or B.dtype is not A.dtype or B.device != A.device or B.layout is not torch.strided or B.is_neg():
        return False
    return B.ndim == A.ndim and B.shape[:-2] == A.shape[:-2] and B.numel() > 0


def _batch(A: torch.Tensor) -> int:
    return A.numel() // (A.shape[-1] * A.shape[-2])


def _sized(A: torch.Tensor) -> dict:
    return {"batch": _batch(A), "rows": A.shape[-2], "columns": A.shape[-1]}


def _done(call: Callable, *args: Any, **options: Any) -> Any:
    """The result, or NotImplemented for a matrix whose error is the original's to raise."""
    try:
        return call(*args, **options)
    except torch.linalg.LinAlgError:
        return NotImplemented


def _named(kind: type, found: Any) -> Any:
    return found if found is NotImplemented else kind(found)


def qr(ours: Callable) -> Callable:
    """torch.linalg.qr"""

    def adapter(A=None, mode="reduced", *unknown, **more):
        if unknown or more or mode not in ("reduced", "complete", "r") or not _matrices(A, square=False):
            return NotImplemented
        if mode != "reduced" and A.requires_grad and torch.is_grad_enabled():
            return NotImplemented  # some of these have no derivative, and the original says which
        if not taken("qr", A, **_sized(A)):
            return NotImplemented
        return torch.return_types.linalg_qr(ours(A, mode))

    return adapter


def svd(ours: Callable) -> Callable:
    """torch.linalg.svd"""

    def adapter(A=None, full_matrices=True, *unknown, **more):
        if unknown or more or not isinstance(full_matrices, bool) or not _matrices(A, square=False):
            return NotImplemented
        if not taken("svd", A, **_sized(A)):
            return NotImplemented
        found = _done(ours, A, full_matrices)
        return found if found is NotImplemented else torch.return_types.linalg_svd((found.U, found.S, found.Vh))

    return adapter


def torch_svd(ours: Callable) -> Callable:
    """torch.svd, with V and thin factors"""

    def adapter(input=None, some=True, compute_uv=True, *unknown, **more):
        if unknown or more or compute_uv is not True or not isinstance(some, bool) or not _matrices(input, square=False):
            return NotImplemented
        if not taken("svd", input, **_sized(input)):
            return NotImplemented
        return _named(torch.return_types.svd, _done(ours, input, not some))

    return adapter


def svdvals(ours: Callable) -> Callable:
    """torch.linalg.svdvals"""

    def adapter(A=None, *unknown, **more):
        if unknown or more or not _matrices(A, square=False) or not taken("svdvals", A, **_sized(A)):
            return NotImplemented
        return _done(ours, A)

    return adapter


def eigh(ours: Callable) -> Callable:
    """torch.linalg.eigh"""

    def adapter(A=None, UPLO="L", *unknown, **more):
        if unknown or more or UPLO not in ("L", "U", "l", "u") or not _matrices(A):
            return NotImplemented
        if not taken("eigh", A, **_sized(A)):
            return NotImplemented
        return _named(torch.return_types.linalg_eigh, _done(ours, A, UPLO=UPLO))

    return adapter


def eigvalsh(ours: Callable) -> Callable:
    """torch.linalg.eigvalsh"""

    def adapter(A=None, UPLO="L", *unknown, **more):
        if unknown or more or UPLO not in ("L", "U", "l", "u") or not _matrices(A):
            return NotImplemented
        return _done(ours, A, UPLO=UPLO) if taken("eigvalsh", A, **_sized(A)) else NotImplemented

    return adapter


def cholesky(ours: Callable) -> Callable:
    """torch.linalg.cholesky"""

    def adapter(A=None, *unknown, upper=False, **more):
        if unknown or more or not isinstance(upper, bool) or not _matrices(A) or not taken("cholesky", A, **_sized(A)):
            return NotImplemented
        return _done(ours, A, upper=upper)

    return adapter


def cholesky_ex(ours: Callable) -> Callable:
    """torch.linalg.cholesky_ex"""

    def adapter(A=None, *unknown, upper=False, check_errors=False, **more):
        if unknown or more or check_errors is not False or not isinstance(upper, bool) or not _matrices(A):
            return NotImplemented
        if not taken("cholesky_ex", A, **_sized(A)):
            return NotImplemented
        return torch.return_types.linalg_cholesky_ex(ours(A, upper=upper))

    return adapter


def _solved(op: str, ours: Callable, A: Any, B: Any, left: Any) -> Any:
    """The result where B is vectors with A's batch dimensions, or matrices."""
    if not _matrices(A) or not isinstance(left, bool) or type(B) not in PLAIN:
        return NotImplemented
    is_vector = left and B.shape == A.shape[:-1]
    if not _alike(A, B.unsqueeze(-1) if is_vector else B) or (not is_vector and B.shape[-2 if left else -1] != A.shape[-1]):
        return NotImplemented
    if not taken(op, A, batch=_batch(A), rows=A.shape[-1], right_sides=B.numel() // (A.numel() // A.shape[-1])):
        return NotImplemented
    return _done(ours, A, B, left=left)


def solve(ours: Callable) -> Callable:
    """torch.linalg.solve"""

    def adapter(A=None, B=None, *unknown, left=True, **more):
        return NotImplemented if unknown or more else _solved("solve", ours, A, B, left)

    return adapter


def solve_ex(ours: Callable) -> Callable:
    """torch.linalg.solve_ex"""

    def adapter(A=None, B=None, *unknown, left=True, check_errors=False, **more):
        if unknown or more or check_errors is not False:
            return NotImplemented
        return _named(torch.return_types.linalg_solve_ex, _solved("solve_ex", ours, A, B, left))

    return adapter


def solve_triangular(ours: Callable) -> Callable:
    """torch.linalg.solve_triangular"""

    def adapter(A=None, B=None, *unknown, upper=None, left=True, unitriangular=False, **more):
        flags = isinstance(upper, bool) and isinstance(left, bool) and isinstance(unitriangular, bool)
        if unknown or more or not flags or not _matrices(A) or not _alike(A, B):
            return NotImplemented
        n, right_sides = B.shape[-2:] if left else B.shape[:-3:-1]
        if n != A.shape[-1] or not taken("solve_triangular", A, batch=_batch(A), rows=n, right_sides=right_sides):
            return NotImplemented
        if left:
            return ours(A, B, lower=not upper, unit_diagonal=unitriangular)
        return ours(A, B.mT, lower=not upper, transpose=True, unit_diagonal=unitriangular).mT

    return adapter


def inv(ours: Callable) -> Callable:
    """torch.linalg.inv"""

    def adapter(A=None, *unknown, **more):
        if unknown or more or not _matrices(A) or not taken("inv", A, **_sized(A)):
            return NotImplemented
        return _done(ours, A)

    return adapter


def pinv(ours: Callable) -> Callable:
    """torch.linalg.pinv"""

    def adapter(A=None, *unknown, rtol=None, hermitian=False, **more):
        if unknown or more or type(rtol) not in (float, type(None)) or hermitian is not False:
            return NotImplemented
        if not _matrices(A, square=False) or not taken("pinv", A, **_sized(A)):
            return NotImplemented
        return _done(ours, A, rcond=rtol)

    return adapter


def lstsq(ours: Callable) -> Callable:
    """torch.linalg.lstsq: on cpu its driver gelsy, with ranks and no residuals; on cuda gels, with residuals and no ranks"""

    def adapter(A=None, B=None, rcond=None, *unknown, driver=None, **more):
        if unknown or more or type(rcond) not in (float, type(None)) or not _matrices(A, square=False) or not _alike(A, B):
            return NotImplemented
        if driver not in (None, "gelsy" if A.device.type == "cpu" else "gels") or A.shape[-2] != B.shape[-2]:
            return NotImplemented
        if not taken("lstsq", A, **_sized(A)):
            return NotImplemented
        on_cpu = A.device.type == "cpu"
        found = _done(ours, A, B, rcond=rcond, fast=on_cpu)
        if found is NotImplemented:
            return found
        rank = found.rank if on_cpu else found.rank.new_empty(0)
        return torch.return_types.linalg_lstsq((found.solution, found.residuals, rank, found.singular_values))

    return adapter
