"""Sums, means and maxima of the rows of an embedding, bag by bag."""

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ._errors import translate, wrong
from ._operators import check_tensors, compute_dtype, emulated, needs_grad, same_device

_fwd = torch.ops.metalcore.embedding_bag_fwd.default
_bwd = torch.ops.metalcore.embedding_bag_bwd.default
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active

_OP = "embedding_bag"
MODES = {"sum": 0, "mean": 1, "max": 2}
_INDICES = (torch.int32, torch.int64)
# Up to so many bags the gradient of a maximum is formed without sorting on a GPU: 64 of 4096 columns take 16 million reads
# from a cache, some 10 us.
_FEW_BAGS = 256


@torch.library.register_fake("metalcore::embedding_bag_fwd")
def _(weight, indices, offsets, per_sample_weights, mode, include_last_offset, padding_idx):
    same_device(_OP, weight=weight, indices=indices, offsets=offsets, per_sample_weights=per_sample_weights)
    bags, columns = offsets.shape[0] - int(include_last_offset), weight.shape[1]
    scale = weight.new_empty((bags,), dtype=compute_dtype(weight.dtype))
    largest = weight.new_empty((bags, columns) if mode == MODES["max"] else (0,), dtype=torch.int32)
    return weight.new_empty((bags, columns)), scale, largest


@torch.library.register_fake("metalcore::embedding_bag_bwd")
def _(dy, weight, indices, offsets, samples, scale, largest, keys, order, rows, mode, last, padding, weight_grad, samples_grad):
    return dy.new_empty((rows, dy.shape[1]) if weight_grad else (0,)), dy.new_empty((indices.shape[0] if samples_grad else 0,))


