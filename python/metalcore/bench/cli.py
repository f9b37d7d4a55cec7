"""The command line: flags, what they choose, and the order of a run."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any, Optional, Sequence

import torch

import metalcore
from metalcore._operators import takes_metal

from . import history, machine, markdown, peers, plot, runner, table
from .dtypes import DTYPES
from .progress import Progress
from .rows import Context
from .workloads import GROUPS, SELECTORS, Selector

DEFAULT_FOLDER = Path("results")
PATH_FLAGS = ("json", "compare", "plot", "md")
HERE = "here"
"""Value of `--compare` without a path: the file that the run is appended to."""


def parser() -> argparse.ArgumentParser:
    """All flags. Bad ones exit with status 2."""
    made = argparse.ArgumentParser(
        prog="benchmark.py",
        allow_abbrev=False,
        description="Times metalcore against its peers in one process and checks every result. "
        "Without a selector: everything. Exit status: 1 if an error is over its bar or an op raised, 2 for bad flags.",
    )
    chosen = made.add_argument_group("selectors")
    for selector in SELECTORS:
        chosen.add_argument(f"--{selector.name}", action="store_true", help=selector.title)
    for name, members in GROUPS.items():
        chosen.add_argument(f"--{name}", action="store_true", help=" + ".join(members))
    made.add_argument(
        "--device",
        metavar="cpu|cuda|mps|all",
        help="default METALCORE_DEVICE, else cuda, else mps, else cpu; all: the cpu and every GPU kind that is there",
    )
    made.add_argument("--dtype", choices=[*DTYPES, "all"], help="default fp32 (training ops: fp32 and bf16)")
    made.add_argument("--quick", action="store_true", help="fewer iterations, the main workloads only")
    made.add_argument("--lite", action="store_true", help="one iteration of the smallest shapes, every dtype; writes nothing")
    made.add_argument("--nolongops", action="store_true", help="leave out rows expected to take more than a second a call")
    made.add_argument(
        "--peers",
        metavar="LIST",
        help=f"comma-separated, of {', '.join(peers.ORDER)}; or none. Default: all that import, but jax only when named",
    )
    made.add_argument(
        "--json",
        metavar="PATH",
        help="append the run as one JSON line; default a file per machine under "
        "results/; - prints it on standard output and the tables on standard error",
    )
    made.add_argument(
        "--compare",
        metavar="PATH",
        nargs="?",
        const=HERE,
        help="beside each row the last run of the same machine, device and dtype; slower by more than 5 %% is marked",
    )
    made.add_argument("--plot", metavar="PATH", help="bar chart of ratio and roofline fraction, svg or png by suffix")
    made.add_argument("--md", metavar="PATH", help="the recorded results as Markdown")
    return made


def main(arguments: Optional[Sequence[str]] = None, folder: Path = DEFAULT_FOLDER) -> int:
    """Runs the benchmark; returns the exit status. `folder` holds the recorded runs."""
    flags = parser()
    options = flags.parse_args(arguments)
    try:
        devices = choose_devices(options.device)
        check_settings(options.lite)
        wanted = choose_peers(options.peers, options.lite)
        dtypes = choose_dtypes(options.dtype, options.lite)
        dtypes_of_devices = {device: dtypes_there(device, dtypes) for device in devices}
        check_plot(options.plot)
        earlier = None if options.compare is None else recorded_before(options, folder)
    except ValueError as error:
        flags.error(str(error))
    console = table.make_console(sys.stderr if options.json == "-" else sys.stdout)
    records: list[dict[str, Any]] = []
    for device in devices:
        records.append(run_device(device, options, wanted, dtypes_of_devices[device], console, earlier))
        if "interrupted" in records[-1]:
            break
    table.print_legend(console, records)
    if not options.lite:
        write(records, options, folder, console)
    if "interrupted" in records[-1]:
        return 130
    return 1 if any(runner.failed(record) for record in records) else 0


def choose_selectors(options: argparse.Namespace) -> list[Selector]:
    """The selectors named, those of named groups, or all."""
    names = {selector.name for selector in SELECTORS if getattr(options, selector.name)}
    for group, members in GROUPS.items():
        if getattr(options, group):
            names.update(members)
    return [selector for selector in SELECTORS if not names or selector.name in names]


def available_devices() -> list[str]:
    """Device types that can be used now; the CPU always."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def choose_devices(asked: Optional[str]) -> list[torch.device]:
    """Devices of the run. ValueError for an unknown or absent one."""
    found = available_devices()
    if asked == "all":
        return [torch.device(name) for name in found]
    name = asked or getattr(metalcore.config, "device", None) or found[-1]
    if not re.fullmatch(r"(cpu|mps|cuda(:\d+)?)", str(name)):
        raise ValueError(f"argument --device: got {name!r}, expected cpu, cuda, mps or all")
    device = torch.device(str(name))
    if device.type not in found or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise ValueError(f"argument --device: {name} is not available here (found: {', '.join(found)})")
    return [device]


def check_settings(lite: bool) -> None:
    """Gives torch our thread count where METALCORE_NUM_THREADS sets one. ValueError under the emulator,
    whose times mean nothing."""
    threads = getattr(metalcore.config, "num_threads", None)
    if threads:
        torch.set_num_threads(threads)
    if getattr(metalcore.config, "emulate", False) and not lite:
        raise ValueError("METALCORE_EMULATE is set: only --lite runs under the emulator")


