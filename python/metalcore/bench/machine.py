"""The machine of a run: what it is (versions, driver, clocks, commit) and how fast it can copy and
multiply, measured at the head of the run."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable, Optional

import psutil
import torch

from . import timing
from .dtypes import DTYPES

ASSUMED_MPS_CACHE_BYTES = 96e6
"""Largest system-level cache of an Apple chip; torch does not tell the size."""

ASSUMED_CPU_CACHE_BYTES = 64e6
GEMM_SIZES = {"cpu": 2048, "cuda": 8192, "mps": 4096}
"""Rows and columns. Half that for half precision on the CPU, which few of them can multiply fast."""

COPY_RUNS = 20
GEMM_RUNS = 10
LAUNCH_RUNS = 100


@dataclass(frozen=True)
class Profile:
    """Facts of the machine and its measured ceilings."""

    facts: dict[str, Any]
    copy_bytes_per_s: float
    gemm_flops_per_s: dict[str, float]
    launch_floor_s: float
    cache_bytes: float
    timer: Any = field(compare=False, repr=False, default=None)

    def as_json(self) -> dict[str, Any]:
        """GB/s, TFLOP/s and µs, as in the head of the tables."""
        return {
            **self.facts,
            "copy_gb_s": self.copy_bytes_per_s / 1e9,
            "gemm_tflop_s": {name: rate / 1e12 for name, rate in self.gemm_flops_per_s.items()},
            "launch_floor_us": self.launch_floor_s * 1e6,
            "cache_mb": self.cache_bytes / 1e6,
        }


def measure(device: torch.device, dtypes: Iterable[str], brief: bool = False) -> Profile:
    """Profile of a device. `dtypes` names the GEMM rates wanted; `brief` is for smoke tests. From here on
    a CPU process keeps freed memory."""
    facts = describe(device)
    if device.type == "cpu":
        facts["allocator"] = timing.keep_freed_memory()
    cache = last_level_cache_bytes(device)
    timer = timing.device_timer(device, cache)
    return Profile(
        facts=facts,
        copy_bytes_per_s=copy_bandwidth(device, timer, cache, brief),
        gemm_flops_per_s={name: gemm_rate(device, timer, name, brief) for name in sorted(set(dtypes))},
        launch_floor_s=launch_floor(device, timer, brief),
        cache_bytes=cache,
        timer=timer,
    )


def copy_bandwidth(device: torch.device, timer: Any, cache: float, brief: bool) -> float:
    """Bytes read plus bytes written per second by a copy between large buffers."""
    size = 1_000_000 if brief else int(max(2 * cache, 256e6 if device.type == "cpu" else 1e9))
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    seconds = timing.median_s(timer, lambda: target.copy_(source), 1 if brief else COPY_RUNS)
    return 2 * source.nbytes / seconds


def gemm_rate(device: torch.device, timer: Any, dtype_name: str, brief: bool) -> float:
    """Flops per second of a large square matrix product of Gaussian matrices."""
    dtype = DTYPES[dtype_name]
    n = 64 if brief else GEMM_SIZES[device.type] // (2 if device.type == "cpu" and dtype.itemsize == 2 else 1)
    a = torch.randn(n, n, device=device).to(dtype)
    b = torch.randn(n, n, device=device).to(dtype)
    seconds = timing.median_s(timer, lambda: a @ b, 1 if brief else GEMM_RUNS)
    return 2.0 * n**3 / seconds


def launch_floor(device: torch.device, timer: Any, brief: bool) -> float:
    """Seconds of the smallest possible op, one element in place: an empty kernel, in effect."""
    one = torch.zeros(1, device=device)
    return timing.median_s(timer, lambda: one.add_(1.0), 1 if brief else LAUNCH_RUNS)


def describe(device: torch.device) -> dict[str, Any]:
    """Names, versions and settings. No host name and no path."""
    import metalcore

    facts: dict[str, Any] = {
        "device": device.type,
        "device_name": device_name(device),
        "os": operating_system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "metalcore": metalcore.__version__,
        "commit": commit(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
    if device.type == "cpu":
        facts["blas"] = blas_name()
    if device.type == "cuda":
        facts["cuda"] = torch.version.cuda
        facts.update(nvidia_facts(device))
    facts["id"] = machine_id(facts)
    return facts


def machine_id(facts: dict[str, Any]) -> str:
    """Name of the results file: the device, with the thread count for a CPU."""
    name = facts["device_name"]
    if facts["device"] == "cpu":
        name += f" {facts['threads']} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def device_name(device: torch.device) -> str:
    """Marketing name of the GPU or the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name()


