"""What the tests measure with: unit roundoffs, the bars of the accuracy contract, ratios, componentwise bounds, bits, views.

Residuals are formed in float64, those of float64 results in long double. Every measured ratio is recorded; the end of a
run prints the worst of each kind beside its bar, and how many items miss the aim.
"""

from __future__ import annotations

import math
from typing import Callable, Iterator

import metalcore
import numpy as np
import torch
from torch import Tensor

EMULATED = metalcore.config.emulate
ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
HALVES = (torch.float16, torch.bfloat16)
OTHER_DTYPE = {
    torch.float32: torch.bfloat16,
    torch.float64: torch.float32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float16,
}
# Text of every error: op: argument: got ..., expected ...
ERROR_TEXT = r"^{op}: {argument}: got .+, expected .+"

# Upper ends of the classes of n = min(M, N), and the bars of each.
_CLASSES = (15, 63, 1023, math.inf)
_RECONSTRUCTION = (15.0, 5.0, 2.5, 1.0)
_ORTHOGONALITY = (15.0, 7.0, 3.0, 1.5)
_HALF = (3.0, 1.0, 1.0, 1.0)
_AIM = (3.0, 1.0, 1.0, 1.0)
# From n = 16 a second gate in sqrt(n) u, which a TF32 or half-precision product fails at every size.
_SECOND_FROM, _SECOND_RECONSTRUCTION, _SECOND_ORTHOGONALITY = 16, 20.0, 60.0
TRIANGULAR_SOLVE_BAR = 10.0


# --- values and bits ------------------------------------------------------------------------------


def exact(tensor: Tensor, long: bool = True) -> np.ndarray:
    """The values: float64, or long double for float64 tensors (unless ``long`` is off)."""
    values = tensor.detach().cpu().double().resolve_neg().numpy()
    return values.astype(np.longdouble) if long and tensor.dtype == torch.float64 else values


def bits(tensor: Tensor) -> Tensor:
    """The values as integers, which compare NaN and the sign of zero too."""
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[tensor.element_size()]
    return tensor.detach().cpu().resolve_neg().contiguous().view(integer)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether dtype, shape and every bit are equal."""
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def normal(*shape: int, device: torch.device, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Standard normal values, the same on every device."""
    return (torch.randn(shape, dtype=torch.float64) * scale).to(dtype).to(device)


def storages(*tensors: Tensor) -> list[int]:
    """Addresses of the memory behind the tensors that have any."""
    return [t.untyped_storage().data_ptr() for t in tensors if t.numel()]


def assert_fresh(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> None:
    """Outputs are contiguous, on the inputs' device, and share memory with no input and with no other output."""
    for output in outputs:
        assert output.is_contiguous() and output.device == inputs[0].device
    where = storages(*outputs)
    assert len(set(where)) == len(where), "two outputs share memory"
    assert not set(where) & set(storages(*inputs)), "an output shares memory with an input"


class Unchanged:
    """``with Unchanged(a, b):`` asserts that the tensors keep their bits and their version."""

    def __init__(self, *tensors: Tensor) -> None:
        self.before = [(t, bits(t).clone(), t._version) for t in tensors]

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            for tensor, old, version in self.before:
                assert torch.equal(bits(tensor), old), "an input was written to"
                assert tensor._version == version, "the version of an input was bumped"


def _padded(tensor: Tensor, rows: int, columns: int) -> Tensor:
    room = tensor.new_full((*tensor.shape[:-2], tensor.shape[-2] + rows, tensor.shape[-1] + columns), math.nan)
    room[..., : tensor.shape[-2], : tensor.shape[-1]] = tensor
    return room[..., : tensor.shape[-2], : tensor.shape[-1]]


def _every_second(tensor: Tensor) -> Tensor:
    room = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1]), math.nan)
    room[..., ::2] = tensor
    return room[..., ::2]


def _offset(tensor: Tensor) -> Tensor:
    room = tensor.new_full((tensor.numel() + 1,), math.nan)
    room[1:] = tensor.reshape(-1)
    return room[1:].view(tensor.shape)


# Name of a view -> (dimensions it needs, how it is made). What lies between its elements is NaN.
_VIEWS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "transposed": (2, lambda t: t.mT.contiguous().mT),
    "padded": (2, lambda t: _padded(t, 1, 3)),
    "batch innermost": (3, lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0)),
    "every second element": (1, _every_second),
    "offset by one element": (1, _offset),
    "lazily negated": (1, lambda t: torch._neg_view(-t)),
}
VIEWS = tuple(_VIEWS)


