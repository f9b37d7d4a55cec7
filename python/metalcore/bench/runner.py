"""Runs the cases of the chosen selectors on one device and makes the record of the run."""

from __future__ import annotations

import datetime
import gc
import math
import traceback
from typing import Any, Sequence

import torch

from . import timing
from .accuracy import worst_share
from .dtypes import DTYPE_NAMES
from .machine import OtherLoad
from .progress import Progress
from .rows import Case, Context, HostCall, Peer, Row
from .timing import Stats
from .workloads import Selector

SCHEMA = 1
EVEN = 0.97
"""Ratios from here count as 1.0: timing noise."""
LAUNCH_BOUND = 3.0
"""Rows below this many launch floors are launch-bound."""
HOST_ALLOWANCE_S = 2e-6
BUSY_SHARE = 0.1
"""Share of the CPU time that others may take while a row is timed. Beyond it, waiting threads make
one side many times slower than the other."""
MEMORY_SHARE = 0.8


def plan_of(context: Context) -> timing.Plan:
    if context.lite:
        return timing.LITE
    return timing.QUICK if context.quick else timing.FULL


def select_cases(cases: Sequence[Case], context: Context, no_long_ops: bool) -> list[Case]:
    """The cases of this run: without G on the CPU; Q only when quick; the smallest shape of each op and
    dtype when lite; without long ones when asked."""
    chosen = [case for case in cases if not (case.gpu_only and context.on_cpu)]
    if context.lite:
        smallest: dict[Any, Case] = {}
        for case in chosen:
            key = (case.op, case.dtype)
            if key not in smallest or case.cost.bytes < smallest[key].cost.bytes:
                smallest[key] = case
        return list(smallest.values())
    if context.quick:
        chosen = [case for case in chosen if case.quick]
    if no_long_ops:
        chosen = [case for case in chosen if not case.is_long(context.profile)]
    return chosen


def run_selector(selector: Selector, context: Context, progress: Progress, no_long_ops: bool = False) -> dict[str, Any]:
    """Rows and host calls of one selector, as they go into the record."""
    cases = select_cases(list(selector.cases(context)), context, no_long_ops)
    host_calls = list(selector.host_calls(context))
    rows, skipped, host = [], [], []
    with progress.group(f"{context.device} {selector.name}", len(cases) + len(host_calls)) as step:
        for case in cases:
            step(f"{case.op} {case.shape} {DTYPE_NAMES[case.dtype]}")
            reason = too_large(case, context)
            if reason:
                skipped.append({**names_of(case, selector), "reason": reason})
            else:
                rows.append({**names_of(case, selector), **run_case(case, context)})
            release(context.device)
        for call in host_calls:
            step(f"{call.op} host overhead")
            host.append({"selector": selector.name, **run_host_call(call, context)})
    return {"rows": rows, "skipped": skipped, "host": host}


def names_of(case: Case, selector: Selector) -> dict[str, Any]:
    return {
        "selector": selector.name,
        "op": case.op,
        "shape": case.shape,
        "dtype": DTYPE_NAMES[case.dtype],
        "quick": case.quick,
    }


def too_large(case: Case, context: Context) -> str:
    """Why a case does not fit in the device's free memory; empty when it does or nobody knows."""
    if not case.memory_bytes or context.device.type != "cuda":
        return ""
    free = torch.cuda.mem_get_info(context.device)[0]
    if case.memory_bytes <= MEMORY_SHARE * free:
        return ""
    return f"needs {case.memory_bytes / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"


def release(device: torch.device) -> None:
    """Gives the buffers of the last row back, so that the next one starts from the same state."""
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def run_case(case: Case, context: Context) -> dict[str, Any]:
    """Times a case and checks it on the buffers that were timed. An exception of ours becomes a failed
    row, so that the rest of the run still happens; the exit status tells."""
    try:
        row = case.build()
        return measure_row(case, row, context)
    except Exception as error:
        traceback.print_exc()
        return {"failure": timing.reason_of(error), "tags": ["ERR"], "error": None}


def measure_row(case: Case, row: Row, context: Context) -> dict[str, Any]:
    plan = plan_of(context)
    peers, skipped = usable_peers(row)
    row.ours(0)
    on_device = {name: peer.call for name, peer in peers.items() if clock_of(peer, context) == "device"}
    by_wall = {name: peer.call for name, peer in peers.items() if clock_of(peer, context) == "wall"}

    others = OtherLoad()
    main = timing.Interleaved(context.profile.timer, {"ours": row.ours, **on_device}, row.copies)
    stats = main.measure(plan)
    ours = stats.pop("ours")
    share = others.share()
    gates = row.check(main.first_copy, context.profile.timer.kept)
    context.profile.timer.kept = None
    found = {name: peer_json(stat, ours, "device") for name, stat in stats.items()}
    idle = None if context.on_cpu else measure_idle(context, {"ours": row.ours, **on_device}, row.copies, plan)
    if by_wall:
        timer = timing.WallTimer(context.device)
        stats = timing.Interleaved(timer, {"ours": row.ours, **by_wall}, row.copies).measure(plan)
        ours_by_wall = stats.pop("ours")
        found.update({name: peer_json(stat, ours_by_wall, "wall") for name, stat in stats.items()})

    result: dict[str, Any] = {
        "other_cpu_share": share,
        "ours": stats_json(ours),
        "peers": found,
        "skipped_peers": skipped,
        "idle_ms": idle,
        "copies": row.copies,
        "bytes": case.cost.bytes,
        "flops": case.cost.flops,
        "floor_ms": case.cost.floor_s(context.profile) * 1e3,
        "errors": {gate.name: {"ratio": finite(gate.ratio), "bar": gate.bar} for gate in gates},
        "error": finite(worst_share(gates)),
        "failure": None,
        "note": row.note,
    }
    if row.memory is not None:
        result["memory"] = row.memory()
    return judge(result, ours, context)


