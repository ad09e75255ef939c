"""The ledger as pages: all rows in one table with what to take home; what changed; and every row in full by group."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from lowland.report import show, show_interval, t_interval
from lowland.results import COUNTED, PASSES
from lowland.study import Answer, Check, largest_spread, power
from studies.claims.answers import STATES, Outcome, over_the_ledger
from studies.claims.budget import seconds_left
from studies.claims.claim import Claim
from studies.claims.history import Edition, differences, last_edition, words_of
from studies.claims.rows.undecided import UNDECIDED
from studies.claims.words import CHANGES, GROUP, HEAD, REPLACED, RULE, TAKE_HOME, Sentence

__all__ = ["budget_table", "minutes_left", "pages"]


def budget_table(outcomes: Sequence[Outcome]) -> str:
    """Write what a run of the ledger is expected to cost, and what it has cost so far."""
    lines = [
        "| group | rows | seeds x rows | open | expected in all (min) | measured (min) | still to go (min) |",
        "|---|---|---|---|---|---|---|",
    ]
    alive = [one for one in outcomes if not one.claim.better]
    groups = dict.fromkeys(one.claim.group for one in alive)
    lines += [_budget_line(group, [one for one in alive if one.claim.group == group]) for group in groups]
    rest = f"On two cores about {minutes_left(outcomes) / 2:.0f} minutes are still to go."
    return "\n".join([*lines, _budget_line("together", alive), "", rest])


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


def pages(outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Write the pages: the first under ``""``, what changed and each group under names of their own."""
    adjusted, edition = over_the_ledger(outcomes), last_edition()
    changes = "\n".join([CHANGES.format(date=edition.date), *_changes(outcomes, edition), ""])
    found = {"": _first(outcomes, edition), "changes": changes}
    for group in dict.fromkeys(one.claim.group for one in outcomes):
        own = [one for one in outcomes if one.claim.group == group]
        own.sort(key=lambda one: bool(one.claim.better))
        rows = [_row(one, adjusted.get(one.claim.name, math.nan), edition) for one in own]
        found[_slug(group)] = "\n".join([GROUP.format(group=group), *rows])
    return found


def _slug(group: str) -> str:
    return re.sub(r"\W+", "-", group.lower()).strip("-")


def _link(claim: Claim) -> str:
    return f"[{claim.name}](claims/{_slug(claim.group)}.md#{claim.name})"


def _first(outcomes: Sequence[Outcome], edition: Edition) -> str:
    parts = [HEAD, _all_rows(outcomes), "", "## What to take home\n", *_take_home(outcomes)]
    parts += [f"## What changed since the ledger of {edition.date}\n", *_changed(outcomes, edition), ""]
    parts += ["## What the instruments rejected\n", *_rejected(outcomes), "", "## The rule\n", RULE, PASSES, ""]
    parts += ["## What cannot be decided here\n", "| group | claim | reason |", "|---|---|---|"]
    parts += [f"| {group} | {claim} | {reason} |" for group, claim, reason in UNDECIDED]
    parts += ["", "## Budget\n", budget_table(outcomes), "", _states(outcomes)]
    return "\n".join(parts) + "\n"


def _all_rows(outcomes: Sequence[Outcome]) -> str:
    links = {one.claim.name: _link(one.claim) for one in outcomes}
    head = ["| row | claim | answer | one number: the difference as claimed | cost (s) |", "|---|---|---|---|---|"]
    lines = head + [_cells(one) for one in outcomes if one.claim.better not in links]
    replaced = [f"{_cells(one)} {links[one.claim.better]} |" for one in outcomes if one.claim.better in links]
    if replaced:
        lines += ["", REPLACED, f"{head[0]} answered instead by |", f"{head[1]}---|", *replaced]
    return "\n".join(lines)


def _cells(one: Outcome) -> str:
    number = "–" if not one.effects or one.effects[0] is None else _interval(one, 0)
    spent = "–" if one.record is None else f"{sum(float(run['cpu_seconds']) for run in one.record.runs):.0f}"
    return f"| {_link(one.claim)} | {one.claim.statement} | {_short(one)} | {number} | {spent} |"


def _short(one: Outcome) -> str:
    if not one.answers:
        return "not run yet"
    first, rest = one.answers[0].verdict, [given.verdict for given in one.answers[1:]]
    more = ", ".join(f"{count} {verdict}" for verdict, count in Counter(rest).items())
    return f"**{first}**" + (f"; of its other comparisons {more}" if more else "")


def _interval(one: Outcome, place: int) -> str:
    effect = one.effects[place]
    return "–" if effect is None else show_interval(effect.interval, sign=True, decimals=4)


