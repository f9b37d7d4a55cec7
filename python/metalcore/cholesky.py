"""Cholesky factorisation of batches of matrices, and systems solved with it."""

from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from ._errors import translate
from ._linalg import EXACT, check_matrix, differentiable, raise_for, through_float32
from ._operators import takes_metal
from ._originals import torch_cholesky_ex
from .trsm import SQUARE, TRANSPOSED, checked_solve, solve

_op = torch.ops.metalcore.cholesky.default
_BAD = "a leading minor of order {} that is not positive definite, expected a positive definite matrix"


class CholeskyEx(NamedTuple):
    """Result of :func:`cholesky_ex`."""

    L: Tensor
    info: Tensor


@torch.library.register_fake("metalcore::cholesky")
def _fake(A: Tensor, upper: bool = False) -> tuple[Tensor, Tensor]:
    return A.new_empty(A.shape), A.new_empty(A.shape[:-2], dtype=torch.int32)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.upper = inputs[1]
    ctx.save_for_backward(output[0])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, gL: Optional[Tensor], _: Any) -> tuple[Optional[Tensor], None]:
    """gA = L^-T (P + P') L^-1 / 2, P the lower triangle of L' gL with half its diagonal twice (Murray, arXiv 1602.07527)."""
    if gL is None:
        return None, None
    (L,) = ctx.saved_tensors
    if ctx.upper:
        L, gL = L.mT, gL.mT
    P = (L.mT @ gL).tril()
    P = (P + P.tril(-1).mT) / 2
    if ctx.upper:  # as it is stored
        gA = solve(L.mT, solve(L.mT, P, True, 0, False).mT, True, 0, False)
    else:
        gA = solve(L, solve(L, P, False, TRANSPOSED, False).mT, False, TRANSPOSED, False)
    return gA, None


_factored = differentiable("cholesky", 1, _setup_context, _backward)


@torch.library.register_vmap("metalcore::cholesky")
def _vmap(info: Any, in_dims: tuple, A: Tensor, upper: bool = False) -> tuple[tuple, tuple]:
    return _op(A.movedim(in_dims[0], 0), upper), (0, 0)


def _torch_is_faster(A: Tensor) -> bool:
    """Whether torch's own routine on the same device takes the call: above 512 rows; on cuda also few of more than 128, for
    which we have a group of threads each; on cpu by measurement."""
    if takes_metal(A.device):
        return False
    n, batch = A.shape[-1], A.shape[:-2].numel()
    if A.device.type == "cpu":
        # float32 and float64 on AVX-512, one thread: 1.1 to 4 times torch's speed where matrices are interleaved, less for
        # a few of them and above 64 rows.
        return n > 64 or batch < 8 or batch * n < 256
    # Five of 512 rows on an H200: 0.43 of torch's speed; ten of 256 rows 1.0.
    return n > 512 or (n > 128 and batch < 4) or (n > 256 and batch < 16)


def _by_torch(A: Tensor, upper: bool) -> tuple[Tensor, Tensor]:
    if A.device.type == "cpu":
        # The transposes are as LAPACK lays out matrices: nothing is turned, and the result is contiguous.
        L, info = torch_cholesky_ex(A.mT, upper=not upper)
        L = L.mT
    else:
        L, info = torch_cholesky_ex(A, upper=upper)
        # cuSOLVER lets NaN pass, which no later pivot recovers from.
        good = (L.diagonal(dim1=-2, dim2=-1) > 0).sum(-1, dtype=torch.int32)
        info = torch.where(info != 0, info, (good + 1) % (A.shape[-1] + 1))
    return L.contiguous(), info


def _factor(op: str, A: Tensor, upper: bool) -> tuple[Tensor, Tensor]:
    """L and info."""
    if not isinstance(A, Tensor) or A.dtype not in EXACT or A.ndim < 2:
        check_matrix(op, "A", A, square=True)
        return through_float32(lambda A: CholeskyEx(*_factor(op, A, upper)), A)
    try:
        if _torch_is_faster(A):
            return _by_torch(A, upper)
        return _factored(A, upper)
    except (RuntimeError, ValueError, TypeError) as error:
        check_matrix(op, "A", A, square=True)
        raise translate(error) from None


def cholesky(A: Tensor, *, upper: bool = False) -> Tensor:
    """L with A = L L', lower triangular; with ``upper`` U with A = U' U.

    A is (..., N, N), symmetric positive definite, any size; float32 and float64 (float16 and bfloat16: computed in
    float32, rounded once). Only the triangle that the result has is looked at; the other one of the result is exactly
    zero. The error is that of single-precision LAPACK: \\|A - L L'\\| of a few n \\|A\\| u. Differentiable, with a symmetric
    gradient, as ``torch.linalg.cholesky``. **Waits** for the GPU; see :func:`cholesky_ex`. On cuda matrices of more than 512
    rows, or a few of more than 128, and on cpu a few or those of more than 64 rows, are factored by
    ``torch.linalg.cholesky_ex``.

    Raises LinAlgError with the batch item and the order of its first leading minor that is not positive definite (a NaN
    pivot is not), ValueError for a matrix that is not square, TypeError for an integer dtype, NotImplementedError for a
    complex one.

    >>> L = metalcore.cholesky(torch.eye(16).expand(500, 16, 16))
    """
    L, info = _factor("cholesky", A, bool(upper))
    return raise_for("cholesky", info, _BAD, L)


def cholesky_ex(A: Tensor, *, upper: bool = False, check_errors: bool = False) -> CholeskyEx:
    """As :func:`cholesky`, and ``info``, (...) int32, in place of an error; does not wait for the GPU.

    ``info`` is 0, or the order k of the first leading minor that is not positive definite; columns of L (rows of U) from the
    k-th on are then unspecified. With ``check_errors`` it raises, and waits, as :func:`cholesky`.
    """
    L, info = _factor("cholesky_ex", A, bool(upper))
    if check_errors:
        L = raise_for("cholesky_ex", info, _BAD, L)
    return CholeskyEx(L, info)


def cholesky_solve(b: Tensor, L: Tensor, *, upper: bool = False) -> Tensor:
    """X with L L' X = b (``upper``: U' U X = b), b first as in ``torch.cholesky_solve``.

    L is (..., N, N), b (..., N, K) or a vector: (N,), or the shape of L without its last dimension. Batch dimensions
    broadcast. float32 and float64 (float16 and bfloat16: computed in float32, rounded once). Only one triangle of L is looked
    at. A zero on its diagonal gives Inf or NaN and no error. Differentiable in b and L. Does not wait for the GPU.

    >>> x = metalcore.cholesky_solve(torch.randn(500, 16, 8), metalcore.cholesky(torch.eye(16).expand(500, 16, 16)))
    """
    return checked_solve("cholesky_solve", L, b, bool(upper), SQUARE, False, ("L", "b"))
