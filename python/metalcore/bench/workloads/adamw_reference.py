"""One AdamW step in float64 with the componentwise bounds of the contract.

p ← p(1 - lr·wd); m ← β₁m + (1-β₁)g; v ← β₂v + (1-β₂)g²;
p ← p - (lr/(1-β₁ᵗ))·m / (√v/√(1-β₂ᵗ) + eps).
Bounds: p rho|p| + 8w(|p| + |step|), moments 4w (|first term| + |second term|). The size of the step is
taken with the magnitudes of m's two terms, so that a moment which cancels keeps the error of its terms.
"""

from __future__ import annotations

import math
from typing import Any, Sequence

import torch
from torch import Tensor

from ..accuracy import Gate, excess, nan_max, rounding, wide, working_roundoff

CHUNK_ELEMENTS = 4_000_000


def gates(optimizer: torch.optim.Optimizer, tensors: Sequence[Tensor]) -> list[Gate]:
    """Takes one more step of the timed optimiser on its own buffers and compares every parameter and
    moment with float64 arithmetic from the state before it."""
    before = [snapshot(optimizer, tensor) for tensor in tensors]
    optimizer.step()
    group = optimizer.param_groups[0]
    worst: dict[str, float] = {"p": 0.0, "m": 0.0, "v": 0.0}
    for tensor, old in zip(tensors, before):
        state = optimizer.state[tensor]
        new = (tensor.detach(), state["exp_avg"], state["exp_avg_sq"])
        t = float(state["step"])
        for begin in range(0, tensor.numel(), CHUNK_ELEMENTS):
            part = slice(begin, begin + CHUNK_ELEMENTS)
            cut = [x.reshape(-1)[part] for x in (*old, tensor.grad)]
            for name, got, (want, bound) in zip("pmv", new, step_with_bounds(cut, t, group)):
                worst[name] = nan_max(worst[name], excess(got.reshape(-1)[part], want, bound))
    return [Gate(name, ratio) for name, ratio in worst.items()]


def snapshot(optimizer: torch.optim.Optimizer, tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Copies of p, m, v."""
    state = optimizer.state[tensor]
    return tensor.detach().clone(), state["exp_avg"].clone(), state["exp_avg_sq"].clone()


def step_with_bounds(before: Sequence[Tensor], t: float, group: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """(value, bound) of p, m and v after step t, in float64, from (p, m, v, g) before it."""
    p, m, v, g = before
    beta1, beta2 = group["betas"]
    lr = float(group["lr"])
    dtype, w = p.dtype, working_roundoff(p.dtype)
    p, m, v, g = wide(p), wide(m), wide(v), wide(g)
    m_terms = (beta1 * m, (1 - beta1) * g)
    v_new = beta2 * v + (1 - beta2) * g.square()
    m_new = m_terms[0] + m_terms[1]
    m_size = m_terms[0].abs() + m_terms[1].abs()
    # 1 - beta^t without cancellation, which float64 results are fine enough to show
    left1, left2 = (-math.expm1(t * math.log1p(beta - 1)) for beta in (beta1, beta2))
    scale = lr / left1 / (v_new.sqrt() / left2**0.5 + group["eps"])
    p_new = p * (1 - lr * group["weight_decay"]) - scale * m_new
    p_bound = rounding(dtype) * p_new.abs() + 8 * w * (p.abs() + scale * m_size)
    return [(p_new, p_bound), (m_new, 4 * w * m_size), (v_new, 4 * w * v_new)]