def choose_peers(asked: Optional[str], lite: bool) -> frozenset[str]:
    """Peers of the run; a smoke test compiles only when told to. ValueError for an unknown or absent one."""
    if asked is None:
        return peers.default_peers() - ({"compile"} if lite else set())
    if asked == "none":
        return frozenset()
    names = [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in peers.ORDER:
            raise ValueError(f"argument --peers: got {name!r}, expected some of {', '.join(peers.ORDER)}, or none")
        reason = peers.unavailable(name)
        if reason:
            raise ValueError(f"argument --peers: {name}: {reason}")
    return frozenset(names)


def choose_dtypes(asked: Optional[str], lite: bool) -> Optional[tuple[torch.dtype, ...]]:
    """Dtypes of the run; None means each op's own list."""
    if asked == "all" or (lite and asked is None):
        return tuple(DTYPES.values())
    return None if asked is None else (DTYPES[asked],)


def dtypes_there(device: torch.device, dtypes: Optional[tuple[torch.dtype, ...]]) -> Optional[tuple[torch.dtype, ...]]:
    """The asked dtypes that a device has. ValueError when none is left."""
    if dtypes is None or not takes_metal(device):
        return dtypes
    there = tuple(dtype for dtype in dtypes if dtype != torch.float64)
    if not there:
        raise ValueError("argument --dtype: mps has no fp64")
    return there


def check_plot(path: Optional[str]) -> None:
    """ValueError where a plot is asked for and cannot be drawn."""
    if path is None:
        return
    if Path(path).suffix not in plot.SUFFIXES:
        raise ValueError(f"argument --plot: got {path!r}, expected a name that ends in {' or '.join(plot.SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("argument --plot: needs matplotlib (pip install metalcore[bench])")


def recorded_before(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Records to compare with: a file, a folder, or by default what this run will be appended to."""
    if options.compare != HERE:
        path = Path(options.compare)
        if not path.exists():
            raise ValueError(f"argument --compare: {path} does not exist")
        return history.load_folder(path) if path.is_dir() else history.load([path])
    if options.json and options.json != "-":
        path = Path(options.json)
        return history.load([path]) if path.exists() else []
    return history.load_folder(folder) if folder.is_dir() else []


def run_device(
    device: torch.device,
    options: argparse.Namespace,
    wanted: frozenset[str],
    dtypes: Optional[tuple[torch.dtype, ...]],
    console: Any,
    earlier: Optional[list[dict[str, Any]]],
) -> dict[str, Any]:
    """Runs every chosen selector on one device, prints the tables, returns the record, which names the selector that was
    interrupted if one was."""
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    progress = Progress()
    others = machine.OtherLoad()
    with progress.group(f"{device} machine", 1) as step:
        step("copy bandwidth, GEMM rates, launch floor")
        rates = gemm_dtypes(device, dtypes)
        profile = machine.measure(device, rates, brief=options.lite)
    context = Context(device, profile, wanted, dtypes, options.quick, options.lite)
    record = runner.new_record(context, settings_of(options))
    table.print_head(console, record["machine"])
    for selector in choose_selectors(options):
        try:
            part = runner.run_selector(selector, context, progress, options.nolongops)
        except KeyboardInterrupt:
            record["interrupted"] = selector.name
            console.print(f"interrupted in --{selector.name}: the tables before it are complete")
            break
        for name in ("rows", "skipped", "host"):
            record[name] += part[name]
        if earlier is not None:
            history.add_comparison({**record, "rows": part["rows"]}, earlier)
        table.print_selector(console, selector.title, part, earlier is not None)
    record["machine"]["other_cpu_share"] = others.share()
    return record


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the run was asked for, for its record: every flag that was set, without those that name files."""
    return {name: value for name, value in vars(options).items() if value and name not in PATH_FLAGS}


def gemm_dtypes(device: torch.device, dtypes: Optional[tuple[torch.dtype, ...]]) -> list[str]:
    """Names of the GEMM rates to measure: fp32 for the floors, bf16 and those of the run for the head."""
    names = {"fp32", "bf16"} | {name for name, dtype in DTYPES.items() if dtypes and dtype in dtypes}
    return sorted(names - ({"fp64"} if device.type == "mps" else set()))


def write(records: list[dict[str, Any]], options: argparse.Namespace, folder: Path, console: Any) -> None:
    """Appends the records, then draws and writes from what is recorded."""
    if options.json == "-":
        for record in records:
            print(history.to_line(record), flush=True)
        known = records
    else:
        for record in records:
            path = Path(options.json) if options.json else history.default_path(record, folder)
            history.append(record, path)
            console.print(f"recorded in {path}", soft_wrap=True)
        source = Path(options.json).parent if options.json else folder
        known = history.load_folder(source)
    if options.md:
        Path(options.md).write_text(markdown.document(known), encoding="utf-8")
        console.print(f"wrote {options.md}", soft_wrap=True)
    if options.plot:
        plot.draw(records, Path(options.plot))
        console.print(f"wrote {options.plot}", soft_wrap=True)
