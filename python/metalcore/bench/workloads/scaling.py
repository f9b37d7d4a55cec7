"""The factorisations of 16 by 16 matrices over the size of the batch: the time of one matrix is to fall, or to stay."""

from __future__ import annotations

from typing import Callable, Iterator

import torch

from ..rows import Case, Context, Cost, HostCall, Row, times
from . import cholesky, eigh, qr, solve, svd

N = 16
BATCHES = (1, 10, 100, 1000, 10_000, 100_000)

Shape = tuple[int, ...]
OPERATIONS: dict[str, tuple[Callable[[Shape, torch.dtype], Cost], Callable[[Context, Shape, torch.dtype], Row]]] = {
    "qr": (qr.cost, qr.build),
    "cholesky_ex": (
        lambda shape, dtype: cholesky.cost(shape, 0, dtype),
        lambda context, shape, dtype: cholesky.build(context, "cholesky_ex", 0, shape, dtype),
    ),
    "solve_ex": (
        lambda shape, dtype: solve.cost(shape[:-1], 1, dtype),
        lambda context, shape, dtype: solve.build(context, shape[:-1], "gaussian", 1, dtype),
    ),
    "eigh": (lambda shape, dtype: eigh.cost(shape, dtype, True), lambda *row: eigh.build(*row, True)),
    "svd": (lambda shape, dtype: svd.cost(shape, dtype, True), lambda *row: svd.build(*row, True)),
}


def cases(context: Context) -> Iterator[Case]:
    """One case per operation and batch."""
    for op, (cost, build) in OPERATIONS.items():
        for batch in BATCHES:
            for dtype in context.dtypes_or(torch.float32):
                shape = (batch, N, N)
                yield Case(
                    op=op,
                    shape=times(*shape),
                    dtype=dtype,
                    cost=cost(shape, dtype),
                    build=lambda build=build, shape=shape, dtype=dtype: build(context, shape, dtype),
                )


def host_calls(context: Context) -> Iterator[HostCall]:
    """Those of the operations themselves."""
    return iter(())