def measure_idle(context: Context, calls: dict[str, Any], copies: int, plan: timing.Plan) -> dict[str, float]:
    """Milliseconds by events around one call that finds the device idle: the host's way to the first launch counts."""
    timer = timing.EventTimer(context.device, timing.synchronizer(context.device))
    stats = timing.Interleaved(timer, calls, copies).measure(plan)
    return {name: stat.median_s * 1e3 for name, stat in stats.items()}


def clock_of(peer: Peer, context: Context) -> str:
    """On the CPU the device's clock is the wall's."""
    return "device" if context.on_cpu else peer.clock


def usable_peers(row: Row) -> Any:
    """Peers whose first call works, and the reasons of the others."""
    usable, skipped = {}, dict(row.skipped)
    for name, peer in row.peers.items():
        reason = timing.try_first_call(peer.call)
        if reason is None:
            usable[name] = peer
        else:
            skipped[name] = reason
    return usable, skipped


def judge(result: dict[str, Any], ours: Stats, context: Context) -> dict[str, Any]:
    """Adds best peer, ratio, roofline and tags. The best peer is the one with the smallest ratio."""
    peers = result["peers"]
    best = min(peers, key=lambda name: peers[name]["ratio"], default=None)
    result["best_peer"] = best
    result["ratio"] = peers[best]["ratio"] if best else None
    result["roofline"] = result["floor_ms"] / result["ours"]["ms"]
    tags = []
    if ours.median_s < LAUNCH_BOUND * context.profile.launch_floor_s:
        tags.append("launch")
    if best and result["ratio"] < EVEN:
        tags.append("loss")
    if ours.noisy or (best and peers[best]["noisy"]):
        tags.append("noisy")
    if context.on_cpu and result["other_cpu_share"] > BUSY_SHARE:
        tags.append("busy")
    if result["error"] is None or not result["error"] <= 1:
        tags.append("ERR")
    result["tags"] = tags
    return result


def stats_json(stats: Stats) -> dict[str, Any]:
    return {
        "ms": stats.median_s * 1e3,
        "p10_ms": stats.p10_s * 1e3,
        "p90_ms": stats.p90_s * 1e3,
        "runs": stats.runs,
        "host_us": stats.host_s * 1e6,
        "noisy": stats.noisy,
    }


def peer_json(stats: Stats, ours: Stats, clock: str) -> dict[str, Any]:
    """A peer's times, and ours by the same clock."""
    return {
        **stats_json(stats),
        "clock": clock,
        "ours_ms": ours.median_s * 1e3,
        "ratio": stats.median_s / ours.median_s,
    }


def finite(x: float) -> Any:
    """x, or None where it is infinite or NaN: JSON has neither."""
    return x if math.isfinite(x) else None


def run_host_call(call: HostCall, context: Context) -> dict[str, Any]:
    """Host time per call in µs, ours and torch's; 'over' when ours takes 2 µs more."""
    names = {"op": call.op, "shape": call.shape, "grad": call.grad}
    calls = plan_of(context).host_calls
    others = OtherLoad()
    try:
        ours, torch_s = timing.host_times(context.device, (call.ours, call.torch), calls)
    except Exception as error:
        traceback.print_exc()
        return {**names, "failure": timing.reason_of(error), "tags": ["ERR"]}
    share = others.share()
    tags = [name for name, true in (("over", ours - torch_s > HOST_ALLOWANCE_S), ("busy", share > BUSY_SHARE)) if true]
    return {
        **names,
        "calls": calls,
        "ours_us": ours * 1e6,
        "torch_us": torch_s * 1e6,
        "difference_us": (ours - torch_s) * 1e6,
        "failure": None,
        "other_cpu_share": share,
        "tags": tags,
    }


def new_record(context: Context, settings: dict[str, Any]) -> dict[str, Any]:
    """The record of a run, before its rows."""
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    return {
        "schema": SCHEMA,
        "kind": "benchmark",
        "time": now.isoformat(),
        "settings": settings,
        "peers": sorted(context.peers),
        "machine": context.profile.as_json(),
        "rows": [],
        "skipped": [],
        "host": [],
    }


def failed(record: dict[str, Any]) -> bool:
    """Whether an error was over its bar or an op raised."""
    return any("ERR" in entry["tags"] for entry in record["rows"] + record["host"])