def _backward_formula(
    dy: Tensor,
    weight: Optional[Tensor],
    indices: Tensor,
    offsets: Tensor,
    samples: Optional[Tensor],
    scale: Tensor,
    largest: Tensor,
    options: tuple,
) -> tuple[Optional[Tensor], Optional[Tensor]]:
    """The backward pass in torch's own operations, differentiable again."""
    rows, mode, _include_last, padding, weight_grad, samples_grad = options
    real = compute_dtype(dy.dtype)
    d = dy.to(real)
    zeros = d.new_zeros((rows, d.shape[1]))
    if mode == MODES["max"]:
        counts = (largest >= 0) & (scale != 0).unsqueeze(1)
        if not rows or not indices.numel():
            return zeros.to(dy.dtype), None
        at = torch.where(counts, indices[torch.where(counts, largest, 0).long()].long(), 0)
        return zeros.scatter_add(0, at, torch.where(counts, d, 0)).to(dy.dtype), None
    bag = torch.searchsorted(offsets, torch.arange(indices.shape[0], dtype=offsets.dtype, device=dy.device), right=True) - 1
    counts = (indices >= 0) & (indices < rows) & (indices != padding) & (bag >= 0) & (bag < dy.shape[0])
    bag, at = torch.where(counts, bag, 0), torch.where(counts, indices, 0).long()
    if not dy.shape[0]:
        d, scale = d.new_zeros((1, d.shape[1])), scale.new_zeros((1,))
    factor = torch.where(counts, scale[bag], 0)
    terms = d[bag] * factor.unsqueeze(1)
    d_samples = None
    if samples_grad:
        d_samples = (terms * weight.to(real)[at]).sum(-1).to(dy.dtype) if rows else dy.new_zeros(indices.shape)
    if not weight_grad:
        return None, d_samples
    if samples is not None:
        terms = terms * samples.to(real).unsqueeze(1)
    return zeros.index_add(0, at, terms).to(dy.dtype) if rows else zeros.to(dy.dtype), d_samples


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    weight, indices, offsets, samples, *ctx.options = inputs
    ctx.rows = weight.shape[0]
    ctx.samples_grad = samples is not None and samples.requires_grad
    # Elsewhere the gradient does not need the weight, which may change before it is formed.
    ctx.save_for_backward(weight if ctx.samples_grad else None, indices, offsets, samples, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _few(bags: Any) -> bool:
    """Not in compiled code, which would be compiled anew for another number of them."""
    return isinstance(bags, int) and bags <= _FEW_BAGS


def _backward(ctx: Any, dy: Tensor, *_: Any) -> tuple:
    weight, indices, offsets, samples, scale, largest = ctx.saved_tensors
    weight_grad, samples_grad = ctx.needs_input_grad[0], ctx.samples_grad and ctx.needs_input_grad[3]
    options = (ctx.rows, *ctx.options, weight_grad, samples_grad)
    if needs_grad(dy, weight, samples):
        dw, d_samples = _backward_formula(dy, weight, indices, offsets, samples, scale, largest, options)
    else:
        few = ctx.options[0] == MODES["max"] and (emulated or not dy.is_cpu) and _few(dy.shape[0])
        if few or not weight_grad:
            keys = order = indices.new_empty((0,))
        else:
            keys, order = torch.sort(indices, stable=True)
        with _BelowAutograd():
            dw, d_samples = _bwd(dy, weight, indices, offsets, samples, scale, largest, keys, order, *options)
    return dw if weight_grad else None, None, None, d_samples if samples_grad else None, None, None, None


torch.library.register_autograd("metalcore::embedding_bag_fwd", _backward, setup_context=_setup_context)


class _EmbeddingBag(torch.autograd.Function):
    """The same derivative without the detour through torch.library: fewer Python calls."""

    @staticmethod
    def forward(ctx, *inputs):
        with _BelowAutograd():
            output = _fwd(*inputs)
        _setup_context(ctx, inputs, output)
        return output[0]

    backward = staticmethod(_backward)


# Without the wrapper of autograd.Function.apply, which looks for functorch transforms: the caller has looked already.
_apply = super(torch.autograd.Function, _EmbeddingBag).apply


def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    mode: str = "sum",
    *,
    include_last_offset: bool = True,
    per_sample_weights: Optional[Tensor] = None,
    padding_idx: Optional[int] = None,
) -> Tensor:
    """Row b of the result is the sum (or mean, or maximum) of the rows ``weight[indices[offsets[b] : offsets[b + 1]]]``.

    weight (V, D) float32, float16, bfloat16 or float64; indices (L,) int32 or int64; offsets (B + 1,), from 0 to the end
    of the last bag, or (B,) with ``include_last_offset=False``, as in torch. per_sample_weights (L,), of the dtype of the
    weight, multiply the rows of a sum. Entries that are ``padding_idx`` are left out, and not counted by a mean. Returns
    (B, D); zeros for an empty bag.

    Sums in float32 (float64 for float64), one rounding: within (8 + log2 L) 2^-24 of the sum of magnitudes; a maximum is
    exact. The gradient of the weight is dense and summed in the order of the entries, the same bits in every run; that of
    a maximum goes to the first entry attaining it. Differentiable twice. Does not wait for the GPU.

    Raises ValueError where shapes, offsets or options do not fit, TypeError for wrong dtypes, NotImplementedError for
    per_sample_weights of a mode other than 'sum', IndexError on cpu for an index outside 0..V-1. On a GPU the bag of such
    an index is NaN and gives no gradient, and offsets are clamped.
    """
    try:
        if per_sample_weights is not None and mode != "sum":
            _check(weight, indices, offsets, mode, per_sample_weights)
        if padding_idx is None:
            padding = -1
        else:
            padding = padding_idx + weight.shape[0] if padding_idx < 0 else padding_idx
            if padding < 0:
                raise ValueError(wrong(_OP, "padding_idx", padding_idx, f"a row of {weight.shape[0]}"))
        if offsets.dtype != indices.dtype and offsets.dtype in _INDICES and indices.dtype in _INDICES:
            offsets = offsets.to(indices.dtype)
        args = (weight, indices, offsets, per_sample_weights, MODES[mode], include_last_offset, padding)
        if _transforms_active():
            _check(weight, indices, offsets, mode, per_sample_weights)
            options = {"include_last_offset": include_last_offset, "per_sample_weights": per_sample_weights}
            return F.embedding_bag(indices, weight, offsets, mode=mode, padding_idx=padding_idx, **options)
        if _is_compiling():
            return _fwd(*args)[0]
        if needs_grad(weight, per_sample_weights):
            return _apply(*args)
        with _BelowAutograd():
            return _fwd(*args)[0]
    except (RuntimeError, AttributeError, TypeError, ValueError, KeyError) as error:
        _check(weight, indices, offsets, mode, per_sample_weights)
        raise translate(error) from None


