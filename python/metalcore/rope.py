"""Rotary position embedding, split-half."""

from typing import Any, Optional

import torch
from torch import Tensor

from ._errors import translate, wrong
from ._operators import check_tensors, compute_dtype, grad_tracked, needs_grad, same_device

_OPERATORS = (torch.ops.metalcore.rope_fwd.default, torch.ops.metalcore.rope_bwd.default)
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_is_compiling = torch.compiler.is_compiling
_transforms_active = torch._C._are_functorch_transforms_active


def _fake(q, k, cos, sin, position_ids, unsqueeze_dim):
    same_device("rope_forward" if k is None else "rope_fwd", q=q, k=k, cos=cos, sin=sin, position_ids=position_ids)
    return q.new_empty(q.shape), q.new_empty((0,)) if k is None else k.new_empty(k.shape)


class _Rope(torch.autograd.Function):
    """A rotation (``back`` 0) or its transpose (1): each is the other's derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(q, k, cos, sin, position_ids, unsqueeze_dim, back):
        if _transforms_active():
            return _OPERATORS[back](q, k, cos, sin, position_ids, unsqueeze_dim)
        with _BelowAutograd():
            return _OPERATORS[back](q, k, cos, sin, position_ids, unsqueeze_dim)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, k, cos, sin, position_ids, ctx.unsqueeze_dim, ctx.back = inputs
        ctx.save_for_backward(cos, sin, position_ids)
        ctx.set_materialize_grads(False)
        if k is None:
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, dq, dk):
        return (*_gradients(ctx, dq, dk, lambda *args: _rotate(*args, 1 - ctx.back)), *(None,) * 5)


# Without the wrapper of autograd.Function.apply, which looks for functorch transforms: the caller has looked already.
_apply = super(torch.autograd.Function, _Rope).apply


def _gradients(ctx: Any, dq: Optional[Tensor], dk: Optional[Tensor], rotate: Any) -> tuple[Optional[Tensor], Optional[Tensor]]:
    """Gradients of q and k where there are any and they are asked for: in one call if both."""
    rest = (*ctx.saved_tensors, ctx.unsqueeze_dim)
    dq, dk = (d if wanted else None for d, wanted in zip((dq, dk), ctx.needs_input_grad))
    if dq is None:
        return None, None if dk is None else rotate(dk, None, *rest)[0]
    dq, other = rotate(dq, dk, *rest)
    return dq, None if dk is None else other


def _rotate(
    q: Tensor, k: Optional[Tensor], cos: Tensor, sin: Tensor, position_ids: Optional[Tensor], unsqueeze_dim: int, back: int
) -> tuple[Tensor, Tensor]:
    """The rotation or its transpose, by the way that records what is to be recorded and costs least."""
    if _is_compiling():
        return _OPERATORS[back](q, k, cos, sin, position_ids, unsqueeze_dim)
    if _transforms_active():
        if grad_tracked(q, k):
            return _Rope.apply(q, k, cos, sin, position_ids, unsqueeze_dim, back)
        return _OPERATORS[back](q, k, cos, sin, position_ids, unsqueeze_dim)
    if needs_grad(q, k):
        return _apply(q, k, cos, sin, position_ids, unsqueeze_dim, back)
    with _BelowAutograd():
        return _OPERATORS[back](q, k, cos, sin, position_ids, unsqueeze_dim)


def _register(back: int) -> None:
    """The fake, the derivative and the vmap rule of an operator."""

    def setup_context(ctx, inputs, output):
        _, k, cos, sin, position_ids, ctx.unsqueeze_dim = inputs
        ctx.has_k = k is not None
        ctx.save_for_backward(cos, sin, position_ids)

    def backward(ctx, dq, dk):
        return (*_gradients(ctx, dq, dk if ctx.has_k else None, _OPERATORS[1 - back]), *(None,) * 4)

    def vmap(info, in_dims, *args):
        return _vmap(back, info.batch_size, in_dims, *args)

    name = f"metalcore::rope_{('fwd', 'bwd')[back]}"
    torch.library.register_fake(name)(_fake)
    torch.library.register_autograd(name, backward, setup_context=setup_context)
    torch.library.register_vmap(name)(vmap)


def _vmap(back: int, size: int, in_dims: tuple, q: Tensor, k: Any, cos: Tensor, sin: Tensor, ids: Any, dim: int) -> tuple:
    """The mapped dimension joins the batch; tables and positions that are mapped become ones of each batch item."""

    def mapped(tensor: Tensor, at: Optional[int]) -> Tensor:
        return tensor.expand(size, *tensor.shape) if at is None else tensor.movedim(at, 0)

    q, k = (None if t is None else mapped(t, at) for t, at in zip((q, k), in_dims))
    batch, seq = q.shape[1], q.shape[4 - dim]

    def per_item(table: Tensor, sizes: int) -> Tensor:
        """(size, [batch,] ...) to (size * batch, ...)"""
        if table.ndim == sizes:
            table = table.unsqueeze(1)
        return table.expand(size, batch, *table.shape[2:]).flatten(0, 1)

    if in_dims[2] is not None or in_dims[3] is not None:
        cos, sin = mapped(cos, in_dims[2]), mapped(sin, in_dims[3])
        if ids is not None:
            rows = mapped(ids, in_dims[4])
            cos, sin = (torch.stack([item[row] for item, row in zip(t.unbind(), rows.unbind())]) for t in (cos, sin))
            ids = None
        elif cos.ndim == 3:
            cos, sin = cos[:, :seq], sin[:, :seq]
        cos, sin = per_item(cos, 3), per_item(sin, 3)
    elif cos.ndim == 3 and cos.shape[0] != 1:
        cos, sin = (t.repeat(size, 1, 1) for t in (cos, sin))
    if ids is not None and (in_dims[4] is not None or ids.ndim == 2):
        ids = per_item(mapped(ids, in_dims[4]), 2)
    found = _rotate(q.flatten(0, 1), None if k is None else k.flatten(0, 1), cos, sin, ids, dim, back)
    q_out = found[0].view(q.shape)
    return (q_out, found[1]) if k is None else (q_out, found[1].view(k.shape)), (0, None if k is None else 0)


_register(0)
_register(1)


def _check(op: str, x: str, q: Tensor, k: Optional[Tensor], cos: Tensor, sin: Tensor, ids: Optional[Tensor]) -> None:
    check_tensors(op, optional=("k",), **{x: q, "k": k, "cos": cos, "sin": sin})
    if ids is not None:
        if not isinstance(ids, Tensor):
            raise TypeError(wrong(op, "position_ids", type(ids).__name__, "a tensor"))
        if ids.dtype not in (torch.int32, torch.int64):
            raise TypeError(wrong(op, "position_ids", f"dtype {ids.dtype}", "int32 or int64"))
        same_device(op, **{x: q, "position_ids": ids})


def _rope(
    op: str, q: Tensor, k: Optional[Tensor], cos: Tensor, sin: Tensor, position_ids: Optional[Tensor], unsqueeze_dim: int
) -> tuple[Tensor, Tensor]:
    x = "x" if op == "rope_forward" else "q"
    try:
        if needs_grad(cos, sin):
            raise NotImplementedError(wrong(op, "cos", "a table that requires a gradient", "tables without gradients"))
        if cos.dtype is not sin.dtype or (cos.dtype is torch.float64 and q.dtype is not torch.float64):
            _check(op, x, q, k, cos, sin, position_ids)
            wide = compute_dtype(q.dtype)
            cos, sin = cos.to(wide), sin.to(wide)
        return _rotate(q, k, cos, sin, position_ids, unsqueeze_dim, 0)
    except (RuntimeError, AttributeError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, NotImplementedError):
            raise
        _check(op, x, q, k, cos, sin, position_ids)
        raise translate(error) from None


def rope_fwd(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, position_ids: Optional[Tensor] = None, unsqueeze_dim: int = 2
) -> tuple[Tensor, Tensor]:
    """(q', k'), each x' = [x1 c1 - x2 s1, x2 c2 + x1 s2] with x1, x2 the halves of the last dimension.

    q, k: (B, S, H, D) with ``unsqueeze_dim=2``, (B, H, S, D) with 1, as in Hugging Face; each its own H, one dtype:
    float32, float16, bfloat16 or float64. They may be strided views, such as a transposed projection: nothing is copied
    while the last dimension is dense. cos, sin: (P, w), of which row s is for position s, or (B, S, w); w = D / 2
    (c1 = c2, s1 = s2) or D (both, one after the other); they may have another floating dtype. position_ids, int32 or
    int64, (S,) or (B, S), pick rows of tables (P, w).

    One pass over memory for both. Products and sum in float32 (float64 for float64), one rounding:
    |error| <= rho |y| + 4 w (|x1 c| + |x2 s|). Differentiable any number of times in q and k. Does not wait for the GPU.
    Source: Su et al., arXiv 2104.09864.

    Raises ValueError where shapes or devices do not fit or D is odd, TypeError where dtypes do not, NotImplementedError
    if cos or sin requires a gradient, IndexError on cpu for a position that the table does not have (on a GPU its heads
    are NaN).
    """
    if k is None:
        raise TypeError(wrong("rope_fwd", "k", "NoneType", "a tensor"))
    return _rope("rope_fwd", q, k, cos, sin, position_ids, unsqueeze_dim)


def apply_rotary_pos_emb(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, position_ids: Optional[Tensor] = None, unsqueeze_dim: int = 2
) -> tuple[Tensor, Tensor]:
    """:func:`rope_fwd` by its name in Hugging Face (where ``unsqueeze_dim`` is 1 unless given)."""
    return rope_fwd(q, k, cos, sin, position_ids, unsqueeze_dim)


def rope_forward(x: Tensor, cos: Tensor, sin: Tensor, position_ids: Optional[Tensor] = None, unsqueeze_dim: int = 2) -> Tensor:
    """x' of one tensor, as :func:`rope_fwd`."""
    return _rope("rope_forward", x, None, cos, sin, position_ids, unsqueeze_dim)[0]