def cpu_name() -> str:
    """Model name of the processor: sysctl on macOS, /proc/cpuinfo on Linux."""
    if platform.system() == "Darwin":
        return command_output(["sysctl", "-n", "machdep.cpu.brand_string"]) or "Apple"
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        found = re.search(r"model name\s*:\s*(.+)", listing.read_text())
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def operating_system() -> str:
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]} {platform.machine()}"
    return f"{platform.system()} {platform.machine()}"


def blas_name() -> str:
    """The BLAS and LAPACK that torch was built with."""
    found = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return found.group(1) if found else "unknown"


def nvidia_facts(device: torch.device) -> dict[str, Any]:
    """Driver and clocks (MHz) by nvidia-smi; nothing where it is missing."""
    index = device.index or 0
    query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem"
    text = command_output(["nvidia-smi", f"--id={index}", f"--query-gpu={query}", "--format=csv,noheader,nounits"])
    values = [part.strip() for part in text.split(",")] if text else []
    if len(values) != 4:
        return {"driver": None}
    names = ("driver", "sm_clock_mhz", "sm_clock_max_mhz", "memory_clock_mhz")
    return dict(zip(names, values))


def checkout() -> Optional[Path]:
    """Root of the source checkout: the one this package lies in, else the working directory's."""
    for root in (Path(__file__).resolve().parents[3], Path.cwd()):
        if (root / "benchmark.py").is_file() and (root / "python" / "metalcore").is_dir():
            return root
    return None


def commit() -> Optional[str]:
    """Commit of the checkout, '+' when tracked files other than results differ from it. Without a
    repository: the environment's GIT_COMMIT, as build servers set it."""
    root = checkout()
    head = command_output(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]) if root else ""
    if not head:
        return os.environ.get("GIT_COMMIT")
    changed = command_output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results"])
    return head + ("+" if changed else "")


def command_output(command: list[str]) -> str:
    """Standard output of a command, empty when it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


SHORTEST_LOAD_S = 0.1


class OtherLoad:
    """Share of the CPUs that other processes take between creation and `share()`. Rows measured while
    others work say little."""

    def __init__(self) -> None:
        self.before = self.read()
        self.begin = time.perf_counter()

    @staticmethod
    def read() -> tuple[float, float]:
        """(seconds that all CPUs spent working or stolen, seconds of this process and its children)."""
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0.0)
        busy -= getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        own = os.times()
        return busy, own.user + own.system + own.children_user + own.children_system

    def share(self) -> float:
        """0 to 1 of the machine's CPU time; 0 for a time too short to tell by the system's ticks."""
        busy, own = self.read()
        seconds = time.perf_counter() - self.begin
        if seconds < SHORTEST_LOAD_S:
            return 0.0
        available = seconds * (os.cpu_count() or 1)
        others = (busy - self.before[0]) - (own - self.before[1])
        return min(1.0, max(0.0, others / available))


def last_level_cache_bytes(device: torch.device) -> float:
    """Size of the cache that a memory-bound row must not fit in."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).L2_cache_size)
    if device.type == "mps" or platform.system() == "Darwin":
        return ASSUMED_MPS_CACHE_BYTES
    units = {"K": 1024, "M": 1024**2, "G": 1024**3}
    sizes = [
        int(text[:-1]) * units[text[-1]]
        for text in (path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
        if text[-1:] in units
    ]
    return float(max(sizes, default=ASSUMED_CPU_CACHE_BYTES))
