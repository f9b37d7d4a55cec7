"""Accuracy of results, in the ratios of the contract: residuals in float64, every batch item.

A `Gate` is one ratio beside its bar. QR: LAPACK-style ratios in the unit n·u and, from n = 16, a
second pair in √n·u that a TF32 or half-precision product cannot pass at any size. Row and
elementwise ops: largest |error| / bound, whose bar is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Iterable, Sequence

import torch
from torch import Tensor

UNIT_ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
HALF_DTYPES = (torch.float16, torch.bfloat16)
HALF_SMALLEST_SUBNORMAL_F16 = 2.0**-25

# Upper end of each class of n = min(M, N), then the bars of that class.
CLASSES = (15, 63, 1023, math.inf)
RECONSTRUCTION_BARS = (15.0, 5.0, 2.5, 1.0)
ORTHOGONALITY_BARS = (15.0, 7.0, 3.0, 1.5)
CHOLESKY_BARS = (3.0, 1.0, 1.0, 1.0)
HALF_BARS = (3.0, 1.0, 1.0, 1.0)
SOLVE_BAR = 10.0
SECOND_GATE_FROM = 16
SECOND_RECONSTRUCTION_BAR = 20.0
SECOND_ORTHOGONALITY_BAR = 60.0
SECOND_CHOLESKY_BAR = 2.0


@dataclass(frozen=True)
class Gate:
    """One measured ratio and the bar it must not exceed."""

    name: str
    ratio: float
    bar: float = 1.0

    @property
    def passed(self) -> bool:
        return self.ratio <= self.bar

    @property
    def share(self) -> float:
        """ratio / bar: 1 is the limit. Infinite when the ratio is not a number."""
        return math.inf if math.isnan(self.ratio) else self.ratio / self.bar


def worst_share(gates: Iterable[Gate]) -> float:
    """Largest ratio / bar."""
    return max((gate.share for gate in gates), default=math.inf)


def wide(x: Tensor) -> Tensor:
    """x in float64, on the host where the device has no float64."""
    if x.device.type == "mps":
        x = x.cpu()
    return x.detach().to(torch.float64)


def rounding(dtype: torch.dtype) -> float:
    """rho: u for a half-precision output, else 0."""
    return UNIT_ROUNDOFF[dtype] if dtype in HALF_DTYPES else 0.0


def working_roundoff(dtype: torch.dtype) -> float:
    """w: 2^-53 for float64 input, else 2^-24, the roundoff of the arithmetic."""
    return UNIT_ROUNDOFF[torch.float64 if dtype == torch.float64 else torch.float32]


def gamma(terms: int, dtype: torch.dtype) -> float:
    """gamma(k) = (8 + log2 k) w: growth of a sum of k terms."""
    return (8 + math.log2(max(terms, 1))) * working_roundoff(dtype)


def excess(got: Tensor, want: Tensor, bound: Tensor) -> float:
    """max |got - want| / bound; 0/0 counts as 0, and a NaN comes out as NaN. `want` and `bound` are
    float64; a float16 result may also be off by half its smallest subnormal."""
    if got.numel() == 0:
        return 0.0
    if got.dtype == torch.float16:
        bound = bound + HALF_SMALLEST_SUBNORMAL_F16
    error = (wide(got) - want).abs_()
    return float(torch.where(error == 0, error, error / bound).max())


def nan_max(a: float, b: float) -> float:
    """The larger of two; NaN if either is."""
    return b if math.isnan(b) or b > a else a


def bar_of_class(n: int, bars: Sequence[float]) -> float:
    return next(bar for top, bar in zip(CLASSES, bars) if n <= top)


def qr_gates(A: Tensor, Q: Tensor, R: Tensor) -> list[Gate]:
    """Gates of a reduced QR of A (..., M, N): reconstruction, orthogonality, both again in √n·u from
    n = 16, and exact zeros below R's diagonal. 1-norms, worst batch item."""
    m, n = A.shape[-2], A.shape[-1]
    small, large = min(m, n), max(m, n)
    u = UNIT_ROUNDOFF[Q.dtype]
    half = Q.dtype in HALF_DTYPES
    A64, Q64, R64 = wide(A), wide(Q), wide(R)
    exact = Q.dtype == torch.float64 and small < 64
    residual = product_residual(A64, Q64, R64, exact)
    identity = torch.eye(small, dtype=torch.float64, device=Q64.device).expand(*Q64.shape[:-2], small, small)
    defect = product_residual(identity, Q64.mT, Q64, exact)

    norm = one_norm(A64)
    missed = one_norm(residual)
    reconstruction = worst(torch.where(missed == 0, missed, missed / (large * u * norm)))
    orthogonality = worst(one_norm(defect) / (m * u))
    gates = [
        Gate("reconstruction", reconstruction, bar_of_class(small, HALF_BARS if half else RECONSTRUCTION_BARS)),
        Gate("orthogonality", orthogonality, bar_of_class(small, HALF_BARS if half else ORTHOGONALITY_BARS)),
        Gate("triangle", 0.0 if bool((R64.tril(-1) == 0).all()) else math.inf),
    ]
    if small >= SECOND_GATE_FROM:
        gates += [
            Gate("reconstruction sqrt", reconstruction * math.sqrt(large), SECOND_RECONSTRUCTION_BAR),
            Gate("orthogonality sqrt", orthogonality * math.sqrt(m), SECOND_ORTHOGONALITY_BAR),
        ]
    return gates


