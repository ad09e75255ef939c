"""The rows of the ledger handed to an engine, each by itself, and the pages that are written after each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from lowland.core.errors import InputError
from lowland.engine import OnEvent, select
from studies.claims.answers import Outcome, outcome
from studies.claims.budget import chosen, in_order, to_run
from studies.claims.claim import Claim
from studies.claims.files import write_whole
from studies.claims.page import pages
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
    page: str = str(ROOT / "docs" / "claims.md")  # The first page; beside it a folder with its groups; -full its own

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
    names = tuple(claim.name for claim in in_order(to_run(chosen(rows_of(options), options.rows), options.rows)))
    write_page(options)  # its budget is there before anything runs
    until = None if options.minutes is None else time.time() + 60 * options.minutes
    for _ in select(options.engine).map(_Setup(options, names, until), _run, names, on_event=on_event):
        write_page(options)


@dataclass(frozen=True)
class _Setup:
    """What the rows share."""

    options: Options
    names: tuple[str, ...]  # Names of the rows
    until: float | None  # Time of day (seconds) after which no new seed is begun

    def __call__(self) -> AbstractContextManager[tuple[_Setup, Mapping[str, Claim]]]:
        """Build the rows, which hold functions, where they run."""
        known = {claim.name: claim for claim in rows_of(self.options)}
        for name in self.names:  # reads the source now: files that change later are not the code that runs here
            assert known[name].fingerprint
        return nullcontext((self, known))


def _run(context: tuple[_Setup, Mapping[str, Claim]], names: Sequence[str]) -> list[None]:
    """Run rows, whose numbers are on disk."""
    setup, known = context
    options = setup.options
    for name in names:
        limit = None if setup.until is None else time.monotonic() + setup.until - time.time()
        run_claim(known[name], store_of(options), RunCache(options.folder), seeds=options.seeds, until=limit)
    return [None] * len(names)


def write_page(options: Options) -> list[Outcome]:
    """Write the pages from what is stored, without training anything."""
    outcomes = [outcome(claim, read_record(store_of(options), claim.name)) for claim in rows_of(options)]
    first = page_of(options)
    for name, text in pages(outcomes).items():
        write_whole(first.with_suffix("") / f"{name}.md" if name else first, text)
    return outcomes
