"""Which calls of torch.linalg the overrides are faster for: `python -m metalcore.bench.overrides DEVICE [OP ...]`.

Prints a line a shape, with torch's time over ours of calls one after another (ratio) and of a call that finds the device
idle (idle), and writes the run to results/overrides/. The lines of metalcore/_thresholds.py are made from it.
"""

from __future__ import annotations

import statistics
import sys
import time
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Callable, Sequence

import torch
from torch import Tensor

import metalcore
from metalcore import _thresholds
from metalcore.overrides import OVERRIDES

from . import history, machine
from .rows import TIMES
from .timing import synchronizer

Shape = tuple[int, ...]
Clock = Callable[[], None]

SQUARE: tuple[Shape, ...] = (
    (1, 16, 16), (10, 16, 16), (100, 16, 16), (500, 16, 16), (10000, 16, 16),
    (1, 32, 32), (10, 32, 32), (100, 32, 32), (1, 64, 64), (10, 64, 64), (200, 64, 64),
    (1, 128, 128), (10, 128, 128), (50, 128, 128), (1, 256, 256), (10, 256, 256), (1, 512, 512), (5, 512, 512), (1, 1024, 1024),
)  # fmt: skip
RECTANGLES: tuple[Shape, ...] = ((100, 32, 16), (500, 64, 16), (100, 128, 64), (10, 256, 64), (1, 512, 128), (100, 16, 32))
MANY: tuple[Shape, ...] = ((10000, 32, 32),)
"""Of what is quick for it."""
LONGEST_S = 0.4
"""Of the calls of a row, one after another."""


def regular(A: Tensor) -> Tensor:
    """Far from singular."""
    return A + 4 * torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)


def definite(A: Tensor) -> Tensor:
    return A @ A.mT / A.shape[-1] + torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)


def triangle(A: Tensor) -> Tensor:
    return A.tril() / A.shape[-1] + 2 * torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)


def sides(A: Tensor, columns: int) -> Tensor:
    return torch.randn(*A.shape[:-1], columns, dtype=A.dtype, device=A.device)


OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[Shape, ...], tuple[int, ...]]] = {
    "svd": (lambda A: A, SQUARE + RECTANGLES, ()),
    "svdvals": (lambda A: A, SQUARE + RECTANGLES, ()),
    "eigh": (lambda A: A + A.mT, SQUARE, ()),
    "eigvalsh": (lambda A: A + A.mT, SQUARE, ()),
    "cholesky": (definite, SQUARE + MANY, ()),
    "cholesky_ex": (definite, SQUARE + MANY, ()),
    "solve": (regular, SQUARE + MANY, (1, 8)),
    "solve_ex": (regular, SQUARE + MANY, (1, 8)),
    "solve_triangular": (triangle, SQUARE + MANY, (1, 8)),
    "inv": (regular, SQUARE + MANY, ()),
    "lstsq": (lambda A: A, RECTANGLES, (4,)),
    "pinv": (lambda A: A, SQUARE[:-4] + RECTANGLES, ()),
}
"""The matrices of each function, their shapes, and the right sides."""


def compare(ours: Callable[[], Any], theirs: Callable[[], Any], wait: Clock) -> dict[str, float]:
    """torch's time over ours."""
    for call in (ours, theirs, ours, theirs):
        call()
    wait()
    once = timed(theirs, wait)
    idle = interleaved((ours, theirs), wait, 1, max(3, min(60, int(LONGEST_S / once))))
    busy = interleaved((ours, theirs), wait, max(1, min(30, int(LONGEST_S / 4 / once))), 5)
    return {"ratio": busy[1] / busy[0], "idle": idle[1] / idle[0], "ours_us": 1e6 * idle[0]}


def timed(call: Callable[[], Any], wait: Clock, times: int = 1) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return (time.perf_counter() - start) / times


def interleaved(calls: Sequence[Callable[[], Any]], wait: Clock, times: int, rounds: int) -> list[float]:
    """The median of each."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for seconds, call in zip(found, calls):
            seconds.append(timed(call, wait, times))
    return [statistics.median(seconds) for seconds in found]


def measure(op: str, device: torch.device) -> list[dict[str, Any]]:
    """The rows of one function; a shape that torch itself refuses is left out."""
    make, shapes, columns = OPERATIONS[op]
    owner, attribute = OVERRIDES[op].owner, OVERRIDES[op].attribute
    original = getattr(owner, attribute)
    options = {"upper": False} if op == "solve_triangular" else {}
    rows = []
    for shape in shapes:
        A = make(torch.randn(shape, device=device))
        for k in columns or (0,):
            arguments = (A, sides(A, k)) if k else (A,)
            with metalcore.enable_pytorch_overrides(), _thresholds.everything():
                ours = partial(getattr(owner, attribute), *arguments, **options)
                found = compare(ours, partial(original, *arguments, **options), synchronizer(device))
            label = TIMES.join(map(str, shape)) + (f", {k}" if k else "")
            rows.append({"op": op, "shape": label, "dtype": "fp32", **found})
            print(f"{op:18}{label:22}{found['ratio']:8.2f} idle {found['idle']:8.2f}  {found['ours_us']:.0f} us", flush=True)
    return rows


def main(arguments: Sequence[str]) -> int:
    device = torch.device(arguments[0])
    torch.manual_seed(1)
    rows = [row for op in arguments[1:] or OPERATIONS for row in measure(op, device)]
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    record = {"kind": "overrides", "time": now, "machine": machine.describe(device), "rows": rows}
    folder = Path("results") / "overrides"
    folder.mkdir(parents=True, exist_ok=True)
    history.append(record, folder / f"{record['machine']['id']}.jsonl")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