def cholesky_gates(A: Tensor, L: Tensor) -> list[Gate]:
    """Gates of A = L L' (..., N, N): reconstruction, again in √n·u from n = 16, exact zeros above L's diagonal."""
    n = A.shape[-1]
    A64, L64 = wide(A), wide(L)
    missed = one_norm(product_residual(A64, L64, L64.mT, L.dtype == torch.float64 and n < 64))
    ratio = worst(torch.where(missed == 0, missed, missed / (n * UNIT_ROUNDOFF[L.dtype] * one_norm(A64))))
    gates = [
        Gate("reconstruction", ratio, bar_of_class(n, CHOLESKY_BARS)),
        Gate("triangle", 0.0 if bool((L64.triu(1) == 0).all()) else math.inf),
    ]
    if n >= SECOND_GATE_FROM and L.dtype not in HALF_DTYPES:
        gates.append(Gate("reconstruction sqrt", ratio * math.sqrt(n), SECOND_CHOLESKY_BAR))
    return gates


def solve_gates(A: Tensor, b: Tensor, X: Tensor) -> list[Gate]:
    """The gate of A X = b (..., N, K): |b - A x| / (|A| |x| u) of the worst column."""
    A64, b64, X64 = (wide(t).cpu() for t in (A, b, X))
    size = one_norm(A64)[..., None] * X64.abs().sum(-2)
    missed = (b64 - A64 @ X64).abs().sum(-2)
    ratio = worst(torch.where(missed == 0, missed, missed / (size * UNIT_ROUNDOFF[X.dtype])))
    return [Gate("residual", ratio, max(SOLVE_BAR, A.shape[-1] / 50))]


def svd_gates(A: Tensor, U: Tensor | None, S: Tensor, V: Tensor | None) -> list[Gate]:
    """Gates of a thin SVD of A (..., M, N): reconstruction, orthogonality of U and V, singular values (alone, if there is
    no U), 1-norms, worst batch item."""
    m, n = A.shape[-2], A.shape[-1]
    small, large = min(m, n), max(m, n)
    u = UNIT_ROUNDOFF[S.dtype]
    half = S.dtype in HALF_DTYPES
    A64, S64 = wide(A), wide(S)
    exact = torch.linalg.svdvals(A64.cpu()).to(S64.device)
    bars = HALF_BARS if half else (7.0, 2.0, 1.0, 1.0)
    missed = (S64 - exact).abs().amax(-1)
    values = worst(torch.where(missed == 0, missed, missed / (large * u * exact[..., 0])))
    gates = [Gate("values", values, bar_of_class(small, bars))]
    if U is None or V is None:
        return gates
    U64, V64 = wide(U), wide(V)
    missed, norm = one_norm(A64 - (U64 * S64.unsqueeze(-2)) @ V64.mT), one_norm(A64)
    reconstruction = worst(torch.where(missed == 0, missed, missed / (large * u * norm)))
    identity = torch.eye(small, dtype=torch.float64, device=U64.device)
    gates.append(Gate("reconstruction", reconstruction, bar_of_class(small, HALF_BARS if half else RECONSTRUCTION_BARS)))
    for name, Q, rows in (("orthogonality of U", U64, m), ("orthogonality of V", V64, n)):
        ratio = worst(one_norm(identity - Q.mT @ Q) / (rows * u))
        gates.append(Gate(name, ratio, bar_of_class(small, HALF_BARS if half else ORTHOGONALITY_BARS)))
    return gates


def one_norm(X: Tensor) -> Tensor:
    """Largest column sum of magnitudes, per batch item."""
    return X.abs().sum(-2).amax(-1)


def worst(ratios: Tensor) -> float:
    """Largest ratio; NaN if any is."""
    return float(ratios.max()) if ratios.numel() else 0.0


def product_residual(A: Tensor, X: Tensor, Y: Tensor, exact: bool) -> Tensor:
    """A - X Y in float64, or in double-double where the result itself is float64 and small."""
    if not exact:
        return A - X @ Y
    high, low = A.clone(), torch.zeros_like(A)
    for k in range(X.shape[-1]):
        product, tail = two_product(X[..., :, k : k + 1], Y[..., k : k + 1, :])
        high, lost = two_sum(high, -product)
        low += lost - tail
    return high + low


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Knuth's error-free sum: a + b = s + e exactly."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Dekker's error-free product with Veltkamp's splitting: a b = p + e exactly."""
    p = a * b
    a1, a2 = split(a)
    b1, b2 = split(b)
    return p, a2 * b2 - (((p - a1 * b1) - a2 * b1) - a1 * b2)


def split(a: Tensor) -> tuple[Tensor, Tensor]:
    c = (2.0**27 + 1) * a
    high = c - (c - a)
    return high, a - high
