"""Basins of stored surfaces: planted pits under noise of known size, measured point by point and refined."""

import math

import numpy as np
import pytest
from scipy.special import stdtrit
from tests.unit.test_results_topology import curved, pits

from lowland.core.errors import InputError, StoreError
from lowland.core.schema import new_surface
from lowland.landscape import Tolerance, grid
from lowland.landscape.refine import refine
from lowland.report.basins import basin_cells
from lowland.results.merge_trees import distance, merge_tree

SAMPLES = 400


def stored(values, error=None, status=None, **attrs):
    axes = [np.linspace(-1, 1, size) for size in values.shape]
    extra = [] if error is None else ["loss_difference_se"]
    surface = new_surface(*axes, metrics=["loss", *extra], attrs={"samples": SAMPLES, **attrs})
    surface["loss"].values[:], surface["status"].values[:] = values, 1 if status is None else status
    if error is not None:
        surface["loss_difference_se"].values[:] = error
    return surface


def noisy(stream, truth, size):
    return truth + size * stream.normal(size=truth.shape)


def share_right(draws, side, depth, size):
    """How often as many basins are found as were planted, and how often at most as many."""
    counted = []
    for seed in range(draws):
        stream = np.random.default_rng(seed)
        count = int(stream.integers(1, 6))
        found = merge_tree(stored(noisy(stream, pits(stream, count, depth, side, bowl=0.0), size), size)).basins
        counted.append(len(found) - count)
    return np.mean(np.array(counted) == 0), np.mean(np.array(counted) <= 0)


def test_planted_pits_are_found_under_noise_and_none_is_invented():
    found, none_invented = share_right(60, 31, 0.6, 0.02)
    assert found >= 0.95
    assert none_invented == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("size", [0.005, 0.02, 0.04])
def test_planted_pits_in_two_thousand_draws(size):
    found, none_invented = share_right(2000, 41, 0.7, size)
    assert found >= 0.95
    assert none_invented >= 0.95


def refined(truth, size, stream, tolerance):
    """A refined surface as `landscape.evaluate` stores it: noisy where measured, interpolated elsewhere."""
    plane, measured = grid(*truth.shape), noisy(stream, truth, size).ravel()
    found = refine(plane, tolerance, lambda index: measured[index][:, None])
    values, status = measured.copy(), np.ones(truth.size)
    values[found.guessed], status[found.guessed] = found.values[:, 0], 2
    error = np.where(status == 1, size, np.nan)
    shape = truth.shape
    return stored(values.reshape(shape), error.reshape(shape), status.reshape(shape), refinement=found.report)


def test_planted_pits_are_found_in_refined_surfaces():
    counted, kept = [], []
    for seed in range(12):
        stream = np.random.default_rng(seed)
        count = int(stream.integers(1, 5))
        x, y = np.meshgrid(*[np.linspace(-1, 1, 51)] * 2, indexing="ij")
        places = [(0.5, 0.5), (-0.5, 0.5), (0.5, -0.5), (-0.5, -0.5)][:count]
        wells = sum((0.9 + 0.05 * k) * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.06) for k, (a, b) in enumerate(places))
        surface = refined(2.0 + 0.3 * (x**2 + y**2) - wells, 0.002, stream, Tolerance(seed=seed))
        kept.append(float((surface["status"] == 2).mean()))
        counted.append(len(merge_tree(surface).basins) - count)
    assert np.mean(kept) > 0.5  # most of it is interpolated
    assert np.mean(np.array(counted) == 0) >= 0.95


def test_the_error_is_that_of_all_points_together_and_falls_with_what_was_measured():
    values = np.array([3.0, 0.0, 2.0, 1.0, 3.0])
    surface = stored(values, 0.05)
    half = float(stdtrit(SAMPLES - 1, 1 - 0.05 / (2 * values.size))) * 0.05
    tree = merge_tree(surface)
    assert tree.error == tree.basins[1].error == pytest.approx(half)
    assert tree.basins[1].interval == pytest.approx((1 - 2 * half, 1 + 2 * half))
    assert tree.resolution == pytest.approx(2 * half)
    assert tree.count() == (2, 2)
    assert tree.count(0.0) == (2, math.inf)
    assert tree.count(1.0) == (1, 2)
    quarter = merge_tree(surface, estimand="data set", size=int(SAMPLES / (1 - 1 / 16)) + 1)
    assert quarter.error == pytest.approx(half / 4, rel=1e-2)
    whole = merge_tree(surface, estimand="data set", size=SAMPLES)
    assert (whole.error, whole.resolution) == (0.0, 0.0)
    assert "no sampling error" in whole.said[0]


def test_interpolated_points_have_the_tolerance_or_what_a_check_missed_it_by():
    report = {"statement": "at most 7 %", "share_bound": 0.07, "range": 0.01, "value": 0.06, "floor_value": [0.5]}
    values, status = np.array([9.0, 1.0, 3.0, 2.0, 9.0]), np.array([1, 1, 2, 1, 1])
    error = np.where(status == 1, 0.0, np.nan)
    for worst, wanted in ((0.4, 0.08), (2.0, 0.16)):
        tree = merge_tree(stored(values, error, status, refinement={**report, "worst_check": worst}))
        assert tree.error == pytest.approx(wanted)
        assert tree.basins[1].interval == pytest.approx((1 - wanted, 1 + wanted))
        assert tree.said[-1] == "Interpolation: at most 7 %."
    unknown = merge_tree(stored(values, error, status))  # an older store: nothing is promised
    assert (len(unknown.basins), unknown.error) == (1, math.inf)


