"""Progress on standard error: a bar on a terminal, one line per group elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class Progress:
    """Shows how far a group of steps is. Gone before the group's table is printed. Drawn between steps
    only: a thread that redraws would take time from what is measured."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)

    @contextmanager
    def group(self, title: str, total: int) -> Iterator[Callable[[str], None]]:
        """Yields the function to call at the start of each step with what it does."""
        if not self.console.is_terminal:
            begin = time.perf_counter()
            yield lambda text: None
            print(f"{title}: {total} steps, {time.perf_counter() - begin:.1f} s", file=sys.stderr, flush=True)
            return
        columns = (BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Bar(*columns, console=self.console, transient=True, auto_refresh=False) as bar:
            task = bar.add_task(title, total=total)
            started = 0

            def step(text: str) -> None:
                nonlocal started
                bar.update(task, description=f"{title} · {text}", completed=started, refresh=True)
                started += 1

            yield step
