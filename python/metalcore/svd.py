"""Singular value decomposition of batches of matrices."""

from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from ._errors import translate, wrong
from ._linalg import EXACT, check_matrix, column_signs, orthonormal_step, product
from ._operators import needs_grad, takes_metal
from ._originals import torch_svd, torch_svdvals
from .eigh import eigh
from .qr import qr

_native = torch.ops.metalcore.svd.default
_qr = torch.ops.metalcore.qr.default
_STRATEGIES = ("auto", "jacobi", "gram", "lapack")
_MOST_ROWS = 512  # of either side, in the GPU kernels; more than that of one side are reduced by QR


class SVD(NamedTuple):
    """Result of :func:`svd`: V, not its transpose, which is ``Vh``."""

    U: Optional[Tensor]
    S: Tensor
    V: Optional[Tensor]

    @property
    def Vh(self) -> Optional[Tensor]:
        """V.mT, as ``torch.linalg.svd`` returns it."""
        return None if self.V is None else self.V.mT


@torch.library.register_fake("metalcore::svd")
def _native_fake(A: Tensor, vectors: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (*_shapes(A, vectors), A.new_empty(A.shape[:-2], dtype=torch.int32))


def _shapes(A: Tensor, vectors: bool) -> tuple[Tensor, Tensor, Tensor]:
    *batch, m, n = A.shape
    k = torch.sym_min(m, n)
    u, v = ((*batch, m, k), (*batch, n, k)) if vectors else ((0,), (0,))
    return A.new_empty(u), A.new_empty((*batch, k)), A.new_empty(v)


# ---- values


def _signed(U: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    signs = column_signs(U)
    return U * signs, V * signs


def _look(status: Tensor) -> bool:
    """Whether a status, on the host, is not 0 anywhere. LinAlgError for the first batch item where it is negative."""
    if not status.any():
        return False
    failed = (status < 0).nonzero()
    if len(failed):
        item = failed[0].tolist()
        place = f"batch item {item[0] if len(item) == 1 else tuple(item)}: " if item else ""
        found = "entries that are not finite" if status[tuple(item)] == -1 else "a matrix that does not converge"
        raise torch.linalg.LinAlgError(wrong("svd", "A", f"{place}{found}", "finite entries"))
    return True


def _by_torch(A: Tensor, vectors: bool) -> tuple[Tensor, Tensor, Tensor]:
    """torch's own routine, in our conventions."""
    try:
        if vectors:
            U, S, Vh = torch_svd(A, full_matrices=False)
        else:
            S = torch_svdvals(A)
    except torch.linalg.LinAlgError:
        finite = A.isfinite().flatten(-2).all(-1)
        _look(torch.where(finite, -2 if finite.all() else 0, -1).cpu())
        raise
    _look(torch.where(S.isfinite().all(-1), 0, -1).cpu())
    if not vectors:
        return A.new_empty(0), S, A.new_empty(0)
    V = Vh.mT
    if bool((S[..., -1] <= S.shape[-1] * torch.finfo(S.dtype).eps * S[..., 0]).any()):
        # Singular vectors of zeros can be several n u from orthonormal.
        U, V = (Q + orthonormal_step(Q) for Q in (U, V))
    U, V = _signed(U, V)
    return U.contiguous(), S, V.contiguous()


def column_order(A: Tensor) -> Tensor:
    """Numbers of the columns of A (..., M, N), M > 0, by descending 2-norm, equal ones in their order."""
    # By the largest entry of a column first, so that no square overflows or vanishes.
    largest = A.abs().amax(-2)
    unit = torch.where(largest > 0, largest, 1)
    norms = largest * (A / unit.unsqueeze(-2)).square().sum(-2).sqrt()
    return norms.argsort(dim=-1, descending=True, stable=True)


def _by_jacobi(A: Tensor, vectors: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Our kernels. What is tall or wide, or on a GPU has no room in registers, is reduced first: with the columns of A in
    descending order A P = Q R, and rotations make the columns of R', which is nearer to diagonal form, orthogonal
    in fewer sweeps (Drmac and Veselic 2008): R' = X S Y', U = Q Y, V = P X."""
    m, n = A.shape[-2:]
    long, short = max(m, n), min(m, n)
    if A.is_cuda or takes_metal(A.device):
        # Registers have room for a power of 2 of rows, and as many columns.
        room = long <= (64 if A.dtype == torch.float64 else 128)
        direct = long <= 32 or (room and (long - 1).bit_length() == (short - 1).bit_length())
    else:
        direct = long <= 2 * short or long <= 32
    if direct:
        U, S, V, info = _native(A, vectors)
        if _look(info.cpu()) and vectors:
            U, V = (U, _complete(V, info)) if m < n else (_complete(U, info), V)
        if vectors and A.dtype == torch.float64 and A.is_cuda:
            # The product of the rotations: of 64 columns it was 3.2 n u from orthonormal.
            if m < n:
                U, V = _signed(U + orthonormal_step(U), V)
            else:
                V = V + orthonormal_step(V)
        return U, S, V
    tall = A.mT if m < n else A
    order = column_order(tall)
    Q, R = _qr(tall.gather(-1, order.unsqueeze(-2).expand(tall.shape)), 0 if vectors else 2)
    X, S, Y, info = _native(R.mT.contiguous(), vectors)
    if _look(info.cpu()) and vectors:
        X = _complete(X, info)
    if not vectors:
        return X, S, Y
    U = product(Q, Y)
    V = torch.empty_like(X).scatter_(-2, order.unsqueeze(-1).expand(X.shape), X)
    U, V = _signed(V, U) if m < n else _signed(U, V)
    return U, S, V


def _by_gram(A: Tensor, vectors: bool) -> tuple[Tensor, Tensor, Tensor]:
    """By the eigenvectors X of A'A = X S^2 X', or of A A' where A is wide; A X is made orthonormal by QR."""
    m, n = A.shape[-2:]
    _look(torch.where(A.isfinite().flatten(-2).all(-1), 0, -1).cpu())
    limit = 120 if A.dtype == torch.float32 else 1000
    exponent = torch.frexp(A.abs().amax((-2, -1))).exponent.clamp(-limit, limit)
    scale = torch.ldexp(torch.ones_like(exponent, dtype=A.dtype), exponent).unsqueeze(-1)
    tall = (A if m >= n else A.mT) / scale.unsqueeze(-1)
    L, X = eigh(product(tall.mT, tall))
    S = L.flip(-1).clamp(min=0).sqrt() * scale
    if not vectors:
        return A.new_empty(0), S, A.new_empty(0)
    X = X.flip(-1)
    Y, R = qr(product(tall, X))
    Y = torch.where(R.diagonal(dim1=-2, dim2=-1).unsqueeze(-2) < 0, -Y, Y)
    U, V = _signed(Y, X) if m >= n else _signed(X, Y)
    return U.contiguous(), S, V.contiguous()


def _complete(U: Tensor, info: Tensor) -> Tensor:
    """U with orthonormal columns in the place of the zeros that ``info`` counts: the last columns of each matrix."""
    Q, _ = _qr(U, 0)
    k = U.shape[-1]
    missing = torch.arange(k, device=U.device) >= k - info.unsqueeze(-1)
    return torch.where(missing.unsqueeze(-2), Q * column_signs(Q), U)


def _prefers_torch(A: Tensor, vectors: bool = True) -> bool:
    """Where torch's routine was measured to be faster, or is the only one. On two CPU cores, with vectors: 1x96x96 1.06 of
    1.47 ms, 1x64x64 0.62 of 0.55, 5x128x128 34 of 15; values alone: 1x32x32 0.04 of 0.12 ms, 8x64x64 1.4 of 2.6."""
    batch, short, long = A.shape[:-2].numel(), min(A.shape[-2:]), max(A.shape[-2:])
    if takes_metal(A.device):
        return False
    if A.is_cuda:
        return short > _MOST_ROWS
    if vectors:
        alone = batch == 1 or torch.get_num_threads() == 1
        return short > 128 or (alone and (short > 64 or long > 8 * short > 128))
    return short > 32 or batch < 4


def _thin(A: Tensor, vectors: bool, strategy: str) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V (U and V empty without vectors), by one read of the status."""
    if A.is_meta:
        return _shapes(A, vectors)
    if A.numel() == 0:
        return tuple(torch.zeros_like(x) for x in _shapes(A, vectors))
    if strategy == "lapack" or (strategy == "auto" and _prefers_torch(A, vectors)):
        return _by_torch(A, vectors)
    if strategy == "gram":
        return _by_gram(A, vectors)
    return _by_jacobi(A, vectors)


@torch.library.custom_op("metalcore::svd_thin", mutates_args=())
def _op(A: Tensor, vectors: bool, strategy: str) -> tuple[Tensor, Tensor, Tensor]:
    return _thin(A, vectors, strategy)


@_op.register_fake
def _fake(A: Tensor, vectors: bool, strategy: str) -> tuple[Tensor, Tensor, Tensor]:
    return _shapes(A, vectors)


@_op.register_vmap
def _vmap(info: Any, in_dims: tuple, A: Tensor, vectors: bool, strategy: str) -> tuple[tuple, tuple]:
    return _op(A.movedim(in_dims[0], 0), vectors, strategy), (0, 0, 0) if vectors else (None, 0, None)


# ---- derivative


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.set_materialize_grads(False)
    ctx.vectors = inputs[1]
    ctx.save_for_backward(*output)


def _backward(ctx: Any, gU: Optional[Tensor], gS: Optional[Tensor], gV: Optional[Tensor]) -> tuple:
    U, S, V = ctx.saved_tensors
    if not ctx.vectors:
        raise RuntimeError("svd: compute_uv: the derivative needs U and V, which compute_uv=False did not compute")
    return _gradient(U, S, V, gU, gS, gV), None, None


def _gradient(
    U: Tensor, S: Tensor, V: Tensor, gU: Optional[Tensor], gS: Optional[Tensor], gV: Optional[Tensor]
) -> Optional[Tensor]:
    """As torch.linalg.svd: U ((skew(U'gU) / E) S + S (skew(V'gV) / E) + diag(gS)) V', and what leaves the spaces of
    U and V; E_ij = S_j^2 - S_i^2, 1 on the diagonal."""
    if gU is None and gV is None:
        return None if gS is None else (U * gS.unsqueeze(-2)) @ V.mT
    m, n, k = U.shape[-2], V.shape[-2], S.shape[-1]
    squares = S * S
    E = squares.unsqueeze(-2) - squares.unsqueeze(-1)
    E = E + torch.eye(k, dtype=E.dtype, device=E.device)

    def skew(X: Tensor) -> Tensor:
        return X - X.mT

    inner = torch.diag_embed(gS) if gS is not None else torch.zeros_like(E)
    if gU is not None:
        inner = inner + skew(U.mT @ gU) / E * S.unsqueeze(-2)
    if gV is not None:
        inner = inner + S.unsqueeze(-1) * (skew(V.mT @ gV) / E)
    if gU is not None and m > k:
        left = gU / S.unsqueeze(-2)
        return (U @ inner + left - U @ (U.mT @ left)) @ V.mT
    if gV is not None and n > k:
        right = gV / S.unsqueeze(-2)
        return U @ (V @ inner.mT + right - V @ (V.mT @ right)).mT
    return U @ inner @ V.mT


_op.register_autograd(_backward, setup_context=_setup_context)


def _native_setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    _setup_context(ctx, (*inputs, True)[:2], output[:3])


def _native_backward(ctx: Any, gU: Optional[Tensor], gS: Optional[Tensor], gV: Optional[Tensor], _: Any) -> tuple:
    return _backward(ctx, gU, gS, gV)[:2]


torch.library.register_autograd("metalcore::svd", _native_backward, setup_context=_native_setup_context)


class _Decomposed(torch.autograd.Function):
    """The same derivative without the detour through torch.library."""

    @staticmethod
    def forward(ctx, A, vectors, strategy):
        with torch._C._AutoDispatchBelowAutograd():
            output = _thin(A, vectors, strategy)
        _setup_context(ctx, (A, vectors, strategy), output)
        return output

    backward = staticmethod(_backward)


class _Transformed(torch.autograd.Function):
    """For functorch transforms (vmap, grad)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(A, vectors, strategy):
        return _op(A, vectors, strategy)

    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)


def _decompose(A: Tensor, vectors: bool, strategy: str) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V of a float32 or float64 A, differentiable with vectors."""
    try:
        if torch.compiler.is_compiling():
            return _op(A, vectors, strategy)
        if torch._C._are_functorch_transforms_active():
            return _Transformed.apply(A, vectors, strategy)
        if needs_grad(A):
            return _Decomposed.apply(A, vectors, strategy)
        if type(A) is not Tensor and not isinstance(A, torch.nn.Parameter):
            return _op(A, vectors, strategy)
        with torch._C._AutoDispatchBelowAutograd():
            return _thin(A, vectors, strategy)
    except torch.linalg.LinAlgError:
        raise
    except RuntimeError as error:
        raise translate(error) from None


# ---- functions


def _check(op: str, A: Tensor, strategy: str) -> None:
    check_matrix(op, "A", A)
    if not isinstance(strategy, str) or strategy not in _STRATEGIES:
        raise ValueError(wrong(op, "strategy", repr(strategy), "'auto', 'jacobi', 'gram' or (on cpu) 'lapack'"))
    if strategy == "lapack" and (A.device.type != "cpu" or takes_metal(A.device)):
        raise ValueError(wrong(op, "strategy", f"'lapack' for a tensor on {A.device.type}", "'auto', 'jacobi' or 'gram'"))


def svd(A: Tensor, full_matrices: bool = False, compute_uv: bool = True, strategy: str = "auto") -> SVD:
    """A = U diag(S) V' with orthonormal columns of U and V, S descending and not negative.

    A is (..., M, N), any sizes; float32 and float64 (float16 and bfloat16: computed in float32, rounded once). K = min(M, N).

    =================  ============  ======  ============
    ``full_matrices``  U             S       V
    =================  ============  ======  ============
    False              (..., M, K)   (..., K)  (..., N, K)
    True               (..., M, M)   (..., K)  (..., N, N)
    =================  ============  ======  ============

    V, not its transpose: that is ``result.Vh``. With ``compute_uv=False`` U and V are None. U and V are orthonormal also
    where A is zero or rank-deficient. The entry of largest magnitude of each column of U (the first one on a tie) is not
    negative; the column of V follows.

    ==============  =================================================================================================
    ``strategy``
    ==============  =================================================================================================
    ``'auto'``      the fastest but ``'gram'``: torch's on cpu above 128 columns (64 of a single matrix) and for few
                    matrices' values alone, on cuda above 512; else ``'jacobi'``
    ``'jacobi'``    one-sided Jacobi in kernels of our own
    ``'gram'``      :func:`eigh` of A'A: small singular values, and \\|A - U S V'\\|, only to \\|A\\| sqrt(n u)
    ``'lapack'``    torch's routine, cpu
    ==============  =================================================================================================

    All but ``'gram'`` are as accurate as single-precision LAPACK: \\|A - U S V'\\|, \\|I - U'U\\|, \\|I - V'V\\| of a few n u.

    Differentiable as ``torch.linalg.svd``: through S always, through U and V where singular values are distinct (and not zero, if M != N).
    Further columns of full matrices have no gradient. Waits for the GPU, to look at the status.

    Raises torch.linalg.LinAlgError for a matrix with NaN or Inf, naming the batch item; ValueError for fewer than
    two dimensions or an unknown strategy, TypeError for an integer dtype, NotImplementedError for a complex one.

    >>> U, S, V = metalcore.svd(torch.randn(500, 16, 16))
    """
    _check("svd", A, strategy)
    if A.dtype not in EXACT:
        return _rounded(svd(A.float(), full_matrices, compute_uv, strategy), A.dtype)
    if not compute_uv:
        return SVD(None, svdvals(A, strategy), None)
    U, S, V = _decompose(A, True, strategy)
    if full_matrices:
        U, V = _square(U), _square(V)
    return SVD(U, S, V)


def _rounded(found: SVD, dtype: torch.dtype) -> SVD:
    """Rounded once, with the signs that rounded entries ask for: rounding can make several the largest."""
    U, S, V = (None if x is None else x.to(dtype) for x in found)
    if U is None or U.numel() == 0 or V.numel() == 0:
        return SVD(U, S, V)
    k = S.shape[-1]
    u, v = column_signs(U), column_signs(V)
    return SVD(U * u, S, V * torch.cat([u[..., :k], v[..., k:]], -1))


def _square(Q: Tensor) -> Tensor:
    """Q with as many more columns as make it a square orthonormal matrix."""
    rows, cols = Q.shape[-2:]
    if rows == cols:
        return Q
    more = qr(Q.detach(), "complete").Q[..., cols:]
    if cols == 0:
        return more.contiguous()
    return torch.cat([Q, more * column_signs(more)], -1)


def svdvals(A: Tensor, strategy: str = "auto") -> Tensor:
    """Singular values S (..., K) of A (..., M, N), descending: those of :func:`svd`, to rounding, with its strategies,
    gradient and errors. Waits for the GPU.

    >>> S = metalcore.svdvals(torch.randn(500, 16, 16))
    """
    _check("svdvals", A, strategy)
    if A.dtype not in EXACT:
        return svdvals(A.float(), strategy).to(A.dtype)
    graph = needs_grad(A) or (torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling())
    return _decompose(A, graph, strategy)[1]
