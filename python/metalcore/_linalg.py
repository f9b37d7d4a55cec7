"""What the functions of linear algebra have in common: checks of arguments, right sides, errors of single matrices."""

from typing import Any, Callable, Optional

import torch
from torch import Tensor

from ._errors import wrong
from ._operators import HALVES, check_tensors, needs_grad, same_device

# What is computed in; half types are widened.
EXACT = (torch.float32, torch.float64)


def check_matrix(op: str, name: str, A: Tensor, square: bool = False) -> None:
    """A real floating tensor of at least two dimensions, of a type that its device has; a square matrix if asked for."""
    check_tensors(op, optional=(), **{name: A})
    if A.ndim < 2:
        raise ValueError(wrong(op, name, f"shape {list(A.shape)}", "at least 2 dimensions"))
    if square and A.shape[-1] != A.shape[-2]:
        raise ValueError(wrong(op, name, f"shape {list(A.shape)}", "a square matrix (..., N, N)"))


def right_side(op: str, A: Tensor, b: Tensor, left: bool = True, names: tuple[str, str] = ("A", "b")) -> tuple[Tensor, bool]:
    """b as a matrix, (..., N, K), and whether it was a vector.

    It is one if it has one dimension, or the shape of A without the last. N are A's rows; with ``left=False`` b is
    (..., K, N), no vector, and N are A's columns. Batch dimensions are not expanded: see :func:`broadcast`.
    """
    check_tensors(op, optional=(), **{names[1]: b})
    same_device(op, **{names[0]: A, names[1]: b})
    if A.dtype != b.dtype:
        raise TypeError(wrong(op, names[1], f"dtype {b.dtype}", f"{A.dtype}, as {names[0]}"))
    is_vector = left and (b.ndim == 1 or (b.ndim == A.ndim - 1 and b.shape == A.shape[:-1]))
    B = b.unsqueeze(-1) if is_vector else b
    size = A.shape[-2] if left else A.shape[-1]
    if B.ndim < 2 or B.shape[-2 if left else -1] != size:
        expected = f"{size} rows" if left else f"a matrix of {size} columns"
        raise ValueError(wrong(op, names[1], f"shape {list(b.shape)}", f"{expected}, for {names[0]} of shape {list(A.shape)}"))
    for a, c in zip(reversed(A.shape[:-2]), reversed(B.shape[:-2])):
        if a != c and a != 1 and c != 1:
            expected = f"batch dimensions that broadcast with {list(A.shape[:-2])}"
            raise ValueError(wrong(op, names[1], f"shape {list(b.shape)}", expected))
    return B, is_vector


