"""Charts of the recorded runs: `python -m metalcore.bench.plot FOLDER FILE`.

FILE has bars of ratio and roofline fraction; FILE-scaling, where there are such rows, the time of one matrix over the size
of the batch. One block per machine. Launch-bound and disturbed rows are left out, as from every claim; a long run
shows the workloads marked for --quick.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any, Sequence

from . import history, table
from .rows import TIMES
from .workloads import scaling

SUFFIXES = (".png", ".svg")
MOST_BARS = 36
WIN, LOSS, ROOF = "#2a6f97", "#c8553d", "#8d99ae"
WIDTH_IN = 10.0
BAR_IN = 0.27
SCALED = re.compile(rf"(\d+){TIMES}{scaling.N}{TIMES}{scaling.N}(?: 1 rhs gaussian)?")
"""Shapes that are drawn as points of a line."""
GAP = 0.5
"""Space before an op, in bars."""
FRAME_IN = 0.95
"""Inches of title and axis of one block."""


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Writes the chart of some runs, one block for each that has rows to show."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    blocks = [(record["machine"], bars_of(record["rows"])) for record in records]
    blocks = [(machine, bars) for machine, bars in blocks if bars] or [(record["machine"], []) for record in records[:1]]
    heights = [FRAME_IN + BAR_IN * (1 + max(places_of(bars), default=0)) for _, bars in blocks]
    with pyplot.rc_context({"font.size": 9, "svg.hashsalt": "metalcore", "axes.spines.top": False, "axes.spines.right": False}):
        figure = pyplot.figure(figsize=(WIDTH_IN, sum(heights)), layout="constrained")
        parts = figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, (machine, bars) in zip(parts, blocks):
            draw_block(part, machine, bars)
        figure.savefig(path, dpi=150)
        pyplot.close(figure)


def bars_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with a ratio that may be quoted; the quick ones where there are too many."""
    bars = [row for row in rows if row.get("ratio") and table.claimable(row) and row["selector"] != "scaling"]
    return bars if len(bars) <= MOST_BARS else [row for row in bars if row["quick"]][:MOST_BARS]


def draw_block(part: Any, machine: dict[str, Any], bars: Sequence[dict[str, Any]]) -> None:
    """Title, then ratio on the left and roofline on the right."""
    versions = f"torch {machine['torch']}, metalcore {machine['metalcore']}"
    title = f"{machine['device_name']} ({machine['device']}), {versions}"
    part.suptitle(title, fontsize=10, fontweight="bold", x=0.01, ha="left")
    left, right = part.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = places_of(bars)
    draw_ratio(left, places, bars)
    draw_roofline(right, places, [row["roofline"] for row in bars])
    left.set_yticks(places, labels_of(bars))
    left.set_ylim(max(places, default=0) + 0.6, -0.6)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.8)
        axes.set_axisbelow(True)


def places_of(bars: Sequence[dict[str, Any]]) -> list[float]:
    """Vertical positions, with a gap before each op."""
    places: list[float] = []
    for index, row in enumerate(bars):
        gap = GAP if index and row["op"] != bars[index - 1]["op"] else 0.0
        places.append(places[-1] + 1 + gap if places else 0.0)
    return places


def labels_of(bars: Sequence[dict[str, Any]]) -> list[str]:
    """Shape and dtype, the op named at its first bar."""
    labels = []
    for index, row in enumerate(bars):
        text = f"{row['shape']}  {row['dtype']}"
        first = not index or row["op"] != bars[index - 1]["op"]
        labels.append(f"{row['op']}   {text}" if first else text)
    return labels


