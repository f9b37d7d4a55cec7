"""Memory of an optimiser: its state, and what a step needs beside parameters, gradients and state.

On cuda the caching allocator's peak tells. On the CPU a process of its own measures its high-water
mark from before the optimiser exists to after two steps, and takes the state off; run as
`python -m metalcore.bench.memory NAME ELEMENTS`.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Optional

import torch

STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all state tensors."""
    return sum(value.nbytes for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor))


def step_bytes(device: torch.device, step: Callable[[], Any]) -> Optional[int]:
    """Peak bytes a step allocates above what is allocated already; None where torch does not say."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_bytes() -> int:
    """High-water mark of this process's resident memory. Linux: VmHWM, because ru_maxrss there
    includes the parent's before exec."""
    if STATUS.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
        if found:
            return int(found.group(1)) * 1024
    import resource  # not on every system

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> None:
    """Sets the high-water mark back to what is resident now, where the system allows it."""
    if RESET_PEAK.exists():
        try:
            RESET_PEAK.write_text("5")
        except OSError as error:
            print(f"high-water mark not reset: {error}", file=sys.stderr)


def in_own_process(name: str, elements: int) -> dict[str, Optional[int]]:
    """State and step bytes of the optimiser `name` on one fp32 CPU tensor."""
    command = [sys.executable, "-m", "metalcore.bench.memory", name, str(elements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"memory of {name}: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure_here(name: str, elements: int) -> dict[str, int]:
    """The measurement, in the process made for it."""
    from .workloads import adamw

    device = torch.device("cpu")
    makers = {
        "ours": lambda tensors: adamw.metalcore.MetalAdamW(tensors, lr=adamw.LR),
        "torch fused": lambda tensors: torch.optim.AdamW(tensors, lr=adamw.LR, fused=True),
        "torch foreach": lambda tensors: torch.optim.AdamW(tensors, lr=adamw.LR, foreach=True),
    }
    warm = makers[name](adamw.make_parameters(device, (1000,), torch.float32, 0))
    warm.step()
    tensors = adamw.make_parameters(device, (elements,), torch.float32, 0)
    reset_peak()
    before = peak_bytes()
    optimizer = makers[name](tensors)
    optimizer.step()
    optimizer.step()
    state = state_bytes(optimizer)
    return {"state_bytes": state, "step_bytes": max(0, peak_bytes() - before - state)}


if __name__ == "__main__":
    print(json.dumps(measure_here(sys.argv[1], int(sys.argv[2]))))
