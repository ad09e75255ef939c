"""The ledger as a page: budget first, then every row with its number, cost, rule and answer, failed ones as plainly."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowland.report import show, show_interval, t_interval
from lowland.study import LOSS_RATIO, comparable
from studies.claims.answers import Outcome, over_the_ledger
from studies.claims.budget import seconds_left
from studies.claims.rows.undecided import UNDECIDED

__all__ = ["budget_table", "minutes_left", "page"]

_HEAD = """# The claims ledger

Each row is one published claim, measured here at a size that two cores can carry: the published number, ours with its
interval and cost, the rule that was declared before, and the answer. This page is written by `make claims` from the
numbers per seed in `studies/claims/results/`; `python -m studies.claims --only table` writes it again without training
anything. A row is *stale* where files that its module imports have changed since it was measured: its numbers are those
of the revision that it names, and it is measured anew by the next `make claims`.

The rule of every row: *reproduced* where the 95 % interval of the difference, paired by seed, lies on the claimed side
of 0; *refuted* where it lies below the smallest effect of interest; *undecided* otherwise, with the seeds that would
decide with a chance of 80 %. Holm's correction guards the comparisons inside a row, Benjamini and Hochberg's the first
comparison of the primary rows. "Keeps three quarters of the gain" is tested as one contrast of three arms. A row with a
failed seed is undecided. A positive difference always means "as claimed". Where a row counts steps to a train loss, a
run that never gets there counts with all its steps (the restricted mean time), and the share that got there is shown.
Differences that are all equal have an interval without width: the sign test decides there, from six seeds on.
"""


def budget_table(outcomes: Sequence[Outcome]) -> str:
    """Write what a run of the ledger is expected to cost, and what it has cost so far."""
    lines = [
        "| group | rows | seeds x rows | open | expected in all (min) | measured (min) | still to go (min) |",
        "|---|---|---|---|---|---|---|",
    ]
    groups = dict.fromkeys(one.claim.group for one in outcomes)
    lines += [_budget_line(group, [one for one in outcomes if one.claim.group == group]) for group in groups]
    rest = f"On two cores about {minutes_left(outcomes) / 2:.0f} minutes are still to go."
    return "\n".join([*lines, _budget_line("together", outcomes), "", rest])


def minutes_left(outcomes: Sequence[Outcome]) -> float:
    """Return the time that rows will still take on one core."""
    return sum(seconds_left(one.claim, one.record) for one in outcomes) / 60


def _budget_line(name: str, outcomes: Sequence[Outcome]) -> str:
    expected = sum(one.claim.seeds * one.claim.seconds for one in outcomes) / 60
    fresh = [one for one in outcomes if one.record is not None and one.state != "stale"]
    runs = [run for one in fresh if one.record is not None for run in one.record.runs]
    spent = sum(float(run["cpu_seconds"]) for run in runs) / 60
    seeds, left = sum(one.claim.seeds for one in outcomes), sum(one.claim.seeds for one in outcomes) - len(runs)
    to_go = minutes_left(outcomes)
    return f"| {name} | {len(outcomes)} | {seeds} | {max(left, 0)} | {expected:.0f} | {spent:.0f} | {to_go:.0f} |"


def page(outcomes: Sequence[Outcome]) -> str:
    """Write the page."""
    claims = [one.claim for one in outcomes]
    adjusted = over_the_ledger(outcomes)
    parts = [_HEAD, "## Budget\n", budget_table(outcomes), "", _states(outcomes), ""]
    for group in dict.fromkeys(claim.group for claim in claims):
        parts += [f"## {group}\n"]
        parts += [_row(one, adjusted.get(one.claim.name, math.nan)) for one in outcomes if one.claim.group == group]
    parts += ["## What cannot be decided here\n", "| group | claim | reason |", "|---|---|---|"]
    parts += [f"| {group} | {claim} | {reason} |" for group, claim, reason in UNDECIDED]
    return "\n".join(parts) + "\n"


def _states(outcomes: Sequence[Outcome]) -> str:
    counts = {
        state: sum(one.state == state for one in outcomes) for state in ("done", "incomplete", "stale", "not run yet")
    }
    shown = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"State of the rows: {shown}. Only rows that are not done run again."


def _row(one: Outcome, ledger: float) -> str:
    claim = one.claim
    lines = [
        f"### {claim.name}\n",
        f"{claim.statement}\n",
        f"- Published: {claim.published}",
        f"- Endpoint: {claim.endpoint}; {'higher' if claim.higher else 'lower'} is claimed; smallest effect of "
        f"interest {claim.smallest:g}",
    ]
    if claim.note:
        lines.append(f"- Differs: {claim.note}")
    if one.record is None:
        return "\n".join([*lines, f"- **Not run yet** ({claim.seeds} seeds declared)", ""])
    lines += [f"- State: {_state(one)}", f"- Run: {_provenance(one)}", "", *_arms(one), "", *_answers(one, ledger), ""]
    return "\n".join(lines)


def _state(one: Outcome) -> str:
    assert one.record is not None
    text = f"{one.state}, {len(one.record.runs)} of {one.claim.seeds} seeds"
    failed = "; ".join(f"seed {seed}: {error}" for seed, error in one.record.failed.items())
    more = " (files that the row imports have changed since it was measured)" if one.state == "stale" else ""
    return text + more + (f". **Failed**: {failed}" if failed else "")


def _provenance(one: Outcome) -> str:
    assert one.record is not None
    runs = one.record.runs
    seeds = [run["seed"] for run in runs]
    days = sorted({str(run["created"])[:10] for run in runs})
    time = sum(float(run["cpu_seconds"]) for run in runs)
    machines = "; ".join(sorted({str(run["machine"]) for run in runs}))
    torch = ", ".join(sorted({str(run["versions"].get("torch")) for run in runs}))
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    span = f"seeds {min(seeds)} to {max(seeds)}"
    revisions = ", ".join(sorted({str(run["revision"]) for run in runs} - {""})) or "unknown"
    return f"{span}, {when}, revision {revisions}, {machines}, torch {torch}, {time:.0f} s of processor time"


def _arms(one: Outcome) -> list[str]:
    assert one.record is not None
    names = dict.fromkeys(name for run in one.record.runs for name in run["values"])
    censored = any(run.get("reached") for run in one.record.runs)
    more = (" runs that got there |", "---|") if censored else ("", "")
    lines = [f"| arm | mean over seeds | passes | train loss |{more[0]}", f"|---|---|---|---|{more[1]}"]
    for name in names:
        values = t_interval([*one.record.values(name).values()])
        passes, loss, reached = (_mean(one, kind, name) for kind in ("passes", "train_loss", "reached"))
        share = "" if not censored else " – |" if reached is None else f" {reached:.0%} |"
        lines.append(f"| {name} | {show_interval(values, decimals=4)} | {show(passes)} | {show(loss)} |{share}")
    return lines + _comparability(one)


def _mean(one: Outcome, kind: str, name: str) -> float | None:
    assert one.record is not None
    known = [float(run[kind][name]) for run in one.record.runs if name in run.get(kind, {})]
    return sum(known) / len(known) if known else None


def _comparability(one: Outcome) -> list[str]:
    # a sharpness is not compared where the train losses are too far apart
    apart = []
    for names in one.claim.comparisons:
        losses = [_mean(one, "train_loss", name) for name in names]
        if all(loss is not None for loss in losses) and not comparable(losses):
            apart.append(" and ".join(names))
    text = "not comparable at the end, their train losses differ by more than a factor "
    text += f"{LOSS_RATIO}; see the rows at equal loss"
    return ["", f"{'; '.join(apart)}: {text}."] if apart else []


def _answers(one: Outcome, ledger: float) -> list[str]:
    lines = ["| comparison | difference as claimed | p (Holm) | p (ledger) | answer |", "|---|---|---|---|---|"]
    for place, (names, effect, given) in enumerate(zip(one.claim.comparisons, one.effects, one.answers, strict=True)):
        words = (
            f"{names[0]} against {names[1]}"
            if len(names) == 2
            else f"{names[0]} keeps three quarters of {names[1]}'s gain over {names[2]}"
        )
        interval = "–" if effect is None else show_interval(effect.interval, sign=True, decimals=4)
        needed = (
            f" ({given.seeds_needed} seeds would decide)" if given.verdict == "undecided" and given.seeds_needed else ""
        )
        share = show(ledger, 2) if place == 0 and math.isfinite(ledger) else "–"
        holm = show(given.adjusted, 2) if math.isfinite(given.adjusted) else "–"
        lines.append(f"| {words} | {interval} | {holm} | {share} | **{given.verdict}**{needed}: {given.reason} |")
    return lines
