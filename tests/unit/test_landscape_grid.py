"""Coordinates and their order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowland.core.errors import InputError
from lowland.landscape import Grid, grid
from lowland.landscape.grid import levels, ordered


def test_ends_and_middle_are_exact():
    for count in (3, 5, 25, 51, 101, 251):
        found = grid(count, extent=0.7)
        assert (found.x[0], found.x[-1], found.x[count // 2]) == (-0.7, 0.7, 0.0)
        np.testing.assert_array_equal(found.x, -found.x[::-1])
    assert 0.0 not in grid(50).x


def test_extents_per_axis_and_zero_anywhere():
    found = grid(4, 3, extent=((-0.5, 1.5), (0, 2)))
    np.testing.assert_allclose(found.x, [-0.5, 1 / 6, 5 / 6, 1.5])
    np.testing.assert_array_equal(found.y, [0, 1, 2])
    assert grid(5, extent=(2, 4)).x.tolist() == [2, 2.5, 3, 3.5, 4]
    assert grid(1, extent=(1, 3)).x.tolist() == [2.0]
    assert found.coordinates(3 * 2 + 1) == (found.x[2], 1.0)
    assert found.center() == 1 * 3 + 0


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"nx": 0}, "nx"),
        ({"nx": 3, "ny": 0}, "ny"),
        ({"nx": 2.5}, "nx"),
        ({"nx": True}, "nx"),
        ({"nx": 3, "extent": 0}, "extent"),
        ({"nx": 3, "extent": -1.0}, "extent"),
        ({"nx": 3, "extent": (1, 1)}, "extent"),
        ({"nx": 3, "extent": float("nan")}, "extent"),
        ({"nx": 3, "extent": (0, float("inf"))}, "extent"),
        ({"nx": 3, "ny": 3, "extent": ((0, 1),)}, "extent"),
        ({"nx": 3, "ny": 3, "extent": (0, 1, 2)}, "extent"),
    ],
)
def test_bad_grids(arguments, name):
    with pytest.raises(InputError, match=f"`{name}`"):
        grid(**arguments)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 200))
def test_levels_are_nested_and_end_with_everything(count):
    found = levels(count)
    for coarse, fine in zip(found, found[1:], strict=False):
        assert set(coarse) < set(fine)
    assert found[-1].tolist() == list(range(count))
    assert all(level[0] == 0 and level[-1] == count - 1 for level in found)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(0, 12))
def test_the_order_holds_every_point_once_and_parents_before_children(nx, ny):
    found = ordered(grid(nx, ny or None), parents=True)
    seen = set()
    for k, (index, parent) in enumerate(found):
        assert (parent in seen) if k else parent is None
        seen.add(index)
    assert seen == set(range(nx * (ny or 1)))
    assert [index for index, _ in found] == [index for index, _ in ordered(grid(nx, ny or None))]


def test_the_center_comes_first_and_parents_are_near():
    found = ordered(grid(51, 51), parents=True)
    assert found[0] == (25 * 51 + 25, None)
    places = {index: np.array(divmod(index, 51)) for index, _ in found}
    last = [np.abs(places[i] - places[p]).max() for i, p in found[-500:]]
    assert max(last) == 1


def test_own_coordinates_need_not_be_even():
    assert Grid(np.array([0.0, 1.0, 10.0])).size == 3
