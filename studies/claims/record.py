"""What is stored about a row: the numbers of every seed, written one by one, with where and when they were measured."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lowland.core.errors import StoreError
from lowland.core.provenance import provenance
from studies.claims.claim import Claim, declaration
from studies.claims.files import write_whole
from studies.claims.runs import RunCache

__all__ = ["Record", "read_record", "run_claim"]

SCHEMA = "lowland.claim/1"

BESIDE = ("passes", "train loss", "reached", "reach", "edge", "planted")
"""What a measure may say of an arm besides its endpoint, see `studies.claims.claim.Measure`."""


@dataclass
class Record:
    """What is stored about a row."""

    claim: str  # Name of the row
    fingerprint: str  # Of the code that gave the numbers
    # One entry per seed: seed, values, passes, seconds, created, machine, versions, and error where it failed.
    runs: list[dict[str, Any]] = field(default_factory=list)
    declared: dict[str, Any] = field(default_factory=dict)  # The row as it was declared when the first seed ran
    # Where code had changed and a seed measured again gave the same numbers: seed, created, revision, machine.
    verified: list[dict[str, Any]] = field(default_factory=list)

    def values(self, arm: str) -> dict[int, float]:
        """Return the endpoint of an arm by seed."""
        found = {run["seed"]: run["values"].get(arm, math.nan) for run in self.runs if not run.get("error")}
        return {seed: float(value) for seed, value in found.items() if math.isfinite(float(value))}

    def beside(self, kind: str, arm: str) -> dict[int, float]:
        """Return what was stored beside the endpoint of an arm by seed; empty where nothing was."""
        found = {run["seed"]: run.get(kind, {}).get(arm, math.nan) for run in self.runs if not run.get("error")}
        return {seed: float(value) for seed, value in found.items() if not math.isnan(float(value))}

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
        runs, declared = list(content["runs"]), dict(content.get("declared", {}))
        return Record(content["claim"], content["fingerprint"], runs, declared, list(content.get("verified", [])))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"not a record of the ledger: {path} ({error})") from error


def run_claim(
    claim: Claim, store: Path, runs: RunCache, *, seeds: int | None = None, until: float | None = None
) -> Record:
    """Run the seeds of a row that are missing; numbers that changed code no longer gives are measured anew."""
    record = read_record(store, claim.name)
    if record is None:
        record = Record(claim.name, claim.fingerprint, declared=declaration(claim))
    elif record.fingerprint != claim.fingerprint:
        if until is not None and time.monotonic() > until:
            return record
        record = _by_present_code(claim, record, runs)
        _write(store, record)
    known = {run["seed"] for run in record.runs if not run.get("error")}
    for seed in range(claim.seeds if seeds is None else seeds):
        if seed in known or (until is not None and time.monotonic() > until):
            continue
        run = _seed(claim, runs, seed)
        others = [other for other in record.runs if other["seed"] != seed]
        record.runs = sorted([*others, run], key=lambda entry: int(entry["seed"]))
        _write(store, record)
    return record


def _by_present_code(claim: Claim, old: Record, runs: RunCache) -> Record:
    """Return all of a row's numbers if today's code gives the first of them again, else what it gives instead."""
    new = Record(claim.name, claim.fingerprint, declared=declaration(claim))
    known = [run for run in old.runs if not run.get("error")]
    if not known or old.declared not in ({}, new.declared):
        return new
    again = _seed(claim, runs, int(known[0]["seed"]))
    if again["error"] or not all(_same(again[kind], known[0].get(kind, {})) for kind in ("values", "train_loss")):
        new.runs.append(again)
        return new
    seen = {name: again[name] for name in ("seed", "created", "revision", "machine")}
    return replace(old, fingerprint=claim.fingerprint, verified=[*old.verified, seen])


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether two sets of numbers agree to 1e-6, as stored points of a survey must."""
    pairs = [(float(one[name]), float(other[name])) for name in one.keys() & other.keys()]
    near = (math.isclose(a, b, rel_tol=1e-6) or (math.isnan(a) and math.isnan(b)) for a, b in pairs)
    return one.keys() == other.keys() and all(near)


def _seed(claim: Claim, runs: RunCache, seed: int) -> dict[str, Any]:
    started, cpu = time.monotonic(), time.process_time()
    error, found = "", {}
    try:
        found = claim.measure(runs, claim.arms, seed)
    except Exception as failure:  # a failed seed is a result: it is stored and shown
        error = f"{type(failure).__name__}: {failure}".splitlines()[0]
    made = provenance()
    beside: dict[str, dict[str, float]] = {kind: {} for kind in BESIDE}
    values: dict[str, Any] = {}
    for name, value in found.items():
        kind = next((kind for kind in BESIDE if name.startswith(f"{kind} ")), "")
        (beside[kind] if kind else values)[name.removeprefix(f"{kind} ")] = value
    stored: dict[str, Any] = {
        kind.replace(" ", "_"): {name: _plain(v) for name, v in own.items()} for kind, own in beside.items()
    }
    return {
        "seed": seed,
        "values": {name: _plain(value) for name, value in values.items()},
        **stored,
        "error": error,
        "seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "created": made["created"],
        "versions": made["versions"],
        "revision": made["revision"],
        "machine": f"{made['machine']}, {os.cpu_count()} cores, {platform.processor() or 'CPU'}",
    }


def _plain(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


def _write(store: Path, record: Record) -> None:
    content = {"schema": SCHEMA, **asdict(record)}
    write_whole(store / f"{record.claim}.json", json.dumps(content, indent=1, sort_keys=True) + "\n")
