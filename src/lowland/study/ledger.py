"""The rows of the ledger handed to an engine, each an item of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowland.engine import OnEvent, select
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
class _Setup:
    """What the rows need."""

    spec: ClaimsSpec
    names: tuple[str, ...]  # Names of the rows
    until: float | None  # Time of day (seconds) after which no new seed is begun

    def __call__(self) -> AbstractContextManager[Any]:
        """Build the rows, which hold functions, where they run."""
        known = {claim.name: claim for claim in rows_of(self.spec)}
        for name in self.names:  # reads the source now: files that change later are not the code that runs here
            assert known[name].fingerprint
        return nullcontext((self, known))


def _run(context: tuple[_Setup, Mapping[str, Claim]], names: Sequence[str]) -> list[None]:
    """Run rows, whose numbers are on disk."""
    setup, known = context
    for name in names:
        limit = None if setup.until is None else time.monotonic() + setup.until - time.time()
        run_claim(known[name], store_of(setup.spec), Bench(setup.spec.folder), seeds=setup.spec.seeds, until=limit)
    return [None] * len(names)


def run_ledger(spec: ClaimsSpec, *, on_event: OnEvent | None = None) -> None:
    """Run the rows that are not done, the cheap and primary ones first; the page, with its budget."""
    # Is written before.
    write_page(spec)
    names = tuple(claim.name for claim in in_order(chosen(rows_of(spec), spec.rows)))
    until = None if spec.minutes is None else time.time() + 60 * spec.minutes
    for _ in select(spec.engine).map(_Setup(spec, names, until), _run, names, on_event=on_event):
        write_page(spec)


def write_page(spec: ClaimsSpec) -> list[Outcome]:
    """Write the page from what is stored, without training anything."""
    outcomes = [outcome(claim, read_record(store_of(spec), claim.name)) for claim in rows_of(spec)]
    write_atomically(page_of(spec), page(outcomes).encode())
    return outcomes
