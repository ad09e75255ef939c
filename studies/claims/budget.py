"""Which rows run, in which order, and how long they will take."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from lowland.core.errors import InputError
from studies.claims.claim import Claim
from studies.claims.record import Record

__all__ = ["chosen", "in_order", "seconds_left", "to_run"]


def in_order(claims: Sequence[Claim]) -> list[Claim]:
    """Return rows in the order in which they run: primary ones first, each after those it reads from."""
    # Cheap ones first.
    # The cost of a row is shared out over all rows that read from its runs, so that what much depends on comes
    # early.

    def readers(name: str) -> set[str]:
        direct = {claim.name for claim in claims if name in claim.after}
        return direct.union(*(readers(one) for one in direct))

    shares = {claim.name: claim.seeds * claim.seconds / (1 + len(readers(claim.name))) for claim in claims}
    waiting = sorted(claims, key=lambda claim: (not claim.primary, shares[claim.name]))
    names, placed = {claim.name for claim in claims}, list[Claim]()
    while waiting:
        done = {claim.name for claim in placed}
        ready = [claim for claim in waiting if names.intersection(claim.after) <= done]
        placed.append((ready or waiting)[0])
        waiting.remove(placed[-1])
    return placed


def seconds_left(claim: Claim, record: Record | None) -> float:
    """Return the time that a row will still take on one core; one that has a better one does not run."""
    if claim.better:
        return 0.0
    known = [] if record is None or record.fingerprint != claim.fingerprint else record.runs
    times = [float(run["cpu_seconds"]) for run in known if not run.get("error")]
    each = sum(times) / len(times) if len(times) >= 2 else claim.seconds
    return max(claim.seeds - len(times), 0) * each


def chosen(claims: Sequence[Claim], names: Sequence[str]) -> list[Claim]:
    """Return rows by name or group."""
    every = [claim.name for claim in claims]
    if len(set(every)) < len(every):
        raise InputError("claims", "must have different names", every)
    for name in names:
        if name not in every and name not in {claim.group for claim in claims}:
            known = [*every, *{claim.group for claim in claims}]
            near = [f"did you mean {one!r}?" for one in difflib.get_close_matches(name, known, n=1)]
            raise InputError("rows", "must be names of rows or groups", name, *near)
    return [claim for claim in claims if not names or claim.name in names or claim.group in names]


def to_run(claims: Sequence[Claim], names: Sequence[str] = ()) -> list[Claim]:
    """Return the rows that run: not those whose numbers are kept because another row has a better instrument."""
    for claim in claims:
        if claim.better and claim.name in names:
            raise InputError("rows", "must not be kept for comparison only", claim.name, f"run {claim.better!r}")
    return [claim for claim in claims if not claim.better]
