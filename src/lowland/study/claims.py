"""The claims ledger: each published claim with our number, its interval, its cost, the rule, and the answer.

A row is a `Claim`. Its numbers per seed are written to ``docs/claims/NAME.json`` after every seed, with date, machine,
time and the fingerprint of the code they depend on; ``docs/claims.md`` is made from those files alone. A row whose code
has changed since is stale and runs again; its old answer stays in the table, marked, until then. Rows that were never
run say so.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lowland.core.errors import InputError, StoreError
from lowland.core.names import unknown
from lowland.core.provenance import provenance
from lowland.results.files import write_atomically
from lowland.study.bench import Arm, Bench, names_in_run, settings_of
from lowland.study.dependencies import names_in_call, own_source
from lowland.study.statistics import Answer, Effect, answer, benjamini_hochberg, paired_effect, retention

__all__ = [
    "Claim",
    "Measure",
    "Outcome",
    "Record",
    "chosen",
    "in_order",
    "outcome",
    "over_the_ledger",
    "read_record",
    "run_claim",
    "seconds_left",
]

Measure = Callable[[Bench, Mapping[str, Arm], int], dict[str, float]]
"""(bench, arms, seed) -> endpoint of every arm, and ``"passes ARM"``, ``"train loss ARM"``, ``"reached ARM"`` (1 or 0)
where they count."""

SCHEMA = "lowland.claim/1"

BESIDE = ("passes", "train loss", "reached")
"""What a measure may say of an arm besides its endpoint."""


@dataclass(frozen=True)
class Claim:
    """One row of the ledger, declared before it runs."""

    name: str  # Name of the row and of its file
    group: str  # Method or paper
    statement: str  # What is claimed, in a sentence
    published: str  # The published number, with its setting; "no number published" where there is none
    endpoint: str  # What is measured, with its unit and the task
    smallest: float  # Smallest effect of interest, in the endpoint's unit
    # (treated, base) pairs; three names (treated, reference, base) ask whether the treated arm keeps three
    # quarters of the reference's gain.
    comparisons: tuple[tuple[str, ...], ...]
    measure: Measure  # Gives the numbers of a seed
    arms: Mapping[str, Arm] = field(default_factory=dict)  # What is trained
    higher: bool = True  # Whether the claim says that the treated arm is higher
    seeds: int = 20  # Seeds to run
    # Expected seconds per seed on one core, with the seed's share of a search; runs of rows in ``after`` are
    # not counted.
    seconds: float = 10.0
    after: tuple[str, ...] = ()  # Rows whose runs it reads as well, which run before it
    primary: bool = True  # Whether the row counts in the correction over the ledger
    note: str = ""  # What differs from the published setting

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that the numbers depend on: code, the runs' specs, and what is searched."""
        names, plain = names_in_call(self.measure)
        specs = {}
        for name, one in self.arms.items():
            names |= names_in_run(one.spec)
            specs[name] = [str(one.spec), str(settings_of(one)) if one.tuned else ""]
        text = json.dumps([plain, specs], sort_keys=True)
        return own_source().fingerprint(names) + hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass
class Record:
    """What is stored about a row."""

    claim: str  # Name of the row
    fingerprint: str  # Of the code that gave the numbers
    # One entry per seed: seed, values, passes, seconds, created, machine, versions, and error where it failed.
    runs: list[dict[str, Any]] = field(default_factory=list)

    def values(self, arm: str) -> dict[int, float]:
        """Return the endpoint of an arm by seed."""
        found = {run["seed"]: run["values"].get(arm, math.nan) for run in self.runs if not run.get("error")}
        return {seed: float(value) for seed, value in found.items() if math.isfinite(float(value))}

    @property
    def failed(self) -> dict[int, str]:
        """Error by seed."""
        broken = {run["seed"]: str(run["error"]) for run in self.runs if run.get("error")}
        for run in self.runs:
            bad = [name for name, value in run["values"].items() if not math.isfinite(float(value))]
            if bad and run["seed"] not in broken:
                broken[run["seed"]] = f"no number for {', '.join(bad)}"
        return broken


def read_record(store: Path, claim: str) -> Record | None:
    """Read what is stored about a row."""
    path = store / f"{claim}.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"its schema is {content['schema']!r}")
        return Record(content["claim"], content["fingerprint"], list(content["runs"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"not a record of the ledger: {path} ({error})") from error


def run_claim(
    claim: Claim, store: Path, bench: Bench, *, seeds: int | None = None, until: float | None = None,
    on_seed: Callable[[int, dict[str, Any]], None] | None = None,
) -> Record:  # fmt: skip
    """Run the seeds of a row that are missing; numbers of changed code are dropped and measured anew."""
    record = read_record(store, claim.name)
    if record is None or record.fingerprint != claim.fingerprint:
        record = Record(claim.name, claim.fingerprint)
    known = {run["seed"] for run in record.runs if not run.get("error")}
    for seed in range(claim.seeds if seeds is None else seeds):
        if seed in known or (until is not None and time.monotonic() > until):
            continue
        run = _seed(claim, bench, seed)
        others = [other for other in record.runs if other["seed"] != seed]
        record.runs = sorted([*others, run], key=lambda entry: int(entry["seed"]))
        _write(store, record)
        if on_seed is not None:
            on_seed(seed, run)
    return record


def _seed(claim: Claim, bench: Bench, seed: int) -> dict[str, Any]:
    started, cpu = time.monotonic(), time.process_time()
    error, found = "", {}
    try:
        found = claim.measure(bench, claim.arms, seed)
    except Exception as failure:  # a failed seed is a result: it is stored and shown
        error = f"{type(failure).__name__}: {failure}".splitlines()[0]
    made = provenance()
    beside: dict[str, dict[str, float]] = {kind: {} for kind in BESIDE}
    values: dict[str, Any] = {}
    for name, value in found.items():
        kind = next((kind for kind in BESIDE if name.startswith(f"{kind} ")), "")
        (beside[kind] if kind else values)[name.removeprefix(f"{kind} ")] = value
    return {
        "seed": seed, "values": {name: _plain(value) for name, value in values.items()},
        "passes": beside["passes"], "train_loss": {name: _plain(v) for name, v in beside["train loss"].items()},
        "reached": beside["reached"],
        "error": error, "seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "created": made["created"], "versions": made["versions"], "revision": made["revision"],
        "machine": f"{made['machine']}, {os.cpu_count()} cores, {platform.processor() or 'CPU'}",
    }  # fmt: skip


def _plain(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


def _write(store: Path, record: Record) -> None:
    content = {"schema": SCHEMA, "claim": record.claim, "fingerprint": record.fingerprint, "runs": record.runs}
    write_atomically(store / f"{record.claim}.json", (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


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
    return dict(zip([name for name, _ in rows], benjamini_hochberg([p for _, p in rows]), strict=True))


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
    """Return the time that a row will still take on one core."""
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
            raise unknown("rows", name, [*every, *{claim.group for claim in claims}])
    return [claim for claim in claims if not names or claim.name in names or claim.group in names]
