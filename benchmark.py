"""Times metalcore against torch and its other peers: `python benchmark.py --help`."""

import sys
from pathlib import Path

from metalcore.bench import main

if __name__ == "__main__":
    sys.exit(main(folder=Path(__file__).resolve().parent / "results"))
