"""What the demo shows: a small chart and a table in the terminal, and the same curves as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

from ..bench import table

CHART_WIDTH = 68
CHART_HEIGHT = 12
TORCH, OURS, BOTH = "o", "x", "*"


def chart(first: Sequence[float], second: Sequence[float]) -> list[str]:
    """Both loss curves as text: o torch, x metalcore, * both in one place."""
    low, high = min(*first, *second), max(*first, *second)
    width = min(CHART_WIDTH, len(first))
    grid = [[" "] * width for _ in range(CHART_HEIGHT)]
    for curve, mark in ((first, TORCH), (second, OURS)):
        for column in range(width):
            value = curve[round(column * (len(curve) - 1) / max(1, width - 1))]
            line = round((high - value) / ((high - low) or 1.0) * (CHART_HEIGHT - 1))
            grid[line][column] = mark if grid[line][column] in (" ", mark) else BOTH
    lines = []
    for number, cells in enumerate(grid):
        value = high - (high - low) * number / (CHART_HEIGHT - 1)
        lines.append(f"{value:6.3f} |{''.join(cells)}")
    lines.append(" " * 7 + "+" + "-" * width)
    lines.append(f"{'':8}step 1 to {len(first)}; loss in nats per byte; {TORCH} torch, {OURS} metalcore, {BOTH} both")
    return lines


def show(console: Any, record: dict[str, Any]) -> None:
    """Chart, table, verdict."""
    runs = record["runs"]
    for line in chart(runs["torch"]["losses"], runs["metalcore"]["losses"]):
        console.print(line, markup=False, soft_wrap=True)
    console.print()
    console.print(table.rich_table("", table.DEMO_COLUMNS, [(cells, "") for cells in table.demo_cells(record)]))
    console.print()
    verdict = "agree" if record["agreed"] else "DISAGREE"
    console.print(
        f"loss curves {verdict}: largest difference {record['largest_difference']:.2g} at step {record['at_step']}, "
        f"allowed {record['tolerance']:g}",
        style="bold green" if record["agreed"] else "bold red",
        soft_wrap=True,
    )


def draw(record: dict[str, Any], path: Path) -> None:
    """Both curves, and their difference below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs = record["runs"]
    steps = range(1, record["steps"] + 1)
    first, second = runs["torch"]["losses"], runs["metalcore"]["losses"]
    with pyplot.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 4.5), height_ratios=(3, 1), layout="constrained")
        above.plot(steps, first, color="#8d99ae", linewidth=4, label="torch.nn.RMSNorm + AdamW(fused=True)")
        above.plot(steps, second, color="#2a6f97", linewidth=1.4, label="MetalRMSNorm + MetalAdamW")
        above.set_ylabel("loss, nats per byte")
        above.legend(frameon=False)
        machine = record["machine"]
        above.set_title(
            f"{record['parameters']:,} parameters on {machine['device_name']} ({machine['device']})", loc="left", fontsize=10
        )
        below.plot(steps, [b - a for a, b in zip(first, second)], color="#2a6f97", linewidth=1)
        below.axhline(0, color="black", linewidth=0.6)
        below.set_ylabel("difference")
        below.set_xlabel("step")
        figure.savefig(path, dpi=150)
        pyplot.close(figure)
