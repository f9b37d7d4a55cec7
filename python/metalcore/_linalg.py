"""What the functions of linear algebra have in common: checks of arguments, right sides, errors of single matrices."""

from typing import Any, Callable, Optional

import torch
from torch import Tensor

from ._errors import wrong
from ._operators import HALVES, check_tensors, same_device


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
