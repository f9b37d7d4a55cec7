"""Embedding bag: forward, and forward + backward through autograd on both sides, with the same offsets (B)."""

from __future__ import annotations

import math
from typing import Any, Callable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import metalcore

from ..accuracy import Gate, excess, gamma, rounding, wide
from ..rows import Call, Case, Context, Cost, HostCall, Peer, Row, copies_needed, times

Function = Callable[[Tensor, Tensor, Tensor, str], Tensor]


class Bags(NamedTuple):
    """V x D, the number of bags, their size; bags are of that size or, unless `fixed`, uniform in [1, 2 size)."""

    rows: int
    columns: int
    bags: int
    size: int
    fixed: bool = False


SHAPES: tuple[Bags, ...] = (
    Bags(10_000, 64, 32, 10),
    Bags(50_000, 128, 64, 20),
    Bags(100_000, 256, 32, 50),
    Bags(32_000, 4096, 16, 100),
    Bags(250_000, 512, 16, 30),
    Bags(32_000, 1024, 64, 128, fixed=True),
    Bags(32_000, 4096, 64, 128, fixed=True),
)
QUICK: tuple[Bags, ...] = SHAPES[-2:]
GPU_ONLY: tuple[Bags, ...] = SHAPES[-1:]
MODES = ("sum", "mean", "max")
SEED = 5


def ours(weight: Tensor, indices: Tensor, offsets: Tensor, mode: str) -> Tensor:
    return metalcore.embedding_bag(weight, indices, offsets, mode, include_last_offset=False)


def torchs(weight: Tensor, indices: Tensor, offsets: Tensor, mode: str) -> Tensor:
    return F.embedding_bag(indices, weight, offsets, mode=mode)


def entries_of(shape: Bags) -> tuple[list[int], Tensor]:
    """Sizes of the bags and the indices, the same in every run."""
    generator = torch.Generator().manual_seed(SEED)
    sizes = torch.full((shape.bags,), shape.size)
    if not shape.fixed:
        sizes = torch.randint(1, 2 * shape.size, (shape.bags,), generator=generator)
    return sizes.tolist(), torch.randint(shape.rows, (int(sizes.sum()),), generator=generator)


def cases(context: Context) -> Iterator[Case]:
    """One case per pass, mode, shape and dtype; means, which only differ by a division, of the quick shapes."""
    for backward in (False, True):
        for mode in MODES:
            for shape in SHAPES:
                if mode == "mean" and shape not in QUICK:
                    continue
                for dtype in context.dtypes_or(torch.float32, torch.bfloat16):
                    entries = sum(entries_of(shape)[0])
                    row = shape.columns * dtype.itemsize
                    cost = (entries + shape.bags) * row + 8 * (entries + shape.bags)
                    if backward:
                        cost += shape.rows * row + (entries + shape.bags) * row
                    yield Case(
                        op=f"embedding_bag {mode} {'fwd+bwd' if backward else 'fwd'}",
                        shape=f"{shape.bags}x{shape.size} of {times(shape.rows, shape.columns)}",
                        dtype=dtype,
                        cost=Cost(cost),
                        build=lambda shape=shape, mode=mode, dtype=dtype, backward=backward: build(
                            context, shape, mode, dtype, backward
                        ),
                        quick=shape in QUICK and mode == "sum",
                        gpu_only=shape in GPU_ONLY,
                        memory_bytes=3 * shape.rows * row,
                    )


def build(context: Context, shape: Bags, mode: str, dtype: torch.dtype, backward: bool) -> Row:
    """A weight, indices (rotated where the rows would stay in a cache), our call, torch's."""
    sizes, first = entries_of(shape)
    device = context.device
    generator = torch.Generator(device).manual_seed(SEED)
    weight = torch.randn(shape.rows, shape.columns, generator=generator, device=device).to(dtype).requires_grad_(backward)
    gathered = len(first) * shape.columns * dtype.itemsize
    copies = copies_needed(gathered, weight.nbytes if backward else gathered, context.profile.cache_bytes)
    shifts = [copy * shape.rows // copies for copy in range(copies)]
    indices = [((first + shift) % shape.rows).to(device) for shift in shifts]
    ends = torch.tensor(sizes).cumsum(0)
    offsets = (ends - torch.tensor(sizes)).to(device)
    incoming = torch.randn(shape.bags, shape.columns, generator=generator, device=device).to(dtype) if backward else None

    def wrap(function: Function) -> Call:
        def call(copy: int) -> tuple[Tensor, ...]:
            y = function(weight, indices[copy], offsets, mode)
            return (y, *torch.autograd.grad(y, weight, incoming)) if backward else (y,)

        return call

    def check(copy: int, result: Any) -> list[Gate]:
        return gates(weight, indices[copy], sizes, mode, incoming, result)

    rivals = {"torch": Peer(wrap(torchs))} if "torch" in context.peers else {}
    return Row(ours=wrap(ours), peers=rivals, check=check, copies=copies)


def gates(weight: Tensor, indices: Tensor, sizes: list[int], mode: str, dy: Any, result: tuple[Tensor, ...]) -> list[Gate]:
    """Bounds of CONTRACT 3.4 for y; the gradient's, rho |dw| + 2 gamma sum |terms|, in the rows that have entries and,
    exactly 0, elsewhere."""
    rho, growth = rounding(weight.dtype), gamma(max(sizes), weight.dtype)
    parts = indices.split(sizes)
    values = [wide(weight[part]) for part in parts]
    if mode == "max":
        want = torch.stack([rows.amax(0) for rows in values])
        bound = torch.zeros_like(want)
    else:
        count = torch.tensor(sizes, device=values[0].device)[:, None] if mode == "mean" else 1
        want = torch.stack([rows.sum(0) for rows in values]) / count
        bound = rho * want.abs() + growth * torch.stack([rows.abs().sum(0) for rows in values]) / count
    found = [Gate("y", excess(result[0], want, bound))]
    if dy is not None:
        used, row_of = torch.unique(indices, return_inverse=True)
        total, size = (torch.zeros(len(used), weight.shape[1], dtype=torch.float64, device=want.device) for _ in range(2))
        for b, (rows, where) in enumerate(zip(values, row_of.to(want.device).split(sizes))):
            terms = wide(dy[b]).expand_as(rows) / (len(rows) if mode == "mean" else 1)
            if mode == "max":
                terms = terms * F.one_hot(rows.argmax(0), len(rows)).mT
            total.index_add_(0, where, terms)
            size.index_add_(0, where, terms.abs())
        growth = gamma(len(indices), weight.dtype)
        found.append(Gate("dw", excess(result[1][used], total, rho * total.abs() + 2 * growth * size)))
        others = torch.ones(weight.shape[0], dtype=torch.bool, device=weight.device).index_fill(0, used, False)
        found.append(Gate("dw elsewhere", math.inf if bool(result[1][others].any()) else 0.0))
    return found


def host_calls(context: Context) -> Iterator[HostCall]:
    """Four small bags, with and without a gradient to record."""
    indices, offsets = torch.arange(16, device=context.device), torch.arange(0, 16, 4, device=context.device)
    for grad in (False, True):
        weight = torch.randn(64, 16, device=context.device).requires_grad_(grad)
        yield HostCall(
            op="embedding_bag",
            shape="4x4 of 64x16",
            grad="grad" if grad else "no grad",
            ours=lambda w=weight: ours(w, indices, offsets, "sum"),
            torch=lambda w=weight: torchs(w, indices, offsets, "sum"),
        )