def _check(weight: Any, indices: Any, offsets: Any, mode: Any, samples: Any) -> None:
    optional = ("per_sample_weights",)
    check_tensors(_OP, optional=optional, weight=weight, per_sample_weights=samples)
    for name, tensor in (("indices", indices), ("offsets", offsets)):
        if not isinstance(tensor, Tensor):
            raise TypeError(wrong(_OP, name, type(tensor).__name__, "a tensor"))
        if tensor.dtype not in _INDICES:
            raise TypeError(wrong(_OP, name, f"dtype {tensor.dtype}", "int32 or int64"))
    same_device(_OP, weight=weight, indices=indices, offsets=offsets)
    if mode not in MODES:
        raise ValueError(wrong(_OP, "mode", repr(mode), "'sum', 'mean' or 'max'"))
    if samples is not None and mode != "sum":
        raise NotImplementedError(wrong(_OP, "per_sample_weights", f"a tensor for mode {mode!r}", "None, but for 'sum'"))


class MetalEmbeddingBag(torch.nn.EmbeddingBag):
    """:func:`embedding_bag` of a weight of its own; replaces ``torch.nn.EmbeddingBag``, whose arguments, offsets (B,) and
    state_dict it has. ``mode`` is 'sum' if it is not given. Calls with ``max_norm``, ``scale_grad_by_freq`` or
    ``sparse=True`` are torch's.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        mode: str = "sum",
        device: Any = None,
        dtype: Any = None,
        *,
        max_norm: Optional[float] = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Optional[Tensor] = None,
        include_last_offset: bool = False,
        padding_idx: Optional[int] = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(wrong("MetalEmbeddingBag", "mode", repr(mode), "'sum', 'mean' or 'max'"))
        super().__init__(
            num_embeddings,
            embedding_dim,
            max_norm=max_norm,
            norm_type=norm_type,
            scale_grad_by_freq=scale_grad_by_freq,
            mode=mode,
            sparse=sparse,
            _weight=_weight,
            include_last_offset=include_last_offset,
            padding_idx=padding_idx,
            device=device,
            dtype=dtype,
        )

    def forward(self, input: Tensor, offsets: Optional[Tensor] = None, per_sample_weights: Optional[Tensor] = None) -> Tensor:
        """(B, embedding_dim) of input (L,) and the offsets (B,) of its bags, or of input (B, N) without offsets."""
        if self.max_norm is not None or self.scale_grad_by_freq or self.sparse:
            return super().forward(input, offsets, per_sample_weights)
        include_last = self.include_last_offset
        if input.ndim == 2:
            if offsets is not None:
                raise ValueError(wrong("MetalEmbeddingBag", "offsets", "a tensor beside 2-D input", "None"))
            offsets, include_last = bags_of_rows(input), False
            if per_sample_weights is not None:
                if per_sample_weights.shape != input.shape:
                    got, expected = f"shape {list(per_sample_weights.shape)}", f"shape {list(input.shape)}"
                    raise ValueError(wrong("MetalEmbeddingBag", "per_sample_weights", got, expected))
                per_sample_weights = per_sample_weights.reshape(-1)
            input = input.reshape(-1)
        elif offsets is None:
            raise ValueError(wrong("MetalEmbeddingBag", "offsets", f"None for input of {input.ndim} dimensions", "a tensor"))
        options = {"per_sample_weights": per_sample_weights, "padding_idx": self.padding_idx}
        return embedding_bag(self.weight, input, offsets, self.mode, include_last_offset=include_last, **options)


def bags_of_rows(indices: Tensor) -> Tensor:
    """Offsets (B,) of the rows of indices (B, N)."""
    return torch.arange(indices.shape[0], dtype=indices.dtype, device=indices.device) * indices.shape[1]
