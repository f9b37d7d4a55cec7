"""Triangular systems of 1 and 8 right sides, single and batched; every form once."""

from __future__ import annotations

import itertools
import math
from typing import Iterator

import torch
from torch import Tensor

import metalcore

from ..accuracy import HALF_DTYPES, solve_gates
from ..rows import Case, Context, Cost, HostCall, Peer, Row, times

Shape = tuple[int, ...]
Form = tuple[bool, bool, bool]

SHAPES: tuple[Shape, ...] = (
    (1024, 1024), (2048, 2048), (4096, 4096),
    (100, 16, 16), (500, 16, 16), (100, 32, 32), (200, 48, 48), (100, 64, 64), (10000, 32, 32),
)  # fmt: skip
QUICK: tuple[Shape, ...] = ((1024, 1024), (500, 16, 16), (200, 48, 48))
GPU_ONLY: tuple[Shape, ...] = ((4096, 4096),)
RIGHT_SIDES = (1, 8)
LOWER: Form = (True, False, False)
FORMS: tuple[Form, ...] = tuple(itertools.product((True, False), (False, True), (False, True)))
EVERY_FORM: tuple[Shape, ...] = ((500, 16, 16),)
SEED = 12


def cases(context: Context) -> Iterator[Case]:
    """One case per shape, right sides and dtype; every form of one shape."""
    for shape, columns in itertools.product(SHAPES, RIGHT_SIDES):
        for form in FORMS if shape in EVERY_FORM and columns == 8 else (LOWER,):
            for dtype in context.dtypes_or(torch.float32):
                yield Case(
                    op="trsm" + name(form),
                    shape=f"{times(*shape)}, {columns}",
                    dtype=dtype,
                    cost=cost(shape, columns, dtype),
                    build=lambda shape=shape, columns=columns, form=form, dtype=dtype: build(
                        context, shape, columns, form, dtype
                    ),
                    quick=shape in QUICK and form == LOWER,
                    gpu_only=shape in GPU_ONLY,
                )


def name(form: Form) -> str:
    lower, transpose, unit = form
    return ("" if lower else " upper") + (" transposed" if transpose else "") + (" unit" if unit else "")


def cost(shape: Shape, columns: int, dtype: torch.dtype) -> Cost:
    """n² k flops; the triangle and b in, X out."""
    n = shape[-1]
    items = math.prod(shape[:-2])
    moved = dtype.itemsize * (n * (n + 1) / 2 + 2 * n * columns)
    return Cost(items * moved, items * n * n * columns, "fp64" if dtype == torch.float64 else "fp32")


def system(context: Context, shape: Shape, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A well conditioned triangle, whichever is meant, and right sides."""
    generator = torch.Generator().manual_seed(SEED)
    n = shape[-1]
    A = torch.randn(shape, generator=generator) / n
    A.diagonal(dim1=-2, dim2=-1).abs_().add_(1)
    b = torch.randn((*shape[:-1], columns), generator=generator)
    return A.to(context.device, dtype), b.to(context.device, dtype)


def torch_trsm(A: Tensor, b: Tensor, form: Form) -> Tensor:
    """torch.linalg.solve_triangular; without half precision, there in fp32 and rounded, as ours."""
    lower, transpose, unit = form
    if A.dtype in HALF_DTYPES:
        return torch_trsm(A.float(), b.float(), form).to(A.dtype)
    op = A.mT if transpose else A
    return torch.linalg.solve_triangular(op, b, upper=lower == transpose, unitriangular=unit)


def build(context: Context, shape: Shape, columns: int, form: Form, dtype: torch.dtype) -> Row:
    """Buffers, our call, and torch's."""
    A, b = system(context, shape, columns, dtype)
    rivals: dict[str, Peer] = {}
    if "torch" in context.peers:
        rivals["torch via fp32" if dtype in HALF_DTYPES else "torch"] = Peer(lambda _: torch_trsm(A, b, form))
    lower, transpose, unit = form
    T = A.double().cpu()
    T = T.tril(-int(unit)) if lower else T.triu(int(unit))
    T = T + torch.eye(shape[-1], dtype=torch.float64) if unit else T
    T = T.mT if transpose else T
    return Row(ours=lambda _: metalcore.trsm(A, b, *form), peers=rivals, check=lambda _, X: solve_gates(T, b, X))


def host_calls(context: Context) -> Iterator[HostCall]:
    """The smallest shape, with and without a gradient to record."""
    for grad in (False, True):
        A, b = system(context, (16, 16), 8, torch.float32)
        A.requires_grad_(grad)
        yield HostCall(
            op="trsm",
            shape=times(16, 16),
            grad="grad" if grad else "no grad",
            ours=lambda A=A, b=b: metalcore.trsm(A, b),
            torch=lambda A=A, b=b: torch_trsm(A, b, LOWER),
        )
