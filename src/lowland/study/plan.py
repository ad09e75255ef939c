"""From a study's spec to its runs: changes applied to the base run, checked before anything is trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from lowland.core.errors import InputError
from lowland.core.names import unknown
from lowland.workflows import FitSpec, parse
from lowland.workflows.study import Changes, StudySpec

__all__ = ["Job", "Kind", "apply_changes", "check_changes", "jobs", "variants"]

Kind = Literal["trials", "epochs", "compute"]
"""What a run is for: the search, the comparison at equal epochs, or the one at equal compute."""

METHOD_KEYS: Final = ("optimizer", "loss", "schedule", "clip")
"""What a method may change; data, model, length and the rule that chooses the epoch are the same for all."""

VARIANT_KEYS: Final = ("model", "data", "augment", "epochs", "batch_size", "schedule", "optimizer", "loss")
"""What may differ between the parts of a study; methods are compared inside a part only."""


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    kind: Kind  # What it is for
    variant: str  # Part of the study; "" where there is one
    method: str  # Name of the method
    seed: int
    spec: FitSpec  # The run
    trial: int = 0  # Number of the trial, in a search

    @property
    def key(self) -> str:
        """Its folder below the study's."""
        part = f"{self.variant}/" if self.variant else ""
        return (
            f"{self.kind}/{part}{self.method}/"
            + (f"t{self.trial:03d}-" if self.kind == "trials" else "")
            + f"s{self.seed}"
        )


def variants(spec: StudySpec) -> dict[str, Changes]:
    """Return the parts of a study."""
    return dict(spec.variants) or {"": {}}


def jobs(
    spec: StudySpec,
    kind: Kind,
    settings: Mapping[tuple[str, str], Changes],
    *,
    epochs: Mapping[tuple[str, str], int] | None = None,
) -> Iterator[Job]:
    """Yield the runs of one comparison, seed by seed, so that an interrupted study has whole pairs."""
    found: dict[tuple[str, str], FitSpec] = {}
    for variant in variants(spec):
        for method in spec.methods:
            if epochs is None or (variant, method) in epochs:
                run = run_spec(spec, variant, method, settings.get((variant, method), {}))
                found[variant, method] = run if epochs is None else replace(run, epochs=epochs[variant, method])
    for seed in range(spec.first_seed, spec.first_seed + spec.seeds):
        for (variant, method), run in found.items():
            yield placed(Job(kind, variant, method, seed, replace(run, seed=seed)), spec)


def placed(job: Job, spec: StudySpec) -> Job:
    """Return a job with its folder."""
    return replace(job, spec=replace(job.spec, folder=str(Path(spec.folder) / job.key)))


def run_spec(spec: StudySpec, variant: str, method: str, settings: Changes) -> FitSpec:
    """Return the run of a method: the base, changed by the part, the method, and what the search has chosen."""
    base = apply_changes(spec.base, variants(spec)[variant], f"variants.{variant}", VARIANT_KEYS)
    return apply_changes(
        apply_changes(base, spec.methods[method], f"methods.{method}", METHOD_KEYS), settings, "search", METHOD_KEYS
    )


def check_changes(spec: StudySpec) -> None:
    """Check every change of a study against the run's spec."""
    spec.reference()
    for variant in variants(spec):
        for method in spec.methods:
            run_spec(spec, variant, method, {})
            grid = {**spec.search.grid, **spec.search.grids.get(method, {})}
            for key, values in grid.items():
                for value in values:
                    run_spec(spec, variant, method, {key: value})


def apply_changes(base: FitSpec, changes: Changes, where: str, allowed: tuple[str, ...] | None = None) -> FitSpec:
    """Return a run with some values changed.

    Args:
        base: The run.
        changes: Dotted key -> value, such as ``{"optimizer.method": "sam", "optimizer.options.rho": 0.1}``.
        where: What the changes are called in an error.
        allowed: First words that may be changed. Default: all.

    Returns:
        Another run, checked like one from a file.

    Raises:
        InputError: If a key is unknown or not allowed, or a value has the wrong type.

    Example:
        >>> from lowland.workflows import FitSpec
        >>> apply_changes(FitSpec(), {"optimizer.method": "sam"}, "methods.SAM").optimizer.method
        'sam'
    """
    if not changes:
        return base
    tree = dataclasses.asdict(base)
    for key, value in changes.items():
        first = key.split(".")[0]
        if allowed is not None and first not in allowed and first in tree:
            advice = "data, model, length and the rule that chooses the epoch are the same for all methods"
            raise InputError(f"{where}.{key}", f"must be one of {', '.join(allowed)}", first, advice)
        _put(tree, key, value, where)
    return parse(FitSpec, [word for name, value in _flags(tree) for word in (f"--{name}", value)])


def _put(tree: dict[str, Any], key: str, value: Any, where: str) -> None:
    *path, last = key.split(".")
    place, free = tree, False
    for word in path:
        if not isinstance(place.get(word), dict):
            raise unknown(f"{where}.{key}", key, _names(tree))
        place, free = place[word], free or word == "options"
    if last not in place and not free:
        raise unknown(f"{where}.{key}", key, _names(tree))
    place[last] = value


def _names(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in tree.items():
        nested = isinstance(value, dict) and name != "options"
        found += _names(value, f"{prefix}{name}.") if nested else [prefix + name]
    return found


def _flags(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, dict) and name != "options":
            yield from _flags(value, f"{prefix}{name}.")
        elif isinstance(value, str):
            yield prefix + name, value
        else:
            yield prefix + name, json.dumps(value)
