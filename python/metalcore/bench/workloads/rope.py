"""Rotary embedding of q and k in one call: forward, and forward + backward through autograd on both sides. Tables of half
the width of a head, in float32; torch's form is that of Hugging Face, whose tables have the whole width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor

import metalcore

from .. import peers
from ..accuracy import Gate, excess, nan_max, rounding, wide, working_roundoff
from ..rows import Call, Case, Context, Cost, HostCall, Peer, Row, copies_needed, times

# (batch, heads of q, heads of k, positions, width)
Shape = tuple[int, int, int, int, int]
Forward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

SHAPES: tuple[Shape, ...] = ((1, 32, 8, 512, 128), (4, 32, 8, 2048, 128), (32, 32, 32, 1024, 128))
QUICK: tuple[Shape, ...] = ((4, 32, 8, 2048, 128),)
QUICK_CPU: tuple[Shape, ...] = ((1, 32, 8, 512, 128),)
GPU_ONLY: tuple[Shape, ...] = ((4, 32, 8, 2048, 128), (32, 32, 32, 1024, 128))
LAYOUTS = {1: "BHSD", 2: "BSHD"}
SEED = 6


@dataclass(frozen=True)
class Buffers:
    """Copies of (q, k) and of their incoming gradients, and the tables of half width."""

    inputs: Sequence[tuple[Tensor, Tensor]]
    grads: Sequence[tuple[Tensor, Tensor]]
    cos: Tensor
    sin: Tensor
    unsqueeze_dim: int


def rotated_half(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def torch_forward(buffers: Buffers) -> Forward:
    """Hugging Face's apply_rotary_pos_emb."""
    dtype = buffers.inputs[0][0].dtype
    cos, sin = (torch.cat((t, t), -1).to(dtype).unsqueeze(buffers.unsqueeze_dim - 1) for t in (buffers.cos, buffers.sin))
    return lambda q, k: (q * cos + rotated_half(q) * sin, k * cos + rotated_half(k) * sin)


def our_forward(buffers: Buffers) -> Forward:
    return lambda q, k: metalcore.rope_fwd(q, k, buffers.cos, buffers.sin, unsqueeze_dim=buffers.unsqueeze_dim)


def liger_forward(buffers: Buffers) -> Forward:
    """Liger-Kernel's function, which takes (B, H, S, D) and writes into its inputs."""
    from liger_kernel.transformers import functional as liger

    dtype = buffers.inputs[0][0].dtype
    cos, sin = (torch.cat((t, t), -1).to(dtype).unsqueeze(0) for t in (buffers.cos, buffers.sin))
    return lambda q, k: liger.liger_rope(q, k, cos, sin)


def sizes(shape: Shape, unsqueeze_dim: int) -> list[tuple[int, ...]]:
    """Those of q and of k."""
    batch, *heads, seq, width = shape
    return [(batch, h, seq, width) if unsqueeze_dim == 1 else (batch, seq, h, width) for h in heads]


def cases(context: Context) -> Iterator[Case]:
    """Both layouts, forward and forward + backward, fp32 and bf16."""
    quick = QUICK_CPU if context.on_cpu else QUICK
    for backward in (False, True):
        for unsqueeze_dim, layout in LAYOUTS.items():
            for shape in SHAPES:
                for dtype in context.dtypes_or(torch.float32, torch.bfloat16):
                    batch, q_heads, k_heads, seq, width = shape
                    moved = 2 * batch * (q_heads + k_heads) * seq * width * dtype.itemsize
                    yield Case(
                        op=f"rope {layout} {'fwd+bwd' if backward else 'fwd'}",
                        shape=f"{times(batch, q_heads, seq, width)}, {k_heads} kv",
                        dtype=dtype,
                        cost=Cost((1 + backward) * (moved + 4 * seq * width)),
                        build=lambda shape=shape, dtype=dtype, dim=unsqueeze_dim, backward=backward: build(
                            context, shape, dtype, dim, backward
                        ),
                        quick=shape in quick and unsqueeze_dim == 1,
                        gpu_only=shape in GPU_ONLY,
                    )


