"""The search for settings: the same number of trials for every method, judged on validation data alone.

Trials never see the test part: their data set is wrapped so that its test part is its validation part.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import comb

from lowland.core.errors import InputError, optional_import, require
from lowland.core.seeds import generator
from lowland.data import DataSplits, load
from lowland.study.plan import Job, placed
from lowland.workflows import DataSpec, FitSpec
from lowland.workflows.changes import run_spec
from lowland.workflows.study import Changes, StudySpec


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Args:
        number: Its number, from 0.
        settings: What was set.
        validation: Mean validation accuracy (or minus the loss) over the trial's seeds; NaN where a run failed.
    """

    number: int
    settings: Changes
    validation: float


def grid_settings(grid: Mapping[str, Sequence[Any]], count: int, *, seed: int) -> list[Changes]:
    """Return a fixed random subset of a grid, in the grid's order.

    Args:
        grid: Dotted key of a run's spec -> values.
        count: Size of the subset; the whole grid where it is smaller.
        seed: Seed of the subset.

    Returns:
        The settings.

    Example:
        >>> grid_settings({"batch_size": [16, 32], "epochs": [10]}, 5, seed=0)
        [{'batch_size': 16, 'epochs': 10}, {'batch_size': 32, 'epochs': 10}]
    """
    every = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    order = generator(seed, "subsample", "grid", len(every)).permutation(len(every))
    return [every[place] for place in sorted(order[:count])]


def settings_of(spec: StudySpec, method: str) -> list[Changes]:
    """Return the settings that are tried for a method: a fixed subset of its grid."""
    grid = {**spec.search.grid, **spec.search.grids.get(method, {})}
    found = grid_settings(grid, spec.search.trials, seed=spec.search.first_seed)
    if len(found) < spec.search.trials:
        rule = f"must offer at least {spec.search.trials} settings to every method"
        raise InputError("search.grid", rule, f"{len(found)} for {method}", "add values, or lower search.trials")
    return found


def search(spec: StudySpec, method: str, score: Callable[[Mapping[int, Changes]], Mapping[int, float]]) -> list[Trial]:
    """Choose settings and score them: all at once from the grid, or one after the other by Optuna."""
    if spec.search.sampler == "optuna":
        return list(suggest(spec, method, lambda number, settings: score({number: settings})[number]))
    settings = dict(enumerate(settings_of(spec, method)))
    scores = score(settings)
    return [Trial(number, chosen, scores[number]) for number, chosen in settings.items()]


def trial_jobs(spec: StudySpec, variant: str, method: str, number: int, settings: Changes) -> list[Job]:
    """Return the runs of one trial."""
    found = withhold_test(run_spec(spec, variant, method, settings))
    seeds = range(spec.search.first_seed, spec.search.first_seed + spec.search.seeds)
    return [placed(Job("trials", variant, method, seed, replace(found, seed=seed), number), spec) for seed in seeds]


def withhold_test(run: FitSpec) -> FitSpec:
    """Return a run whose data have no test part, so that nothing can be chosen by it.

    Args:
        run: What a trial trains, with its own test part.

    Returns:
        The same run on data whose validation part stands in for the test part.

    Example:
        >>> from lowland.workflows import FitSpec
        >>> withhold_test(FitSpec()).data.options["dataset"]
        'digits'
    """
    options = {"dataset": run.data.name, "settings": run.data.options}
    return replace(run, data=DataSpec(name=f"{__name__}:without_test", options=options))


def without_test(*, dataset: str, settings: dict[str, Any]) -> DataSplits:
    """Load a data set whose test part is withheld: the validation part stands in for it."""
    splits = load(dataset, **settings)
    return replace(splits, test=splits.validation, recipe={**splits.recipe, "test": "withheld"})


def best_trial(trials: Sequence[Trial], why: str = "") -> Trial:
    """Return the trial with the highest validation score; ties go to the earlier one.

    Args:
        trials: All that were run for one method, in the order of their numbers.
        why: Why the first one failed, for the error. Default: nothing known.

    Returns:
        The best one.

    Raises:
        InputError: If all have failed.

    Example:
        >>> best_trial([Trial(0, {"epochs": 1}, 0.8), Trial(1, {"epochs": 2}, 0.9)]).settings
        {'epochs': 2}
    """
    alive = [trial for trial in trials if math.isfinite(trial.validation)]
    require(alive, "search.grid", "must hold a setting that trains", f"{len(trials)} trials, all failed", why)
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
