"""gather, scatter_add and index_select, forward: elements of 1-D sources, rows of a matrix."""

from __future__ import annotations

import math
from typing import Any, Callable, Iterator

import torch
from torch import Tensor

import metalcore

from ..accuracy import Gate, excess, gamma, rounding, wide
from ..rows import Call, Case, Context, Cost, HostCall, Peer, Row, copies_needed, times

Function = Callable[[Tensor, Tensor, Tensor], Tensor]

SHAPES: tuple[tuple[tuple[int, ...], int], ...] = (
    ((10_000,), 1_000), ((100_000,), 10_000), ((1_000_000,), 100_000), ((10_000_000,), 1_000_000), ((100_000, 256), 10_000),
)  # fmt: skip
QUICK = SHAPES[2]
SEED = 6
OURS: dict[str, Function] = {
    "gather": lambda t, index, src: metalcore.gather(t, index, 0),
    "index_select": lambda t, index, src: metalcore.index_select(t, 0, index),
    "scatter_add": lambda t, index, src: metalcore.scatter_add(t, index, src, 0),
}
TORCHS: dict[str, Function] = {
    "gather": lambda t, index, src: torch.gather(t, 0, index),
    "index_select": lambda t, index, src: torch.index_select(t, 0, index),
    "scatter_add": lambda t, index, src: torch.scatter_add(t, 0, index, src),
}


def cases(context: Context) -> Iterator[Case]:
    """One case per function, shape and dtype."""
    for op in OURS:
        for shape, count in SHAPES:
            for dtype in context.dtypes_or(torch.float32, torch.bfloat16):
                moved = count * math.prod(shape[1:])
                per_index = 8 * (count if op == "index_select" else moved)
                whole = 2 * math.prod(shape) * dtype.itemsize if op == "scatter_add" else 0
                terms = (3 if op == "scatter_add" else 2) * moved * dtype.itemsize
                yield Case(
                    op=op,
                    shape=f"{count} of {times(*shape)}",
                    dtype=dtype,
                    cost=Cost(whole + terms + per_index),
                    build=lambda op=op, shape=shape, count=count, dtype=dtype: build(context, op, shape, count, dtype),
                    quick=(shape, count) == QUICK,
                )


def build(context: Context, op: str, shape: tuple[int, ...], count: int, dtype: torch.dtype) -> Row:
    """A source, indices and terms (rotated where they would stay in a cache), our call, torch's."""
    device = context.device
    generator = torch.Generator(device).manual_seed(SEED)
    size = math.prod(shape) * dtype.itemsize
    copies = copies_needed(size, size, context.profile.cache_bytes)
    draw = lambda *sizes: torch.randn(sizes, generator=generator, device=device).to(dtype)  # noqa: E731
    sources = [draw(*shape) for _ in range(copies)]
    index = torch.randint(shape[0], (count,), generator=generator, device=device)
    if op != "index_select" and len(shape) > 1:
        index = index[:, None].expand(count, *shape[1:]).contiguous()
    terms = draw(*index.shape) if op == "scatter_add" else index

    def wrap(function: Function) -> Call:
        return lambda copy: (function(sources[copy], index, terms),)

    def check(copy: int, result: Any) -> list[Gate]:
        if op != "scatter_add":
            return [Gate("y", 0.0 if torch.equal(result[0], TORCHS[op](sources[copy], index, terms)) else math.inf)]
        t, s = wide(sources[copy]), wide(terms)
        index_there = index.to(t.device)
        want, spread = t.scatter_add(0, index_there, s), t.abs().scatter_add(0, index_there, s.abs())
        return [Gate("y", excess(result[0], want, rounding(dtype) * want.abs() + 2 * gamma(count, dtype) * spread))]

    rivals = {"torch": Peer(wrap(TORCHS[op]))} if "torch" in context.peers else {}
    return Row(ours=wrap(OURS[op]), peers=rivals, check=check, copies=copies)


def host_calls(context: Context) -> Iterator[HostCall]:
    """Four elements of sixteen."""
    t, index = torch.randn(16, device=context.device), torch.arange(0, 16, 4, device=context.device)
    terms = torch.randn(4, device=context.device)
    for op in OURS:
        yield HostCall(
            op=op,
            shape="4 of 16",
            grad="no grad",
            ours=lambda op=op: OURS[op](t, index, terms),
            torch=lambda op=op: TORCHS[op](t, index, terms),
        )
