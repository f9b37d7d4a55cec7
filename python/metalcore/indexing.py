"""gather, scatter_add, index_select: native kernels; what torch's own do as well on the host is theirs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from ._errors import translate, wrong
from ._operators import HALVES, emulated, needs_grad, same_device, takes_metal

_ops = torch.ops.metalcore
_gather, _index_select = _ops.gather.default, _ops.index_select.default
_scatter_add, _scatter_add_bwd = _ops.scatter_add.default, _ops.scatter_add_bwd.default
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active

_INDICES = (torch.int32, torch.int64)
_SUMMED = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_MOST_DIMS = 6
_ERRORS = (RuntimeError, IndexError, TypeError, ValueError, AttributeError)


@torch.library.register_fake("metalcore::gather")
def _(src, index, dim=0):
    return src.new_empty(index.shape)


@torch.library.register_fake("metalcore::scatter_add_bwd")
def _(d_out, index, dim=0):
    return d_out.new_empty(index.shape)


@torch.library.register_fake("metalcore::index_select")
def _(src, dim, index):
    dim = dim % max(src.ndim, 1)
    return src.new_empty((*src.shape[:dim], index.numel(), *src.shape[dim + 1 :]) if src.ndim else ())


@torch.library.register_fake("metalcore::scatter_add")
def _(dst, index, src, dim=0):
    return dst.new_empty(dst.shape)


# --- of torch's operators -------------------------------------------------------------------------


def _widened(t: Tensor) -> Tensor:
    """In the type of sums, where torch would round every addition to a half type."""
    return t.float() if t.dtype in HALVES else t


def _on_host(t: Tensor) -> bool:
    return t.device.type == "cpu" and not takes_metal(t.device)


def _checked(index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Indices in range, and which were."""
    valid = (index >= 0) & (index < size)
    return torch.where(valid, index, 0), valid


def _missing(t: Tensor) -> Any:
    return float("nan") if t.is_floating_point() or t.is_complex() else 0


def _gather_formula(src: Tensor, index: Tensor, dim: int) -> Tensor:
    index, wide = index.long(), _widened(src)  # the derivative is a sum
    if _on_host(src):
        return torch.gather(wide, dim, index).to(src.dtype)
    size = src.shape[dim] if src.ndim else 1
    if size == 0:
        return src.new_full(index.shape, _missing(src))
    index, valid = _checked(index, size)
    return torch.gather(wide, dim, index).to(src.dtype).masked_fill(~valid, _missing(src))


def _index_select_formula(src: Tensor, dim: int, index: Tensor) -> Tensor:
    wide = _widened(src)
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


def _scatter_add_formula(dst: Tensor, index: Tensor, src: Tensor, dim: int) -> Tensor:
    index, wide = index.long(), _widened(dst)
    values = src.to(wide.dtype)
    if values.ndim != index.ndim and values.numel() == index.numel() == 1:
        values = values.reshape(index.shape)  # one of them without dimensions
    if values.shape != index.shape and index.numel():
        # The corner of src that index covers; torch's derivative of it is not of the shape of src.
        values = values[tuple(slice(0, n) for n in index.shape)]
    if not _on_host(dst):
        size = dst.shape[dim] if dst.ndim else 1
        if size == 0:
            return dst.clone()
        index, valid = _checked(index, size)
        values = torch.where(valid, values, 0)
    return torch.scatter_add(wide, dim, index, values).to(dst.dtype)


# --- derivatives ----------------------------------------------------------------------------------


def _zeros_plus(terms: Tensor, index: Tensor, dim: int, shape: tuple) -> Tensor:
    """What `gather` took, given back."""
    return _add(terms.new_zeros(()).expand(shape), index, terms, dim)


def _along(index: Tensor, dim: int, shape: tuple) -> Tensor:
    """The index of index_select, repeated along the other dimensions."""
    if not shape:
        return index.reshape(())
    return index.reshape(-1, *[1] * (len(shape) - 1 - dim % len(shape))).expand(shape)


def _gather_context(ctx: Any, inputs: tuple, output: Any) -> None:
    src, index, ctx.dim = inputs
    ctx.shape = src.shape
    ctx.save_for_backward(index)


def _gather_backward(ctx: Any, dy: Tensor) -> tuple:
    return _zeros_plus(dy, ctx.saved_tensors[0], ctx.dim, ctx.shape), None, None


def _index_select_context(ctx: Any, inputs: tuple, output: Any) -> None:
    src, ctx.dim, index = inputs
    ctx.shape = src.shape
    ctx.save_for_backward(index)


def _index_select_backward(ctx: Any, dy: Tensor) -> tuple:
    index = _along(ctx.saved_tensors[0], ctx.dim, dy.shape)
    return _zeros_plus(dy, index, ctx.dim, ctx.shape), None, None


def _scatter_add_context(ctx: Any, inputs: tuple, output: Any) -> None:
    _, index, src, ctx.dim = inputs
    ctx.shape = src.shape
    ctx.save_for_backward(index)


def _scatter_add_backward(ctx: Any, dy: Tensor) -> tuple:
    (index,) = ctx.saved_tensors
    d_src = None
    if ctx.needs_input_grad[2] and not index.numel():
        d_src = dy.new_zeros(ctx.shape)
    elif ctx.needs_input_grad[2]:
        d_src = _take_back(dy, index, ctx.dim)
        if d_src.ndim != len(ctx.shape):  # one of them without dimensions
            d_src = d_src.reshape(ctx.shape)
        elif d_src.shape != ctx.shape:  # the corner of src that index covers
            padding = [n for size, taken in zip(reversed(ctx.shape), reversed(d_src.shape)) for n in (0, size - taken)]
            d_src = F.pad(d_src, padding)
    return dy if ctx.needs_input_grad[0] else None, None, d_src, None