def draw_ratio(axes: Any, places: Sequence[float], bars: Sequence[dict[str, Any]]) -> None:
    """Bars from 1 on a logarithmic axis, so that a win points right and a loss left."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    ratios = [row["ratio"] for row in bars]
    axes.set_xscale("log")
    colors = [LOSS if "loss" in row["tags"] else WIN for row in bars]
    axes.barh(places, [ratio - 1 for ratio in ratios], left=1, height=0.7, color=colors)
    low, high = limits(ratios)
    axes.set_xlim(low, high)
    axes.axvline(1, color="black", linewidth=0.8)
    for place, row in zip(places, bars):
        axes.annotate(
            f"{table.ratio_text(row['ratio'])} {row['best_peer']}",
            (max(row["ratio"], 1), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 50 else (1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{TIMES}"))
    axes.set_xlabel("times faster than the best peer (log scale)")


def limits(ratios: Sequence[float]) -> tuple[float, float]:
    """Axis ends that leave room for the text behind the longest bar."""
    low = min([0.8, *ratios]) / 1.1
    high = max([2.0, *ratios])
    return low, high * (high / low) ** 0.4


def draw_roofline(axes: Any, places: Sequence[float], shares: Sequence[float]) -> None:
    """Percent of the measured floor, with the percentage behind each bar."""
    percents = [100 * share for share in shares]
    axes.barh(places, percents, height=0.7, color=ROOF)
    axes.set_xlim(0, max([115, *(1.15 * percent for percent in percents)]))
    axes.axvline(100, color="black", linewidth=0.8, linestyle=":")
    for place, share in zip(places, shares):
        axes.annotate(
            table.percent(share), (100 * share, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_xlabel("% of the measured roofline")


def draw_scaling(records: Sequence[dict[str, Any]], path: Path) -> bool:
    """Writes the lines of each machine: ours, and torch dashed. False, and no file, if no run has such rows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    blocks = [(record["machine"], lines_of(record["rows"])) for record in records]
    blocks = [(machine, lines) for machine, lines in blocks if lines]
    if not blocks:
        return False
    with pyplot.rc_context({"font.size": 9, "svg.hashsalt": "metalcore", "axes.spines.top": False, "axes.spines.right": False}):
        figure, all_axes = pyplot.subplots(
            1, len(blocks), figsize=(WIDTH_IN, 0.4 * WIDTH_IN), sharey=True, squeeze=False, layout="constrained"
        )
        for axes, (machine, lines) in zip(all_axes[0], blocks):
            axes.set_title(f"{machine['device_name']} ({machine['device']})", fontsize=10, fontweight="bold")
            for op, points in lines.items():
                color = f"C{list(scaling.OPERATIONS).index(op)}"
                batches, ours, theirs = zip(*points)
                axes.loglog(batches, ours, color=color, marker="o", markersize=3, label=op)
                axes.loglog(batches, theirs, color=color, linestyle="--", linewidth=0.8)
            axes.set_xlabel("matrices in the batch, 16 by 16, fp32")
            axes.grid(color="#e5e5e5", linewidth=0.8)
            axes.set_axisbelow(True)
        all_axes[0][0].set_ylabel("µs for one matrix (dashed: torch)")
        all_axes[0][-1].legend(frameon=False)
        figure.savefig(path, dpi=150)
        pyplot.close(figure)
    return True


def lines_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float, float]]]:
    """For each operation with all batches (batch, our µs, torch's µs) of one matrix, by batch."""
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for row in rows:
        shape = SCALED.fullmatch(row["shape"])
        if row["op"] in scaling.OPERATIONS and shape and row["dtype"] == "fp32" and row["ours"]:
            batch = int(shape[1])
            theirs = row["peers"].get("torch", {"ms": math.nan})["ms"]  # torch may have failed
            lines.setdefault(row["op"], []).append((batch, 1e3 / batch * row["ours"]["ms"], 1e3 / batch * theirs))
    return {op: sorted(points) for op, points in lines.items() if len(points) >= len(scaling.BATCHES)}


def latest_runs(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record per machine with the last row of each key."""
    from .markdown import machine_of, machines_of, ordered_rows

    runs = [record for record in records if record["kind"] == "benchmark"]
    merged = []
    for machine in machines_of(runs):
        own = [run for run in runs if machine_of(run) == machine]
        merged.append({**own[-1], "rows": [row for _, row in ordered_rows(own)]})
    return merged


def main(arguments: Sequence[str]) -> int:
    folder, path = arguments
    runs = latest_runs(history.load_folder(Path(folder)))
    draw(runs, Path(path))
    draw_scaling(runs, Path(path).with_stem(f"{Path(path).stem}-scaling"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
