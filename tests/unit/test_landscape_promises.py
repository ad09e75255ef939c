"""Small promises of the landscape room: errors on flat ground, directions that do not fit, matches that change a network."""

import json
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from lowland.core.errors import InputError
from lowland.core.params import ParameterSpace
from lowland.landscape import Tolerance, random_plane
from lowland.landscape.autotune import _error
from lowland.landscape.directions import StoredAxis
from lowland.landscape.match import _check_function
from lowland.losses.divergence import mixes_two


def test_on_flat_ground_errors_are_in_units_of_one():
    flat = np.full((4, 1), 2.0)
    found = _error(flat, flat + 0.5, Tolerance())
    assert found["of_range"] == 0.5 and found["of_value"] == 0.25 and found["points"] == 4
    assert _error(flat, np.full((4, 1), np.nan), Tolerance())["of_range"] == math.inf


def test_a_direction_of_another_shape_is_refused_and_never_spread_out():
    space = ParameterSpace(nn.Linear(3, 2))
    axis = StoredAxis({"weight": torch.ones(1, 3), "bias": torch.ones(2)}, {})
    with pytest.raises(InputError, match="'weight'"):
        axis.entry(space, space.names.index("weight"), space.tensors[space.names.index("weight")])


@pytest.mark.parametrize(("scale", "error", "kept"), [(1e3, 0.5, True), (1e3, 2.0, False), (1e-3, 1e-5, False)])
def test_reordering_may_change_outputs_by_a_thousandth_of_their_size(scale, error, kept):
    expected = torch.tensor([scale, -scale / 2], dtype=torch.float64)
    with nullcontext() if kept else pytest.raises(InputError, match="units can be traced"):
        _check_function(expected, expected + error)


def test_what_describes_a_plane_is_plain_json():
    plane = random_plane(nn.Linear(3, 2), seed=0)
    found = plane.describe()
    assert json.loads(json.dumps(found)) == found


def test_two_classes_stand_out_where_the_second_has_more_than_a_thousandth():
    def told(second):
        target = torch.tensor([[1 - second, second, 0.0, 0.0]], dtype=torch.float64)
        return bool(mixes_two(target, torch.zeros(1, 4), 1))

    assert told(0.002) and not told(0.001)
