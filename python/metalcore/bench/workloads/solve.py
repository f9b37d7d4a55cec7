"""Systems of linear equations: A A' + n I and plain Gaussian matrices, 1 and 8 right sides; inverses."""

from __future__ import annotations

import math
from typing import Any, Iterator

import torch
from torch import Tensor

import metalcore

from ..accuracy import HALF_DTYPES, Gate, solve_gates
from ..rows import Call, Case, Context, Cost, HostCall, Peer, Row, times

Shape = tuple[int, ...]

QUICK: tuple[Shape, ...] = ((1024,), (500, 16), (200, 48))
SHAPES: tuple[Shape, ...] = (
    (512,), (1024,), (2048,), (4096,),
    (100, 16), (500, 16), (100, 32), (200, 48), (100, 64), (50, 128), (10, 256), (10000, 32),
)  # fmt: skip
GPU_ONLY: tuple[Shape, ...] = ((4096,),)
SIDES = (1, 8)
SEED = 1
SPD, GAUSSIAN = "spd", "gaussian"


def cases(context: Context) -> Iterator[Case]:
    """One case per shape, kind of matrix, number of right sides and dtype; then inverses."""
    for shape in SHAPES:
        for dtype in context.dtypes_or(torch.float32):
            for kind in (SPD, GAUSSIAN):
                for sides in (*SIDES, None):
                    yield Case(
                        op="inv_ex" if sides is None else "solve_ex",
                        shape=label(shape, kind, sides),
                        dtype=dtype,
                        cost=cost(shape, sides, dtype),
                        build=lambda shape=shape, kind=kind, sides=sides, dtype=dtype: build(context, shape, kind, sides, dtype),
                        quick=shape in QUICK,
                        gpu_only=shape in GPU_ONLY,
                    )


def label(shape: Shape, kind: str, sides: int | None) -> str:
    """Batch, n, n, right sides, and the kind of matrix."""
    *batch, n = shape
    return f"{times(*batch, n, n)} {'' if sides is None else f'{sides} rhs '}{kind}"


def cost(shape: Shape, sides: int | None, dtype: torch.dtype) -> Cost:
    """LU: 2n³/3 flops and 2n² for each right side; an inverse 2n³. Bytes: A and B in, X out."""
    *batch, n = shape
    items = math.prod(batch)
    flops = 2 * n**3 if sides is None else 2 * n**3 / 3 + 2 * n * n * sides
    moved = 2 * n * n if sides is None else n * n + 2 * n * sides
    return Cost(items * moved * dtype.itemsize, items * flops, "fp64" if dtype == torch.float64 else "fp32")


def matrix(shape: Shape, kind: str, generator: torch.Generator) -> Tensor:
    """A batch of matrices (..., n, n), in float32."""
    *batch, n = shape
    A = torch.randn(*batch, n, n, generator=generator)
    return A @ A.mT + n * torch.eye(n) if kind == SPD else A


def build(context: Context, shape: Shape, kind: str, sides: int | None, dtype: torch.dtype) -> Row:
    """Buffers, our call, and one batched call per peer."""
    generator = torch.Generator().manual_seed(SEED)
    A = matrix(shape, kind, generator).to(context.device, dtype)
    rivals: dict[str, Peer] = {}
    half = dtype in HALF_DTYPES
    name = "torch via fp32" if half else "torch"
    if sides is None:
        eye = torch.eye(shape[-1], dtype=dtype, device=context.device).expand_as(A)
        if "torch" in context.peers:
            rivals[name] = Peer(torch_call(torch.linalg.inv_ex, A))
        return Row(ours=lambda _: metalcore.inv_ex(A), peers=rivals, check=lambda _, result: inverse_gates(A, eye, result))
    B = torch.randn(*shape, sides, generator=generator).to(context.device, dtype)
    if "torch" in context.peers:
        rivals[name] = Peer(torch_call(torch.linalg.solve_ex, A, B))
    return Row(ours=lambda _: metalcore.solve_ex(A, B), peers=rivals, check=lambda _, result: gates(A, B, result))


def gates(A: Tensor, B: Tensor, result: Any) -> list[Gate]:
    """The residual of every column, and that no matrix was called singular."""
    X, info = result
    return [*solve_gates(A, B, X), Gate("info", float(info.abs().max()) if info.numel() else 0.0)]


def inverse_gates(A: Tensor, eye: Tensor, result: Any) -> list[Gate]:
    """Columns of the inverse are solutions; its own ratio is the same residual in the norm of the inverse, over n."""
    return gates(A, eye, result)


def torch_call(function: Any, *tensors: Tensor) -> Call:
    """torch's function on the whole batch; half types in fp32, results rounded."""
    if tensors[0].dtype in HALF_DTYPES:
        dtype = tensors[0].dtype

        def call(_: int) -> Any:
            result, info = function(*(t.float() for t in tensors))
            return result.to(dtype), info

        return call
    return lambda _: function(*tensors)


def host_calls(context: Context) -> Iterator[HostCall]:
    """The smallest shape, with and without a gradient to record."""
    for grad in (False, True):
        A = torch.randn(16, 16, device=context.device).requires_grad_(grad)
        b = torch.randn(16, 1, device=context.device)
        yield HostCall(
            op="solve_ex",
            shape=times(16, 16),
            grad="grad" if grad else "no grad",
            ours=lambda A=A, b=b: metalcore.solve_ex(A, b),
            torch=lambda A=A, b=b: torch.linalg.solve_ex(A, b),
        )