def _take_home(outcomes: Sequence[Outcome]) -> list[str]:
    answers = {one.claim.name: one.answers[0].verdict for one in outcomes if one.answers}
    lines: list[str] = []
    for group in dict.fromkeys(one.claim.group for one in outcomes):
        told = [_told(sentence, answers) for sentence in TAKE_HOME.get(group, ())]
        link = f"Each row in full: [{group}](claims/{_slug(group)}.md)."
        lines += [f"### {group}\n", " ".join([*told, link]) + "\n"]
    return lines


def _told(sentence: Sentence, answers: Mapping[str, str]) -> str:
    """Return a sentence, or what has become of it where its rows answer otherwise now."""
    other = [row for row, verdict in sentence.rests_on.items() if answers.get(row) != verdict]
    return f"({', '.join(other)} answered otherwise since this was written: see there.)" if other else sentence.text


def _differing(outcomes: Sequence[Outcome], edition: Edition) -> Iterator[tuple[Outcome, str, str, Answer]]:
    """Yield comparisons that answered otherwise in an edition: with their words, the answer then, and the one now."""
    for one in outcomes:
        for names, given in zip(one.claim.comparisons, one.answers, strict=False):
            before = edition.answer(one.claim.name, words_of(names))
            if before and before != given.verdict:
                yield one, words_of(names), before, given


def _changed(outcomes: Sequence[Outcome], edition: Edition) -> list[str]:
    counts = Counter((before, given.verdict) for _, _, before, given in _differing(outcomes, edition))
    fresh = sum(one.claim.name not in edition.rows for one in outcomes)
    lines = ["| then | now | comparisons |", "|---|---|---|"]
    lines += [f"| {then} | {now} | {count} |" for (then, now), count in counts.most_common()]
    return [*lines, "", f"{fresh} rows are new. [Each change and why](claims/changes.md)."]


def _changes(outcomes: Sequence[Outcome], edition: Edition) -> list[str]:
    lines = ["| row | comparison | then | now | why |", "|---|---|---|---|---|"]
    for one, words, before, given in _differing(outcomes, edition):
        why = one.claim.changed or given.reason
        lines.append(f"| {one.claim.name} | {words} | {before} | {given.verdict} | {why} |")
    fresh = [one.claim for one in outcomes if one.claim.name not in edition.rows]
    better = {claim.better: claim.name for claim in (one.claim for one in outcomes) if claim.better}
    declared = "Declared before they ran; of twelve the first seed had been run once, to time it."
    lines += ["", "## Rows that are new\n", f"{declared}\n"]
    lines += [f"- `{claim.name}`: {_whence(claim, better)}" for claim in fresh]
    lines += ["", "## Rows declared otherwise than when their numbers were measured\n"]
    changed = [(one.claim, differences(one.claim, one.record, edition)) for one in outcomes]
    told = [f"- `{claim.name}`: {'; '.join(found)}. {claim.changed}" for claim, found in changed if found]
    return lines + (told or ["- none: no row was changed after its result had been seen."])


def _whence(claim: Claim, better: dict[str, str]) -> str:
    text = claim.statement
    return (
        f"the better instrument of `{better[claim.name]}`. {claim.endpoint[:1].upper()}{claim.endpoint[1:]}."
        if (claim.name in better)
        else text
    )


def _rejected(outcomes: Sequence[Outcome]) -> list[str]:
    failed = Counter(c.name for one in outcomes for checks in one.checks for c in checks if c.works is False)
    seen = sum(check.seen for one in outcomes for checks in one.checks for check in checks)
    total = sum(len(one.checks) for one in outcomes)
    out = sum(any(check.works is False for check in checks) for one in outcomes for checks in one.checks)
    lines = [f"Of {total} comparisons that have numbers, {out} had an instrument that does not work:", ""]
    lines += [f"- {name}: {count}" for name, count in failed.most_common()]
    more = (
        f"In {seen} more the planted effect is too rarely found, but as much or more was seen in the runs themselves."
    )
    return [*lines, "", more]


def _states(outcomes: Sequence[Outcome]) -> str:
    counts = {state: sum(one.state == state for one in outcomes) for state in STATES}
    shown = ", ".join(f"{count} {state}" for state, count in counts.items())
    return f"State of the rows: {shown}. Rows that are done do not run again; kept ones have a better instrument."


