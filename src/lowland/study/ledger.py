"""The rows of the ledger handed to an engine, each an independent point."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowland.engine import OnEvent, Point, Row, select
from lowland.results.files import write_atomically
from lowland.study.bench import Bench
from lowland.study.claims import Claim, Outcome, chosen, in_order, outcome, read_record, run_claim
from lowland.study.page import page
from lowland.study.rows import FULL, SMALL, claims
from lowland.workflows.study import ClaimsSpec

__all__ = ["page_of", "rows_of", "run_ledger", "write_page"]


def rows_of(spec: ClaimsSpec) -> list[Claim]:
    """Return every row of the spec's size."""
    return claims(FULL if spec.full else SMALL)


def store_of(spec: ClaimsSpec) -> Path:
    """Return where the numbers are kept."""
    return Path(spec.store) / "full" if spec.full else Path(spec.store)


def page_of(spec: ClaimsSpec) -> Path:
    """Return the page that is written."""
    path = Path(spec.page)
    return path.with_stem(f"{path.stem}-full") if spec.full else path


@dataclass(frozen=True)
class RowTask:
    """The task of an engine: point i runs row i."""

    spec: ClaimsSpec
    names: tuple[str, ...]  # Names of the rows
    until: float | None  # Time of day (seconds) after which no new seed is begun

    def placed(self) -> AbstractContextManager[Any]:
        """Build the rows, which hold functions, where they run."""
        known = {claim.name: claim for claim in rows_of(self.spec)}
        for name in self.names:  # reads the source now: files that change later are not the code that runs here
            assert known[name].fingerprint
        return nullcontext(known)

    def __call__(self, context: Any, points: Sequence[Point], parents: Sequence[Row | None], /) -> list[Row]:
        """Run rows."""
        rows = []
        for point in points:
            limit = None if self.until is None else time.monotonic() + self.until - time.time()
            claim = context[self.names[point.index]]
            record = run_claim(claim, store_of(self.spec), Bench(self.spec.folder), seeds=self.spec.seeds, until=limit)
            values = {"seeds": float(len(record.runs)), "failed": float(len(record.failed))}
            rows.append(Row(point.index, values))
        return rows


def run_ledger(spec: ClaimsSpec, *, on_event: OnEvent | None = None) -> None:
    """Run the rows that are not done, the cheap and primary ones first; the page, with its budget."""
    # Is written before.
    write_page(spec)
    names = tuple(claim.name for claim in in_order(chosen(rows_of(spec), spec.rows)))
    until = None if spec.minutes is None else time.time() + 60 * spec.minutes
    points = [Point(place, (float(place),)) for place in range(len(names))]
    for _ in select(spec.engine).run(RowTask(spec, names, until), points, on_event=on_event):
        write_page(spec)


def write_page(spec: ClaimsSpec) -> list[Outcome]:
    """Write the page from what is stored, without training anything."""
    outcomes = [outcome(claim, read_record(store_of(spec), claim.name)) for claim in rows_of(spec)]
    write_atomically(page_of(spec), page(outcomes).encode())
    return outcomes
