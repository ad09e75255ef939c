"""What a command shows: progress bars with time left, plain lines without a terminal, tables, JSON."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from lowland.engine import Event

_LINE_EVERY = 10.0
"""Seconds between progress lines where there is no terminal."""


@dataclass(frozen=True)
class Shown:
    """What a command ends with."""

    result: dict[str, Any]  # For --json
    lines: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()  # The head first


class Output:
    """Progress to standard error, results to standard output."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        quiet = quiet or os.environ.get("RANK", "0") != "0"  # under torchrun the first process speaks for all
        self.quiet, self.as_json = quiet or as_json, as_json
        self._silent = quiet
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said = 0.0

    def __enter__(self) -> Output:
        if not self.quiet and self._console.is_terminal:
            self._progress = self._bars(*_columns(), console=self._console)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _bars(self, *columns: ProgressColumn, console: Console) -> Progress:
        return Progress(*columns, console=console)

    def progress(self, label: str) -> Callable[[Event], None]:
        """Return a receiver of events that shows them under a label."""

        def receive(event: Event) -> None:
            if self.quiet:
                return
            left = "" if event.remaining is None else f"{_clock(event.remaining)} left"
            if event.kind == "failed":
                self.note(f"{label}: a point failed: {event.message}")
            if self._progress is not None:
                if label not in self._tasks:
                    self._tasks[label] = self._progress.add_task(label, total=event.total, left="")
                shown = left if event.kind != "done" else ""
                self._progress.update(self._tasks[label], completed=event.done, total=event.total, left=shown)
            elif event.kind == "done" or time.monotonic() - self._said > _LINE_EVERY:
                self._said = time.monotonic()
                self.note(f"{label}: {event.done}/{event.total}" + (f", {left}" if left else ""))

        return receive

    def note(self, text: str) -> None:
        """Print a line for people, to standard error."""
        if not self.quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def result(self, shown: Shown) -> None:
        """Print the result to standard output: as JSON, or as a table and lines."""
        if self._silent:
            return
        if self.as_json:
            print(json.dumps(_finite(shown.result), indent=2, sort_keys=True, default=str, allow_nan=False))
            return
        if shown.table:
            table = Table(*shown.table[0], show_edge=False, pad_edge=False)
            for row in shown.table[1:]:
                table.add_row(*row)
            width = None if sys.stdout.isatty() else 200
            Console(width=width, soft_wrap=width is not None).print(table)
        for line in shown.lines:
            print(line)


def _columns() -> tuple[ProgressColumn, ...]:
    counted = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return (TextColumn("{task.description}"), *counted, TextColumn("{task.fields[left]}"))


def _finite(value: Any) -> Any:
    """Return a value that JSON can hold: numbers that are not finite are null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _clock(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
