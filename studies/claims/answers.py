"""From what is stored to an answer: each row's rule, declared before it ran, and the correction over the ledger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.stats import false_discovery_control

from lowland.study import Answer, Effect, answer, paired_effect, retention
from studies.claims.claim import Claim
from studies.claims.record import Record

__all__ = ["Outcome", "outcome", "over_the_ledger"]

State = Literal["not run yet", "stale", "incomplete", "done"]


@dataclass(frozen=True)
class Outcome:
    """A row with its answers."""

    claim: Claim  # The row
    state: State  # not run yet, stale (the code has changed since), incomplete (fewer seeds than declared), or done
    record: Record | None  # What is stored
    effects: tuple[Effect | None, ...] = ()  # One per comparison; None where it has fewer than two seeds
    answers: tuple[Answer, ...] = ()  # One per comparison


def outcome(claim: Claim, record: Record | None) -> Outcome:
    """Apply a row's rule to what is stored."""
    if record is None or not record.runs:
        return Outcome(claim, "not run yet", None)
    state: State = "done" if len(record.runs) >= claim.seeds else "incomplete"
    state = state if record.fingerprint == claim.fingerprint else "stale"
    pairs = [compared for compared in claim.comparisons if len(compared) == 2]
    effects: dict[tuple[str, ...], Effect | None] = {pair: _effect(claim, record, pair) for pair in pairs}
    known = {compared: effect for compared, effect in effects.items() if effect is not None}
    given: dict[tuple[str, ...], Answer] = dict(
        zip(known, answer([*known.values()], smallest=claim.smallest), strict=True)
    )
    for compared in claim.comparisons:
        if len(compared) == 3 and _shared(record, compared) >= 2:
            treated, reference, base = (record.values(name) for name in compared)
            effects[compared], given[compared] = retention(treated, reference, base, higher=claim.higher)
    few = Answer("undecided", "fewer than 2 seeds")
    answers = [given.get(compared, few) for compared in claim.comparisons]
    if record.failed:
        text = f"{len(record.failed)} seeds failed"
        answers = [Answer("undecided", text, found.seeds_needed, found.p, found.adjusted) for found in answers]
    return Outcome(claim, state, record, tuple(effects.get(c) for c in claim.comparisons), tuple(answers))


def _shared(record: Record, names: Sequence[str]) -> int:
    return len(set.intersection(*(set(record.values(name)) for name in names)))


def _effect(claim: Claim, record: Record, names: Sequence[str]) -> Effect | None:
    if _shared(record, names) < 2:
        return None
    return paired_effect(record.values(names[0]), record.values(names[1]), higher=claim.higher)


def over_the_ledger(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Adjust the first comparison of every primary row for the number of rows (Benjamini and Hochberg)."""
    rows = [(o.claim.name, o.answers[0].adjusted) for o in outcomes if o.claim.primary and o.answers]
    rows = [(name, p) for name, p in rows if math.isfinite(p)]
    return dict(zip([name for name, _ in rows], false_discovery_control([p for _, p in rows]).tolist(), strict=True))
