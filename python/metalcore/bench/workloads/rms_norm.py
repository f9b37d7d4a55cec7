"""RMS norm and fused add + RMS norm: forward, and forward + backward through autograd on both sides
with gradients to every input and to the weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import metalcore

from .. import peers
from ..accuracy import Gate
from ..rows import Call, Case, Context, Cost, HostCall, Peer, Row, copies_needed, times
from .rms_norm_reference import gates

Shape = tuple[int, ...]
Forward = Callable[..., tuple[Tensor, ...]]

SHAPES: tuple[Shape, ...] = (
    (1, 4096), (32, 4096), (1024, 1024), (1024, 4096), (4096, 4096), (8, 512, 4096), (16384, 4096),
)  # fmt: skip
QUICK: tuple[Shape, ...] = ((4096, 4096),)
QUICK_CPU: tuple[Shape, ...] = ((1024, 4096), (4096, 4096))
GPU_ONLY: tuple[Shape, ...] = ((16384, 4096),)
EPS = 1e-6
SEED = 2


@dataclass(frozen=True)
class Op:
    """One of the two ops. `operands` large inputs make as many large outputs; the weight comes last.
    The passes are the counts of T·H·e bytes that must move."""

    name: str
    operands: int
    ours: Forward
    torch: Forward
    forward_passes: int
    both_passes: int


def torch_add_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    h = x + residual
    return F.rms_norm(h, (h.shape[-1],), weight, EPS), h


OPS = (
    Op(
        name="rms_norm",
        operands=1,
        ours=lambda x, w: (metalcore.rms_norm(x, (x.shape[-1],), w, EPS),),
        torch=lambda x, w: (F.rms_norm(x, (x.shape[-1],), w, EPS),),
        forward_passes=2,
        both_passes=5,
    ),
    Op(
        name="fused_add_rmsnorm",
        operands=2,
        ours=lambda x, r, w: tuple(metalcore.fused_add_rmsnorm(x, r, w, EPS)),
        torch=torch_add_norm,
        forward_passes=4,
        both_passes=8,
    ),
)


def cases(context: Context) -> Iterator[Case]:
    """Both ops, forward and forward + backward, fp32 and bf16."""
    quick = QUICK_CPU if context.on_cpu else QUICK
    for op in OPS:
        for backward in (False, True):
            for shape in SHAPES:
                for dtype in context.dtypes_or(torch.float32, torch.bfloat16):
                    passes = op.both_passes if backward else op.forward_passes
                    yield Case(
                        op=f"{op.name} {'fwd+bwd' if backward else 'fwd'}",
                        shape=times(*shape),
                        dtype=dtype,
                        cost=Cost(passes * math.prod(shape) * dtype.itemsize),
                        build=lambda op=op, backward=backward, shape=shape, dtype=dtype: build(
                            context, op, backward, shape, dtype
                        ),
                        quick=shape in quick,
                        gpu_only=shape in GPU_ONLY,
                    )


@dataclass(frozen=True)
class Buffers:
    """Copies of the inputs and of the incoming gradients, and the one weight."""

    inputs: Sequence[tuple[Tensor, ...]]
    grads: Sequence[tuple[Tensor, ...]]
    weight: Tensor


def build(context: Context, op: Op, backward: bool, shape: Shape, dtype: torch.dtype) -> Row:
    """Buffers (rotated where they would stay in a cache), our call, the peers' calls."""
    operand = math.prod(shape) * dtype.itemsize
    held = op.operands * (2 if backward else 1)
    copies = copies_needed(operand, held * operand, context.profile.cache_bytes)
    buffers = make_buffers(context.device, op.operands, backward, shape, dtype, copies)
    wrap = with_backward if backward else forward_only

    def check(copy: int, result: Any) -> list[Gate]:
        outputs, grads = result
        return gates(buffers.inputs[copy], buffers.grads[copy], buffers.weight, outputs, grads, EPS)

    rivals, skipped = rivals_of(context, op, backward, buffers, wrap)
    return Row(ours=wrap(op.ours, buffers), peers=rivals, check=check, copies=copies, skipped=skipped)


