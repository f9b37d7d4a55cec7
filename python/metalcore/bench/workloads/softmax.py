"""Softmax of the last dimension: forward, and forward + backward through autograd on both sides."""

from __future__ import annotations

import math
from typing import Any, Callable, Iterator

import torch
from torch import Tensor

import metalcore

from .. import peers
from ..accuracy import Gate, excess, gamma, nan_max, rounding, wide, working_roundoff
from ..rows import Call, Case, Context, Cost, HostCall, Peer, Row, copies_needed, times

Shape = tuple[int, ...]
Function = Callable[[Tensor], Tensor]

SHAPES: tuple[Shape, ...] = (
    (32, 1024), (64, 4096), (128, 8192), (256, 16384), (512, 32768), (32, 32000), (128, 128000), (1024, 4096),
    (16384, 4096),
)  # fmt: skip
QUICK: tuple[Shape, ...] = ((1024, 4096),)
GPU_ONLY: tuple[Shape, ...] = ((16384, 4096),)
SEED = 4
CHUNK_ELEMENTS = 4_000_000
"""Elements that are checked at a time: about 32 MB per float64 temporary."""


def torch_softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1)


def cases(context: Context) -> Iterator[Case]:
    """One case per pass, shape and dtype."""
    for backward in (False, True):
        for shape in SHAPES:
            for dtype in context.dtypes_or(torch.float32, torch.bfloat16):
                yield Case(
                    op=f"softmax {'fwd+bwd' if backward else 'fwd'}",
                    shape=times(*shape),
                    dtype=dtype,
                    cost=Cost((5 if backward else 2) * math.prod(shape) * dtype.itemsize),
                    build=lambda backward=backward, shape=shape, dtype=dtype: build(context, backward, shape, dtype),
                    quick=shape in QUICK,
                    gpu_only=shape in GPU_ONLY,
                )


def build(context: Context, backward: bool, shape: Shape, dtype: torch.dtype) -> Row:
    """Inputs (rotated where they would stay in a cache), our call, the peers'."""
    size = math.prod(shape) * dtype.itemsize
    copies = copies_needed(size, (2 if backward else 1) * size, context.profile.cache_bytes)
    generator = torch.Generator(context.device).manual_seed(SEED)
    gaussian = lambda: torch.randn(shape, generator=generator, device=context.device).to(dtype)  # noqa: E731
    inputs = [gaussian().requires_grad_(backward) for _ in range(copies)]
    incoming = [gaussian() if backward else None for _ in range(copies)]

    def wrap(function: Function) -> Call:
        def call(copy: int) -> tuple[Tensor, ...]:
            p = function(inputs[copy])
            return (p, *torch.autograd.grad(p, inputs[copy], incoming[copy])) if backward else (p,)

        return call

    rivals: dict[str, Peer] = {}
    skipped: dict[str, str] = {}
    if "torch" in context.peers:
        rivals["torch"] = Peer(wrap(torch_softmax))
    if "compile" in context.peers and context.device.type == "cuda":
        peers.add(rivals, skipped, "torch.compile", lambda: Peer(wrap(peers.compiled(torch_softmax))))
    return Row(
        ours=wrap(metalcore.fused_softmax),
        peers=rivals,
        check=lambda copy, result: gates(inputs[copy], incoming[copy], result),
        copies=copies,
        skipped=skipped,
    )


def gates(x: Tensor, dp: Any, result: tuple[Tensor, ...]) -> list[Gate]:
    """Bounds of CONTRACT 3.4 for p; the gradient's, rho|dx| + 2gamma(n)(|p dp| + |p| sum |p dp|), from p as returned."""
    worst: dict[str, float] = {}
    step = max(1, CHUNK_ELEMENTS // x.shape[-1])
    for begin in range(0, x.shape[0], step):
        part = slice(begin, begin + step)
        for name, ratio in chunk_ratios(x[part], None if dp is None else dp[part], [t[part] for t in result]).items():
            worst[name] = nan_max(worst.get(name, 0.0), ratio)
    return [Gate(name, ratio) for name, ratio in worst.items()]


def chunk_ratios(x: Tensor, dp: Any, result: list[Tensor]) -> dict[str, float]:
    """Ratios of some rows."""
    growth, rho = gamma(x.shape[-1], x.dtype), rounding(x.dtype)
    values = wide(x)
    p = values.softmax(-1)
    distance = values.amax(-1, keepdim=True) - values
    ratios = {"p": excess(result[0], p, (rho + growth + working_roundoff(x.dtype) * distance) * p)}
    if dp is not None:
        y, g = wide(result[0]), wide(dp)
        terms = y * g
        dx = y * (g - terms.sum(-1, keepdim=True))
        size = terms.abs() + y * terms.abs().sum(-1, keepdim=True)
        ratios["dx"] = excess(result[1], dx, rho * dx.abs() + 2 * growth * size)
    return ratios


def host_calls(context: Context) -> Iterator[HostCall]:
    """One row of 1024, with and without a gradient to record."""
    for grad in (False, True):
        x = torch.randn(1, 1024, device=context.device).requires_grad_(grad)
        yield HostCall(
            op="softmax",
            shape=times(1, 1024),
            grad="grad" if grad else "no grad",
            ours=lambda x=x: metalcore.fused_softmax(x),
            torch=lambda x=x: torch_softmax(x),
        )
