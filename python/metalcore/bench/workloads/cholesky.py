"""Cholesky of A A' + n I, single and batched: the factor with its status, with a check, and solutions of 1 and 8 right sides."""

from __future__ import annotations

import math
from typing import Any, Callable, Iterator

import torch
from torch import Tensor

import metalcore

from ..accuracy import HALF_DTYPES, cholesky_gates, solve_gates
from ..rows import Call, Case, Context, Cost, HostCall, Peer, Row, times

Shape = tuple[int, ...]

SHAPES: tuple[Shape, ...] = (
    (512, 512), (1024, 1024), (2048, 2048), (4096, 4096),
    (100, 16, 16), (500, 16, 16), (100, 32, 32), (200, 48, 48), (100, 64, 64), (10000, 32, 32),
)  # fmt: skip
QUICK: tuple[Shape, ...] = ((1024, 1024), (500, 16, 16), (200, 48, 48))
GPU_ONLY: tuple[Shape, ...] = ((4096, 4096),)
RIGHT_SIDES = (1, 8)
SEED = 11


def cases(context: Context) -> Iterator[Case]:
    """One case per function, shape and dtype."""
    for shape in SHAPES:
        for dtype in context.dtypes_or(torch.float32):
            for op, columns in [("cholesky_ex", 0), ("cholesky", 0), *(("cholesky_solve", k) for k in RIGHT_SIDES)]:
                yield Case(
                    op=op,
                    shape=times(*shape) + (f", {columns}" if columns else ""),
                    dtype=dtype,
                    cost=cost(shape, columns, dtype),
                    build=lambda op=op, columns=columns, shape=shape, dtype=dtype: build(context, op, columns, shape, dtype),
                    quick=shape in QUICK,
                    gpu_only=shape in GPU_ONLY,
                )


def cost(shape: Shape, columns: int, dtype: torch.dtype) -> Cost:
    """n³/3 flops and A in, L out; of a solution 2 n² k flops, L and b in, X out."""
    n = shape[-1]
    items = math.prod(shape[:-2])
    flops = 2 * n * n * columns if columns else n**3 / 3
    moved = dtype.itemsize * (n * n + 2 * n * columns if columns else 2 * n * n)
    return Cost(items * moved, items * flops, "fp64" if dtype == torch.float64 else "fp32")


def definite(context: Context, shape: Shape, dtype: torch.dtype) -> Tensor:
    """A A' + n I."""
    generator = torch.Generator().manual_seed(SEED)
    A = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (A @ A.mT + shape[-1] * torch.eye(shape[-1], dtype=torch.float64)).to(dtype).to(context.device)


def through_float32(function: Callable[..., Any], *tensors: Tensor) -> Call:
    """torch's function, which has no half precision: there it computes in fp32 and rounds, as ours."""
    if tensors[0].dtype not in HALF_DTYPES:
        return lambda _: function(*tensors)
    return lambda _: function(*(t.float() for t in tensors)).to(tensors[0].dtype)


def build(context: Context, op: str, columns: int, shape: Shape, dtype: torch.dtype) -> Row:
    """Buffers, our call, and torch's."""
    A = definite(context, shape, dtype)
    rivals: dict[str, Peer] = {}
    name = "torch via fp32" if dtype in HALF_DTYPES else "torch"
    if columns:
        L = metalcore.cholesky(A)
        b = torch.randn((*shape[:-1], columns), generator=torch.Generator().manual_seed(SEED)).to(context.device, dtype)
        if "torch" in context.peers:
            rivals[name] = Peer(through_float32(torch.cholesky_solve, b, L))
        check = lambda _, X: solve_gates(L.double().cpu() @ L.mT.double().cpu(), b, X)  # noqa: E731
        return Row(ours=lambda _: metalcore.cholesky_solve(b, L), peers=rivals, check=check)
    ours = metalcore.cholesky_ex if op == "cholesky_ex" else metalcore.cholesky
    if "torch" in context.peers:
        if op == "cholesky":
            rivals[name] = Peer(through_float32(torch.linalg.cholesky, A))
        else:
            rivals[name] = Peer(through_float32(lambda A: torch.linalg.cholesky_ex(A).L, A))
    check = lambda _, result: cholesky_gates(A, result if isinstance(result, Tensor) else result.L)  # noqa: E731
    return Row(ours=lambda _: ours(A), peers=rivals, check=check)


def host_calls(context: Context) -> Iterator[HostCall]:
    """The smallest shape, with and without a gradient to record."""
    for grad in (False, True):
        A = definite(context, (16, 16), torch.float32).requires_grad_(grad)
        yield HostCall(
            op="cholesky_ex",
            shape=times(16, 16),
            grad="grad" if grad else "no grad",
            ours=lambda A=A: metalcore.cholesky_ex(A),
            torch=lambda A=A: torch.linalg.cholesky_ex(A),
        )
