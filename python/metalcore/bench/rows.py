"""What a workload hands to the runner: cases (described), rows (built) and host calls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Callable, Optional, Sequence

import torch

from .accuracy import Gate
from .machine import Profile

Call = Callable[[int], Any]
"""A timed call. Its argument says which copy of the inputs to use."""

LARGE_OPERAND_BYTES = 64_000_000
"""An operand of this size needs no rotation: it does not stay in a cache between calls."""

TIMES = "\u00d7"

MOST_COPIES = 512
"""Rotation stops here. Only launch-bound shapes reach it."""

EXPECTED_EFFICIENCY = 0.05
"""Share of the roofline assumed for a slow peer when guessing whether a row is a long one."""


@dataclass(frozen=True)
class Cost:
    """Compulsory work of one call. `rate` names the GEMM rate that bounds the flops."""

    bytes: float
    flops: float = 0.0
    rate: str = "fp32"

    def floor_s(self, profile: Profile) -> float:
        """max(bytes / copy bandwidth, flops / rate), in seconds."""
        seconds = self.bytes / profile.copy_bytes_per_s
        if self.flops:
            seconds = max(seconds, self.flops / profile.gemm_flops_per_s[self.rate])
        return seconds


@dataclass(frozen=True)
class Peer:
    """A competitor. `clock` is 'device' (as ours), or 'wall' for a call that returns only when
    its result is there; against a wall peer ours is timed by the wall too."""

    call: Call
    clock: str = "device"


@dataclass
class Row:
    """One line of the table, with its buffers."""

    ours: Call
    peers: dict[str, Peer]
    check: Callable[[int, Any], list[Gate]]
    """(copy, output of the last timed call on it) -> gates, over every batch item."""
    copies: int = 1
    skipped: dict[str, str] = field(default_factory=dict)
    memory: Optional[Callable[[], dict[str, dict[str, Optional[int]]]]] = None
    note: str = ""


@dataclass(frozen=True)
class Context:
    """What a workload may look at while it builds its cases."""

    device: torch.device
    profile: Profile
    peers: frozenset[str]
    dtypes: Optional[tuple[torch.dtype, ...]] = None
    quick: bool = False
    lite: bool = False

    def dtypes_or(self, *default: torch.dtype) -> Sequence[torch.dtype]:
        """The dtypes of `--dtype`, or the op's own list."""
        return default if self.dtypes is None else self.dtypes

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"


@dataclass(frozen=True)
class Case:
    """A row before its buffers exist. `gpu_only` is WORKLOADS' mark G, `quick` its mark Q."""

    op: str
    shape: str
    dtype: torch.dtype
    cost: Cost
    build: Callable[[], Row]
    quick: bool = False
    gpu_only: bool = False
    memory_bytes: float = 0.0

    def is_long(self, profile: Profile) -> bool:
        """Whether one call of some peer is expected to take more than a second."""
        return self.cost.floor_s(profile) / EXPECTED_EFFICIENCY > 1.0


@dataclass(frozen=True)
class HostCall:
    """A pair of launch-bound calls whose host time is compared; nothing waits for the device."""

    op: str
    shape: str
    grad: str
    ours: Callable[[], Any]
    torch: Callable[[], Any]


def copies_needed(largest_operand_bytes: float, set_bytes: float, cache_bytes: float) -> int:
    """How many copies of a memory-bound row's buffers keep every call out of the last-level cache:
    one where an operand or the set is large, else copies totalling more than twice the cache."""
    if largest_operand_bytes >= LARGE_OPERAND_BYTES or set_bytes > 2 * cache_bytes:
        return 1
    return min(math.ceil(2 * cache_bytes / set_bytes) + 1, MOST_COPIES)


def times(*sizes: int) -> str:
    """Shape label, the sizes with a multiplication sign between."""
    return TIMES.join(str(size) for size in sizes)
