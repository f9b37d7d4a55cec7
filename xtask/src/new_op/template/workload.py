"""op_name: Gaussian input, forward."""

from __future__ import annotations

import math
from typing import Any, Iterator

import torch
from torch import Tensor

import metalcore

from ..accuracy import Gate, excess, rounding, wide, working_roundoff
from ..rows import Case, Context, Cost, HostCall, Peer, Row, copies_needed, times

Shape = tuple[int, ...]

SHAPES: tuple[Shape, ...] = ((1024, 1024), (4096, 4096))
QUICK: tuple[Shape, ...] = ((4096, 4096),)
SEED = 4


def peer(x: Tensor) -> Tensor:
    """The same in torch."""
    return x * math.nan  # torch's own function goes here


def cases(context: Context) -> Iterator[Case]:
    """One case per shape and dtype."""
    for shape in SHAPES:
        for dtype in context.dtypes_or(torch.float32, torch.bfloat16):
            yield Case(
                op="op_name fwd",
                shape=times(*shape),
                dtype=dtype,
                cost=Cost(2 * math.prod(shape) * dtype.itemsize),
                build=lambda shape=shape, dtype=dtype: build(context, shape, dtype),
                quick=shape in QUICK,
            )


def build(context: Context, shape: Shape, dtype: torch.dtype) -> Row:
    """Inputs (rotated where they would stay in a cache), our call, torch's."""
    size = math.prod(shape) * dtype.itemsize
    copies = copies_needed(size, 2 * size, context.profile.cache_bytes)
    generator = torch.Generator().manual_seed(SEED)
    inputs = [torch.randn(shape, generator=generator).to(context.device, dtype) for _ in range(copies)]

    def check(copy: int, result: Any) -> list[Gate]:
        want = peer(wide(inputs[copy]))
        bound = (rounding(dtype) + 8 * working_roundoff(dtype)) * want.abs()
        return [Gate("y", excess(result, want, bound))]

    rivals = {"torch": Peer(lambda copy: peer(inputs[copy]))} if "torch" in context.peers else {}
    return Row(ours=lambda copy: metalcore.op_name(inputs[copy]), peers=rivals, check=check, copies=copies)


def host_calls(context: Context) -> Iterator[HostCall]:
    """A small tensor, with and without a gradient to record."""
    for grad in (False, True):
        x = torch.randn(16, 16, device=context.device).requires_grad_(grad)
        yield HostCall(
            op="op_name",
            shape=times(16, 16),
            grad="grad" if grad else "no grad",
            ours=lambda x=x: metalcore.op_name(x),
            torch=lambda x=x: peer(x),
        )
