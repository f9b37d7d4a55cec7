"""Layer norm and fused add + layer norm: forward, and forward + backward through autograd on both sides with gradients to
every input, the weight and the bias."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import metalcore

from .. import peers
from ..accuracy import UNIT_ROUNDOFF, Gate, excess, gamma, rounding, wide, working_roundoff
from ..rows import Call, Case, Context, Cost, HostCall, Peer, Row, copies_needed, times

Shape = tuple[int, ...]
Forward = Callable[..., tuple[Tensor, ...]]

SHAPES: tuple[Shape, ...] = (
    (32, 512), (64, 1024), (32, 4096), (32, 5120), (16, 8192), (256, 4096), (1024, 4096), (16384, 4096), (16, 32768),
)  # fmt: skip
QUICK: tuple[Shape, ...] = ((1024, 4096),)
GPU_ONLY: tuple[Shape, ...] = ((16384, 4096),)
EPS = 1e-5
SEED = 5
CHUNK_ELEMENTS = 4_000_000
"""Elements that are checked at a time: about 32 MB per float64 temporary."""


@dataclass(frozen=True)
class Op:
    """One of the two ops. `operands` large inputs make as many large outputs; weight and bias come last.
    The passes are the counts of T·H·e bytes that must move."""

    name: str
    operands: int
    ours: Forward
    torch: Forward
    forward_passes: int
    both_passes: int


def torch_add_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    h = x + residual
    return F.layer_norm(h, (h.shape[-1],), weight, bias, EPS), h


OPS = (
    Op(
        name="layer_norm",
        operands=1,
        ours=lambda x, w, b: (metalcore.layer_norm(x, (x.shape[-1],), w, b, EPS),),
        torch=lambda x, w, b: (F.layer_norm(x, (x.shape[-1],), w, b, EPS),),
        forward_passes=2,
        both_passes=5,
    ),
    Op(
        name="fused_add_layernorm",
        operands=2,
        ours=lambda x, r, w, b: metalcore.fused_add_layernorm(x, r, w, b, EPS),
        torch=torch_add_norm,
        forward_passes=4,
        both_passes=8,
    ),
)


def cases(context: Context) -> Iterator[Case]:
    """Both ops, forward and forward + backward, fp32 and bf16."""
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
                        quick=shape in QUICK,
                        gpu_only=shape in GPU_ONLY,
                    )


def build(context: Context, op: Op, backward: bool, shape: Shape, dtype: torch.dtype) -> Row:
    """Buffers (rotated where they would stay in a cache), our call, the peers' calls."""
    size = math.prod(shape) * dtype.itemsize
    copies = copies_needed(size, op.operands * (2 if backward else 1) * size, context.profile.cache_bytes)
    generator = torch.Generator(context.device).manual_seed(SEED)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=context.device).to(dtype)

    inputs = [[gaussian(*shape).requires_grad_(backward) for _ in range(op.operands)] for _ in range(copies)]
    incoming = [[gaussian(*shape) for _ in range(op.operands if backward else 0)] for _ in range(copies)]
    weight, bias = 1 + 0.1 * gaussian(shape[-1]), 0.1 * gaussian(shape[-1])
    affine = [weight.detach().requires_grad_(backward), bias.detach().requires_grad_(backward)]

    def wrap(forward: Forward) -> Call:
        def call(copy: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            arguments = (*inputs[copy], *affine)
            outputs = forward(*arguments)
            return outputs, torch.autograd.grad(outputs, arguments, incoming[copy]) if backward else ()

        return call

    rivals: dict[str, Peer] = {}
    skipped: dict[str, str] = {}
    if "torch" in context.peers:
        rivals["torch"] = Peer(wrap(op.torch))
    if "compile" in context.peers and context.device.type == "cuda":
        peers.add(rivals, skipped, "torch.compile", lambda: Peer(wrap(peers.compiled(op.torch))))
    return Row(
        ours=wrap(op.ours),
        peers=rivals,
        check=lambda copy, result: gates(inputs[copy], incoming[copy], affine, *result),
        copies=copies,
        skipped=skipped,
    )


def gates(
    inputs: list[Tensor], incoming: list[Tensor], affine: list[Tensor], outputs: tuple[Tensor, ...], grads: tuple[Tensor, ...]
) -> list[Gate]:
    """Bounds of CONTRACT 3.4 for y; gradients to 2 gamma of the magnitudes of their terms, |x| + |mean| for x - mean."""
    rows, width = inputs[0].shape
    worst: dict[str, float] = {}
    totals = torch.zeros(4, width, dtype=torch.float64, device=wide(affine[0]).device)
    step = max(1, CHUNK_ELEMENTS // width)
    for begin in range(0, rows, step):
        cut = lambda tensors: [t[begin : begin + step] for t in tensors]  # noqa: E731, B023
        ratios = chunk_ratios(cut(inputs), cut(incoming), affine, cut(outputs), cut(grads[: len(inputs)]), totals)
        for name, ratio in ratios.items():
            worst[name] = max(worst.get(name, 0.0), ratio) if ratio == ratio else ratio
    for name, got, want, terms in zip(("dweight", "dbias"), grads[len(inputs) :], totals[:2], totals[2:]):
        bound = rounding(got.dtype) * want.abs() + 2 * gamma(max(rows, width), got.dtype) * terms
        worst[name] = excess(got, want, bound)
    return [Gate(name, ratio) for name, ratio in worst.items()]


def chunk_ratios(
    inputs: list[Tensor],
    incoming: list[Tensor],
    affine: list[Tensor],
    outputs: list[Tensor],
    dinputs: list[Tensor],
    totals: Tensor,
) -> dict[str, float]:
    """Ratios of some rows; adds their part of dw, db and of the magnitudes of both to `totals`."""
    ratios: dict[str, float] = {}
    dtype = inputs[0].dtype
    x = wide(inputs[0])
    if len(inputs) == 2:
        total = x + wide(inputs[1])
        ratios["sum"] = excess(outputs[1], total, UNIT_ROUNDOFF[dtype] * total.abs())
        x = wide(outputs[1])
    w, b = (wide(t) for t in affine)
    growth, rho = gamma(x.shape[-1], dtype), rounding(dtype)
    mean = x.mean(-1, keepdim=True)
    r = torch.rsqrt((x - mean).square().mean(-1, keepdim=True) + EPS)
    n, size = (x - mean) * r, (x.abs() + mean.abs()) * r
    y = n * w + b
    ratios["y"] = excess(outputs[0], y, rho * y.abs() + growth * (size * w.abs() + b.abs()))
    if not dinputs:
        return ratios
    dy = wide(incoming[0])
    g = dy * w
    average = lambda terms: terms.mean(-1, keepdim=True)  # noqa: E731
    dx = r * (g - average(g) - n * average(g * n))
    bound = 2 * growth * r * (g.abs() + average(g.abs()) + size * average(g.abs() * size))
    if len(inputs) == 2:
        through = wide(incoming[1])
        bound += working_roundoff(dtype) * (dx.abs() + through.abs())
        dx = dx + through
    bound += rho * dx.abs()
    for name, got in zip(("dx", "dresidual"), dinputs):
        ratios[name] = excess(got, dx, bound)
    totals += torch.stack([t.sum(0) for t in (dy * n, dy, dy.abs() * size, dy.abs())])
    return ratios


def host_calls(context: Context) -> Iterator[HostCall]:
    """One row of 4096, the forward call with and without a gradient to record."""
    for op in OPS:
        for grad in (False, True):
            large = [torch.randn(1, 4096, device=context.device) for _ in range(op.operands)]
            vectors = [torch.randn(4096, device=context.device) for _ in range(2)]
            arguments = [t.requires_grad_(grad) for t in (*large, *vectors)]
            yield HostCall(
                op=op.name,
                shape=times(1, 4096),
                grad="grad" if grad else "no grad",
                ours=lambda op=op, arguments=arguments: op.ours(*arguments),
                torch=lambda op=op, arguments=arguments: op.torch(*arguments),
            )
