"""Triangular systems of batches of matrices."""

from typing import Any, Optional

import torch
from torch import Tensor

from ._errors import translate
from ._linalg import EXACT, batched, broadcast, check_matrix, differentiable, right_side, through_float32
from ._operators import HALVES, takes_metal
from ._originals import torch_solve_triangular

_op = torch.ops.metalcore.trsm.default
# What is solved with: A, its transpose, or L L' (U' U of an upper triangle).
PLAIN, TRANSPOSED, SQUARE = 0, 1, 2


@torch.library.register_fake("metalcore::trsm")
def _fake(A: Tensor, b: Tensor, upper: bool = False, matrix: int = 0, unit_diagonal: bool = False) -> Tensor:
    return b.new_empty(b.shape)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    A, _, ctx.upper, ctx.matrix, ctx.unit = inputs
    ctx.save_for_backward(A, output)


def _backward(ctx: Any, g: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
    A, X = ctx.saved_tensors
    upper, matrix, unit = ctx.upper, ctx.matrix, ctx.unit
    if g is None:
        return None, None, None, None, None
    turned = {PLAIN: TRANSPOSED, TRANSPOSED: PLAIN, SQUARE: SQUARE}[matrix]
    gb = solve(A, g, upper, turned, unit)
    gA = None
    if ctx.needs_input_grad[0]:
        if matrix == SQUARE:
            # Of S = L L': gS = -gb X', gL = (gS + gS') L.
            S = gb @ X.mT
            S = S + S.mT
            gA = -(_triangle(A, upper, unit) @ S if upper else S @ _triangle(A, upper, unit))
        else:
            gA = -(gb @ X.mT if matrix == PLAIN else X @ gb.mT)
        gA = gA.triu(int(unit)) if upper else gA.tril(-int(unit))
    return gA, gb, None, None, None


def _triangle(A: Tensor, upper: bool, unit: bool) -> Tensor:
    """What of A is looked at."""
    T = A.triu(int(unit)) if upper else A.tril(-int(unit))
    return T + torch.eye(A.shape[-1], dtype=A.dtype, device=A.device) if unit else T


_solved = differentiable("trsm", 2, _setup_context, _backward)


@torch.library.register_vmap("metalcore::trsm")
def _vmap(info: Any, in_dims: tuple, A: Tensor, b: Tensor, *options: Any) -> tuple[Tensor, int]:
    return _op(*batched(info, in_dims, A, b), *options), 0


def _torch_is_faster(A: Tensor, b: Tensor) -> bool:
    """Whether torch's own solve_triangular on the same device takes the call: above 512 rows, and by measurement."""
    if takes_metal(A.device):
        return False
    n, k = b.shape[-2:]
    if n > 512 or A.device.type != "cpu":
        # One system of 256 and 512 rows on an H200: 0.56 and 0.36 of torch's speed with 1 right side, 1.2 and 1.3 with 8.
        return n > 512 or (n > 128 and k < 8 and A.shape[:-2].numel() < 4)
    # float32 and float64 on AVX-512, one thread. One right side: 0.2 to 0.9 of torch's speed but for many small matrices; 8
    # of them: 1.1 to 3 times where matrices are interleaved, 0.7 to 0.9 otherwise; from 16 on 1.2 to 5 times.
    batch = A.shape[:-2].numel()
    if k >= 16:
        return batch * n * k < 1024
    if k >= 4:
        return n > 64 or batch < 16 or batch * n * k < 512
    return n > 16 or batch < 100


def _alike(x: Tensor) -> Tensor:
    """The same memory layout for every view, so that torch's routine gives the same bits."""
    x = x.contiguous()
    plain = x.device.type == "cpu" and not torch.compiler.is_compiling() and type(x) is Tensor
    if plain and not torch._C._are_functorch_transforms_active() and x.data_ptr() % 64:
        return x.clone()
    return x


def _by_torch(A: Tensor, b: Tensor, upper: bool, matrix: int, unit: bool) -> Tensor:
    A, b = _alike(A), _alike(b)

    def solved(transposed: bool, x: Tensor) -> Tensor:
        T = A.mT if transposed else A
        return torch_solve_triangular(T, x, upper=upper != transposed, unitriangular=unit)

    if matrix == SQUARE and A.device.type != "cpu":
        return torch.cholesky_solve(b, A, upper=upper).contiguous()
    if matrix == SQUARE:
        return solved(not upper, solved(upper, b)).contiguous()
    return solved(matrix == TRANSPOSED, b).contiguous()


def solve(A: Tensor, b: Tensor, upper: bool, matrix: int, unit: bool) -> Tensor:
    """X of float32 or float64 matrices with the same batch dimensions."""
    if _torch_is_faster(A, b):
        return _by_torch(A, b, upper, matrix, unit)
    return _solved(A, b, upper, matrix, unit)


def checked_solve(op: str, A: Tensor, b: Tensor, upper: bool, matrix: int, unit: bool, names: tuple[str, str]) -> Tensor:
    """X of any arguments, or the error that names one."""
    plain = isinstance(A, Tensor) and isinstance(b, Tensor) and A.dtype is b.dtype and A.dtype in EXACT
    if not plain or not 2 <= A.ndim == b.ndim or A.shape[:-1] != b.shape[:-1] or A.shape[-1] != A.shape[-2]:
        check_matrix(op, names[0], A, square=True)
        B, is_vector = right_side(op, A, b, names=names)
        A, B = broadcast(A, B)
        if A.dtype in HALVES:
            X = through_float32(lambda A, B: solve(A, B, upper, matrix, unit), A, B)
        else:
            X = solve(A, B, upper, matrix, unit)
        return X.squeeze(-1) if is_vector else X
    try:
        return solve(A, b, upper, matrix, unit)
    except (RuntimeError, ValueError, TypeError) as error:
        check_matrix(op, names[0], A, square=True)
        right_side(op, A, b, names=names)
        raise translate(error) from None


def trsm(A: Tensor, b: Tensor, lower: bool = True, transpose: bool = False, unit_diagonal: bool = False) -> Tensor:
    """X with op(A) X = b, A triangular, op the transpose or nothing.

    A is (..., N, N), b (..., N, K) or a vector: (N,), or the shape of A without its last dimension. Batch dimensions
    broadcast. float32 and float64 (float16 and bfloat16: computed in float32, rounded once). ``lower`` names the triangle
    as it is stored, before transposition; the other one is not looked at, nor the diagonal with ``unit_diagonal``.

    The error is that of substitution: \\|b - op(A) X\\| of a few \\|A\\| \\|X\\| u. A zero on the diagonal gives Inf or NaN in its
    matrix and no error. Differentiable in A (zero outside the triangle) and b. Does not wait for the GPU. On cpu and cuda
    matrices of more than 512 rows, and on cpu few or large ones with few right sides, are solved by
    ``torch.linalg.solve_triangular``.

    Raises ValueError for shapes that do not fit, TypeError for other or mixed dtypes, NotImplementedError for complex ones.

    >>> x = metalcore.trsm(torch.randn(500, 16, 16).tril() + 8 * torch.eye(16), torch.randn(500, 16, 8))
    """
    return checked_solve("trsm", A, b, not lower, TRANSPOSED if transpose else PLAIN, bool(unit_diagonal), ("A", "b"))


trsm_batched = trsm
