"""Flags of the demo, and the order of its run."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import sys
from pathlib import Path
from typing import Any, Optional, Sequence

import torch

from ..bench import history, machine, runner, table, timing
from ..bench.cli import choose_devices
from ..bench.progress import Progress
from . import corpus, report, train
from .corpus import Corpus
from .model import Config

STEPS = 100
SEED = 0
TOLERANCE = 1e-4
"""Largest allowed difference of the two losses of any step, in nats per byte. The two runs differ in
the rounding of norm and update only; at this learning rate that stays below 1e-5 over 100 steps."""


def parser() -> argparse.ArgumentParser:
    about = sys.modules[__package__].__doc__
    made = argparse.ArgumentParser(prog="python -m metalcore.demo", allow_abbrev=False, description=about)
    made.add_argument("--device", metavar="cpu|cuda|mps|all", help="default METALCORE_DEVICE, else cuda, else mps, else cpu")
    made.add_argument("--steps", type=positive, default=STEPS, help=f"default {STEPS}")
    made.add_argument("--seed", type=int, default=SEED, help=f"default {SEED}")
    made.add_argument(
        "--json",
        metavar="PATH",
        help="append the run as one JSON line; default a file per machine under "
        "results/; - prints it on standard output and the rest on standard error",
    )
    made.add_argument("--plot", metavar="PATH", help="the two loss curves as svg or png; default none")
    return made


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected at least 1")
    return value


def main(arguments: Optional[Sequence[str]] = None, folder: Path = Path("results")) -> int:
    """Trains on each device; 1 if curves disagree."""
    flags = parser()
    options = flags.parse_args(arguments)
    try:
        devices = choose_devices(options.device)
    except ValueError as error:
        flags.error(str(error))
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        flags.error("argument --plot: needs matplotlib (pip install metalcore[bench])")
    console = table.make_console(sys.stderr if options.json == "-" else sys.stdout)
    text = corpus.read(machine.checkout(), Path(__file__).resolve().parents[1])
    agreed = True
    for device in devices:
        record = run(device, text, options)
        report.show(console, record)
        agreed = agreed and record["agreed"]
        write(record, options, folder, console)
    return 0 if agreed else 1


def run(device: torch.device, text: Corpus, options: argparse.Namespace) -> dict[str, Any]:
    """Trains both on one device and makes the record."""
    config = Config()
    facts = machine.describe(device)
    if device.type == "cpu":
        facts["allocator"] = timing.keep_freed_memory()
    trainers = train.make_trainers(config, device, options.seed)
    with Progress().group(f"{device} training", options.steps) as step:
        train.train(trainers, text, config, options.steps, options.seed, step)
    return make_record(facts, trainers, text, config, options)


def make_record(
    facts: dict[str, Any],
    trainers: tuple[train.Trainer, train.Trainer],
    text: Corpus,
    config: Config,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The JSON line of a demo."""
    difference, at_step = train.largest_difference(trainers)
    tokens = train.BATCH * config.context
    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    return {
        "schema": runner.SCHEMA,
        "kind": "demo",
        "time": now.isoformat(),
        "machine": facts,
        "steps": options.steps,
        "seed": options.seed,
        "parameters": sum(parameter.numel() for parameter in trainers[0].model.parameters()),
        "tokens_per_step": tokens,
        "corpus": {"bytes": len(text.tokens), "sha256": text.sha256, "sources": list(text.sources)},
        "runs": {trainer.name: trainer.as_json(tokens) for trainer in trainers},
        "largest_difference": runner.finite(difference),
        "at_step": at_step,
        "tolerance": TOLERANCE,
        "agreed": difference <= TOLERANCE,
    }


def write(record: dict[str, Any], options: argparse.Namespace, folder: Path, console: Any) -> None:
    """Appends the record and draws the curves."""
    if options.json == "-":
        print(history.to_line(record), flush=True)
    else:
        path = Path(options.json) if options.json else history.default_path(record, folder)
        history.append(record, path)
        console.print(f"recorded in {path}", soft_wrap=True)
    if options.plot:
        report.draw(record, Path(options.plot))
        console.print(f"wrote {options.plot}", soft_wrap=True)