def _row(one: Outcome, ledger: float, edition: Edition) -> str:
    claim = one.claim
    lines = [
        f"## {claim.name}\n",
        f"{claim.statement}\n",
        f"- Published: {claim.published}",
        f"- Endpoint: {claim.endpoint}; {'higher' if claim.higher else 'lower'} is claimed; smallest effect of "
        f"interest {claim.smallest:g}",
    ]
    lines += [f"- Differs: {claim.note}"] if claim.note else []
    lines += [f"- Better instrument: [{claim.better}](#{claim.better})"] if claim.better else []
    changed = differences(claim, one.record, edition)
    lines += [f"- **Changed after a result was seen**: {'; '.join(changed)}. {claim.changed}"] if changed else []
    if one.record is None:
        return "\n".join([*lines, _declared(claim), f"- **Not run yet** ({claim.seeds} seeds declared)", ""])
    lines += [f"- State: {_state(one)}", f"- Run: {_provenance(one)}", "", *_arms(one), ""]
    lines += [*_instrument(one), "", *_answers(one, ledger), ""]
    return "\n".join(lines)


def _declared(claim: Claim) -> str:
    tool, family = claim.instrument, len(claim.comparisons)
    asked = [f"floor {show(tool.floor)}"] if tool.floor is not None else []
    asked += [f"ceiling {show(tool.ceiling)}"] if tool.ceiling is not None else []
    asked += [f"both sides at a train loss of {show(tool.learned)} or less"] if tool.learned is not None else []
    asked += ["comparable train losses"] if tool.equal_loss else []
    asked += [f"a loss of {show(tool.edge)} on the border of every surface"] if tool.edge is not None else []
    spread = largest_spread(claim.seeds, claim.smallest, family=family)
    text = (
        f"{claim.smallest:g} is found in 80 % of studies of {claim.seeds} seeds where the paired differences spread by "
    )
    text += f"{show(spread)} or less"
    if claim.spread is not None:
        chance = power(claim.spread[0], claim.seeds, claim.smallest, family=family)
        text += f"; {show(claim.spread[0])} is expected ({claim.spread[1]}): power {chance:.2f}"
    return f"- Instrument, declared: {', '.join([*asked, 'seeds that differ'])}; {text}"


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
    text = f"{span}, {when}, revision {revisions}, {machines}, torch {torch}, {time:.0f} s of processor time"
    for seen in one.record.verified[-1:]:
        text += (
            f"; seed {seen['seed']} gave the same numbers {str(seen['created'])[:10]} at revision {seen['revision']}"
        )
    return text


def _arms(one: Outcome) -> list[str]:
    assert one.record is not None
    names = dict.fromkeys(name for run in one.record.runs for name in run["values"])
    censored = any(run.get("reached") for run in one.record.runs)
    more = (" runs that got there |", "---|") if censored else ("", "")
    lines = [f"| arm | mean over seeds | {COUNTED} | train loss |{more[0]}", f"|---|---|---|---|{more[1]}"]
    for name in names:
        values = t_interval([*one.record.values(name).values()])
        passes, loss, reached = (_mean(one, kind, name) for kind in ("passes", "train_loss", "reached"))
        share = "" if not censored else " – |" if reached is None else f" {reached:.0%} |"
        lines.append(f"| {name} | {show_interval(values, decimals=4)} | {show(passes)} | {show(loss)} |{share}")
    return lines


def _mean(one: Outcome, kind: str, name: str) -> float | None:
    assert one.record is not None
    known = [*one.record.beside(kind, name).values()]
    return sum(known) / len(known) if known else None


def _instrument(one: Outcome) -> list[str]:
    names = [*dict.fromkeys(check.name for checks in one.checks for check in checks)]
    lines = [f"| instrument of | {' | '.join(names)} |", "|" + "---|" * (1 + len(names))]
    for compared, checks in zip(one.claim.comparisons, one.checks, strict=True):
        known = {check.name: _shown(check) for check in checks}
        lines.append(f"| {words_of(compared)} | {' | '.join(known.get(name, '–') for name in names)} |")
    return lines if names else []


def _shown(check: Check) -> str:
    return f"**fails**: {check.shown}" if check.works is False else check.shown


def _answers(one: Outcome, ledger: float) -> list[str]:
    lines = ["| comparison | difference as claimed | p (Holm) | p (ledger) | answer |", "|---|---|---|---|---|"]
    for place, (names, given) in enumerate(zip(one.claim.comparisons, one.answers, strict=True)):
        interval = _interval(one, place)
        needed = (
            f" ({given.seeds_needed} seeds would decide)" if given.verdict == "undecided" and given.seeds_needed else ""
        )
        share = show(ledger, 2) if place == 0 and math.isfinite(ledger) else "–"
        holm = show(given.adjusted, 2) if math.isfinite(given.adjusted) else "–"
        lines.append(
            f"| {words_of(names)} | {interval} | {holm} | {share} | **{given.verdict}**{needed}: {given.reason} |"
        )
    return lines
