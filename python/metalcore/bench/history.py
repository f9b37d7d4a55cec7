"""Recorded runs: one JSON line each, in one file per machine, and what to compare a row with."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Iterable, Optional

Record = dict[str, Any]
Key = tuple[str, str, str, str, str]

SLOWER = 0.05
"""A row slower than before by more than this share is marked."""


def default_path(record: Record, folder: Path) -> Path:
    return folder / f"{record['machine']['id']}.jsonl"


def to_line(record: Record) -> str:
    """The record as one line. NaN and infinity are not JSON and raise."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def append(record: Record, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(to_line(record) + "\n")


def load(paths: Iterable[Path]) -> list[Record]:
    """Records of all files, oldest first. A line that is no record is named and left out."""
    records = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                records.append((record["time"], record))
            except (ValueError, KeyError, TypeError) as error:
                print(f"{path.name}:{number}: not a record of a run ({error!r})", file=sys.stderr)
    return [record for _, record in sorted(records, key=lambda pair: pair[0])]


def load_folder(folder: Path) -> list[Record]:
    return load(sorted(folder.glob("*.jsonl")))


def row_key(record: Record, row: dict[str, Any]) -> Key:
    """Same machine, device, dtype, op and shape."""
    machine = record["machine"]
    return machine["id"], machine["device"], row["dtype"], row["op"], row["shape"]


def latest_rows(records: Iterable[Record]) -> dict[Key, tuple[Record, dict[str, Any]]]:
    """The last recorded row of each key, with its run. `records` are oldest first."""
    latest = {}
    for record in records:
        if record.get("kind") == "benchmark":
            for row in record["rows"]:
                latest[row_key(record, row)] = (record, row)
    return latest


def add_comparison(record: Record, earlier: Iterable[Record]) -> None:
    """Puts `last_ms`, `last_time`, `change_percent` and `slower` into every row that was timed before.
    Positive percent means slower now. Failed rows have no time and are passed over."""
    timed = (
        {**old, "rows": [row for row in old["rows"] if not row.get("failure")]}
        for old in earlier
        if old.get("kind") == "benchmark"
    )
    latest = latest_rows(timed)
    for row in record["rows"]:
        before: Optional[tuple[Record, dict[str, Any]]] = latest.get(row_key(record, row))
        if before is None or row.get("failure"):
            continue
        last_ms = before[1]["ours"]["ms"]
        change = row["ours"]["ms"] / last_ms - 1
        row["last_ms"] = last_ms
        row["last_time"] = before[0]["time"]
        row["change_percent"] = 100 * change
        row["slower"] = change > SLOWER