def broadcast(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the batch dimensions of either, as views."""
    if A.shape[:-2] == B.shape[:-2]:
        return A, B
    batch = torch.broadcast_shapes(A.shape[:-2], B.shape[:-2])
    return A.expand(*batch, *A.shape[-2:]), B.expand(*batch, *B.shape[-2:])


def through_float32(function: Callable[..., Any], *tensors: Tensor) -> Any:
    """``function`` of half tensors: computed in float32, floating results rounded once. Named tuples stay what they are."""
    dtype = tensors[0].dtype
    results = function(*(t.float() if t.dtype in HALVES else t for t in tensors))
    if isinstance(results, Tensor):
        return results.to(dtype)
    return type(results)(*(r.to(dtype) if r.is_floating_point() else r for r in results))


def raise_for(op: str, info: Tensor, what: str, result: Optional[Tensor] = None) -> Any:
    """LinAlgError for the first batch item whose ``info`` is not 0, by one host read. Returns ``result``.

    ``what`` has ``{}`` for the info of that item: ``'a leading minor of order {} ..., expected ...'``. Where tensors have
    no values of their own (compiled code, transforms, fakes) ``result`` must be given, and used as it is returned.
    """
    plain = type(info) is Tensor and not torch.compiler.is_compiling()
    if plain and not torch._C._are_functorch_transforms_active():
        _raise_for(op, info, what)
        return result
    return result if result is None else _checked(result, info, op, what)


def _raise_for(op: str, info: Tensor, what: str) -> None:
    if info.is_meta:
        return
    values = info.detach().cpu()
    if not values.any():
        return
    item = values.nonzero()[0].tolist()
    found = what.format(int(values[tuple(item)]))
    place = f"batch item {item[0] if len(item) == 1 else tuple(item)}: " if item else ""
    raise torch.linalg.LinAlgError(f"{op}: A: got {place}{found}")


@torch.library.custom_op("metalcore::checked", mutates_args=())
def _checked(result: Tensor, info: Tensor, op: str, what: str) -> Tensor:
    """A copy of ``result``, after the check."""
    _raise_for(op, info, what)
    return result.clone()


@_checked.register_fake
def _(result: Tensor, info: Tensor, op: str, what: str) -> Tensor:
    return torch.empty_like(result)


@_checked.register_vmap
def _(information: Any, in_dims: tuple, result: Tensor, info: Tensor, op: str, what: str) -> tuple[Tensor, Any]:
    info = info if in_dims[1] is None else info.movedim(in_dims[1], 0)
    return _checked(result, info, op, what), in_dims[0]


_checked.register_autograd(lambda ctx, grad: (grad, None, None, None))


def product(A: Tensor, B: Tensor) -> Tensor:
    """A @ B without TensorFloat-32, bfloat16 passes or autocast, whatever torch's settings are."""
    with torch.autocast(A.device.type, enabled=False):
        if A.dtype == torch.float32 and A.device.type != "mps" and _rounds_products():
            return (A.double() @ B.double()).float()
        return A @ B


def _rounds_products() -> bool:
    """Whether torch's settings allow it to round the factors of float32 products."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    if all(hasattr(backend, "fp32_precision") for backend in backends):  # torch 2.9 or later
        return any(backend.fp32_precision in ("tf32", "bf16") for backend in backends)
    return torch.get_float32_matmul_precision() != "highest"


def orthonormal_step(Q: Tensor) -> Tensor:
    """What added to Q brings it nearer to the nearest orthonormal matrix: Q (I - Q'Q) / 2 (Bjorck and Bowie 1971)."""
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    return product(Q, eye - product(Q.mT, Q)) / 2


def column_signs(U: Tensor) -> Tensor:
    """-1 for the columns of U whose entry of largest magnitude, the first one on a tie, is negative; else 1."""
    peak = U.gather(-2, U.abs().argmax(-2, keepdim=True))
    return torch.where(peak < 0, -1.0, 1.0).to(U.dtype)


def batched(info: Any, in_dims: tuple, *tensors: Tensor) -> list[Tensor]:
    """The mapped dimension first, in tensors that do not have it too."""
    pairs = zip(tensors, in_dims)
    return [t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in pairs]


def differentiable(name: str, tensors: int, setup_context: Callable, backward: Callable) -> Callable[..., Any]:
    """The operator, whose first ``tensors`` arguments may have a gradient, with its derivative: called with as few detours
    as autograd, transforms and the compiler allow."""
    op = getattr(torch.ops.metalcore, name).default
    torch.library.register_autograd(f"metalcore::{name}", backward, setup_context=setup_context)

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *args):
            with torch._C._AutoDispatchBelowAutograd():
                output = op(*args)
            setup_context(ctx, args, output)
            return output

    class Transformed(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args):
            return op(*args)

    Transformed.setup_context = staticmethod(setup_context)
    Recorded.backward = Transformed.backward = staticmethod(backward)
    # Without the wrapper of autograd.Function.apply, which looks for functorch transforms: `call` has looked already.
    recorded = super(torch.autograd.Function, Recorded).apply

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*args)
        if torch._C._are_functorch_transforms_active():
            return Transformed.apply(*args)
        if needs_grad(*args[:tensors]):
            return recorded(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    return call
