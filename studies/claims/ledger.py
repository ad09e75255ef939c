"""The rows of the ledger handed to an engine, each by itself, and the page that is written after each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from lowland.core.errors import InputError
from lowland.engine import OnEvent, Point, Row, select
from studies.claims.answers import Outcome, outcome
from studies.claims.budget import chosen, in_order
from studies.claims.claim import Claim
from studies.claims.files import write_whole
from studies.claims.page import page
from studies.claims.record import read_record, run_claim
from studies.claims.rows.every import FULL, SMALL, claims
from studies.claims.runs import RunCache

__all__ = ["Options", "page_of", "rows_of", "run_ledger", "write_page"]

ROOT: Final = Path(__file__).resolve().parents[2]


@dataclass(kw_only=True)
class Options:
    """What is run, and where it is kept."""

    rows: list[str] = field(default_factory=list)  # Names of rows or groups; none takes all
    full: bool = False  # The larger size: more seeds, data and epochs, on an accelerator where there is one
    only: Literal["run", "table", "budget"] = "run"  # table writes the page from what is stored, budget prints the cost
    seeds: int | None = None  # Seeds of each row; none takes each row's own number
    minutes: float | None = None  # Begin no new seed after this time; none runs to the end
    engine: str = "serial"  # Who computes, row by row: serial, processes:N or ray
    folder: str = str(ROOT / "runs" / "claims")  # Where runs are kept
    store: str = str(ROOT / "studies" / "claims" / "results")  # Where numbers per seed are kept
    page: str = str(ROOT / "docs" / "claims.md")  # The page to write; the larger size has its own beside it

    def __post_init__(self) -> None:
        if self.seeds is not None and self.seeds < 2:
            raise InputError("seeds", "must be at least 2, for an interval", self.seeds)
        if self.minutes is not None and not self.minutes > 0:
            raise InputError("minutes", "must be positive", self.minutes)


def rows_of(options: Options) -> list[Claim]:
    """Return every row of the size asked for."""
    return claims(FULL if options.full else SMALL)


def store_of(options: Options) -> Path:
    """Return where the numbers are kept."""
    return Path(options.store) / "full" if options.full else Path(options.store)


def page_of(options: Options) -> Path:
    """Return the page that is written."""
    path = Path(options.page)
    return path.with_stem(f"{path.stem}-full") if options.full else path


def run_ledger(options: Options, *, on_event: OnEvent | None = None) -> None:
    """Run the rows that are not done, the cheap and primary ones first."""
    write_page(options)  # its budget is there before anything runs
    names = tuple(claim.name for claim in in_order(chosen(rows_of(options), options.rows)))
    until = None if options.minutes is None else time.time() + 60 * options.minutes
    for _ in _spread(options, names, until, on_event):
        write_page(options)


def _run_row(options: Options, known: dict[str, Claim], name: str, until: float | None) -> dict[str, float]:
    limit = None if until is None else time.monotonic() + until - time.time()
    record = run_claim(known[name], store_of(options), RunCache(options.folder), seeds=options.seeds, until=limit)
    return {"seeds": float(len(record.runs)), "failed": float(len(record.failed))}


def _rows_by_name(options: Options, names: Sequence[str]) -> dict[str, Claim]:
    """Build rows, which hold functions, where they run."""
    known = {claim.name: claim for claim in rows_of(options)}
    for name in names:  # reads the source now: files that change later are not the code that runs here
        assert known[name].fingerprint
    return known


def _spread(options: Options, names: tuple[str, ...], until: float | None, on_event: OnEvent | None) -> Iterator[None]:
    """Hand the rows to an engine; nothing else here knows how engines work."""
    points = [Point(place, (float(place),)) for place in range(len(names))]
    for _ in select(options.engine).run(RowTask(options, names, until), points, on_event=on_event):
        yield


@dataclass(frozen=True)
class RowTask:
    """The task of an engine: point i runs row i."""

    options: Options
    names: tuple[str, ...]  # Names of the rows
    until: float | None  # Time of day (seconds) after which no new seed is begun

    def placed(self) -> AbstractContextManager[Any]:
        """Build the rows."""
        return nullcontext(_rows_by_name(self.options, self.names))

    def __call__(self, context: Any, points: Sequence[Point], parents: Sequence[Row | None], /) -> list[Row]:
        """Run rows."""
        names = [self.names[point.index] for point in points]
        found = [_run_row(self.options, context, name, self.until) for name in names]
        return [Row(point.index, values) for point, values in zip(points, found, strict=True)]


def write_page(options: Options) -> list[Outcome]:
    """Write the page from what is stored, without training anything."""
    outcomes = [outcome(claim, read_record(store_of(options), claim.name)) for claim in rows_of(options)]
    write_whole(page_of(options), page(outcomes))
    return outcomes
