"""RMS norm in float64 with the componentwise bounds of the contract, chunk by chunk of rows.

y = x·r·w, r = (mean(x²) + eps)^(-1/2). With h = dy·w: dx = r·h - x·(r³/H)·Σ hx, dw = Σ_rows dy·x·r.
Bounds: y (rho + gamma(H))|y|; dx rho|dx| + 2gamma(H)(r|h| + |x| r³/H Σ|hx|); dw rho|dw| + 2gamma(T) Σ|terms|.
Fused add: the sum is rounded once (u), the norm is that of the rounded sum, and its gradient adds
the one that comes in for the sum.
"""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ..accuracy import UNIT_ROUNDOFF, Gate, excess, gamma, nan_max, rounding, wide, working_roundoff

CHUNK_ELEMENTS = 4_000_000
"""Elements of one chunk: about 32 MB per float64 temporary."""


def gates(
    inputs: Sequence[Tensor],
    incoming: Sequence[Tensor],
    weight: Tensor,
    outputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    eps: float,
) -> list[Gate]:
    """Gates of a forward (no grads) or of a forward and backward. One input: rms_norm. Two: the
    fused add, whose outputs are (normalised, sum) and whose norm is judged on the returned sum."""
    width = weight.numel()
    flat = lambda tensors: [t.detach().reshape(-1, width) for t in tensors]  # noqa: E731
    inputs, incoming, outputs = flat(inputs), flat(incoming), flat(outputs)
    dweight = grads[-1] if grads else None
    dinputs = flat(grads[:-1])
    rows = inputs[0].shape[0]
    worst: dict[str, float] = {}
    totals = [torch.zeros(width, dtype=torch.float64, device=wide(weight).device) for _ in range(2)]
    for begin in range(0, rows, max(1, CHUNK_ELEMENTS // width)):
        part = slice(begin, begin + max(1, CHUNK_ELEMENTS // width))
        cut = lambda tensors: [t[part] for t in tensors]  # noqa: E731, B023
        found = chunk_ratios(cut(inputs), cut(incoming), weight, cut(outputs), cut(dinputs), eps, totals)
        for name, ratio in found.items():
            worst[name] = nan_max(worst.get(name, 0.0), ratio)
    if dweight is not None:
        want, terms = totals
        bound = rounding(dweight.dtype) * want.abs() + 2 * gamma(rows, dweight.dtype) * terms
        worst["dweight"] = excess(dweight, want, bound)
    return [Gate(name, ratio) for name, ratio in worst.items()]


def chunk_ratios(
    inputs: list[Tensor],
    incoming: list[Tensor],
    weight: Tensor,
    outputs: list[Tensor],
    dinputs: list[Tensor],
    eps: float,
    totals: list[Tensor],
) -> dict[str, float]:
    """Ratios of some rows; adds their part of dw and of Σ|terms| to `totals`."""
    ratios: dict[str, float] = {}
    dtype = inputs[0].dtype
    x = wide(inputs[0])
    if len(inputs) == 2:
        total = x + wide(inputs[1])
        ratios["sum"] = excess(outputs[1], total, UNIT_ROUNDOFF[dtype] * total.abs())
        x = wide(outputs[1])
    w, width, growth = wide(weight), x.shape[-1], gamma(x.shape[-1], dtype)
    r = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    y = x * r * w
    ratios["y"] = excess(outputs[0], y, (rounding(outputs[0].dtype) + growth) * y.abs())
    if not dinputs:
        return ratios

    dy = wide(incoming[0])
    h = dy * w
    hx = h * x
    pull = x * (r**3 / width)
    dx = r * h - pull * hx.sum(-1, keepdim=True)
    bound = 2 * growth * (r * h.abs() + pull.abs() * hx.abs().sum(-1, keepdim=True))
    if len(inputs) == 2:
        through = wide(incoming[1])
        bound += working_roundoff(dtype) * (dx.abs() + through.abs())
        dx = dx + through
    bound += rounding(dtype) * dx.abs()
    for name, got in zip(("dx", "dresidual"), dinputs):
        ratios[name] = excess(got, dx, bound)
    terms = dy * x * r
    totals[0] += terms.sum(0)
    totals[1] += terms.abs().sum(0)
    return ratios