def views(name: str, *tensors: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(position, view) of those tensors that can be laid out so; a view has the values of its tensor."""
    dimensions, make = _VIEWS[name]
    for i, tensor in enumerate(tensors):
        if tensor.ndim >= dimensions:
            yield i, make(tensor)


# --- ratios ---------------------------------------------------------------------------------------

# What was measured: name -> [worst share of the bar, its ratio, its bar, items, items that miss the aim].
_RECORDS: dict[str, list] = {}


def _record(name: str, ratios: np.ndarray, bar: float, aim: float) -> None:
    if ratios.size == 0:
        return
    worst = float(ratios.max())
    share = math.inf if math.isnan(worst) else worst / bar
    old = _RECORDS.setdefault(name, [-1.0, 0.0, 0.0, 0, 0])
    if share > old[0]:
        old[:3] = share, worst, bar
    old[3] += ratios.size
    old[4] += int((~(ratios <= aim)).sum())


def record(what: str, dtype: torch.dtype, ratios: np.ndarray, bar: float) -> None:
    """Keeps the worst of ratios that a test asserts to be within their bar."""
    _record(f"{what} {_short(dtype)}", np.atleast_1d(ratios), bar, bar)


def ratio_table() -> Iterator[str]:
    """Lines for the end of the run."""
    if _RECORDS:
        yield "worst ratios, their bars, items measured, items over the aim:"
    for name, (_, worst, bar, items, missed) in sorted(_RECORDS.items()):
        yield f"  {name:<42} {worst:8.3g} of {bar:<5.3g} {items:>9} {missed:>7}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def quotients(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotients, in which 0 / 0 is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(numerator == 0, 0.0, numerator / denominator).astype(np.float64)


def working_roundoff(dtype: torch.dtype) -> float:
    """w: the roundoff of the arithmetic behind results of this dtype."""
    return ROUNDOFF[torch.float64 if dtype == torch.float64 else torch.float32]


def rho(dtype: torch.dtype) -> float:
    """The one rounding of a half-precision result; 0 for the others."""
    return ROUNDOFF[dtype] if dtype in HALVES else 0.0


def gamma(terms: int, dtype: torch.dtype) -> float:
    """(8 + log2 k) w: growth of the error of a sum of k terms."""
    return (8 + math.log2(max(terms, 1))) * working_roundoff(dtype)


def assert_within(what: str, got: Tensor, want: np.ndarray, bound: np.ndarray, dtype: torch.dtype | None = None) -> None:
    """|got - want| <= bound in every element; a float16 may also be off by half its smallest subnormal."""
    assert tuple(got.shape) == want.shape, what
    if got.dtype == torch.float16:
        bound = bound + 2.0**-25
    ratios = quotients(np.abs(exact(got) - want), bound)
    _record(f"{what} {_short(dtype or got.dtype)}", ratios, 1.0, 1.0)
    worst = float(ratios.max(initial=0.0))
    assert worst <= 1, f"{what}: error is {worst:.3g} of its bound, at {np.unravel_index(ratios.argmax(), ratios.shape)}"


def one_norm(X: np.ndarray) -> np.ndarray:
    """Largest column sum of magnitudes, per batch item."""
    return np.abs(X).sum(-2).max(-1, initial=0)


def qr_ratios(A: Tensor, Q: Tensor, R: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(reconstruction, orthogonality) of every item, 1-norms."""
    m, n = A.shape[-2:]
    u = ROUNDOFF[Q.dtype]
    long = min(m, n) < 64
    a, q, r = (exact(t, long) for t in (A, Q, R))
    # A power of two brings the entries to 1, so that no sum overflows.
    size = np.frexp(np.abs(a).max((-2, -1), keepdims=True, initial=0))[1]
    a, r = np.ldexp(a, -size), np.ldexp(r, -size)
    residual, defect = one_norm(a - q @ r), one_norm(np.eye(q.shape[-1]) - np.swapaxes(q, -2, -1) @ q)
    return quotients(residual, max(m, n) * u * one_norm(a)), quotients(defect, np.asarray(m * u))


def assert_qr(A: Tensor, Q: Tensor, R: Tensor, mode: str = "reduced", items: list[str] | None = None) -> None:
    """Shapes, exact zeros below the diagonal, and both ratios of every item within their bars and the second gate."""
    *batch, m, n = A.shape
    k = min(m, n)
    inner = m if mode == "complete" else k
    assert Q.shape == (*batch, m, inner) and R.shape == (*batch, inner, n)
    assert Q.dtype == A.dtype and R.dtype == A.dtype
    assert bool((R.tril(-1) == 0).all()), "R is not exactly zero below its diagonal"
    place = next(i for i, top in enumerate(_CLASSES) if k <= top)
    half = A.dtype in HALVES
    reconstruction, orthogonality = qr_ratios(A, Q, R)
    gates = [
        ("reconstruction", reconstruction, (_HALF if half else _RECONSTRUCTION)[place], _AIM[place]),
        ("orthogonality", orthogonality, (_HALF if half else _ORTHOGONALITY)[place], _AIM[place]),
    ]
    if k >= _SECOND_FROM:
        gates += [
            ("reconstruction, sqrt(n) u", reconstruction * math.sqrt(max(m, n)), _SECOND_RECONSTRUCTION, math.inf),
            ("orthogonality, sqrt(n) u", orthogonality * math.sqrt(m), _SECOND_ORTHOGONALITY, math.inf),
        ]
    for name, ratios, bar, aim in gates:
        _record(f"qr {name} {_short(A.dtype)} n<={_CLASSES[place]:g}", ratios, bar, aim)
        bad = np.flatnonzero(~(ratios <= bar))
        named = [items[i] if items else int(i) for i in bad]
        assert not bad.size, f"{m}x{n} {mode}: {name} {ratios.reshape(-1)[bad]} over {bar} in {named}"


# --- matrices -------------------------------------------------------------------------------------


def orthogonal(m: int, n: int) -> Tensor:
    """Random with orthonormal columns (rows if n > m), float64."""
    X = torch.randn(max(m, n), min(m, n), dtype=torch.float64)
    Q = torch.linalg.qr(X).Q
    return Q if m >= n else Q.mT


def with_condition(m: int, n: int, condition: float) -> Tensor:
    """Random with singular values spread evenly, in their logarithm, from 1 down to 1 / condition; float64."""
    k = min(m, n)
    values = torch.logspace(0, -math.log10(condition), k, dtype=torch.float64)
    return (orthogonal(m, k) * values) @ orthogonal(k, n)


def families(m: int, n: int, dtype: torch.dtype) -> tuple[list[str], Tensor]:
    """Names and a batch (families, m, n) of matrices that break algorithms, on cpu, in the dtype."""
    info = torch.finfo(dtype)
    rows, columns = torch.arange(m, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    G = torch.randn(m, n, dtype=torch.float64)
    k = min(m, n)
    rank = max(1, k // 2)
    far = 1e3 if dtype == torch.float16 else 1e18
    largest = info.max / (8 * math.sqrt(max(m, 1)) * max(float(G.abs().amax()) if G.numel() else 1.0, 1.0))
    eye = (rows == columns).double()
    found = {
        "gaussian": G,
        "uniform": torch.rand(m, n, dtype=torch.float64),
        "condition 1e6": with_condition(m, n, 1e6),
        "condition 1/u": with_condition(m, n, 1 / ROUNDOFF[dtype]),
        "rank K/2": torch.randn(m, rank, dtype=torch.float64) @ torch.randn(rank, n, dtype=torch.float64),
        "rank 1": torch.randn(m, 1, dtype=torch.float64) @ torch.randn(1, n, dtype=torch.float64),
        "orthogonal": orthogonal(m, n),
        "columns graded down over 1e8": G * 1e-8 ** (columns / max(n - 1, 1)),
        "columns graded up over 1e8": G * 1e-8 ** (1 - columns / max(n - 1, 1)),
        "rows graded over 1e8": G * 1e-8 ** (rows / max(m - 1, 1)),
        "scaled up": G * far,
        "scaled down": G / far,
        "near overflow": G * largest,
        "near underflow": G * (info.tiny / ROUNDOFF[dtype]),
        "zero": torch.zeros(m, n, dtype=torch.float64),
        "identity": eye,
        "minus identity": -eye,
        "ones": torch.ones(m, n, dtype=torch.float64),
        "signs": G.sign(),
        "repeated columns": G[:, :1].expand(m, n),
        "first column zero": G * (columns > 0),
        "last column zero": G * (columns < n - 1),
        "upper triangular": G.triu(),
        "lower triangular": G.tril(),
        "one entry": ((rows == m - 1) & (columns == 0)).double(),
        "Hilbert": 1 / (rows + columns + 1),
        "Wilkinson": eye * (rows - (k - 1) / 2).abs() + ((rows - columns).abs() == 1),
        "Kahan": 0.96**rows * (eye - 0.28 * (columns > rows)),
    }
    return list(found), torch.stack([X.expand(m, n).to(dtype) for X in found.values()])
