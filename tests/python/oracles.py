"""What the operations should give, with the bounds of the accuracy contract: plain formulas in float64 (long double for
float64 tensors) on the values as they are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Iterable

import mpmath
import numpy as np
import torch
from support import ROUNDOFF, Unchanged, assert_within, exact, gamma, normal, rho, working_roundoff
from torch import Tensor


@dataclass
class Bounded:
    """Exact values, and how far a result may be from them."""

    value: np.ndarray
    bound: np.ndarray


# --- rms_norm -------------------------------------------------------------------------------------


def default_eps(dtype: torch.dtype) -> float:
    """What eps=None means."""
    return 2.0**-52 if dtype == torch.float64 else 2.0**-23


def _rows(tensor: Tensor | None, width: int) -> np.ndarray:
    return np.float64(1) if tensor is None else exact(tensor).reshape(-1, width)


def rms_norm(x: Tensor, width: int, weight: Tensor | None, eps: float) -> Bounded:
    """y over rows of ``width`` elements."""
    rows = _rows(x, width)
    r = 1 / np.sqrt((rows * rows).mean(-1, keepdims=True) + eps)
    y = (rows * r * _rows(weight, width)).reshape(tuple(x.shape))
    return Bounded(y, (rho(x.dtype) + gamma(width, x.dtype)) * np.abs(y))


def rms_norm_backward(
    dy: Tensor, x: Tensor, width: int, weight: Tensor | None, eps: float, d_sum: Tensor | None = None
) -> tuple[Bounded, Bounded]:
    """dx and dw; with ``d_sum`` the gradient of the residual form, to which it is added."""
    rows, g = _rows(x, width), _rows(dy, width)
    r = 1 / np.sqrt((rows * rows).mean(-1, keepdims=True) + eps)
    h = g * _rows(weight, width)
    pull = rows * (r**3 / width)
    dx = r * h - pull * (h * rows).sum(-1, keepdims=True)
    growth = gamma(width, x.dtype)
    bound = 2 * growth * (r * np.abs(h) + np.abs(pull) * np.abs(h * rows).sum(-1, keepdims=True))
    if d_sum is not None:
        dx = dx + _rows(d_sum, width)
        bound = bound + working_roundoff(x.dtype) * np.abs(dx)
    bound = bound + rho(x.dtype) * np.abs(dx)
    terms = g * rows * r
    dw = terms.sum(0)
    out = x.dtype if weight is None else weight.dtype
    rounding = ROUNDOFF[out] if ROUNDOFF[out] > working_roundoff(x.dtype) else 0.0
    spread = rounding * np.abs(dw) + 2 * gamma(len(rows), x.dtype) * np.abs(terms).sum(0)
    shape = tuple(x.shape)
    weight_shape = (width,) if weight is None else tuple(weight.shape)
    return Bounded(dx.reshape(shape), bound.reshape(shape)), Bounded(dw.reshape(weight_shape), spread.reshape(weight_shape))


# --- activations ----------------------------------------------------------------------------------


def activation(name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f(x) and f'(x) of "silu", "none" (gelu) or "tanh" (its tanh form)."""
    with np.errstate(over="ignore"):
        if name == "none":
            tails = [mpmath.ncdf(-abs(mpmath.mpf(float(v)))) for v in x.reshape(-1)]
            tail = np.array([_longdouble(v) for v in tails], dtype=np.longdouble).reshape(x.shape)
            p = np.where(x < 0, tail, 1 - tail)
            rate = np.exp(-np.square(x.astype(np.longdouble)) / 2) / np.sqrt(2 * np.longdouble(str(mpmath.pi)))
        else:
            factor = 2 * np.sqrt(2 / np.longdouble(str(mpmath.pi))) if name == "tanh" else np.longdouble(1)
            cubic = np.longdouble("0.044715") if name == "tanh" else np.longdouble(0)
            z = factor * (x + cubic * x**3)
            p, q = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
            rate = p * q * factor * (1 + 3 * cubic * x**2)
    return x * p, p + x * rate


