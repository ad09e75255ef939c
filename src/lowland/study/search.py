"""The search for settings: the same number of trials for every method, judged on validation data alone.

Trials never see the test part: their data set is wrapped so that its test part is its validation part.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import comb

from lowland.core.errors import InputError, optional_import
from lowland.core.seeds import generator
from lowland.data import DataSplits, load
from lowland.study.plan import Job, placed, run_spec
from lowland.workflows import DataSpec
from lowland.workflows.study import Changes, StudySpec

__all__ = ["WITHOUT_TEST", "Trial", "best", "expected_best", "settings_of", "trial_jobs", "suggest", "without_test"]

WITHOUT_TEST = "lowland.study.search:without_test"


@dataclass(frozen=True)
class Trial:
    """One setting that was tried."""

    number: int  # Its number, from 0
    settings: Changes  # What was set
    validation: float  # Mean validation accuracy (or minus the loss) over the trial's seeds; NaN where a run failed


def settings_of(spec: StudySpec, method: str) -> list[Changes]:
    """Return the settings that are tried for a method: a fixed subset of its grid."""
    grid = {**spec.search.grid, **spec.search.grids.get(method, {})}
    every = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if len(every) < spec.search.trials:
        rule = f"must offer at least {spec.search.trials} settings to every method"
        raise InputError("search.grid", rule, f"{len(every)} for {method}", "add values, or lower search.trials")
    order = generator(spec.search.first_seed, "subsample", "grid", len(every)).permutation(len(every))
    return [every[place] for place in sorted(order[: spec.search.trials])]


def trial_jobs(spec: StudySpec, variant: str, method: str, number: int, settings: Changes) -> list[Job]:
    """Return the runs of one trial."""
    found = run_spec(spec, variant, method, settings)
    hidden = DataSpec(name=WITHOUT_TEST, options={"dataset": found.data.name, "settings": found.data.options})
    seeds = range(spec.search.first_seed, spec.search.first_seed + spec.search.seeds)
    return [
        placed(Job("trials", variant, method, seed, replace(found, seed=seed, data=hidden), number), spec)
        for seed in seeds
    ]


def without_test(*, dataset: str, settings: dict[str, Any]) -> DataSplits:
    """Load a data set whose test part is withheld: the validation part stands in for it."""
    splits = load(dataset, **settings)
    return replace(splits, test=splits.validation, recipe={**splits.recipe, "test": "withheld"})


def best(trials: Sequence[Trial], why: str = "") -> Trial:
    """Return the trial with the highest validation score; ties go to the earlier one."""
    alive = [trial for trial in trials if math.isfinite(trial.validation)]
    if not alive:
        raise InputError("search.grid", "must hold a setting that trains", f"{len(trials)} trials, all failed", why)
    return max(alive, key=lambda trial: (trial.validation, -trial.number))


def expected_best(scores: Sequence[float]) -> list[float]:
    """Return the expected score of the best of k trials drawn from those made, for k = 1 ... n."""
    # sum_i v_(i) C(i-1, k-1) / C(n, k): draws without replacement, which is unbiased (Dodge et al. 2019, "Show
    # your work", equation 1, draws with replacement; Tang et al. 2020 point out its bias).
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).any():
        return [math.nan] * len(values)
    values = np.sort(np.where(np.isfinite(values), values, np.nanmin(values[np.isfinite(values)])))
    count, rank = len(values), np.arange(1, len(values) + 1)
    return [float((values * comb(rank - 1, k - 1)).sum() / comb(count, k)) for k in range(1, count + 1)]


def suggest(spec: StudySpec, method: str, score: Callable[[int, Changes], float]) -> Iterator[Trial]:
    """Let Optuna choose the settings one after the other; the same seed and scores give the same settings again."""
    optuna = optional_import("optuna", extra="optuna", needed_for='search.sampler="optuna"')
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    grid = {**spec.search.grid, **spec.search.grids.get(method, {})}
    sampler = optuna.samplers.TPESampler(seed=spec.search.first_seed)
    search = optuna.create_study(direction="maximize", sampler=sampler)
    for number in range(spec.search.trials):
        asked = search.ask()
        chosen = {key: values[asked.suggest_categorical(key, list(range(len(values))))] for key, values in grid.items()}
        value = score(number, chosen)
        failed = not math.isfinite(value)
        state = optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE
        search.tell(asked, None if failed else value, state=state)
        yield Trial(number, chosen, value)