def apply_rotary_pos_emb_single(
    x: Tensor, cos: Tensor, sin: Tensor, position_ids: Optional[Tensor] = None, unsqueeze_dim: int = 2
) -> Tensor:
    """:func:`rope_forward`."""
    return rope_forward(x, cos, sin, position_ids, unsqueeze_dim)


class RotaryEmbedding(torch.nn.Module):
    """Tables of the angles (position / scaling_factor) base^(-2i / dim), i < dim / 2, and the rotation by them.

    ``rope(seq_len=n)`` gives (cos, sin), float32 (n, dim / 2); ``rope(q, k, position_ids=None)`` gives (q', k') for q, k
    (B, S, H, D). Angles are formed in float64; tables stay float32 whatever the module is cast to, follow it to another
    device, grow when a longer sequence comes, and are not in its state_dict. On a GPU, where position_ids are not looked
    at, those at or beyond the table's size give NaN.
    """

    def __init__(
        self,
        dim: int,
        max_position_embeddings: int = 2048,
        base: float = 10000.0,
        device: Any = None,
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        if dim % 2 or dim < 2:
            raise ValueError(wrong("RotaryEmbedding", "dim", dim, "an even number from 2"))
        self.dim, self.base, self.scaling_factor = dim, base, scaling_factor
        self.max_position_embeddings = max_position_embeddings
        # Integers that hold the bits of cos and sin: a module that is cast casts floating buffers.
        self.register_buffer("_bits", torch.empty(0, device=device, dtype=torch.int32), persistent=False)
        self._grow(max_position_embeddings)

    def _grow(self, positions: int) -> None:
        i = torch.arange(0, self.dim, 2, dtype=torch.float64, device="cpu")
        position = torch.arange(positions, dtype=torch.float64, device="cpu") / self.scaling_factor
        angle = position[:, None] * self.base ** (-i / self.dim)
        tables = torch.stack([angle.cos(), angle.sin()]).float()
        self._bits = tables.view(torch.int32).to(self._bits.device)

    def _tables(self, positions: int) -> Tensor:
        if positions > self._bits.shape[1]:
            self._grow(max(positions, 2 * self._bits.shape[1]))
        return self._bits.view(torch.float32)

    def forward(
        self,
        q: Optional[Tensor] = None,
        k: Optional[Tensor] = None,
        position_ids: Optional[Tensor] = None,
        *,
        seq_len: Optional[int] = None,
    ) -> tuple[Tensor, Tensor]:
        """(q', k'), or with ``seq_len`` alone (cos, sin)."""
        if q is None:
            if seq_len is None or k is not None:
                raise ValueError(wrong("RotaryEmbedding", "seq_len", seq_len, "a number, where there is no q"))
            return tuple(self._tables(seq_len)[:, :seq_len].unbind())
        needed = seq_len or 0
        if position_ids is None:
            needed = max(needed, q.shape[1]) if q.ndim == 4 else needed
        elif not _is_compiling() and position_ids.device.type == "cpu" and position_ids.numel():
            needed = max(needed, int(position_ids.max()) + 1)
        cos, sin = self._tables(needed)
        return rope_fwd(q, k, cos, sin, position_ids)

    def extra_repr(self) -> str:
        return f"{self.dim}, base={self.base}, scaling_factor={self.scaling_factor}"
