"""The benchmark: `python benchmark.py`, the same as `python -m metalcore.bench`.

What is timed and how is in `timing`; each selector is a module of `workloads`, registered in
`workloads/__init__.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Optional, Sequence

NEEDED = ("rich", "numpy", "psutil")


def main(arguments: Optional[Sequence[str]] = None, folder: Path = Path("results")) -> int:
    """Runs the benchmark; returns its exit status. `folder` holds the recorded runs."""
    try:
        from . import cli
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in NEEDED:
            raise
        print(f"the benchmark needs {error.name}: pip install metalcore[bench]", file=sys.stderr)
        return 2
    return cli.main(arguments, folder)