def make_buffers(device: torch.device, operands: int, backward: bool, shape: Shape, dtype: torch.dtype, copies: int) -> Buffers:
    """Gaussian inputs and gradients; a weight around 1."""
    generator = torch.Generator(device).manual_seed(SEED)

    def gaussian(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device, dtype=torch.float32).to(dtype)

    def sets(count: int, grad: bool) -> list[tuple[Tensor, ...]]:
        return [tuple(gaussian(*shape).requires_grad_(grad) for _ in range(count)) for _ in range(copies)]

    weight = (1 + 0.1 * gaussian(shape[-1])).requires_grad_(backward)
    return Buffers(sets(operands, backward), sets(operands if backward else 0, False), weight)


def forward_only(forward: Forward, buffers: Buffers) -> Call:
    """(outputs, no gradients)."""
    return lambda copy: (forward(*buffers.inputs[copy], buffers.weight), ())


def with_backward(forward: Forward, buffers: Buffers) -> Call:
    """(outputs, gradients to every input and the weight). No .grad is accumulated."""

    def call(copy: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        arguments = (*buffers.inputs[copy], buffers.weight)
        outputs = forward(*arguments)
        return outputs, torch.autograd.grad(outputs, arguments, buffers.grads[copy])

    return call


def rivals_of(
    context: Context, op: Op, backward: bool, buffers: Buffers, wrap: Callable[[Forward, Buffers], Call]
) -> tuple[dict[str, Peer], dict[str, str]]:
    """torch's fused function everywhere; compile and Liger on cuda; MLX beside mps."""
    rivals: dict[str, Peer] = {}
    skipped: dict[str, str] = {}
    kind = context.device.type
    if "torch" in context.peers:
        rivals["torch"] = Peer(wrap(op.torch, buffers))
    if "compile" in context.peers and kind == "cuda":
        peers.add(rivals, skipped, "torch.compile", lambda: Peer(wrap(peers.compiled(op.torch), buffers)))
    if "liger" in context.peers and kind == "cuda":
        peers.add(rivals, skipped, "liger", lambda: Peer(wrap(liger_forward(op), buffers)))
    if "mlx" in context.peers and kind == "mps":
        peers.add(rivals, skipped, "mlx", lambda: Peer(mlx_call(op, backward, buffers), clock="wall"))
    return rivals, skipped


def liger_forward(op: Op) -> Forward:
    """Liger-Kernel's functions, told to keep the incoming gradient intact."""
    from liger_kernel.transformers import functional as liger

    if op.operands == 1:
        return lambda x, w: (liger.liger_rms_norm(x, w, EPS, in_place=False),)
    return lambda x, r, w: tuple(liger.liger_fused_add_rms_norm(x, r, w, EPS, in_place=False))


def mlx_call(op: Op, backward: bool, buffers: Buffers) -> Call:
    """The same op in MLX: mx.fast.rms_norm, with mx.vjp for the backward."""
    mlx = peers.Mlx()
    mx = mlx.mx
    arrays = [[mlx.array(x) for x in (*inputs, buffers.weight)] for inputs in buffers.inputs]
    cotangents = [[mlx.array(g) for g in grads] for grads in buffers.grads]

    def forward(*arguments: Any) -> list[Any]:
        *inputs, weight = arguments
        h = inputs[0] if op.operands == 1 else inputs[0] + inputs[1]
        y = mx.fast.rms_norm(h, weight, EPS)
        return [y] if op.operands == 1 else [y, h]

    if not backward:
        call = mlx.evaluated(forward)
        return lambda copy: call(*arrays[copy])
    both = mlx.evaluated(lambda copy: mx.vjp(forward, arrays[copy], cotangents[copy]))
    return both


def host_calls(context: Context) -> Iterator[HostCall]:
    """One row of 4096, the forward call with and without a gradient to record."""
    for op in OPS:
        for grad in (False, True):
            buffers = make_buffers(context.device, op.operands, grad, (1, 4096), torch.float32, 1)
            arguments = (*buffers.inputs[0], buffers.weight)
            yield HostCall(
                op=op.name,
                shape=times(1, 4096),
                grad="grad" if grad else "no grad",
                ours=lambda op=op, arguments=arguments: op.ours(*arguments),
                torch=lambda op=op, arguments=arguments: op.torch(*arguments),
            )
