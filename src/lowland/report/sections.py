"""What a report is made of, as plain data: sections of paragraphs, tables, figures and boxes.

All text is plain text; `html` escapes it. Builders (`comparison`, `landscapes`, `dynamics`) turn runs into these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from lowland.core.errors import require
from lowland.viz.spec import Figure as FigureSpec


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph of plain text; a note is set smaller."""

    text: str
    note: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text cells."""

    header: tuple[str, ...]  # Column titles
    rows: tuple[tuple[str, ...], ...]  # Cells, each row as long as the header; the first cell names the row
    caption: str = ""  # What the table shows, with units
    notes: tuple[str, ...] = ()  # Footnotes below it
    links: Mapping[str, str] = field(default_factory=dict)  # First cell of a row -> the page that it leads to

    @classmethod
    def of(
        cls,
        rows: Sequence[Mapping[str, str]],
        caption: str = "",
        notes: tuple[str, ...] = (),
        links: Mapping[str, str] | None = None,
    ) -> Table:
        """Build a table from rows of column title -> cell."""
        return cls(tuple(rows[0]), tuple(tuple(row.values()) for row in rows), caption, notes, links or {})

    def __post_init__(self) -> None:
        """Check that no cell stands under another column's title."""
        for row in self.rows:
            require(len(row) == len(self.header), "rows", f"must have {len(self.header)} cells each", len(row))


@dataclass(frozen=True, slots=True)
class Figure:
    """An interactive figure."""

    spec: FigureSpec
    run: str = ""  # Name of the run it belongs to, "" for several; the reader can hide runs
    link: str = ""  # Figures with the same link share their camera
    height: int = 420  # In pixels; the width follows the page


@dataclass(frozen=True, slots=True)
class Box:
    """A box of named checks, such as "can I trust this figure?", which opens on a click and is whole on paper."""

    title: str  # The question that the checks answer
    checks: tuple[tuple[str, str, str], ...]  # ``(name, value, meaning)``
    run: str = ""  # Name of the run it belongs to
    brief: str = ""  # What is shown of it unopened; "" for the first check

    @property
    def first(self) -> str:
        """What is shown of it unopened."""
        return self.brief or ": ".join(self.checks[0][:2] if self.checks else ())


@dataclass(frozen=True, slots=True)
class Gallery:
    """Blocks side by side, as many as the page is wide."""

    blocks: tuple[Figure | Box, ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """Verbatim text, such as a spec or a command; long ones scroll."""

    text: str


@dataclass(frozen=True, slots=True)
class Details:
    """A block that opens on a click."""

    summary: str
    blocks: tuple[Paragraph | Table | Listing | Box | Gallery, ...]


Block: TypeAlias = Paragraph | Table | Figure | Box | Gallery | Listing | Details


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part of the report."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """A whole report."""

    title: str  # Heading of the page, and its name in the browser's tab
    lead: tuple[str, ...] = ()  # First paragraphs: what was compared, in which setting
    sections: tuple[Section, ...] = ()  # What stands below, numbered in the contents in this order
    runs: tuple[str, ...] = ()  # Names of the runs, for the toggles that hide and show them
    footer: str = ""  # Versions and date
    places: tuple[str, ...] = ()  # Folders of its runs, by which a page is known again
