"""gather, scatter_add, index_select: torch's own kernels, with sums of half types in float32, and an index out of range
that a GPU answers with NaN in place of an assertion."""

from typing import Any

import torch
from torch import Tensor

from ._errors import wrong
from ._operators import HALVES, emulated, needs_grad, same_device, takes_metal

_INDICES = (torch.int32, torch.int64)
_ERRORS = (RuntimeError, IndexError, TypeError, ValueError, AttributeError)


def _widened(t: Tensor) -> Tensor:
    """In the type of sums, where torch would round every addition to a half type."""
    return t.float() if t.dtype in HALVES else t


def _torchs(t: Tensor, index: Tensor) -> bool:
    """Whether torch's own call is all there is to do."""
    return t.is_cpu and index.dtype is torch.int64 and t.dtype not in HALVES and not emulated


def _on_host(t: Tensor) -> bool:
    return t.device.type == "cpu" and not takes_metal(t.device)


def _checked(index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Indices in range, and which were."""
    valid = (index >= 0) & (index < size)
    return torch.where(valid, index, 0), valid


def _missing(t: Tensor) -> Any:
    return float("nan") if t.is_floating_point() or t.is_complex() else 0


def _gather(src: Tensor, index: Tensor, dim: int = 0) -> Tensor:
    index = index.long()
    # The derivative is a sum.
    wide = _widened(src) if needs_grad(src) else src
    if _on_host(src):
        return torch.gather(wide, dim, index).to(src.dtype)
    size = src.shape[dim] if src.ndim else 1
    if size == 0:
        return src.new_full(index.shape, _missing(src))
    index, valid = _checked(index, size)
    return torch.gather(wide, dim, index).to(src.dtype).masked_fill(~valid, _missing(src))


def _index_select(src: Tensor, dim: int, index: Tensor) -> Tensor:
    wide = _widened(src) if needs_grad(src) else src
    if _on_host(src):
        return torch.index_select(wide, dim, index).to(src.dtype)
    rank = max(src.ndim, 1)
    if index.ndim > 1 or not -rank <= dim < rank:
        raise ValueError  # named by the caller
    dim = dim % rank
    index = index.reshape(-1)
    if src.ndim and src.shape[dim] == 0:
        return src.new_full((*src.shape[:dim], index.shape[0], *src.shape[dim + 1 :]), _missing(src))
    index, valid = _checked(index, src.shape[dim] if src.ndim else 1)
    missing = ~valid.reshape(-1, *[1] * (src.ndim - dim - 1)) if src.ndim else ~valid.reshape(())
    return torch.index_select(wide, dim, index).to(src.dtype).masked_fill(missing, _missing(src))


def _scatter_add(dst: Tensor, index: Tensor, src: Tensor, dim: int = 0) -> Tensor:
    index, wide = index.long(), _widened(dst)
    values = src.to(wide.dtype)
    if not _on_host(dst):
        size = dst.shape[dim] if dst.ndim else 1
        if size == 0:
            return dst.clone()
        index, valid = _checked(index, size)
        if src.shape != index.shape:  # torch takes the corner of src that index covers
            values = values[tuple(slice(0, n) for n in index.shape)]
        values = torch.where(valid, values, 0)
    return torch.scatter_add(wide, dim, index, values).to(dst.dtype)


_library = torch.library.Library("metalcore", "FRAGMENT")
for _name, _arguments, _function in (
    ("gather", "Tensor src, Tensor index, int dim=0", _gather),
    ("scatter_add", "Tensor dst, Tensor index, Tensor src, int dim=0", _scatter_add),
    ("index_select", "Tensor src, int dim, Tensor index", _index_select),
):
    # Made of torch's operators: derivatives, fakes, transforms and compiled code are theirs.
    _library.define(f"{_name}({_arguments}) -> Tensor")
    _library.impl(_name, _function, "CompositeImplicitAutograd")


def _refused(op: str, error: Exception, dim: Any, **tensors: Any) -> Exception:
    """The error of a call that torch refused: of the argument that is wrong, else (sizes that do not fit) in torch's words."""
    _refuse(op, dim, **tensors)
    kind = ValueError if isinstance(error, (RuntimeError, IndexError)) else type(error)
    return kind(f"{op}: {str(error).splitlines()[0]}")


def _refuse(op: str, dim: Any, **tensors: Any) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(wrong(op, name, type(tensor).__name__, "a tensor"))
    index, into = tensors["index"], next(iter(tensors.values()))
    if index.dtype not in _INDICES:
        raise TypeError(wrong(op, "index", f"dtype {index.dtype}", "int32 or int64"))
    same_device(op, **tensors)
    if not isinstance(dim, int):
        raise TypeError(wrong(op, "dim", type(dim).__name__, "an int"))
    rank = max(into.ndim, 1)
    if not -rank <= dim < rank:
        raise ValueError(wrong(op, "dim", dim, f"one of the {into.ndim} dimensions of {next(iter(tensors))}"))
    if op == "index_select" and index.ndim > 1:
        raise ValueError(wrong(op, "index", f"shape {list(index.shape)}", "1 dimension"))
    if op == "scatter_add" and tensors["src"].dtype != into.dtype:
        raise TypeError(wrong(op, "src", f"dtype {tensors['src'].dtype}", f"{into.dtype}"))
    if op != "index_select" and max(index.ndim, 1) != rank:
        raise ValueError(wrong(op, "index", f"shape {list(index.shape)}", f"{into.ndim} dimensions"))
    size = into.shape[dim] if into.ndim else 1
    outside = index[(index < 0) | (index >= size)]
    if outside.numel() and _on_host(into):
        raise IndexError(wrong(op, "index", f"index {int(outside[0])}", f"0 to {size - 1}"))


def gather(src: Tensor, index: Tensor, dim: int = 0) -> Tensor:
    """``torch.gather(src, dim, index)``: the element of src, along ``dim``, that each element of index names.

    src of any dtype, index int32 or int64 with as many dimensions. Returns the shape of index. The gradient is
    :func:`scatter_add`, of half types summed in float32 and rounded once. Does not wait for the GPU.

    Raises ValueError for shapes that do not fit or a wrong ``dim``, TypeError for another dtype of index, IndexError on cpu
    for an index out of range; on a GPU that element is NaN (0 of integers) and gives no gradient.
    """
    try:
        if _torchs(src, index):
            return torch.gather(src, dim, index)
        if index.dtype in _INDICES:
            return _gather(src, index, dim)
        error: Exception = TypeError()
    except _ERRORS as raised:
        error = raised
    raise _refused("gather", error, dim, src=src, index=index)


def scatter_add(dst: Tensor, index: Tensor, src: Tensor, dim: int = 0) -> Tensor:
    """``torch.scatter_add(dst, dim, index, src)``, out of place: dst, to which each element of src is added where index says.

    dst of any dtype, src of the same, index int32 or int64. Half types are summed in float32 and rounded once. On a GPU the
    order of a sum, and so its last bits, can differ from run to run, unless ``torch.use_deterministic_algorithms(True)``.
    Does not wait for the GPU.

    Raises ValueError for shapes that do not fit or a wrong ``dim``, TypeError for wrong dtypes, IndexError on cpu for an
    index out of range; on a GPU that element of src is left out.
    """
    try:
        if _torchs(dst, index):
            return torch.scatter_add(dst, dim, index, src)
        if index.dtype in _INDICES and src.dtype == dst.dtype:
            return _scatter_add(dst, index, src, dim)
        error: Exception = TypeError()
    except _ERRORS as raised:
        error = raised
    raise _refused("scatter_add", error, dim, dst=dst, index=index, src=src)


def index_select(src: Tensor, dim: int, index: Tensor) -> Tensor:
    """``torch.index_select(src, dim, index)``: the slices of src, along ``dim``, that index names.

    src of any dtype, index (n,) int32 or int64. The gradient is a sum, of half types in float32, rounded once. Does not
    wait for the GPU.

    Raises ValueError for a wrong shape or ``dim``, TypeError for another dtype of index, IndexError on cpu for an index out
    of range; on a GPU that slice is NaN (0 of integers) and gives no gradient.
    """
    try:
        if _torchs(src, index):
            return torch.index_select(src, dim, index)
        if index.dtype in _INDICES:
            return _index_select(src, dim, index)
        error: Exception = TypeError()
    except _ERRORS as raised:
        error = raised
    raise _refused("index_select", error, dim, src=src, index=index)
