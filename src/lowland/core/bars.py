"""What shows progress: bars in a terminal or a notebook, lines now and then elsewhere."""

from __future__ import annotations

import html
import importlib
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from lowland.core.pace import Event, OnEvent, TimeLeft

_LINE_EVERY: Final = 10.0
"""Seconds between progress lines where there is no terminal."""
_CELL_EVERY: Final = 0.2
"""Seconds between drawings of a notebook's cell."""
_MOST_FAILED: Final = 8
"""Points that failed which a notebook's cell names."""


class Display(Protocol):
    """Something that shows events while its block is open."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def progress(self, label: str) -> OnEvent:
        """Return a receiver of events that shows them under a label."""


def display() -> Display:
    """Return what fits where we are: a notebook, a terminal, or neither."""
    cell = notebook_cell()
    return Bars() if cell is None else CellBars(cell)


class Bars:
    """Bars in a terminal, each under its label; lines now and then where there is no terminal."""

    make: Callable[..., Progress] = Progress

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.drawn: Progress | None = None
        self._tasks: dict[str, tuple[TaskID, TimeLeft]] = {}
        self._said = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            counted = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
            self.drawn = self.make(TextColumn("{task.description}"), *counted, console=self.console)
            self.drawn.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.drawn is not None:
            self.drawn.stop()
            self.drawn = None
        self._tasks.clear()

    def progress(self, label: str) -> OnEvent:
        """Return a receiver of events that shows them under a label."""

        def receive(event: Event) -> None:
            if event.kind == "failed":
                self.note(failure_of(label, event))
            if self.drawn is not None:
                if label not in self._tasks:
                    left = TimeLeft()
                    self._tasks[label] = self.drawn.add_task(label, total=event.total, left=left), left
                task, left = self._tasks[label]
                left.hear(event)
                self.drawn.update(task, completed=event.done, total=event.total)
            elif event.kind == "done" or time.monotonic() - self._said > _LINE_EVERY:
                self._said = time.monotonic()
                self.note(line_of(label, event))

        return receive

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class CellBars:
    """Bars in the output of a notebook's cell, which is drawn anew by the function given."""

    def __init__(self, draw: Callable[[str], None]) -> None:
        self._draw, self._drawn = draw, 0.0
        self._rows: dict[str, tuple[Event, TimeLeft]] = {}
        self._failed: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._rows:
            self._draw(self._html())

    def progress(self, label: str) -> OnEvent:
        """Return a receiver of events that shows them under a label."""

        def receive(event: Event) -> None:
            left = self._rows[label][1] if label in self._rows else TimeLeft()
            left.hear(event)
            self._rows[label] = event, left
            if event.kind == "failed":
                self._failed.append(failure_of(label, event))
            if event.kind in ("started", "done") or time.monotonic() - self._drawn > _CELL_EVERY:
                self._draw(self._html())
                self._drawn = time.monotonic()

        return receive

    def _html(self) -> str:
        rows = [
            f'<div role="status">{html.escape(label)} <progress max="{max(event.total, 1)}" value="{event.done}">'
            f"</progress> {event.done}/{event.total} {left}</div>"
            for label, (event, left) in self._rows.items()
        ]
        left = len(self._failed) - _MOST_FAILED
        said = [*self._failed[:_MOST_FAILED], *([f"and {left} more"] if left > 0 else [])]
        return "".join([*rows, *(f"<div>{html.escape(text)}</div>" for text in said)])


def notebook_cell() -> Callable[[str], None] | None:
    """Return what shows HTML in place of what it showed before in this cell; None outside notebooks."""
    marimo, ipython = sys.modules.get("marimo"), sys.modules.get("IPython")
    if marimo is not None and marimo.running_in_notebook():
        return lambda text: marimo.output.replace(marimo.Html(text))
    shell = None if ipython is None else ipython.get_ipython()
    return None if shell is None or not hasattr(shell, "kernel") else _jupyter_cell()


def _jupyter_cell() -> Callable[[str], None]:
    shows: Any = importlib.import_module("IPython.display")
    handle: Any = None

    def draw(text: str) -> None:
        nonlocal handle
        if handle is None:
            handle = shows.display(shows.HTML(text), display_id=True)
        else:
            handle.update(shows.HTML(text))

    return draw


def failure_of(label: str, event: Event) -> str:
    """Return what is said of a point that failed."""
    return f"{label}: a point failed: {event.message}"


def line_of(label: str, event: Event) -> str:
    """Return an event as one line."""
    left = TimeLeft()
    left.hear(event)
    return f"{label}: {event.done}/{event.total}" + (f", {left}" if str(left) else "")


@contextmanager
def place() -> Generator[Callable[[Callable[[], str], Callable[[], str]], None]]:
    """Give what draws in one place again and again: HTML in a notebook, ANSI text in a terminal; elsewhere nothing."""
    cell, console = notebook_cell(), Console(stderr=True)
    if cell is not None:
        yield lambda as_html, as_text: cell(as_html())
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as screen:
            yield lambda as_html, as_text: screen.update(Text.from_ansi(as_text()), refresh=True)
    else:
        yield lambda as_html, as_text: None
