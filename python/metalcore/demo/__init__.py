"""The training demo, `python -m metalcore.demo`: a small Llama-style language model learns this
project's own documents twice from the same start, with torch.nn.RMSNorm and fused AdamW, then with
MetalRMSNorm and MetalAdamW, and the two loss curves must agree."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Optional, Sequence

NEEDED = ("rich", "psutil")


def main(arguments: Optional[Sequence[str]] = None, folder: Path = Path("results")) -> int:
    """Runs the demo; returns its exit status: 1 if the curves disagree, 2 for bad flags. `folder`
    holds the recorded runs."""
    try:
        from . import cli
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in NEEDED:
            raise
        print(f"the demo needs {error.name}: pip install metalcore[bench]", file=sys.stderr)
        return 2
    return cli.main(arguments, folder)
