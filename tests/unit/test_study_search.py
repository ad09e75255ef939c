"""Expected best-of-k curves, grids of equal size, and changes to a run's spec."""

import itertools
import math

import numpy as np
import pytest
from tests.study_cases import METHODS, tiny_study

from lowland.core.errors import InputError
from lowland.study.endpoints import equal_cost_epochs
from lowland.study.plan import jobs
from lowland.study.search import Trial, best_trial, expected_best, grid_settings, settings_of, withhold_test
from lowland.workflows import FitSpec, OptimizerSpec, SearchSpec, build_data
from lowland.workflows.changes import apply_changes, check_changes


def test_the_expected_best_of_k_is_the_mean_over_all_subsets():
    scores = [0.3, 0.9, 0.1, 0.5, 0.5]
    slow = [np.mean([max(part) for part in itertools.combinations(scores, k)]) for k in range(1, 6)]
    assert expected_best(scores) == pytest.approx(slow)


def test_failed_trials_count_as_the_worst_seen():
    assert expected_best([0.2, math.nan, 0.8]) == pytest.approx(expected_best([0.2, 0.2, 0.8]))
    assert all(math.isnan(value) for value in expected_best([math.nan, math.nan]))


def test_the_best_trial_is_the_earlier_of_equals_and_never_a_failed_one():
    trials = [Trial(0, {}, math.nan), Trial(1, {"a": 1}, 0.5), Trial(2, {}, 0.5)]
    assert best_trial(trials).number == 1
    with pytest.raises(InputError, match="all failed.*boom"):
        best_trial(trials[:1], "boom")


def test_every_method_gets_the_same_number_of_settings_and_always_the_same_ones(tmp_path):
    search = SearchSpec(
        trials=4,
        grid={"optimizer.learning_rate": [0.1, 0.2, 0.3], "optimizer.weight_decay": [0, 1e-3]},
        grids={"SAM": {"optimizer.options.rho": [0.05, 0.1]}},
    )
    spec = tiny_study(tmp_path / "s", search=search)
    for method, keys in (("SGD", 2), ("SAM", 3)):
        settings = settings_of(spec, method)
        assert len(settings) == 4 and {len(one) for one in settings} == {keys}
        assert settings == settings_of(spec, method) and len({str(one) for one in settings}) == 4


def test_changes_reach_nested_values_and_leave_the_base_alone():
    base = FitSpec()
    made = apply_changes(base, {"optimizer.options.rho": 0.1, "optimizer.method": "sam", "clip": 1.0}, "methods.SAM")
    assert made.optimizer.options == {"rho": 0.1} and made.clip == 1.0 and base.optimizer.method == "none"
    assert apply_changes(base, {"clip": None}, "x") == base
    whole = {"optimizer.method": "sam", "optimizer.options": {"interval": 2}}
    assert apply_changes(base, whole, "x").optimizer.options == {"interval": 2}
    with pytest.raises(InputError, match="must be empty"):
        apply_changes(base, {"optimizer.options": {"a": 1}}, "x")
    with pytest.raises(InputError, match=r"x.optimizer.rate.*Known: .*optimizer.learning_rate"):
        apply_changes(base, {"optimizer.rate": 1}, "x")
    made = apply_changes(base, {"optimizer.arguments.dampening": 0.1}, "x")  # any name, as in a file
    assert made.optimizer.arguments == {"dampening": 0.1} and base.optimizer.arguments == {}
    for key in ("optimizer.method.rho", "optimizer.options.rho.x"):  # below a single value
        with pytest.raises(InputError, match="known name"):
            apply_changes(FitSpec(optimizer=OptimizerSpec(method="sam", options={"rho": 1.0})), {key: 1}, "x")


def test_runs_come_seed_by_seed_so_that_pairs_are_whole(tmp_path):
    spec = tiny_study(tmp_path / "s", seeds=2)
    check_changes(spec)
    assert [(job.seed, job.method) for job in jobs(spec, "epochs", {})] == [(s, m) for s in (0, 1) for m in METHODS]


def test_equal_cost_gives_every_method_the_passes_of_the_dearest_and_shortens_none():
    epochs = {"SGD": 3, "SAM": 3, "MESA": 3, "broken": 3}
    found = equal_cost_epochs(epochs, {"SGD": 4.0, "SAM": 7.0, "MESA": 5.0, "broken": math.nan})
    assert found == {"SGD": 5, "SAM": 3, "MESA": 4, "broken": 3}
    assert equal_cost_epochs({"SGD": 3}, {"SGD": math.nan}) == {"SGD": 3}


def test_a_search_takes_the_same_part_of_a_grid_every_time_and_more_only_adds():
    grid = {"batch_size": [8, 16, 32], "epochs": [1, 2, 3]}
    found = grid_settings(grid, 4, seed=7)
    assert found == grid_settings(grid, 4, seed=7) and found != grid_settings(grid, 4, seed=8)
    more = grid_settings(grid, 5, seed=7)
    assert len(found) == 4 and all(one in more for one in found) and len(grid_settings(grid, 99, seed=7)) == 9


def test_a_run_without_test_part_keeps_everything_else():
    hidden = withhold_test(FitSpec(epochs=7))
    splits = build_data(hidden.data)
    assert splits.test is splits.validation and hidden.epochs == 7
    assert splits.recipe["test"] == "withheld"