def _longdouble(value: mpmath.mpf) -> np.longdouble:
    return np.longdouble(mpmath.nstr(value, 25))


# --- rope -----------------------------------------------------------------------------------------


def rope(x: Tensor, cos: Tensor, sin: Tensor, ids: Tensor | None, unsqueeze_dim: int, back: bool = False) -> Bounded:
    """Rotated heads, or (``back``) their gradient."""
    values, c, s = exact(x), exact(cos), exact(sin)
    seq, half = x.shape[3 - unsqueeze_dim], x.shape[3] // 2
    c, s = (t[..., :seq, :] if ids is None else t[ids.cpu().numpy()] for t in (c, s))
    c, s = (np.expand_dims(t if t.ndim == 3 else t[None], unsqueeze_dim) for t in (c, s))
    x1, x2 = values[..., :half], values[..., half:]
    c1, s1, c2, s2 = c[..., :half], s[..., :half], c[..., c.shape[-1] - half :], s[..., s.shape[-1] - half :]
    first, second = ((x1 * c1, x2 * s2), (x2 * c2, -x1 * s1)) if back else ((x1 * c1, -x2 * s1), (x2 * c2, x1 * s2))
    y = np.concatenate([sum(first), sum(second)], -1)
    spread = np.concatenate([np.abs(a) + np.abs(b) for a, b in (first, second)], -1)
    return Bounded(y, rho(x.dtype) * np.abs(y) + 4 * working_roundoff(x.dtype) * spread)


# --- layer_norm -----------------------------------------------------------------------------------


