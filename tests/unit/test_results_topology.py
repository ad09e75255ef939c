"""Basins of a surface against gudhi's cubical complexes, planted pits and noise of known size."""

import math

import numpy as np
import pytest

from lowland.core.errors import InputError
from lowland.results.topology import basins, diagram


def by_gudhi(values, neighbors):
    gudhi = pytest.importorskip("gudhi")
    cells = {4: "vertices", 8: "top_dimensional_cells"}[neighbors]
    complex_of = gudhi.CubicalComplex(**{cells: values})
    complex_of.compute_persistence()
    return sorted(complex_of.persistence_intervals_in_dimension(0).tolist())


@pytest.mark.parametrize("shape", [(1,), (2,), (40,), (1, 7), (7, 1), (12, 17), (30, 30)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("neighbors", [4, 8])
def test_every_pair_is_gudhi_s(shape, seed, ties, neighbors):
    values = np.random.default_rng(seed).normal(size=shape)
    if ties:
        values = np.round(values, 1)
    ours = sorted([b.birth, b.death] for b in basins(values, neighbors=neighbors))
    assert ours == by_gudhi(values, neighbors) == sorted(diagram(values, neighbors=neighbors).tolist())


def parts(below, seeds, neighbors):
    """Number of connected parts of some points that hold one of the seeds, by flood fill."""
    steps = [
        (i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0) and (neighbors == 8 or i == 0 or j == 0)
    ]
    left, count = {tuple(k) for k in np.argwhere(below)}, 0
    while left:
        wave = [left.pop()]
        part = set(wave)
        while wave:
            i, j = wave.pop()
            for near in {(i + di, j + dj) for di, dj in steps} & left:
                left.remove(near)
                part.add(near)
                wave.append(near)
        count += any(seeds[k] for k in part)
    return count


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("neighbors", [4, 8])
def test_certain_parts_at_each_level_are_those_of_a_flood(seed, neighbors):
    stream = np.random.default_rng(seed)
    values, error = stream.normal(size=(9, 11)), stream.exponential(0.3 * (seed > 0), size=(9, 11))
    error[stream.random(error.shape) < 0.04 * (seed > 2)] = math.inf
    lower, upper = values - error, values + error
    found = basins(values, error=error, neighbors=neighbors)
    born = [upper[basin.minimum] for basin in found]
    ends = [low + basin.interval[0] for low, basin in zip(born, found, strict=True)]
    for level in np.unique(np.stack([lower, upper])):
        alive = sum(low <= level < end for low, end in zip(born, ends, strict=True))
        if not np.isclose(ends, level).any() and math.isfinite(level):
            assert alive == parts(lower <= level, upper <= level, neighbors)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_certain_holds_for_every_function_within_the_errors(seed):
    stream = np.random.default_rng(seed)
    truth, error = pits(stream, 4, [0.3, 0.5, 0.7, 0.9], side=31), stream.uniform(0.005, 0.04, size=(31, 31))
    true = {basin.minimum: basin for basin in basins(truth)}
    for _ in range(5):
        found = basins(truth + error * stream.uniform(-1, 1, size=error.shape), error=error)
        surely = sorted((basin.interval[0] for basin in found), reverse=True)
        depths = sorted((basin.depth for basin in true.values()), reverse=True)
        assert all(low <= depth for low, depth in zip(surely, depths, strict=False))
        for basin in found[1:]:
            nearest = min(true, key=lambda at, own=basin.minimum: max(abs(at[0] - own[0]), abs(at[1] - own[1])))
            assert basin.interval[0] <= true[nearest].depth <= basin.interval[1]


def pits(rng, count, depth, side=51, bowl=0.2):
    """A bowl with that many narrow pits of a depth (or one each), none of them near another or the edge."""
    x, y = np.meshgrid(*[np.linspace(-1, 1, side)] * 2, indexing="ij")
    places: list[np.ndarray] = []
    while len(places) < count:
        place = rng.uniform(-0.75, 0.75, 2)
        if all(np.abs(place - other).max() > 0.35 for other in places):
            places.append(place)
    surface = bowl * (x**2 + y**2)
    for (px, py), deep in zip(places, np.broadcast_to(depth, count), strict=True):
        surface = surface - deep * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 0.006)
    return surface


def test_planted_pits_are_found_and_none_is_invented():
    rng = np.random.default_rng(0)
    right = []
    for _ in range(60):
        count, error = int(rng.integers(1, 7)), 0.05
        surface = pits(rng, count, depth=0.6, side=41)
        noisy = surface + rng.uniform(-error, error, surface.shape)
        right.append(len(basins(noisy, error=error)) == count)
    assert np.mean(right) >= 0.95


def test_a_bowl_has_one_basin_at_any_error_and_many_without():
    rng = np.random.default_rng(1)
    bowl = pits(rng, 0, 0.0) + rng.uniform(-0.01, 0.01, (51, 51))
    assert len(basins(bowl, error=0.01)) == 1
    assert len(basins(bowl)) > 10


def test_places_edges_and_infinite_values():
    values = np.array([[0.0, 3.0, 1.0], [5.0, 4.0, 2.0], [math.inf, math.inf, 0.5]])
    first, second, third = basins(values, neighbors=4)
    assert (first.minimum, first.saddle, first.on_edge, first.parent) == ((0, 0), None, True, None)
    assert (second.minimum, second.saddle, second.depth, second.parent) == ((2, 2), (0, 1), 2.5, 0)
    assert (third.minimum, third.saddle, third.depth, third.parent) == ((0, 2), (1, 2), 1.0, 1)


def test_an_edge_bounds_what_is_known_of_a_depth():
    values = np.array([9.0, 9.0, 1.0, 9.0, 2.0, 3.0])
    first, second = basins(values, error=0.5)
    assert (first.minimum, first.edge, first.reaches_edge, first.enclosed) == ((2,), 2.5, True, 1.0)
    assert (second.minimum, second.saddle, second.interval, second.on_edge) == ((4,), (3,), (6.0, 8.0), False)
    assert (second.edge, second.enclosed) == (2.5, 0.0)


def test_a_diagonal_valley_is_one_basin_across_the_diagonals():
    values = 1.0 - np.eye(7)
    assert (len(basins(values)), len(basins(values, neighbors=4))) == (1, 7)


def test_points_that_are_not_known_may_join_what_they_divide():
    values = np.array([2.0, 0.0, 5.0, 1.0, 2.0])
    assert len(basins(values)) == 2
    first, *others = basins(values, error=[0.0, 0.0, math.inf, 0.0, 0.0])
    assert (first.minimum, others) == ((1,), [])
    assert basins(values, error=math.inf) == ()


@pytest.mark.parametrize(
    "values, error",
    [
        ([math.nan, 1.0], 0.0),
        ([], 0.0),
        (np.zeros((2, 2, 2)), 0.0),
        ([1.0], -1.0),
        ([1.0], math.nan),
        ([1.0], [1.0, 1.0]),
    ],
)
def test_bad_input(values, error):
    with pytest.raises(InputError):
        basins(np.asarray(values), error=error)
    with pytest.raises(InputError, match="`neighbors` must be 4 or 8"):
        basins(np.ones(3), neighbors=6)


# Valleys that are narrower than the grid.


def curved(kind, side):
    """Valleys whose floor falls to one minimum without a stop, at the points of a grid."""
    axis = np.linspace(-1, 1, side)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    if kind == "Rosenbrock":
        return (1 - 2 * x) ** 2 + 100 * (1 + 2 * y - 4 * x**2) ** 2
    if kind == "arc":  # once around three quarters of a circle
        angle = np.arctan2(y, x)
        return 300 * (np.hypot(x, y) - 0.7) ** 2 + 0.2 * (1 - np.cos(angle - 0.3))
    return 200 * (y - 0.5 * np.sin(4 * x)) ** 2 + 0.1 * (x + 0.8) ** 2


@pytest.mark.parametrize("kind", ["Rosenbrock", "arc", "sine"])
@pytest.mark.parametrize("side", [25, 31, 41])
def test_pits_that_a_coarse_grid_makes_of_a_curved_valley_are_said_to_be_its_own(kind, side):
    found = basins(curved(kind, side))
    assert len(found) > 3  # invented
    assert [basin.resolved > 0 for basin in found] == [True] + [False] * (len(found) - 1)


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("neighbors", [4, 8])
def test_planted_pits_are_no_artifacts_of_the_grid(count, neighbors):
    for seed in range(10):
        found = basins(pits(np.random.default_rng(seed), count, depth=0.6, side=31, bowl=0.0), neighbors=neighbors)
        sure = [basin for basin in found if basin.resolved > 0.3]
        assert len(sure) == len(found) == count


@pytest.mark.parametrize("count", [1, 3])
def test_pits_deeper_than_what_the_grid_makes_are_found_in_a_curved_valley(count):
    axis = np.linspace(-1, 1, 31)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    angle = np.arctan2(y, x)
    floor = sum(1 - np.exp(-((angle - at) ** 2) / 0.05) for at in (-1.5, 0.0, 1.5)[:count])
    found = basins(300 * (np.hypot(x, y) - 0.7) ** 2 + 3.0 * floor)
    assert len(found) > count
    assert sum(basin.resolved > 0 for basin in found) == count


def test_neither_walls_nor_unknown_points_nor_lines_make_a_pit_doubtful():
    values = np.array([[9.0, 9.0, 9.0, 9.0, 9.0], [9.0, 0.0, 5.0, 1.0, 9.0], [9.0, 9.0, 9.0, 9.0, 9.0]])
    assert [basin.resolved for basin in basins(values)] == [math.inf, 4.0]
    values[0] = math.inf
    assert [basin.resolved for basin in basins(values)] == [math.inf, 4.0]
    error = np.zeros(values.shape)
    error[2, 0] = math.inf
    assert [basin.resolved for basin in basins(values, error=error)] == [math.inf, 4.0]
    assert [basin.resolved for basin in basins(values[1])] == [math.inf, 4.0]