def _function(operator: Any, backward: Any, setup_context: Any) -> Any:
    """The derivative of an operator, for compiled code; its `apply` for other code, which costs fewer Python calls."""
    torch.library.register_autograd(operator._name, backward, setup_context=setup_context)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            setup_context(ctx, inputs, None)
            with _BelowAutograd():
                return operator(*inputs)

    Function.backward = staticmethod(backward)
    # Without the wrapper of autograd.Function.apply, which looks for functorch transforms: the caller has looked already.
    return super(torch.autograd.Function, Function).apply


_gather_apply = _function(_gather, _gather_backward, _gather_context)
_index_select_apply = _function(_index_select, _index_select_backward, _index_select_context)
_scatter_add_apply = _function(_scatter_add, _scatter_add_backward, _scatter_add_context)
_scatter_add_bwd_apply = _function(_scatter_add_bwd, _gather_backward, _gather_context)


# --- calls ----------------------------------------------------------------------------------------


def _torchs(t: Tensor, index: Tensor) -> bool:
    """Whether torch's own call is all there is to do."""
    return t.is_cpu and index.dtype is torch.int64 and t.dtype not in HALVES and not emulated


def _torchs_slices(src: Tensor) -> bool:
    """The same of index_select: 10^4 elements of 10^5 take torch 7 us on a cpu, and us 16."""
    return src.is_cpu and not emulated and (src.dtype not in HALVES or not needs_grad(src))


def _composed(t: Tensor, index: Tensor) -> bool:
    """Whether the call is made of torch's operators: for transforms and forward-mode derivatives, which know them, and for
    more dimensions than the kernels take."""
    return _transforms_active() or forward_ad._current_level >= 0 or t.ndim > _MOST_DIMS or index.ndim > _MOST_DIMS


def _take(src: Tensor, index: Tensor, dim: int) -> Tensor:
    if _composed(src, index):
        return _gather_formula(src, index, dim)
    if _is_compiling():
        return _gather(src, index, dim)
    if needs_grad(src):
        return _gather_apply(src, index, dim)
    with _BelowAutograd():
        return _gather(src, index, dim)


def _take_back(dy: Tensor, index: Tensor, dim: int) -> Tensor:
    """`gather`, with 0 for an index out of range."""
    if dy.dtype not in _SUMMED or _composed(dy, index):
        index = index.long()
        index, valid = _checked(index, dy.shape[dim] if dy.ndim else 1)
        return torch.where(valid, torch.gather(dy, dim, index), 0)
    if _is_compiling():
        return _scatter_add_bwd(dy, index, dim)
    if needs_grad(dy):
        return _scatter_add_bwd_apply(dy, index, dim)
    with _BelowAutograd():
        return _scatter_add_bwd(dy, index, dim)


def _select(src: Tensor, dim: int, index: Tensor) -> Tensor:
    if _composed(src, index):
        return _index_select_formula(src, dim, index)
    if _is_compiling():
        return _index_select(src, dim, index)
    if needs_grad(src):
        return _index_select_apply(src, dim, index)
    with _BelowAutograd():
        return _index_select(src, dim, index)


def _add(dst: Tensor, index: Tensor, src: Tensor, dim: int) -> Tensor:
    # Sums of other types, and those whose order is to be fixed, are torch's, and on a cpu those that are faster so: 10^4
    # elements added to 10^5 of bfloat16 take 50 us, ours 80, but 10^4 rows of 256 added to 10^5 rows 160 ms, ours 77.
    if dst.is_cpu and not emulated:
        formula = dst.ndim < 2 or dst.dtype not in HALVES
    else:
        formula = torch.are_deterministic_algorithms_enabled() and not dst.is_cpu
    if formula or dst.dtype not in _SUMMED or _composed(dst, index):
        return _scatter_add_formula(dst, index, src, dim)
    if _is_compiling():
        return _scatter_add(dst, index, src, dim)
    if needs_grad(dst, src):
        return _scatter_add_apply(dst, index, src, dim)
    with _BelowAutograd():
        return _scatter_add(dst, index, src, dim)


def _refused(op: str, error: Exception, dim: Any, **tensors: Any) -> Exception:
    """The error of a call that torch refused: of the argument that is wrong, else (sizes that do not fit) in torch's words."""
    _refuse(op, dim, **tensors)
    meant = translate(error)
    if meant is not error or isinstance(error, (NotImplementedError, torch.OutOfMemoryError)):
        return meant
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
    if not _on_host(into):
        return  # looks at nothing that the GPU has
    size = into.shape[dim] if into.ndim else 1
    outside = index[(index < 0) | (index >= size)]
    if outside.numel():
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
        return _take(src, index, dim)
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
        if _torchs(dst, index) and src.shape == index.shape:
            return torch.scatter_add(dst, dim, index, src)
        if index.dtype in _INDICES and src.dtype == dst.dtype:
            return _add(dst, index, src, dim)
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
        if _torchs_slices(src):
            return torch.index_select(src, dim, index)
        return _select(src, dim, index)
    except _ERRORS as raised:
        error = raised
    raise _refused("index_select", error, dim, src=src, index=index)
