"""The bottleneck distance against gudhi's, against every matching, and against what stability promises."""

import itertools
import math

import numpy as np
import pytest

from lowland.core.errors import InputError
from lowland.results.bottleneck import bottleneck
from lowland.results.topology import diagram


def by_every_matching(first, second):
    """The slow twin: the best of all ways to match some pairs with some of the other diagram, the rest to the diagonal."""
    best = math.inf
    half = [(pairs[:, 1] - pairs[:, 0]) / 2 for pairs in (first, second)]
    for count in range(min(len(first), len(second)) + 1):
        for own in itertools.combinations(range(len(first)), count):
            for other in itertools.permutations(range(len(second)), count):
                moves = [np.abs(first[i] - second[j]).max() for i, j in zip(own, other, strict=True)]
                moves += [half[0][i] for i in range(len(first)) if i not in own]
                moves += [half[1][j] for j in range(len(second)) if j not in other]
                best = min(best, max(moves, default=0.0))
    return best


def pairs(stream, count):
    births = stream.integers(0, 6, count).astype(float)
    return np.stack([births, births + stream.integers(0, 6, count)], axis=1)


@pytest.mark.parametrize("seed", range(40))
def test_small_diagrams_match_as_well_as_in_any_way(seed):
    stream = np.random.default_rng(seed)
    first, second = (pairs(stream, int(stream.integers(0, 5))) for _ in range(2))
    assert bottleneck(first, second) == bottleneck(second, first) == by_every_matching(first, second)


@pytest.mark.parametrize("seed", range(5))
def test_diagrams_of_surfaces_are_as_far_apart_as_gudhi_says(seed):
    gudhi = pytest.importorskip("gudhi")
    stream = np.random.default_rng(seed)
    first, second = (diagram(stream.normal(size=(14, 14))) for _ in range(2))
    assert bottleneck(first, second) == pytest.approx(gudhi.bottleneck_distance(first, second), abs=1e-12)
    assert bottleneck(first, first) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_surfaces_that_differ_by_little_have_diagrams_that_do(seed):
    stream = np.random.default_rng(seed)
    surface = stream.normal(size=(20, 20))
    moved = surface + stream.uniform(-0.1, 0.1, surface.shape)
    assert 0 < bottleneck(diagram(surface), diagram(moved)) <= np.abs(moved - surface).max() + 1e-12


def test_pairs_that_never_die_match_in_the_order_of_their_births():
    first, second = np.array([[0.0, math.inf], [5.0, math.inf]]), np.array([[5.5, math.inf], [1.0, math.inf]])
    assert bottleneck(first, second) == 1.0
    assert bottleneck(first, second[:1]) == math.inf
    assert bottleneck(np.zeros((0, 2)), np.zeros((0, 2))) == 0.0


@pytest.mark.parametrize("wrong", [[[1.0, 0.0]], [[math.nan, 1.0]], [1.0, 2.0], [[0.0, 1.0, 2.0]]])
def test_bad_input(wrong):
    with pytest.raises(InputError, match="`second` must hold a birth and a later death"):
        bottleneck(np.zeros((0, 2)), np.asarray(wrong))
