"""Eigenvalues and eigenvectors of batches of symmetric matrices."""

from typing import Any, NamedTuple, Optional

import torch

from ._errors import translate, wrong
from ._linalg import check_matrix, orthonormal_step, raise_for
from ._operators import HALVES, needs_grad, takes_metal
from ._originals import torch_eigh, torch_eigvalsh

_op = torch.ops.metalcore.eigh.default
_values_op = torch.ops.metalcore.eigvalsh.default
_FAILED = "a matrix that is not finite, or whose iteration did not converge (info {}), expected finite entries"
_CODES = {"auto": 0, "jacobi": 1, "tridiag": 2}
_LARGEST = 512  # N above which torch's routine is called


class Eigh(NamedTuple):
    """Result of :func:`eigh`."""

    L: torch.Tensor
    Q: torch.Tensor

    @property
    def eigenvalues(self) -> torch.Tensor:
        """L, under torch's name."""
        return self.L

    @property
    def eigenvectors(self) -> torch.Tensor:
        """Q, under torch's name."""
        return self.Q


@torch.library.register_fake("metalcore::eigh")
def _fake(A: torch.Tensor, upper: bool = False, strategy: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return A.new_empty(A.shape[:-1]), A.new_empty(A.shape), A.new_empty(A.shape[:-2], dtype=torch.int32)


@torch.library.register_fake("metalcore::eigvalsh")
def _values_fake(A: torch.Tensor, upper: bool = False, strategy: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return A.new_empty(A.shape[:-1]), A.new_empty(A.shape[:-2], dtype=torch.int32)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.set_materialize_grads(False)  # a loss of L alone has no term that divides by differences
    ctx.save_for_backward(output[0], output[1])


def _backward(ctx: Any, gL: Optional[torch.Tensor], gQ: Optional[torch.Tensor], _: Any) -> tuple[torch.Tensor, None, None]:
    """gA = Q (diag(gL) + (Q' gQ) / E) Q', E_ij = L_j - L_i, made symmetric: A is."""
    L, Q = ctx.saved_tensors
    if gQ is None:
        inner = torch.zeros_like(Q) if gL is None else torch.diag_embed(gL)
        return Q @ inner @ Q.mT, None, None
    E = L.unsqueeze(-2) - L.unsqueeze(-1)
    eye = torch.eye(L.shape[-1], dtype=torch.bool, device=L.device)
    inner = (Q.mT @ gQ).masked_fill(eye, 0) / E.masked_fill(eye, 1)
    inner = (inner + inner.mT) / 2
    if gL is not None:
        inner = inner + torch.diag_embed(gL)
    return Q @ inner @ Q.mT, None, None


torch.library.register_autograd("metalcore::eigh", _backward, setup_context=_setup_context)


def _values_backward(ctx: Any, gL: torch.Tensor, _: Any) -> None:
    raise RuntimeError("metalcore::eigvalsh has no derivative of its own; use metalcore.eigvalsh")


torch.library.register_autograd("metalcore::eigvalsh", _values_backward)


class _Solved(torch.autograd.Function):
    """The derivative of eager calls and of functorch transforms."""

    generate_vmap_rule = True

    @staticmethod
    def forward(A, upper, strategy):
        if torch._C._are_functorch_transforms_active():
            return _op(A, upper, strategy)
        with torch._C._AutoDispatchBelowAutograd():
            return _op(A, upper, strategy)

    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)


@torch.library.register_vmap("metalcore::eigh")
def _vmap(info: Any, in_dims: tuple, A: torch.Tensor, upper: bool = False, strategy: int = 0) -> tuple[tuple, tuple]:
    return tuple(_op(A.movedim(in_dims[0], 0), upper, strategy)), (0, 0, 0)


@torch.library.register_vmap("metalcore::eigvalsh")
def _values_vmap(info: Any, in_dims: tuple, A: torch.Tensor, upper: bool = False, strategy: int = 0) -> tuple[tuple, tuple]:
    return tuple(_values_op(A.movedim(in_dims[0], 0), upper, strategy)), (0, 0)


def _arguments(op: str, A: torch.Tensor, strategy: str, UPLO: str) -> tuple[bool, str]:
    """Whether the upper triangle is read, and the strategy; every check."""
    check_matrix(op, "A", A, square=True)
    if not isinstance(UPLO, str) or UPLO not in ("L", "U", "l", "u"):
        raise ValueError(wrong(op, "UPLO", repr(UPLO), "'L' or 'U'"))
    if A.device.type == "cpu" and not takes_metal(A.device):
        built = ("auto", "tridiag", "lapack")
    else:
        built = ("auto", "jacobi", "tridiag")
    if not isinstance(strategy, str) or strategy not in built:
        expected = ", ".join(f"'{name}'" for name in built) + f" on {A.device.type}"
        raise ValueError(wrong(op, "strategy", repr(strategy), expected))
    return UPLO in "Uu", strategy


def _by_torch(A: torch.Tensor, strategy: str) -> bool:
    """Whether torch's routine is called, on the same device: where it is asked for or faster, and for large matrices.

    For a few matrices LAPACK is faster from N = 33 on: one of N = 64 takes it 0.2 ms, and ours 1.9 ms, as up to 16 of them;
    one of N = 16 takes LAPACK 0.02 ms and what is done before and after it 0.06, and ours 0.04. Above N = 96 it has the
    smaller error besides: sums of ours are in sequence.
    """
    if strategy == "lapack" or takes_metal(A.device):
        return strategy == "lapack"
    n = A.shape[-1]
    if A.device.type != "cpu":
        return strategy == "auto" and n > _LARGEST
    few = strategy == "auto" and not torch.compiler.is_compiling() and n > 32 and 0 < A.numel() < n // 5 * n * n
    return n > _LAPACK_FROM or few


_LAPACK_FROM = 96


def _canonical(Q: torch.Tensor) -> torch.Tensor:
    """Q, row-major, with signs so that the largest entry of each column, the first of equals, is not negative."""
    if Q.numel() == 0:
        return Q
    with torch.no_grad():
        signs = Q.gather(-2, Q.abs().argmax(-2, keepdim=True)).sign()  # of unit vectors: not 0
    if needs_grad(Q) or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return (Q * signs).contiguous()
    return torch.mul(Q, signs, out=Q.new_empty(Q.shape))


def _torch_eigh(op: str, A: torch.Tensor, upper: bool, vectors: bool) -> Any:
    """The same by torch.linalg: refuses what is not finite first, of which LAPACK may not return."""
    plain = not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()
    UPLO = "U" if upper else "L"
    if plain and A.numel() and _is_usual(A):
        if not vectors:
            return torch_eigvalsh(A, UPLO)
        L, Q = torch_eigh(A, UPLO)
        return Eigh(L, _canonical(_improved(L, Q)))
    with torch.no_grad():
        triangle = A.triu() if upper else A.tril()
        finite = triangle.isfinite().all(-1).all(-1)
        symmetric = triangle + (triangle.triu(1) if upper else triangle.tril(-1)).mT
        symmetric = symmetric.where(finite[..., None, None], torch.zeros((), dtype=A.dtype, device=A.device))
        # By a power of two, to which the result is exactly proportional.
        exponent = torch.frexp(symmetric.abs().amax((-2, -1)) if A.shape[-1] else symmetric.sum((-2, -1))).exponent
        limit = 120 if A.dtype == torch.float32 else 1000
        scale = torch.ldexp(torch.ones_like(exponent, dtype=A.dtype), exponent.clamp(-limit, limit))
        down = (1 / scale)[..., None, None]
    if needs_grad(A) or not plain:
        # Adds nothing, and makes the gradient symmetric.
        X = ((A + A.mT) / 2).nan_to_num(0.0, 0.0, 0.0)
        symmetric = symmetric + (X - X.detach())
    if not vectors:
        L = torch_eigvalsh(symmetric * down) * scale[..., None]
        return _raised(op, A, torch.where(finite, 0, -1), L)
    L, Q = torch_eigh(symmetric * down)
    L = _raised(op, A, torch.where(finite, 0, -1), L * scale[..., None])
    return Eigh(L, _canonical(_improved(L, Q) if plain else Q))


def _improved(L: torch.Tensor, Q: torch.Tensor) -> torch.Tensor:
    """Q, nearer to orthonormal where eigenvalues coincide: LAPACK's vectors of those can be several n u from it."""
    with torch.no_grad():
        if L.numel() < 2 or L.shape[-1] < 2:
            return Q
        closest, largest = L.diff().amin().item(), L.abs().amax().item()
        if closest > torch.finfo(L.dtype).eps * largest:
            return Q
        step = orthonormal_step(Q)
    return Q + step


def _is_usual(A: torch.Tensor) -> bool:
    """Whether all entries are finite, and no sum of squares is near the limits of the dtype. Looks at A on the host."""
    with torch.no_grad():
        entries = A.flatten(-2) if A.is_contiguous() else A.mT.flatten(-2)
        # Twice a maximum: 20 times faster than a norm.
        least, most = torch.maximum(entries.amax(-1), -entries.amin(-1)).aminmax()
        limit = torch.finfo(A.dtype).max ** 0.25
        return least.item() > 1 / limit and most.item() < limit  # false for NaN


class _Checked(torch.autograd.Function):
    """:func:`raise_for` under functorch transforms, which look for a derivative in this form."""

    generate_vmap_rule = True

    @staticmethod
    def forward(L, info, op):
        return raise_for(op, info, _FAILED, L)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


def _raised(op: str, A: torch.Tensor, info: torch.Tensor, L: torch.Tensor) -> torch.Tensor:
    if A.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing():
        return L  # a failed item is NaN
    if torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling():
        return _Checked.apply(L, info, op)
    return raise_for(op, info, _FAILED, L)


def _solve(A: torch.Tensor, upper: bool, code: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    try:
        if torch.compiler.is_compiling():
            return _op(A, upper, code)
        if torch._C._are_functorch_transforms_active() or needs_grad(A):
            return _Solved.apply(A, upper, code)
        with torch._C._AutoDispatchBelowAutograd():
            return _op(A, upper, code)
    except RuntimeError as error:
        raise translate(error) from None


def eigh(A: torch.Tensor, strategy: str = "auto", UPLO: str = "L") -> Eigh:
    """A = Q diag(L) Q' of symmetric matrices: eigenvalues L, ascending, and eigenvectors in the columns of Q.

    A is (..., N, N), float32 or float64 (float16 and bfloat16: computed in float32, rounded once); only the triangle
    that ``UPLO`` names, ``'L'`` or ``'U'``, is read. L is (..., N), Q (..., N, N); ``.eigenvalues`` and ``.eigenvectors``
    are aliases. The entry of largest magnitude of each column of Q, the first of equals, is not negative.

    ==============  =================================================================================================
    ``strategy``
    ==============  =================================================================================================
    ``'auto'``      the fastest
    ``'jacobi'``    two-sided Jacobi, cuda and mps
    ``'tridiag'``   tridiagonalisation, then QL (cpu; LAPACK above N = 96) or divide and conquer (cuda, mps)
    ``'lapack'``    torch's LAPACK, cpu
    ==============  =================================================================================================

    The error is that of single-precision LAPACK: \\|A - Q L Q'\\|, \\|I - Q'Q\\| and \\|L - exact\\| of a few N u \\|A\\|.
    Differentiable as ``torch.linalg.eigh``, with a symmetric gradient; NaN or infinite at repeated eigenvalues where the
    loss depends on Q. N above 512 is torch's on the same device. Waits for the GPU, to look at the status.

    Raises torch.linalg.LinAlgError, with the batch item, for a matrix that is not finite or did not converge (a NaN in a
    captured CUDA graph); ValueError for what is no square matrix, or an unknown strategy or triangle; TypeError for an
    integer dtype, NotImplementedError for a complex one.

    >>> L, Q = metalcore.eigh(torch.eye(4).repeat(500, 1, 1))
    """
    upper, strategy = _arguments("eigh", A, strategy, UPLO)
    if A.dtype in HALVES:
        L, Q = eigh(A.float(), strategy, UPLO)
        return Eigh(L.to(A.dtype), _canonical(Q.to(A.dtype)))  # rounding may make two entries equal
    if _by_torch(A, strategy):
        return _torch_eigh("eigh", A, upper, True)
    L, Q, info = _solve(A, upper, _CODES[strategy])
    return Eigh(_raised("eigh", A, info, L), Q)


def eigvalsh(A: torch.Tensor, strategy: str = "auto", UPLO: str = "L") -> torch.Tensor:
    """L of :func:`eigh`, ascending, without the eigenvectors (which a derivative needs and computes).

    >>> L = metalcore.eigvalsh(torch.eye(4).repeat(500, 1, 1))
    """
    upper, strategy = _arguments("eigvalsh", A, strategy, UPLO)
    if A.dtype in HALVES:
        return eigvalsh(A.float(), strategy, UPLO).to(A.dtype)
    if _by_torch(A, strategy):
        return _torch_eigh("eigvalsh", A, upper, False)
    code = _CODES[strategy]
    if needs_grad(A) or torch._C._are_functorch_transforms_active():
        L, _, info = _solve(A, upper, code)
    else:
        try:
            L, info = _values_op(A, upper, code)
        except RuntimeError as error:
            raise translate(error) from None
    return _raised("eigvalsh", A, info, L)
