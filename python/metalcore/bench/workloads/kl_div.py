"""Kullback-Leibler divergence of a teacher's and a student's log-probabilities: forward, forward + backward."""

from __future__ import annotations

import math
from typing import Any, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import metalcore

from ..accuracy import Gate, excess, gamma, rounding, wide
from ..rows import Call, Case, Context, Cost, HostCall, Row, times
from .cross_entropy import CHECKED_ROWS, Loss, gaussian, rivals_of

SHAPES = ((64, 4096), (256, 32000), (4096, 128256))
GPU_ONLY = ((4096, 128256),)


def cases(context: Context) -> Iterator[Case]:
    """The gradient is the student's."""
    for backward in (False, True):
        for shape in SHAPES:
            for dtype in context.dtypes_or(torch.float32, torch.bfloat16):
                size = math.prod(shape) * dtype.itemsize
                yield Case(
                    op=f"kl_div {'fwd+bwd' if backward else 'fwd'}",
                    shape=times(*shape),
                    dtype=dtype,
                    cost=Cost((5 if backward else 2) * size),
                    build=lambda shape=shape, dtype=dtype, backward=backward: build(context, shape, dtype, backward),
                    gpu_only=shape in GPU_ONLY,
                    memory_bytes=12 * size,
                )


def build(context: Context, shape: tuple[int, int], dtype: torch.dtype, backward: bool) -> Row:
    """A teacher's and a student's log-probabilities; the gradient is the student's."""
    log_p, log_q = (gaussian(context, *shape).mul_(scale).log_softmax(-1).to(dtype) for scale in (3, 2))
    log_q.requires_grad_(backward)

    def wrap(loss: Loss) -> Call:
        def call(copy: int) -> tuple[Tensor, ...]:
            value = loss(log_p, log_q)
            return (value, *torch.autograd.grad(value, log_q)) if backward else (value,)

        return call

    def check(copy: int, result: Any) -> list[Gate]:
        total, spread = 0.0, 0.0
        for x, y in zip(log_p.split(CHECKED_ROWS), log_q.detach().split(CHECKED_ROWS)):
            x, y = wide(x), wide(y)
            terms = x.exp() * (x - y)
            total, spread = total + terms.sum(), spread + terms.abs().sum()
        bound = (gamma(shape[1], dtype) + gamma(shape[0], dtype)) * spread
        gates = [Gate("loss", excess(result[0], total / shape[0], bound / shape[0]))]
        if backward:
            p = wide(log_p[:CHECKED_ROWS]).exp() / shape[0]
            limit = (rounding(dtype) + gamma(shape[1], dtype) * (1 - wide(log_p[:CHECKED_ROWS]))) * p
            gates.append(Gate("dq", excess(result[1][:CHECKED_ROWS], -p, limit)))
        return gates

    rivals, skipped = rivals_of(context, wrap, lambda p, q: F.kl_div(q, p, log_target=True, reduction="batchmean"))
    return Row(ours=wrap(metalcore.kl_div), peers=rivals, check=check, skipped=skipped)


def host_calls(context: Context) -> Iterator[HostCall]:
    """A few rows, with and without a gradient to record."""
    for grad in (False, True):
        log_p, log_q = (gaussian(context, 8, 64).log_softmax(-1) for _ in range(2))
        log_q.requires_grad_(grad)
        yield HostCall(
            op="kl_div",
            shape=times(8, 64),
            grad="grad" if grad else "no grad",
            ours=lambda p=log_p, q=log_q: metalcore.kl_div(p, q),
            torch=lambda p=log_p, q=log_q: F.kl_div(q, p, log_target=True, reduction="batchmean"),
        )
