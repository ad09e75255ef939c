"""From what is stored to an answer: the instrument first, then the row's rule, then the correction over the ledger."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Final, Literal

from scipy.stats import false_discovery_control

from lowland.report import show
from lowland.results import comparable
from lowland.study import Answer, Check, Effect, answer, guarded, judged, paired_effect, retention
from studies.claims.claim import Claim
from studies.claims.record import Record

__all__ = ["STATES", "Outcome", "outcome", "over_the_ledger"]

State = Literal["not run yet", "stale", "incomplete", "done", "kept"]
STATES: Final[tuple[State, ...]] = ("done", "incomplete", "stale", "not run yet", "kept")

_SHARE: Final = 0.75
"""What "keeps the gain" means, as in `lowland.study.retention`."""


@dataclass(frozen=True)
class Outcome:
    """A row with its answers."""

    claim: Claim  # The row
    # not run yet, stale (the code has changed since), incomplete (fewer seeds than declared), done, or kept (another
    # row has a better instrument, and this one does not run again)
    state: State
    record: Record | None  # What is stored
    effects: tuple[Effect | None, ...] = ()  # One per comparison; None where it has fewer than two seeds
    answers: tuple[Answer, ...] = ()  # One per comparison
    checks: tuple[tuple[Check, ...], ...] = ()  # What the instrument has shown, per comparison


@dataclass(frozen=True)
class _Compared:
    treated: Mapping[int, float]
    base: Mapping[int, float]
    effect: Effect
    alone: Answer | None  # What a contrast of three arms gives by itself; None for a pair


def outcome(claim: Claim, record: Record | None) -> Outcome:
    """Show what a row's instrument has seen, and apply its rule to what is stored."""
    if record is None or not record.runs:
        return Outcome(claim, "not run yet", None)
    known = {names: _compared(claim, record, names) for names in claim.comparisons}
    found = {names: one for names, one in known.items() if one is not None}
    checks = _checks(claim, record, found)
    answers: dict[tuple[str, ...], Answer] = {}
    for three in (False, True):  # pairs, and contrasts of three arms: each family has a correction of its own
        family = {names: one for names, one in found.items() if (one.alone is not None) is three}
        rule = partial(_rule, claim, [*family.values()])
        given = judged([one.effect for one in family.values()], [checks[names] for names in family], rule)
        answers |= dict(zip(family, given, strict=True))
    few = Answer("undecided", "fewer than 2 seeds are stored")
    every = [answers.get(names, few) for names in claim.comparisons]
    if record.failed:
        text = f"{len(record.failed)} seeds failed"
        every = [Answer("undecided", text, one.seeds_needed, one.p, one.adjusted) for one in every]
    return Outcome(
        claim,
        _state(claim, record),
        record,
        tuple(None if one is None else one.effect for one in known.values()),
        tuple(every),
        tuple(tuple(checks.get(names, [])) for names in claim.comparisons),
    )


def _state(claim: Claim, record: Record) -> State:
    if claim.better:
        return "kept"
    if record.fingerprint != claim.fingerprint:
        return "stale"
    return "done" if len(record.runs) >= claim.seeds else "incomplete"


def _rule(claim: Claim, family: Sequence[_Compared], effects: Sequence[Effect]) -> list[Answer]:
    alone = [one.alone for effect in effects for one in family if one.effect is effect]
    contrasts = [given for given in alone if given is not None]
    return guarded(effects, contrasts) if contrasts else answer(effects, smallest=claim.smallest)


def _compared(claim: Claim, record: Record, names: tuple[str, ...]) -> _Compared | None:
    values = [record.values(name) for name in names]
    shared = set.intersection(*map(set, values))
    if len(shared) < 2:
        return None
    if len(values) == 2:
        treated, base = values
        return _Compared(treated, base, paired_effect(treated, base, higher=claim.higher), None)
    treated, reference, base = values
    effect, alone = retention(treated, reference, base, share=_SHARE, higher=claim.higher)
    kept = {seed: base[seed] + _SHARE * (reference[seed] - base[seed]) for seed in shared}
    return _Compared({seed: treated[seed] for seed in shared}, kept, effect, alone)


def _checks(
    claim: Claim, record: Record, found: Mapping[tuple[str, ...], _Compared]
) -> dict[tuple[str, ...], list[Check]]:
    seen = {names: _own_checks(claim, record, names, one.effect) for names, one in found.items()}
    for three in (False, True):
        family = [names for names, one in found.items() if (one.alone is not None) is three]
        working = sum(all(check.works is not False for check in seen[names]) for names in family)
        for names in family:
            seen[names].append(_planted(claim, record, names, found[names], max(working, 1)))
    return seen


def _own_checks(claim: Claim, record: Record, names: tuple[str, ...], effect: Effect) -> list[Check]:
    """Return what a comparison's own numbers say of its instrument, the planted effect aside."""
    tool = claim.instrument
    found = [
        tool.reach(effect, [*record.beside("reach", names[0]).values()]),
        tool.bounds([value for name in names for value in record.values(name).values()]),
    ]
    losses = {name: [*record.beside("train_loss", name).values()] for name in names}
    if tool.learned is not None:
        found.append(tool.learning([loss for name in names for loss in losses[name]]))
    if tool.equal_loss:
        found.append(_equal_loss(losses))
    if tool.edge is not None:
        found.append(_edge([value for name in names for value in record.beside("edge", name).values()], tool.edge))
    return found


def _equal_loss(losses: Mapping[str, Sequence[float]]) -> Check:
    if not all(losses.values()):
        return Check("equal loss", "train losses are not stored with these numbers", None)
    means = {name: fmean(values) for name, values in losses.items()}
    text = ", ".join(f"{name} {show(mean)}" for name, mean in means.items())
    return Check("equal loss", f"train losses {text}", comparable([*means.values()]))


def _edge(losses: Sequence[float], least: float) -> Check:
    if not losses:
        return Check("range", "the loss on the border is not stored with these numbers", None)
    out = sum(loss >= least for loss in losses)
    text = f"{out} of {len(losses)} surfaces reach a loss of {show(least)} on their border"
    return Check("range", text, len(losses) - out < 0.2 * len(losses))


def _planted(claim: Claim, record: Record, names: tuple[str, ...], one: _Compared, family: int) -> Check:
    planted = record.beside("planted", names[-1])
    return claim.instrument.planted(
        one.treated,
        one.base,
        smallest=claim.smallest,
        higher=claim.higher,
        family=family,
        response={seed: planted[seed] - one.base[seed] for seed in planted if seed in one.base} or None,
    )


def over_the_ledger(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Adjust the first comparison of every primary row for the number of rows (Benjamini and Hochberg)."""
    rows = [(o.claim.name, o.answers[0].adjusted) for o in outcomes if o.claim.primary and o.answers]
    rows = [(name, p) for name, p in rows if math.isfinite(p)]
    return dict(zip([name for name, _ in rows], false_discovery_control([p for _, p in rows]).tolist(), strict=True))
