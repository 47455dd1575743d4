"""Progress on stderr: live bars for a person at a terminal, a line a stage elsewhere.

Flows and tasks take plain values only, so the display is one object of this process and not a
parameter. Prefect's own log stays quiet (environment.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from storage_schemas.printable import printable

console = Console(stderr=True, highlight=False)
_LINE_EVERY_SECONDS = 30.0


class Bar:
    """One line of progress.

    Args:
        description: What is done.
        total: Steps; None while unknown.
        follow: Called with the share that is done, at every step.
    """

    def __init__(
        self,
        description: str,
        total: int | None,
        follow: Callable[[float], None] | None = None,
    ) -> None:
        self._follow = follow
        self._description = description
        self._total = total
        self._done = 0
        self._note = ""
        self._started = self._last_line = time.monotonic()
        self._live = console.is_terminal
        self._task = _display().add_task(description, total=total, note="") if self._live else None

    def advance(self, count: int = 1) -> None:
        """Add to what is done."""
        self.set(self._done + count)

    def set(self, done: int, total: int | None = None, note: str = "") -> None:
        """Set what is done, and a short note such as images a second."""
        self._done, self._note = done, note or self._note
        self._total = total if total is not None else self._total
        if self._follow is not None and self._total:
            self._follow(done / self._total)
        if self._task is not None:
            _display().update(
                self._task, completed=done, total=self._total, note=self._note, refresh=False
            )
        elif time.monotonic() - self._last_line > _LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            print(f"  {self._description}: {done}/{self._total} {self._note}", file=sys.stderr)

    def step(self, done: int, total: int, values: Mapping[str, float]) -> None:
        """Take the report of a training step."""
        note = ""
        if values:
            note = f"loss {values['loss']:.3f}  {values['images_per_second']:.0f} images/s"
        self.set(done, total, note)

    def close(self, *, failed: bool) -> None:
        """End the line."""
        seconds = time.monotonic() - self._started
        mark = "failed after" if failed else "done in"
        if self._task is not None:
            _display().remove_task(self._task)
        note = f"  ({self._note})" if self._note else ""
        text = f"  {self._description}: {mark} {seconds:.1f} s{note}"
        console.print(printable(text), markup=False)


_progress: Progress | None = None


def _display() -> Progress:
    global _progress
    if _progress is None:
        _progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        _progress.start()
    return _progress


def stop_display() -> None:
    """Give the terminal back."""
    global _progress
    if _progress is not None:
        _progress.stop()
        _progress = None


@contextmanager
def bar(
    description: str, total: int | None = None, follow: Callable[[float], None] | None = None
) -> Iterator[Bar]:
    """Show the progress of one piece of work."""
    line = Bar(description, total, follow)
    failed = True
    try:
        yield line
        failed = False
    finally:
        line.close(failed=failed)


def say(message: str) -> None:
    """Print one line for the person who waits."""
    console.print(printable(message), markup=False)
