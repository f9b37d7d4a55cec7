"""The tables on the terminal: head, rows, memory, host overhead, legend, summary."""

from __future__ import annotations

from typing import Any, Optional, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .rows import TIMES

Record = dict[str, Any]
Cells = list[str]

LEAST_WIDTH = 150
NONE = "-"
"""Cell without a value."""

NO_CLAIM = frozenset({"launch", "busy", "ERR"})
"""Tags of rows that are left out of claims and plots."""

BUSY_SHARE = 0.05
"""Others' share of the CPU time from which a run is called disturbed."""

LEGEND = (
    "ours, best peer: median of interleaved calls in this process (GPU: device events; CPU: wall time).",
    "ratio: peer / ours, above 1 is a win. roofline: floor / ours, the floor being compulsory bytes over the "
    "measured copy bandwidth or flops over the measured GEMM rate.",
    "idle: the ratio where each call finds the GPU idle, so that the host's way to the first launch counts too.",
    "error: worst accuracy ratio over its bar, every batch item, on the timed buffers; at most 1.",
    "tag: launch = below 3 launch floors, left out of claims; busy = others took over 10 % of the CPU time, left out "
    "of claims; loss = ratio below 0.97; noisy = p90/p10 above 1.3; ERR = error over its bar, or the op raised.",
)
HOST_LEGEND = "host overhead: µs of one Python call without a wait; over = more than 2 µs above torch's."

COLUMNS = ("op", "shape", "dtype", "ours ms", "best peer ms", "peer", "ratio", "roofline", "error", "idle", "tag")
COMPARE_COLUMNS = ("last ms", "change")
LEFT = ("op", "shape", "dtype", "peer", "tag", "grad", "optimizer", "norm and optimizer")


def make_console(file: Any, stderr: bool = False) -> Console:
    """A console wide enough that no cell is cut; a narrow terminal breaks the lines itself."""
    console = Console(file=file, stderr=stderr, highlight=False)
    console.width = max(console.width, LEAST_WIDTH)
    return console


def number(x: Optional[float], digits: int = 3) -> str:
    """Significant digits without an exponent for the usual sizes."""
    if x is None:
        return NONE
    if x == 0:
        return "0"
    if abs(x) >= 1e6:
        return f"{x:.1e}"
    if abs(x) >= 10 ** (digits - 1):
        return f"{x:.0f}"
    text = f"{x:.{digits}g}"
    return f"{x:.1e}" if "e" in text else text


def ratio_text(ratio: Optional[float]) -> str:
    """Two decimals below ten, so that 1.00 is a row without a difference."""
    if ratio is None:
        return NONE
    return (f"{ratio:.2f}" if ratio < 9.995 else number(ratio)) + TIMES


def percent(share: Optional[float]) -> str:
    """A share as percent, with two digits below ten percent."""
    if share is None:
        return NONE
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def idle_ratio(row: dict[str, Any]) -> Optional[float]:
    """peer / ours where every call finds an idle GPU, against the peer that is fastest so."""
    times = dict(row.get("idle_ms") or {})
    ours = times.pop("ours", None)
    return min(times.values()) / ours if ours and times else None


def row_cells(row: dict[str, Any]) -> Cells:
    """The columns as text."""
    names = [row["op"], row["shape"], row["dtype"]]
    if row.get("failure"):
        return [*names, *7 * [NONE], "ERR"]
    best = row["best_peer"]
    return [
        *names,
        number(row["ours"]["ms"]),
        number(row["peers"][best]["ms"]) if best else NONE,
        best or NONE,
        ratio_text(row["ratio"]),
        percent(row["roofline"]),
        "over" if row["error"] is None else number(row["error"], 2),
        ratio_text(idle_ratio(row)),
        " ".join(row["tags"]),
    ]


def compare_cells(row: dict[str, Any]) -> Cells:
    """The last run's time and the change since, '!' when slower by over 5 %."""
    if row.get("last_ms") is None:
        return [NONE, NONE]
    mark = " slower" if row["slower"] else ""
    return [number(row["last_ms"]), f"{row['change_percent']:+.0f} %{mark}"]


def head_lines(machine: dict[str, Any]) -> list[str]:
    """Versions, device, driver, threads; then the measured ceilings."""
    parts = [f"metalcore {machine['metalcore']}", f"torch {machine['torch']}"]
    if machine.get("cuda"):
        parts += [f"CUDA {machine['cuda']}", f"driver {machine.get('driver') or 'unknown'}"]
    parts += [f"Python {machine['python']}", machine["os"], f"commit {machine['commit'] or 'unknown'}"]
    rates = ", ".join(f"{name} {number(rate)}" for name, rate in machine["gemm_tflop_s"].items())
    clocks = f", SM clock {machine['sm_clock_mhz']} MHz" if machine.get("sm_clock_mhz") else ""
    return [
        f"{machine['device_name']} ({machine['device']}), {machine['threads']} threads{clocks}",
        ", ".join(parts),
        f"measured: copy {number(machine['copy_gb_s'])} GB/s, GEMM {rates} TFLOP/s, "
        f"launch floor {number(machine['launch_floor_us'])} µs",
    ]


def memory_rows(rows: Sequence[dict[str, Any]]) -> list[Cells]:
    """op, shape, dtype, whose, MB kept (state of an optimizer, gradients), MB needed beside them in a call; where measured."""
    cells = []
    for row in rows:
        for name, sizes in (row.get("memory") or {}).items():
            state, step = (sizes[key] for key in ("state_bytes", "step_bytes"))
            cells.append(
                [row["op"], row["shape"], row["dtype"], name]
                + [NONE if size is None else f"{size / 1e6:.1f}" for size in (state, step)]
            )
    return cells