def layer_norm(x: Tensor, width: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Bounded:
    """y over rows of ``width`` elements."""
    rows, w = _rows(x, width), _rows(weight, width)
    b = np.float64(0) if bias is None else _rows(bias, width)
    mean = rows.mean(-1, keepdims=True)
    r = 1 / np.sqrt(((rows - mean) ** 2).mean(-1, keepdims=True) + eps)
    y = (rows - mean) * r * w + b
    bound = rho(x.dtype) * np.abs(y) + gamma(width, x.dtype) * ((np.abs(rows) + np.abs(mean)) * r * np.abs(w) + np.abs(b))
    return Bounded(y.reshape(tuple(x.shape)), bound.reshape(tuple(x.shape)))


def layer_norm_backward(
    dy: Tensor, x: Tensor, width: int, weight: Tensor | None, eps: float, d_sum: Tensor | None = None
) -> tuple[Bounded, Bounded, Bounded]:
    """dx, dw and db; with ``d_sum`` the gradient of the residual form, to which it is added. Bounds are relative to the
    magnitudes of the terms, |x| + |mean| for x - mean; those of dw and db are without their rounding."""
    rows, d = _rows(x, width), _rows(dy, width)
    mean = rows.mean(-1, keepdims=True)
    r = 1 / np.sqrt(((rows - mean) ** 2).mean(-1, keepdims=True) + eps)
    n, size = (rows - mean) * r, (np.abs(rows) + np.abs(mean)) * r
    g = d * _rows(weight, width)
    average = lambda terms: terms.mean(-1, keepdims=True)  # noqa: E731
    dx = r * (g - average(g) - n * average(g * n))
    terms = r * (np.abs(g) + average(np.abs(g)) + size * average(np.abs(g) * size))
    bound = 2 * gamma(width, x.dtype) * terms
    if d_sum is not None:
        dx = dx + _rows(d_sum, width)
        bound = bound + working_roundoff(x.dtype) * np.abs(dx)
    bound = bound + rho(x.dtype) * np.abs(dx)
    growth = 2 * gamma(max(len(rows), width), x.dtype)
    dw, db = (d * n).sum(0), d.sum(0)
    shape, one = tuple(x.shape), (width,) if weight is None else tuple(weight.shape)
    return (
        Bounded(dx.reshape(shape), bound.reshape(shape)),
        Bounded(dw.reshape(one), (growth * (np.abs(d) * size).sum(0)).reshape(one)),
        Bounded(db.reshape(one), (growth * np.abs(d).sum(0)).reshape(one)),
    )


# --- softmax --------------------------------------------------------------------------------------


def softmax(x: Tensor, dim: int) -> Bounded:
    """p over one dimension. Below the smallest normal number a device may have none."""
    values = exact(x)
    if not values.size:
        return Bounded(values, values)
    distance = values.max(dim, keepdims=True) - values
    terms = np.exp(-distance)
    p = terms / terms.sum(dim, keepdims=True)
    w = working_roundoff(x.dtype)
    bound = (rho(x.dtype) + gamma(x.shape[dim], x.dtype) + w * distance) * p
    return Bounded(p, bound + (0.0 if x.dtype == torch.float64 else 2.0**-126))


def softmax_backward(p: Tensor, dp: Tensor, dim: int) -> Bounded:
    """dx from p as it was returned."""
    y, g = exact(p), exact(dp)
    dx = y * (g - (y * g).sum(dim, keepdims=True))
    size = np.abs(y * g) + np.abs(y) * np.abs(y * g).sum(dim, keepdims=True)
    bound = rho(p.dtype) * np.abs(dx) + 2 * gamma(p.shape[dim], p.dtype) * size
    return Bounded(dx, bound + (0.0 if p.dtype == torch.float64 else 2.0**-126))


# --- adamw ----------------------------------------------------------------------------------------


@dataclass
class Snapshot:
    """A parameter, its gradient and its state as they are stored before a step."""

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor
    step: float


def snapshot(optimizer: torch.optim.Optimizer, param: Tensor) -> Snapshot:
    """Copies of what the next step of ``param`` starts from; state that is not there yet is zero."""
    state = optimizer.state.get(param, {})
    wide = torch.float64 if param.dtype == torch.float64 else torch.float32
    zero = torch.zeros_like(param, dtype=wide)
    moments = [state.get(name, zero).detach().clone() for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")]
    return Snapshot(param.detach().clone(), param.grad.detach().clone(), *moments, float(state.get("step", 0.0)))


def adamw(before: Snapshot, group: dict[str, Any], grad_scale: float = 1.0) -> dict[str, Bounded]:
    """The parameter and its state after one step with the options of ``group``. All is in the compute type, to which a
    wider gradient is rounded first.

    The size of a step is taken with the magnitudes of the two terms of the first moment, so that where they cancel the
    parameter keeps the error that the moment is allowed.
    """
    dtype, t = before.param.dtype, before.step + 1
    w = working_roundoff(dtype)
    number = np.longdouble if dtype == torch.float64 else np.float64
    grad = before.grad.to(before.exp_avg.dtype)
    p, g, m, v, largest = (
        exact(x).astype(number) for x in (before.param, grad, before.exp_avg, before.exp_avg_sq, before.max_exp_avg_sq)
    )
    lr, beta1, beta2, eps, decay = (number(float(x)) for x in (group["lr"], *group["betas"], group["eps"], group["weight_decay"]))
    g = (-g if group["maximize"] else g) / number(grad_scale)
    first, second = beta1 * m, (1 - beta1) * g
    m_new, m_size = first + second, np.abs(first) + np.abs(second)
    v_new = beta2 * v + (1 - beta2) * g * g
    root = np.maximum(largest, v_new) if group["amsgrad"] else v_new
    with np.errstate(divide="ignore"):  # log(0) of a beta of 0
        left1, left2 = (-np.expm1(t * np.log1p(beta - 1)) for beta in (beta1, beta2))  # 1 - beta^t
    scale = lr / left1 / (np.sqrt(root) / np.sqrt(left2) + eps)
    p_new = p * (1 - lr * decay) - scale * m_new
    found = {
        "param": Bounded(p_new, rho(dtype) * np.abs(p_new) + 8 * w * (np.abs(p) + scale * m_size)),
        "exp_avg": Bounded(m_new, 4 * w * m_size),
        "exp_avg_sq": Bounded(v_new, 4 * w * v_new),
    }
    if group["amsgrad"]:
        found["max_exp_avg_sq"] = Bounded(root, 4 * w * root)
    return found


def set_grad(param: Tensor, grad: Tensor) -> None:
    """Gives ``param`` this gradient, whatever its dtype."""
    param.grad = None
    if hasattr(param, "grad_dtype"):
        param.grad_dtype = grad.dtype
    elif grad.dtype != param.dtype:  # torch before 2.10
        param.grad = torch.zeros_like(param)
        param.grad.data = grad
        return
    param.grad = grad


def give_grads(params: Iterable[Tensor], dtype: torch.dtype | None = None, scale: float = 1.0) -> None:
    """Gives every parameter a new normal gradient of its shape."""
    for p in params:
        set_grad(p, normal(*p.shape, device=p.device, dtype=dtype or p.dtype, scale=scale))


def assert_step(optimizer: torch.optim.Optimizer, step: Callable[[], Any] | None = None, grad_scale: float = 1.0) -> Any:
    """Takes a step of AdamW: every parameter with a gradient, its state and its count are what the state before it asks
    for; gradients are not written to, and parameters without one are left alone with their state.
    """
    pairs = [(p, dict(group)) for group in optimizer.param_groups for p in group["params"]]
    active = [(p, group, snapshot(optimizer, p)) for p, group in pairs if p.grad is not None]
    rest = [p for p, _ in pairs if p.grad is None]
    kept = [t for p in rest for t in (p, *(v for v in optimizer.state.get(p, {}).values() if isinstance(v, Tensor)))]
    with Unchanged(*(p.grad for p, *_ in active), *kept):
        result = (step or optimizer.step)()
    for p, group, before in active:
        state = optimizer.state[p]
        assert state["step"].shape == () and state["step"].dtype == torch.float32 and float(state["step"]) == before.step + 1
        for name, want in adamw(before, group, grad_scale).items():
            assert_within(f"adamw {name}", p if name == "param" else state[name], want.value, want.bound, p.dtype)
    return result


# --- embedding_bag --------------------------------------------------------------------------------


def embedding_bag(
    weight: Tensor, indices: Tensor, sizes: list[int], mode: str, samples: Tensor | None, padding: int | None, dy: Tensor
) -> tuple[Bounded, Bounded, Bounded]:
    """y, and the gradients of weight and samples, bag by bag. The gradient of a maximum goes to its first entry."""
    values, d, index = exact(weight), exact(dy), indices.cpu().numpy()
    factors = np.ones(len(index), values.dtype) if samples is None else exact(samples)
    columns, rho_, count = values.shape[1], rho(weight.dtype), len(index)
    y, y_size = np.zeros((len(sizes), columns), values.dtype), np.zeros((len(sizes), columns), values.dtype)
    dw, dw_size, df = np.zeros_like(values), np.zeros_like(values), np.zeros((2, count), values.dtype)
    end = 0
    for b, size in enumerate(sizes):
        begin, end = end, end + size
        entries = np.array([e for e in range(begin, end) if index[e] != padding], dtype=int)
        if not len(entries):
            continue
        found = values[index[entries]]
        scale = len(entries) if mode == "mean" else 1
        share = np.ones_like(found) * factors[entries][:, None] / scale
        if mode == "max":
            share = (found.argmax(0) == np.arange(len(entries))[:, None]).astype(values.dtype)
        y[b], y_size[b] = (found * share).sum(0), np.abs(found * share).sum(0)
        np.add.at(dw, index[entries], share * d[b])
        np.add.at(dw_size, index[entries], np.abs(share * d[b]))
        df[0, entries], df[1, entries] = found @ d[b], np.abs(found) @ np.abs(d[b])
    forward = gamma(max(sizes, default=1), weight.dtype) * y_size if mode != "max" else 0 * y_size
    backward, dots = 2 * gamma(count, weight.dtype) * dw_size, 2 * gamma(columns, weight.dtype) * df[1]
    rounded = rho_ * np.abs(y) if mode != "max" else 0
    return (
        Bounded(y, rounded + forward * (1 + rho_)),
        Bounded(dw, rho_ * np.abs(dw) + backward * (1 + rho_)),
        Bounded(df[0], rho_ * np.abs(df[0]) + dots * (1 + rho_)),
    )