def test_the_largest_error_measured_nearby_stands_for_an_interpolated_point():
    status, error = np.array([1, 1, 2, 1, 1]), np.array([0.3, 0.1, np.nan, 0.2, 0.5])
    report = {"statement": "", "share_bound": 0.07, "range": 0.0, "value": 0.0, "floor_value": [0.0], "worst_check": 0}
    tree = merge_tree(stored(np.array([9.0, 1.0, 8.0, 2.0, 9.0]), error, status, refinement=report))
    times = float(stdtrit(SAMPLES - 1, 1 - 0.05 / 8))
    assert tree.basins[1].interval[0] == pytest.approx(6.0 - times * (0.5 + 0.2))


def test_open_failed_and_undefined_points_divide_nothing():
    values, status = np.array([3.0, 0.0, 2.0, 1.0, 3.0]), np.ones(5)
    for broken, state in ((2.0, 0), (2.0, 3), (np.nan, 1)):
        values[2], status[2] = broken, state
        tree = merge_tree(stored(values, 0.0, status))
        assert len(tree.basins) == 1
        assert math.isinf(tree.error)
        assert "1 point is not known" in tree.said[-1]
        assert tree.count() == (1, math.inf)  # the lowest is there, and what is not known may hold any number
    values[2], status[2] = np.inf, 1
    assert len(merge_tree(stored(values, 0.0, status)).basins) == 2  # a wall that was measured


def test_splits_directions_and_axes_are_those_that_were_asked_for():
    surface = new_surface([0, 1, 2, 3], [1, 0], metrics=["loss"], splits=["train", "test"], directions=["0", "1"])
    surface["loss"].values[:] = 1.0
    surface["loss"].values[1, 1, 1, 0], surface["loss"].values[1, 1, 3, 1] = 0.2, 0.3
    surface["status"].values[:] = 1
    tree = merge_tree(surface, split="test", direction=1)
    assert tree.places.tolist() == [[1.0, 1.0], [3.0, 0.0]]
    assert tree.saddles[1].tolist() == [2.0, 0.0]
    assert len(merge_tree(surface).basins) == 1
    assert [row["basin"] for row in tree.rows()] == [1, 2]
    assert tree.rows()[1]["into"] == 1
    assert "<td>0.3</td>" in tree._repr_html_()
    assert repr(tree) == "MergeTree of the loss: 2 basins of depth inf, 0.7"


def test_what_the_grid_alone_may_have_made_is_said_and_not_counted_at_least():
    tree = merge_tree(stored(curved("Rosenbrock", 31)))
    found = len(tree.basins)
    assert found > 3 and tree.count(0.0)[0] == 1 and tree.count(1e-9 + tree.resolution)[1] >= 1
    assert tree.said[-1].startswith(f"{found - 1} of {found} basins may be made by the grid alone")
    assert [row["resolved"] > 0 for row in tree.rows()] == [True] + [False] * (found - 1)
    assert all(basin.enclosed == 0.0 for basin in tree.basins[1:])
    assert sum("maybe of the grid alone" in cell["depth"] for cell in basin_cells(tree)) == found - 1
    plain = merge_tree(stored(pits(np.random.default_rng(0), 3, 0.6, 31, bowl=0.0)))
    assert plain.count(0.3) == (3, 3) and "grid" not in " ".join(plain.said)


def test_surfaces_are_as_far_apart_as_their_pits():
    stream = np.random.default_rng(0)
    bowl = pits(stream, 0, 0.0, bowl=0.6)
    one, two = (
        stored(bowl - depth * (np.hypot(*np.meshgrid(*[np.arange(51) - 8] * 2)) < 3), 0.001) for depth in (0, 1)
    )
    found = distance(merge_tree(one), merge_tree(two))
    assert found.value > 0.1 > found.error > 0
    assert found.offset < 0
    same = distance(merge_tree(one), merge_tree(stored(bowl + 3.0, 0.001)))
    assert same.value == pytest.approx(0.0, abs=1e-12)
    assert same.offset == pytest.approx(3.0)


def test_bad_input():
    surface = stored(np.zeros(3))
    for words, rule in (
        ({"metric": "los"}, "`metric` must be one of"),
        ({"level": 1.0}, "`level` must lie"),
        ({"estimand": "all"}, "`estimand` must be"),
        ({"estimand": "data set", "size": 3}, "`size` must be at least the 400"),
        ({"split": "train"}, "`split` cannot be chosen"),
        ({"neighbors": 6}, "`neighbors` must be 4 or 8"),
    ):
        with pytest.raises(InputError, match=rule):
            merge_tree(surface, **words)
    with pytest.raises(InputError, match="no finished point"):
        merge_tree(stored(np.zeros(3), status=0))
    with pytest.raises((StoreError, InputError)):
        merge_tree({"loss": 1})
    other = merge_tree(surface)
    surface["error_rate"] = surface["loss"]
    with pytest.raises(InputError, match="must be of the metric loss"):
        distance(other, merge_tree(surface, metric="error_rate"))


def test_of_several_surfaces_the_first_is_taken_and_said():
    several = new_surface([-1.0, 0.0, 1.0], directions=["late", "early"])
    several["loss"].values[:], several["status"].values[:] = [[3.0, 1.0, 3.0], [3.0, 2.0, 3.0]], 1
    assert merge_tree(several).said[0] == "Of direction late, the first of 2."
    named = merge_tree(several, direction="early")
    assert named.basins[0].birth == 2.0 and "direction" not in " ".join(named.said)
