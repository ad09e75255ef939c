"""Sharpness against generalization: closed forms, a pooled paradox, and resampling by cluster."""

import math

import numpy as np
import pytest
from scipy import stats

from lowland.core.errors import InputError
from lowland.study.association import association, partial_tau, sign_errors, strata_that_differ_in


def test_one_stratum_without_ties_is_scipys_tau():
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 30))
    found = association(x, y, stratum=["all"] * 30, cluster=range(30))
    assert found.tau == pytest.approx(stats.kendalltau(x, y).statistic)
    assert found.pairs == 435


def test_strata_undo_a_paradox_that_pooling_shows():
    # inside each network sharper is worse; between the two networks it is the other way round
    sharpness, gap = [1, 2, 3, 11, 12, 13], [5, 6, 7, 1, 2, 3]
    assert association(sharpness, gap, stratum="aaabbb", cluster=range(6)).tau == 1.0
    assert association(sharpness, gap, stratum="pppppp", cluster=range(6)).tau < 0


def test_the_interval_covers_a_null_and_widens_with_clusters():
    random = np.random.default_rng(1)
    hits = 0
    for draw in range(150):
        x, y = random.standard_normal((2, 24))
        found = association(x, y, stratum=["s"] * 24, cluster=range(24), draws=300, seed=draw)
        hits += found.low <= 0 <= found.high
    assert hits / 150 > 0.87
    seeds = np.repeat(np.arange(10), 6)
    common = random.standard_normal(10)[seeds]
    x, y = common + 0.1 * random.standard_normal(60), common + 0.1 * random.standard_normal(60)
    runs = association(x, y, stratum=["s"] * 60, cluster=range(60))
    by_seed = association(x, y, stratum=["s"] * 60, cluster=seeds.tolist())
    assert by_seed.high - by_seed.low > 1.3 * (runs.high - runs.low)


def test_few_clusters_give_no_interval():
    found = association([1, 2, 3], [1, 3, 2], stratum="aaa", cluster=range(3))
    assert math.isnan(found.low) and found.tau == pytest.approx(1 / 3)


def test_a_covariate_that_drives_both_is_taken_out():
    random = np.random.default_rng(2)
    loss = random.standard_normal(120)
    x, y = loss + 0.3 * random.standard_normal(120), loss + 0.3 * random.standard_normal(120)
    found = association(x, y, stratum=["s"] * 120, cluster=range(120), covariate=loss.tolist(), draws=50)
    assert found.tau > 0.6 and abs(found.partial) < 0.35
    assert math.isnan(partial_tau(0.5, 1.0, 0.2))
    tied = association(
        [2, 2, 2, 1, 2, 2, 1, 1],
        [0, 0, 0, 0, 2, 0, 0, 0],
        stratum="a" * 8,
        cluster=range(8),
        covariate=np.array([0, 0, 0, 2, 1, 0, 0, 1]),
    )
    assert -1 <= tied.partial <= 1


def test_sign_errors_look_at_each_factor_alone():
    settings = [{"rate": r, "batch": b, "seed": s} for r in (1, 2) for b in (1, 2) for s in (0, 1)]
    sharpness = [s["rate"] + 10 * s["batch"] + 0.001 * s["seed"] for s in settings]
    gap = [s["rate"] - 10 * s["batch"] + 0.001 * s["seed"] for s in settings]
    assert sign_errors(sharpness, gap, settings) == {"rate": 0.0, "batch": 1.0, "seed": 0.0}


def test_strata_hold_everything_but_one_factor():
    labels = strata_that_differ_in("a", [{"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 1, "b": 2}])
    assert labels[0] == labels[1] != labels[2]


def test_bad_input_is_one_clear_error():
    with pytest.raises(InputError, match="equal lengths"):
        association([1, 2], [1], stratum="aa", cluster="ab")
    with pytest.raises(InputError, match="finite"):
        association([1, math.nan], [1, 2], stratum="aa", cluster="ab")