MEMORY_COLUMNS = ("op", "shape", "dtype", "whose", "kept MB", "extra MB in a call")
DEMO_COLUMNS = ("norm and optimizer", "ms / step", "tokens / s", "optimizer state MB", "first loss", "last loss")
HOST_COLUMNS = ("op", "shape", "grad", "ours µs", "torch µs", "difference µs", "tag")


def host_cells(host: Sequence[dict[str, Any]]) -> list[Cells]:
    """Rows of the host overhead table."""
    cells = []
    for call in host:
        names = [call["op"], call["shape"], call["grad"]]
        if call.get("failure"):
            cells.append([*names, *3 * [NONE], "ERR"])
            continue
        times = [f"{call[key]:.1f}" for key in ("ours_us", "torch_us")]
        cells.append([*names, *times, f"{call['difference_us']:+.1f}", " ".join(call["tags"])])
    return cells


def demo_cells(record: Record) -> list[Cells]:
    """One line per run of the training demo."""
    return [
        [
            name,
            number(run["ms_per_step"]),
            f"{run['tokens_per_s']:.0f}",
            f"{run['state_bytes'] / 1e6:.1f}",
            f"{run['losses'][0]:.4f}",
            f"{run['losses'][-1]:.4f}",
        ]
        for name, run in record["runs"].items()
    ]


def footnotes(rows: Sequence[dict[str, Any]], skipped: Sequence[dict[str, Any]]) -> list[str]:
    """Peers and rows that were left out, failures, notes; each said once."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        name = f"{row['op']} {row['shape']} {row['dtype']}"
        for peer, reason in (row.get("skipped_peers") or {}).items():
            notes.setdefault(f"without {peer} ({reason})", []).append(name)
        if row.get("note"):
            notes.setdefault(row["note"], []).append(name)
        if row.get("failure"):
            notes.setdefault(f"raised {row['failure']}", []).append(name)
        for gate, found in (row.get("errors") or {}).items():
            if found["ratio"] is None or found["ratio"] > found["bar"]:
                notes.setdefault(f"{gate} over its bar {found['bar']:g}", []).append(f"{name} ({number(found['ratio'])})")
    for row in skipped:
        notes.setdefault(f"not run: {row['reason']}", []).append(f"{row['op']} {row['shape']} {row['dtype']}")
    return [f"{text}: {shortened(names)}" for text, names in notes.items()]


def shortened(names: Sequence[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - most
    return "; ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def rich_table(title: str, columns: Sequence[str], rows: Sequence[tuple[Cells, str]]) -> Table:
    """A plain table; each row has a style."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in LEFT else "right", no_wrap=True)
    for cells, style in rows:
        table.add_row(*(Text(cell, style=style) for cell in cells))
    return table


def style_of(row: dict[str, Any]) -> str:
    """Red for an error, yellow for a loss or a slower row, dim for a launch-bound one."""
    if "ERR" in row["tags"]:
        return "red"
    if "loss" in row["tags"] or row.get("slower"):
        return "yellow"
    return "dim" if "launch" in row["tags"] else ""


def print_head(console: Console, machine: dict[str, Any]) -> None:
    for line in head_lines(machine):
        console.print(line, soft_wrap=True)
    console.print()


def print_selector(console: Console, title: str, part: dict[str, Any], compare: bool) -> None:
    """One selector: its rows, then memory and host overhead where there are any."""
    rows = part["rows"]
    columns = COLUMNS + (COMPARE_COLUMNS if compare else ())
    cells = [(row_cells(row) + (compare_cells(row) if compare else []), style_of(row)) for row in rows]
    console.print(rich_table(title, columns, cells))
    memory = memory_rows(rows)
    if memory:
        console.print()
        console.print(rich_table("memory", MEMORY_COLUMNS, [(line, "") for line in memory]))
    host = host_cells(part["host"])
    if host:
        console.print()
        styles = ["red" if "ERR" in call["tags"] else "yellow" if call["tags"] else "" for call in part["host"]]
        console.print(rich_table("host overhead", HOST_COLUMNS, list(zip(host, styles))))
    for note in footnotes(rows, part["skipped"]):
        console.print(f"  {note}", style="dim", soft_wrap=True, markup=False)
    console.print()


def claimable(row: dict[str, Any]) -> bool:
    """Whether a row may be quoted."""
    return not NO_CLAIM & set(row["tags"])


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Counts of rows by outcome. Launch-bound and disturbed rows make no claim, nor do rows with an error."""
    errors = sum(1 for row in rows if "ERR" in row["tags"])
    unclaimed = sum(1 for row in rows if not claimable(row) and "ERR" not in row["tags"])
    judged = [row for row in rows if row.get("ratio") is not None and claimable(row)]
    losses = sum(1 for row in judged if "loss" in row["tags"])
    return (
        f"{len(rows)} rows: {len(judged) - losses} at or above the best peer, {losses} below it, "
        f"{unclaimed} launch-bound or disturbed, {errors} with an error"
    )


def busy_note(machine: dict[str, Any]) -> str:
    """Says so when others worked on the machine; empty when it was quiet."""
    share = machine.get("other_cpu_share") or 0.0
    if share < BUSY_SHARE:
        return ""
    return f"not a quiet machine: other processes took {percent(share)} of the CPU time"


def print_legend(console: Console, records: Sequence[Record]) -> None:
    """Legend, a warning for each busy machine, counts."""
    for line in (*LEGEND, HOST_LEGEND):
        console.print(line, style="dim", soft_wrap=True, markup=False)
    console.print()
    for record in records:
        note = busy_note(record["machine"])
        if note:
            console.print(f"{record['machine']['device']}: {note}", style="yellow", soft_wrap=True)
    console.print(summary([row for record in records for row in record["rows"]]), style="bold")
