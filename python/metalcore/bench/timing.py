"""How calls are timed: interleaved, warm, median with p10 and p90.

GPU time is taken by device events around one call. In front of every timed call the device is given
about half a millisecond of reading to do (`lead_in`), so that the host is already past the call when
the device reaches it: events then hold device work and no Python, for us and for every peer alike.
That reading also leaves no operand in the cache. CPU time, and any peer with a clock of its own, is
wall time up to the result. Host overhead is the wall time of the call alone, without the wait.

On the CPU freed memory stays in the process (`keep_freed_memory`). With glibc's defaults every output
above 32 MB is fresh memory, whose page faults can cost several times the op itself, for each side.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Optional, Sequence

import torch

Job = Callable[[], Any]
Call = Callable[[int], Any]

LEAD_IN_S = 0.0005
NOISY_SPREAD = 1.3
HOST_CALLS = 10_000
HOST_CHUNK = 50
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


@dataclass(frozen=True)
class Plan:
    """How often a row is run. `slow_runs` replaces `runs` where one call takes over `slow_call_s`."""

    runs: int = 30
    most_runs: int = 30
    budget_s: float = 2.0
    slow_runs: int = 5
    slow_call_s: float = 0.5
    warm_rounds: int = 3
    settle_s: float = 0.2
    host_calls: int = HOST_CALLS

    def runs_for(self, call_s: Sequence[float]) -> int:
        """Runs for calls of these durations in seconds."""
        if max(call_s) > self.slow_call_s:
            return self.slow_runs
        return max(self.runs, min(self.most_runs, int(self.budget_s / max(sum(call_s), 1e-9))))


QUICK = Plan()
FULL = Plan(most_runs=100)
LITE = Plan(runs=1, most_runs=1, slow_runs=1, warm_rounds=0, settle_s=0.0, host_calls=10)


@dataclass(frozen=True)
class Stats:
    """Times in seconds; host_s is the median wall time of the call without a wait."""

    median_s: float
    p10_s: float
    p90_s: float
    host_s: float
    runs: int

    @property
    def noisy(self) -> bool:
        return self.p90_s > NOISY_SPREAD * self.p10_s


Sample = tuple[float, float]
"""(seconds, host seconds) of one call."""


def synchronizer(device: torch.device) -> Callable[[], None]:
    """The function that waits for the device; on the CPU nothing is pending."""
    if device.type == "cpu":
        return lambda: None
    return torch.get_device_module(device).synchronize


class WallTimer:
    """Wall time from the call to its result. `kept` is the output of the job that the last
    round was told to keep; every other output is dropped before the next call."""

    def __init__(self, device: torch.device) -> None:
        self.wait = synchronizer(device)
        self.kept: Any = None

    def round(self, jobs: Sequence[Job], keep: Optional[int] = None) -> list[Sample]:
        self.kept = None
        samples = []
        for position, job in enumerate(jobs):
            self.wait()
            begin = time.perf_counter()
            output = job()
            returned = time.perf_counter()
            self.wait()
            samples.append((time.perf_counter() - begin, returned - begin))
            if position == keep:
                self.kept = output
            output = None
        return samples


class EventTimer:
    """Device time by events around one call, queued behind a lead-in."""

    def __init__(self, device: torch.device, lead_in: Callable[[], None]) -> None:
        module = torch.get_device_module(device)
        self.wait = module.synchronize
        self.event = lambda: module.Event(enable_timing=True)
        self.lead_in = lead_in
        self.kept: Any = None

    def round(self, jobs: Sequence[Job], keep: Optional[int] = None) -> list[Sample]:
        self.kept = None
        pending = []
        for position, job in enumerate(jobs):
            start, stop = self.event(), self.event()
            self.lead_in()
            start.record()
            begin = time.perf_counter()
            output = job()
            host = time.perf_counter() - begin
            stop.record()
            pending.append((start, stop, host))
            if position == keep:
                self.kept = output
            output = None
        self.wait()
        return [(start.elapsed_time(stop) * 1e-3, host) for start, stop, host in pending]


def device_timer(device: torch.device, cache_bytes: float = 0.0) -> Any:
    """The timer of a device: events on a GPU, the wall on the CPU."""
    if device.type == "cpu":
        return WallTimer(device)
    return EventTimer(device, lead_in(device, cache_bytes))


def lead_in(device: torch.device, cache_bytes: float) -> Callable[[], None]:
    """About LEAD_IN_S of reading from a buffer twice as large as the cache."""
    elements = int(max(2 * cache_bytes, 64e6)) // 4
    buffer = torch.ones(elements, dtype=torch.float32, device=device)
    wait = synchronizer(device)
    for _ in range(3):
        buffer.sum()
    wait()
    begin = time.perf_counter()
    for _ in range(10):
        buffer.sum()
    wait()
    one = (time.perf_counter() - begin) / 10
    repeats = max(1, round(LEAD_IN_S / one))

    def read() -> None:
        for _ in range(repeats):
            buffer.sum()

    return read


def keep_freed_memory() -> str:
    """Tells glibc to reuse freed memory of any size, as a GPU's caching allocator does. Returns what
    the allocator is, for the record."""
    if platform.libc_ver()[0] != "glibc":
        return "system"
    library = ctypes.CDLL(None)
    done = library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, -1)
    return "glibc, freed memory kept" if done else "glibc"


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Python's collector is kept out of the timed region."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Interleaved:
    """Runs several calls in turn, A B C, B C A, …: no call always follows the same one. Each call gets
    the next copy of the inputs, so that none finds what the one before it left in a cache."""

    def __init__(self, timer: Any, calls: dict[str, Call], copies: int) -> None:
        self.timer = timer
        self.names = list(calls)
        self.calls = list(calls.values())
        self.copies = copies
        self.turn = 0
        self.rounds = 0
        self.first_copy = 0
        """Copy that the first call was last run on; after `measure` its output is `timer.kept`."""

    def round(self, keep_first: bool = False) -> list[Sample]:
        """One sample per call, in the order of `names`."""
        count = len(self.calls)
        order = [(self.rounds + place) % count for place in range(count)]
        self.rounds += 1
        jobs = []
        for which in order:
            copy = self.turn % self.copies
            self.turn += 1
            if which == 0:
                self.first_copy = copy
            jobs.append(lambda call=self.calls[which], copy=copy: call(copy))
        samples = dict(zip(order, self.timer.round(jobs, order.index(0) if keep_first else None)))
        return [samples[which] for which in range(count)]

    def measure(self, plan: Plan) -> dict[str, Stats]:
        """Settles the clocks, then times every call `plan.runs_for` times. Only the last round keeps an
        output: one kept longer would change which memory the allocator hands to the next call."""
        with no_garbage_collection():
            last = self.settle(plan)
            runs = plan.runs_for([seconds for seconds, _ in last])
            rounds = [self.round() for _ in range(runs - 1)]
            rounds.append(self.round(keep_first=True))
        return {name: summarize([r[i] for r in rounds]) for i, name in enumerate(self.names)}

    def settle(self, plan: Plan) -> list[Sample]:
        begin = time.perf_counter()
        rounds = 0
        last = self.round()
        while rounds < plan.warm_rounds or time.perf_counter() - begin < plan.settle_s:
            last = self.round()
            rounds += 1
        return last


def summarize(samples: Sequence[Sample]) -> Stats:
    """Median, p10 and p90 of the seconds; median of the host seconds."""
    seconds = [sample[0] for sample in samples]
    host = statistics.median(sample[1] for sample in samples)
    if len(seconds) == 1:
        return Stats(seconds[0], seconds[0], seconds[0], host, 1)
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return Stats(statistics.median(seconds), tenths[0], tenths[-1], host, len(seconds))


def median_s(timer: Any, job: Job, runs: int) -> float:
    """Median seconds of one job after three warm calls."""
    for _ in range(3):
        timer.round([job])
    return statistics.median(timer.round([job])[0][0] for _ in range(runs))


def host_times(device: torch.device, jobs: Sequence[Job], calls: int) -> list[float]:
    """Host seconds per call of each job: chunks of HOST_CHUNK calls without a wait, chunks interleaved,
    a wait between chunks so that the device's queue never fills; the median chunk."""
    wait = synchronizer(device)
    chunk = min(HOST_CHUNK, calls)
    spent: list[list[float]] = [[] for _ in jobs]
    for job in jobs:
        for _ in range(chunk):
            job()
    with no_garbage_collection():
        for _ in range(max(1, calls // chunk)):
            for job, times in zip(jobs, spent):
                wait()
                begin = time.perf_counter()
                for _ in range(chunk):
                    job()
                times.append((time.perf_counter() - begin) / chunk)
    wait()
    return [statistics.median(times) for times in spent]


def reason_of(error: Exception) -> str:
    """Class and first line of an exception."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else 'no message'}"


def try_first_call(call: Call) -> Optional[str]:
    """Runs a peer once, compiling what it compiles. Why it cannot run, or None."""
    try:
        call(0)
    except Exception as error:  # any failure of a peer only means that it is not compared
        return reason_of(error)
    return None
