"""Systems of linear equations by LU factorisation with partial pivoting: solve, inverses, determinants."""

from typing import Any, Callable, NamedTuple, Optional

import torch
from torch import Tensor

from ._errors import translate, wrong
from ._linalg import batched, broadcast, check_matrix, differentiable, raise_for, right_side, through_float32
from ._operators import HALVES, needs_grad, same_device, takes_metal
from ._originals import torch_det, torch_inv_ex, torch_lu_factor_ex, torch_solve_ex, torch_solve_triangular

_SINGULAR = "a matrix whose pivot {} is zero, expected an invertible matrix"


class SolveEx(NamedTuple):
    """Result of :func:`solve_ex`."""

    result: Tensor
    info: Tensor


class LUFactor(NamedTuple):
    """Result of :func:`lu_factor`."""

    LU: Tensor
    pivots: Tensor


class LUFactorEx(NamedTuple):
    """Result of :func:`lu_factor_ex`."""

    LU: Tensor
    pivots: Tensor
    info: Tensor


class InvEx(NamedTuple):
    """Result of :func:`inv_ex`."""

    inverse: Tensor
    info: Tensor


class SlogDet(NamedTuple):
    """Result of :func:`slogdet`."""

    sign: Tensor
    logabsdet: Tensor


# --- operators: fakes, derivatives, vmap ----------------------------------------------------------