def build(context: Context, shape: Shape, dtype: torch.dtype, unsqueeze_dim: int, backward: bool) -> Row:
    """Buffers (rotated where they would stay in a cache), our call, the peers' calls."""
    batch, q_heads, _, seq, width = shape
    size = batch * q_heads * seq * width * dtype.itemsize
    copies = copies_needed(size, (2 + 2 * backward) * size, context.profile.cache_bytes)
    buffers = make_buffers(context.device, shape, dtype, unsqueeze_dim, backward, copies)
    wrap = with_backward if backward else forward_only
    rivals: dict[str, Peer] = {}
    skipped: dict[str, str] = {}
    if "torch" in context.peers:
        rivals["torch"] = Peer(wrap(torch_forward(buffers), buffers))
    if "compile" in context.peers and context.device.type == "cuda":
        peers.add(rivals, skipped, "torch.compile", lambda: Peer(wrap(peers.compiled(torch_forward(buffers)), buffers)))
    if "liger" in context.peers and context.device.type == "cuda" and unsqueeze_dim == 1 and not backward:
        peers.add(rivals, skipped, "liger", lambda: Peer(wrap(liger_forward(buffers), scratch(buffers))))

    def check(copy: int, result: Any) -> list[Gate]:
        return gates(buffers, copy, *result)

    return Row(ours=wrap(our_forward(buffers), buffers), peers=rivals, check=check, copies=copies, skipped=skipped)


def scratch(buffers: Buffers) -> Buffers:
    """Copies of the inputs, for a peer that changes them."""
    inputs = [tuple(t.detach().clone() for t in pair) for pair in buffers.inputs]
    return Buffers(inputs, buffers.grads, buffers.cos, buffers.sin, buffers.unsqueeze_dim)


def make_buffers(
    device: torch.device, shape: Shape, dtype: torch.dtype, unsqueeze_dim: int, backward: bool, copies: int
) -> Buffers:
    """Gaussian inputs and gradients; the tables of RotaryEmbedding."""
    generator = torch.Generator(device).manual_seed(SEED)

    def pair(grad: bool) -> tuple[Tensor, ...]:
        made = (torch.randn(s, generator=generator, device=device) for s in sizes(shape, unsqueeze_dim))
        return tuple(t.to(dtype).requires_grad_(grad) for t in made)

    cos, sin = metalcore.RotaryEmbedding(shape[4], shape[3], device=device)(seq_len=shape[3])
    grads = [pair(False) for _ in range(copies)] if backward else []
    return Buffers([pair(backward) for _ in range(copies)], grads, cos, sin, unsqueeze_dim)


def forward_only(forward: Forward, buffers: Buffers) -> Call:
    """(outputs, no gradients)."""
    return lambda copy: (forward(*buffers.inputs[copy]), ())


def with_backward(forward: Forward, buffers: Buffers) -> Call:
    """(outputs, gradients to q and k). No .grad is accumulated."""

    def call(copy: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        outputs = forward(*buffers.inputs[copy])
        return outputs, torch.autograd.grad(outputs, buffers.inputs[copy], buffers.grads[copy])

    return call


def gates(buffers: Buffers, copy: int, outputs: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Gate]:
    """Largest error / (rho |y| + 4 w (|x1 c| + |x2 s|)), batch item by batch item."""
    cos, sin = (wide(t).unsqueeze(buffers.unsqueeze_dim - 1) for t in (buffers.cos, buffers.sin))
    worst: dict[str, float] = {}
    incoming = buffers.grads[copy] if grads else ()
    for name, inputs, results, sign in (("y", buffers.inputs[copy], outputs, 1), ("dx", incoming, grads, -1)):
        for x, y in zip(inputs, results):
            for item, got in zip(x.detach().unbind(), y.detach().unbind()):
                x1, x2 = wide(item).chunk(2, -1)
                want = torch.cat((x1 * cos - sign * x2 * sin, x2 * cos + sign * x1 * sin), -1)
                spread = torch.cat(((x1 * cos).abs() + (x2 * sin).abs(), (x2 * cos).abs() + (x1 * sin).abs()), -1)
                bound = rounding(y.dtype) * want.abs() + 4 * working_roundoff(y.dtype) * spread
                worst[name] = nan_max(worst.get(name, 0.0), excess(got, want, bound))
    return [Gate(name, ratio) for name, ratio in worst.items()]


def host_calls(context: Context) -> Iterator[HostCall]:
    """One position of 32 and 8 heads, with and without a gradient to record."""
    for grad in (False, True):
        buffers = make_buffers(context.device, (1, 32, 8, 1, 128), torch.float32, 1, grad, 1)
        ours, theirs = our_forward(buffers), torch_forward(buffers)
        yield HostCall(
            op="rope",
            shape=times(1, 32, 1, 128),
            grad="grad" if grad else "no grad",
            ours=lambda ours=ours, pair=buffers.inputs[0]: ours(*pair),
            torch=lambda theirs=theirs, pair=buffers.inputs[0]: theirs(*pair),
        )
