"""What a command shows: progress bars with time left, plain lines without a terminal, tables, JSON."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from lowland.core.bars import Bars

if TYPE_CHECKING:
    from lowland.core.pace import OnEvent


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
        self.bars = Bars()

    def __enter__(self) -> Output:
        if not self.quiet:
            self.bars.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.__exit__(kind, error, trace)

    def progress(self, label: str) -> OnEvent:
        """Return a receiver of events that shows them under a label."""
        return (lambda event: None) if self.quiet else self.bars.progress(label)

    def note(self, text: str) -> None:
        """Print a line for people, to standard error."""
        if not self.quiet:
            self.bars.note(text)

    def result(self, shown: Shown) -> None:
        """Print the result to standard output: as JSON, or as a table and lines."""
        if self._silent:
            return
        if self.as_json:
            print(json.dumps(_finite(shown.result), indent=2, sort_keys=True, default=str, allow_nan=False))
            return
        cells = [[cell.translate(_PLAIN) for cell in row] for row in shown.table]
        if cells:
            width = Console().width if sys.stdout.isatty() else 200
            columns = _widths(cells, width)
            table = Table(show_edge=False, pad_edge=False)
            for title, size in zip(cells[0], columns, strict=True):
                table.add_column(title, width=size)
            for row in cells[1:]:
                table.add_row(*row)
            Console(width=sum(columns) + 3 * len(columns)).print(table)
        for line in shown.lines:
            print(line.translate(_PLAIN))


_PLAIN: Final = str.maketrans({"±": "+-", "−": "-", "–": "-"})
"""Signs of pages -> those of the terminal, which every encoding has, and which are numbers where they are copied."""


def _widths(table: Sequence[Sequence[str]], room: int) -> list[int]:
    """Return how wide columns are; none is narrower than its longest word, since a number that is cut is another."""
    columns = list(zip(*table, strict=True))
    widths = [max(map(cell_len, "\n".join(column).split("\n"))) for column in columns]
    words = [max(map(cell_len, " ".join(column).split()), default=0) for column in columns]
    while sum(widths) + 3 * (len(widths) - 1) > room and widths != words:
        widest = max((k for k in range(len(widths)) if widths[k] > words[k]), key=widths.__getitem__)
        widths[widest] -= 1
    return widths


def _finite(value: Any) -> Any:
    """Return a value that JSON can hold: numbers that are not finite are null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