@torch.library.register_fake("metalcore::solve_ex")
def _solve_fake(A: Tensor, B: Tensor, keep: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    LU, pivots = (A.shape, A.shape[:-1]) if keep else ((0,), (0,))
    integers = {"dtype": torch.int32}
    return B.new_empty(B.shape), A.new_empty(LU), A.new_empty(pivots, **integers), A.new_empty(A.shape[:-2], **integers)


@torch.library.register_fake("metalcore::inv_ex")
def _inv_fake(A: Tensor) -> tuple[Tensor, Tensor]:
    return A.new_empty(A.shape), A.new_empty(A.shape[:-2], dtype=torch.int32)


@torch.library.register_fake("metalcore::lu_factor_ex")
def _factor_fake(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    *batch, m, n = A.shape
    pivots = A.new_empty((*batch, torch.sym_min(m, n)), dtype=torch.int32)
    return A.new_empty(A.shape), pivots, A.new_empty(batch, dtype=torch.int32)


@torch.library.register_fake("metalcore::lu_solve")
def _lu_solve_fake(LU: Tensor, pivots: Tensor, B: Tensor, adjoint: bool = False) -> Tensor:
    return B.new_empty(B.shape)


@torch.library.register_vmap("metalcore::solve_ex")
def _solve_vmap(info: Any, in_dims: tuple, A: Tensor, B: Tensor, keep: bool = True) -> tuple[tuple, tuple]:
    A, B = batched(info, in_dims, A, B)
    return torch.ops.metalcore.solve_ex.default(A, B, keep), (0, 0 if keep else None, 0 if keep else None, 0)


@torch.library.register_vmap("metalcore::inv_ex")
def _inv_vmap(info: Any, in_dims: tuple, A: Tensor) -> tuple[tuple, tuple]:
    return torch.ops.metalcore.inv_ex.default(A.movedim(in_dims[0], 0)), (0, 0)


@torch.library.register_vmap("metalcore::lu_factor_ex")
def _factor_vmap(info: Any, in_dims: tuple, A: Tensor) -> tuple[tuple, tuple]:
    return torch.ops.metalcore.lu_factor_ex.default(A.movedim(in_dims[0], 0)), (0, 0, 0)


@torch.library.register_vmap("metalcore::lu_solve")
def _lu_solve_vmap(info: Any, in_dims: tuple, LU: Tensor, pivots: Tensor, B: Tensor, adjoint: bool = False) -> tuple[Tensor, int]:
    return torch.ops.metalcore.lu_solve.default(*batched(info, in_dims, LU, pivots, B), adjoint), 0


def _solve_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    X, LU, pivots, info = output
    ctx.kept = inputs[2]
    ctx.save_for_backward(inputs[0], X, LU, pivots)
    ctx.mark_non_differentiable(LU, pivots, info)


def _solve_backward(ctx: Any, gX: Optional[Tensor], *_: Any) -> tuple:
    """A' gB = gX, gA = -gB X'."""
    if gX is None:
        return None, None, None
    A, X, LU, pivots = ctx.saved_tensors
    if ctx.kept and not torch.is_grad_enabled():
        gB = _lu_solve(LU, pivots, gX, True)
    else:  # a second derivative comes by A, not by the factors
        gB = _solve(A.mT, gX, True)[0]
    return (-gB @ X.mT if ctx.needs_input_grad[0] else None), gB, None


def _inv_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(output[0])
    ctx.mark_non_differentiable(output[1])


def _inv_backward(ctx: Any, gX: Optional[Tensor], _: Any) -> Optional[Tensor]:
    """gA = -X' gX X'."""
    (X,) = ctx.saved_tensors
    return None if gX is None else -(X.mT @ gX @ X.mT)


def _parts(LU: Tensor, pivots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P, the first min(M, N) columns of L, the first min(M, N) rows of U, with A = P L U; L's diagonal is left out."""
    k = min(LU.shape[-2:])
    P = torch.lu_unpack(LU.detach(), pivots, unpack_data=False)[0]
    return P, LU[..., :k].tril(-1), LU[..., :k, :].triu()


def _factor_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    LU, pivots, info = output
    ctx.save_for_backward(LU, pivots)
    ctx.mark_non_differentiable(pivots, info)


def _factor_backward(ctx: Any, gLU: Optional[Tensor], *_: Any) -> Optional[Tensor]:
    """gA = P L^-T (tril(L' gL, -1) + triu(gU U')) U^-T for a square matrix; what is beside the square in U or below it in L
    is a solution of triangular systems itself."""
    if gLU is None:
        return None
    LU, pivots = ctx.saved_tensors
    m, n = LU.shape[-2:]
    k = min(m, n)
    P, L, U = _parts(LU, pivots)
    L1, L2, U1, U2 = L[..., :k, :], L[..., k:, :], U[..., :k], U[..., k:]
    gL1, gU1 = gLU[..., :k, :k].tril(-1), gLU[..., :k, :k].triu()
    inner = gL1 + (L1.mT @ gL1).tril(-1)  # the diagonal of L is not in L1
    outer = gU1 @ U1.mT
    columns = []
    if n > k:
        g = gLU[..., k:]
        inner = inner - (g @ U2.mT).tril(-1)
        columns = [torch_solve_triangular(L1.mT, g, upper=True, unitriangular=True)]
    if m > k:
        g = gLU[..., k:, :]
        outer = outer - L2.mT @ g
    middle = inner + outer.triu()
    middle = torch_solve_triangular(L1.mT, middle, upper=True, unitriangular=True)
    gA = torch_solve_triangular(U1.mT, middle, upper=False, left=False)
    if m > k:
        gA = torch.cat([gA, torch_solve_triangular(U1.mT, g, upper=False, left=False)], -2)
    return P @ torch.cat([gA, *columns], -1)


def _lu_solve_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    LU, pivots, _, ctx.adjoint = inputs
    ctx.save_for_backward(LU, pivots, output)


def _lu_solve_backward(ctx: Any, gX: Optional[Tensor]) -> tuple:
    """gB solves the other system; gU = -triu(U^-T gX X'), gL = -tril(P' gB (U X)', -1), and of the transposed system
    gL = -tril(W (U gB)', -1), gU = -triu(L' W gB') with W = P' X."""
    if gX is None:
        return None, None, None, None
    LU, pivots, X = ctx.saved_tensors
    gB = _lu_solve(LU, pivots, gX, not ctx.adjoint)
    gLU = None
    if ctx.needs_input_grad[0]:
        P, L, U = _parts(LU, pivots)
        W = P.mT @ (X if ctx.adjoint else gB)
        V = W + L.mT @ W
        if ctx.adjoint:
            gLU = -(W @ (U @ gB).mT).tril(-1) - (V @ gB.mT).triu()
        else:
            gLU = -(W @ (U @ X).mT).tril(-1) - (V @ X.mT).triu()
    return gLU, None, gB, None


_solve = differentiable("solve_ex", 2, _solve_setup, _solve_backward)
_inv = differentiable("inv_ex", 1, _inv_setup, _inv_backward)
_factor = differentiable("lu_factor_ex", 1, _factor_setup, _factor_backward)
_lu_solve = differentiable("lu_solve", 3, _lu_solve_setup, _lu_solve_backward)


# --- functions ------------------------------------------------------------------------------------


def _torch_is_faster(A: Tensor) -> bool:
    """Whether torch's own routine on the same device takes the call."""
    if takes_metal(A.device):
        return False
    n = max(A.shape[-2:])
    if A.device.type == "cpu":
        return n > 100  # above, single matrices and batches take as long by LAPACK on two cores
    # One of 512 rows on an H200: 0.5 to 0.6 of torch's speed, 16 of them 1.8; ten of 256 rows 2.8.
    return n > 512 or (n > 256 and A.shape[:-2].numel() < 8)


def _translated(call: Callable, *args: Any) -> Any:
    try:
        return call(*args)
    except RuntimeError as error:
        raise translate(error) from None


def _solved(op: str, A: Tensor, b: Tensor, left: bool) -> SolveEx:
    check_matrix(op, "A", A, square=True)
    B, is_vector = right_side(op, A, b, left)
    if A.dtype in HALVES:
        return through_float32(lambda A, b: _solved(op, A, b, left), A, b)
    if not left:
        A, B = A.mT, B.mT
    batch = B.shape[:-2]
    together = A.ndim == 2 and B.ndim > 2  # one matrix: all right sides beside each other
    if together:
        B = B.movedim(-2, 0).reshape(A.shape[0], -1)
    A, B = broadcast(A, B)
    if _torch_is_faster(A):
        X, info = torch_solve_ex(A, B)
    else:
        keep = torch._C._are_functorch_transforms_active() or needs_grad(A, B)
        X, _, _, info = _translated(_solve, A, B, keep)
    if together:
        X = X.unflatten(-1, (*batch, -1)).movedim(0, -2) if 0 not in batch else X.new_zeros(*batch, *b.shape[-2:])
    if not left:
        X = X.mT
    X = X.squeeze(-1) if is_vector else X
    return SolveEx(X.contiguous(), info)


def solve(A: Tensor, b: Tensor, *, left: bool = True, fast: bool = False) -> Tensor:
    """X with A X = b; with ``left=False`` X A = b.

    A is (..., N, N), any size. b is (..., N, K), or a vector: (N,), or the shape of A without its last dimension; with
    ``left=False`` (..., K, N). Batch dimensions broadcast. float32 and float64 (float16 and bfloat16: computed in float32,
    rounded once). LU factorisation with partial pivoting: of equal candidates the first row is the pivot. The error is that
    of single-precision LAPACK: \\|b - A x\\| of a few \\|A\\| \\|x\\| u. Differentiable. **Waits** for the GPU, unless ``fast``: that
    leaves out the check alone, and a singular item is then Inf or NaN. Larger matrices than 100 rows on cpu and 512 on cuda
    are solved by ``torch.linalg.solve_ex``.

    Raises LinAlgError with the batch item and the pivot that is exactly zero (nothing else is singular; NaN and Inf
    propagate), ValueError for shapes, TypeError for an integer dtype or two dtypes, NotImplementedError for a complex one.

    >>> x = metalcore.solve(torch.randn(500, 16, 16), torch.randn(500, 16, 8))
    """
    X, info = _solved("solve", A, b, bool(left))
    return X if fast else raise_for("solve", info, _SINGULAR, X)


def solve_ex(A: Tensor, b: Tensor, *, left: bool = True, check_errors: bool = False) -> SolveEx:
    """As :func:`solve`, and ``info``, int32, in place of an error; does not wait for the GPU.

    ``info`` has the batch dimensions of A and b (of A if it is one matrix): 0, or the first i with a pivot of zero, from 1.
    With ``check_errors`` it raises, and waits, as :func:`solve`.
    """
    X, info = _solved("solve_ex", A, b, bool(left))
    return SolveEx(raise_for("solve_ex", info, _SINGULAR, X) if check_errors else X, info)


def _factored(op: str, A: Tensor) -> LUFactorEx:
    check_matrix(op, "A", A)
    if A.dtype in HALVES:
        return through_float32(lambda A: _factored(op, A), A)
    if _torch_is_faster(A):
        LU, pivots, info = torch_lu_factor_ex(A)
        return LUFactorEx(LU.contiguous(), pivots, info)
    return LUFactorEx(*_translated(_factor, A))


def _check_pivot(op: str, pivot: bool) -> None:
    if not pivot:
        raise NotImplementedError(wrong(op, "pivot", repr(pivot), "True"))


def lu_factor(A: Tensor, *, pivot: bool = True) -> LUFactor:
    """(LU, pivots) with P A = L U: U on and above the diagonal of LU, L without its unit diagonal below.

    A is (..., M, N), any sizes; float32 and float64 (float16 and bfloat16: computed in float32, rounded once). pivots
    (..., min(M, N)) int32: the row, from 1, that step i swapped with row i, as LAPACK's. Differentiable. **Waits** for the
    GPU; see :func:`lu_factor_ex`.

    Raises LinAlgError where a pivot is exactly zero, NotImplementedError for ``pivot=False``, others as :func:`solve`.

    >>> LU, pivots = metalcore.lu_factor(torch.randn(500, 16, 16))
    """
    _check_pivot("lu_factor", pivot)
    LU, pivots, info = _factored("lu_factor", A)
    return LUFactor(raise_for("lu_factor", info, _SINGULAR, LU), pivots)


def lu_factor_ex(A: Tensor, *, pivot: bool = True, check_errors: bool = False) -> LUFactorEx:
    """As :func:`lu_factor`, and ``info``, (...) int32, in place of an error; does not wait for the GPU."""
    _check_pivot("lu_factor_ex", pivot)
    LU, pivots, info = _factored("lu_factor_ex", A)
    return LUFactorEx(raise_for("lu_factor_ex", info, _SINGULAR, LU) if check_errors else LU, pivots, info)


def lu_solve(LU: Tensor, pivots: Tensor, B: Tensor, *, left: bool = True, adjoint: bool = False) -> Tensor:
    """X with A X = B from the factors of :func:`lu_factor`; ``left=False``: X A = B; ``adjoint``: A' in the place of A.

    LU is (..., N, N), pivots (..., N) int32, B (..., N, K), with ``left=False`` (..., K, N). Batch dimensions broadcast.
    A zero on U's diagonal gives Inf or NaN and no error. Differentiable in LU and B. Does not wait for the GPU.
    """
    op = "lu_solve"
    check_matrix(op, "LU", LU, square=True)
    check_matrix(op, "B", B)
    if not isinstance(pivots, Tensor) or pivots.dtype != torch.int32:
        raise TypeError(wrong(op, "pivots", getattr(pivots, "dtype", type(pivots).__name__), "an int32 tensor"))
    same_device(op, LU=LU, pivots=pivots)
    if pivots.shape != LU.shape[:-1]:
        raise ValueError(wrong(op, "pivots", f"shape {list(pivots.shape)}", f"{list(LU.shape[:-1])}"))
    if B.ndim == LU.ndim - 1:  # a matrix, whatever its shape: the rule for vectors is that of solve
        B = B.unsqueeze(0)
    B, _ = right_side(op, LU, B, left, ("LU", "B"))
    if LU.dtype in HALVES:
        return through_float32(lambda LU, B: lu_solve(LU, pivots, B, left=left, adjoint=adjoint), LU, B)
    if not left:
        B, adjoint = B.mT, not adjoint
    LU, B = broadcast(LU, B)
    X = _translated(_lu_solve, LU, pivots.expand(LU.shape[:-1]), B, bool(adjoint))
    return X if left else X.mT.contiguous()


def _inverted(op: str, A: Tensor) -> InvEx:
    check_matrix(op, "A", A, square=True)
    if A.dtype in HALVES:
        return through_float32(lambda A: _inverted(op, A), A)
    if _torch_is_faster(A):
        X, info = torch_inv_ex(A)
        return InvEx(X.contiguous(), info)
    return InvEx(*_translated(_inv, A))


def inv(A: Tensor) -> Tensor:
    """The inverse of every matrix of A (..., N, N), as :func:`solve` with the identity. **Waits** for the GPU.

    Raises as :func:`solve`.

    >>> X = metalcore.inv(torch.randn(500, 16, 16))
    """
    X, info = _inverted("inv", A)
    return raise_for("inv", info, _SINGULAR, X)


def inv_ex(A: Tensor, *, check_errors: bool = False) -> InvEx:
    """As :func:`inv`, and ``info``, (...) int32, in place of an error; does not wait for the GPU."""
    X, info = _inverted("inv_ex", A)
    return InvEx(raise_for("inv_ex", info, _SINGULAR, X) if check_errors else X, info)


def _diagonal(LU: Tensor, pivots: Tensor) -> tuple[Tensor, Tensor]:
    """The diagonal of U, and the sign of P."""
    rows = torch.arange(1, LU.shape[-1] + 1, dtype=torch.int32, device=LU.device)
    swaps = (pivots != rows).sum(-1)
    return LU.diagonal(dim1=-2, dim2=-1), (1 - 2 * (swaps % 2)).to(LU.dtype)


class _Det(torch.autograd.Function):
    """det A with the derivative det A A^-T. It exists for singular matrices too: as that of a matrix whose zero pivots are
    of the size of rounding errors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(A):
        LU, pivots, _ = torch.ops.metalcore.lu_factor_ex.default(A)
        diagonal, sign = _diagonal(LU, pivots)
        return diagonal.prod(-1) * sign, LU, pivots

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], *output)
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx, g, *_):
        A, value, LU, pivots = ctx.saved_tensors
        n = A.shape[-1]
        eye = torch.eye(n, dtype=A.dtype, device=A.device)
        if torch.is_grad_enabled():
            return (g * value)[..., None, None] * _solve(A.mT, eye.expand(A.shape), True)[0]
        if n == 0:
            return torch.zeros_like(A)
        diagonal, sign = _diagonal(LU, pivots)
        size = LU.abs().amax((-2, -1))[..., None]
        tiny = torch.where(size == 0, 1, size) * torch.finfo(A.dtype).eps
        added = torch.where(diagonal == 0, tiny, 0)
        value = (diagonal + added).prod(-1) * sign
        right = (g * value)[..., None, None] * eye
        return _lu_solve(LU + torch.diag_embed(added), pivots, right, True)


def det(A: Tensor) -> Tensor:
    """The determinant of every matrix of A (..., N, N), by LU factorisation; 0 of a singular one, 1 of an empty one.

    Differentiable; twice where A is not singular. Does not wait for the GPU.
    """
    check_matrix("det", "A", A, square=True)
    if A.dtype in HALVES:
        return through_float32(det, A)
    return torch_det(A) if _torch_is_faster(A) else _translated(_Det.apply, A)[0]


def slogdet(A: Tensor) -> SlogDet:
    """(sign, logabsdet) of the determinant of every matrix of A (..., N, N): (0, -inf) of a singular one.

    The error of logabsdet is 10 N u times the condition of A. Differentiable where A is not singular. Does not wait for
    the GPU.
    """
    check_matrix("slogdet", "A", A, square=True)
    if A.dtype in HALVES:
        return through_float32(slogdet, A)
    LU, pivots, _ = _factored("slogdet", A)
    diagonal, sign = _diagonal(LU, pivots)
    return SlogDet(diagonal.sign().prod(-1) * sign, diagonal.abs().log().sum(-1))
