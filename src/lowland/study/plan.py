"""From a study's spec to its runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lowland.workflows import FitSpec
from lowland.workflows.changes import run_spec, variants
from lowland.workflows.study import Changes, StudySpec

Kind = Literal["trials", "epochs", "compute"]
"""What a run is for: the search, the comparison at equal epochs, or the one at equal compute."""


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
        trial = f"t{self.trial:03d}-" if self.kind == "trials" else ""
        return f"{self.kind}/{part}{self.method}/{trial}s{self.seed}"


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
