"""Numbers and bands: closed forms, splits and directions, ties with the filter-weighted trace."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lowland import curvature, landscape
from lowland.core.errors import InputError, StoreError
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import new_surface, new_trajectory
from lowland.landscape import bands, barrier, basin_width, central_curvature, numbers, roughness


def surface_of(function, x, y=None, **options):
    surface = new_surface(x, y, metrics=["loss"], errors=["loss"], attrs={"samples": 100}, **options)
    values = function(np.asarray(x)) if y is None else function(np.asarray(x)[:, None], np.asarray(y)[None, :])
    surface["loss"].values[...] = values
    surface["status"].values[...] = 1
    return surface


def test_a_paraboloid_has_its_curvatures_and_widths_and_no_roughness():
    surface = surface_of(lambda x, y: 1 + 3 * x**2 + y**2 / 2, np.linspace(-1, 1, 41), np.linspace(-2, 2, 41))
    found = numbers(surface, delta=0.12)
    np.testing.assert_allclose(found.curvature, [6, 1], rtol=1e-9)
    np.testing.assert_allclose(found.basin_width, [2 * math.sqrt(0.04), 2 * math.sqrt(0.24)], rtol=0.01)
    assert float(found.roughness) == pytest.approx(0, abs=1e-12) and float(found.center) == 1.0
    assert float(found.lowest) == 1.0 and float(found.highest) == 6.0


def test_uneven_coordinates_off_center_zeros_and_short_lines():
    x = np.array([-0.9, -0.2, 0.05, 0.4])
    assert central_curvature(x, 5 * x**2 + x) == pytest.approx(10)
    assert math.isnan(central_curvature(x[:2], x[:2]))
    assert basin_width(x, np.zeros(4), 1.0) == math.inf
    assert math.isnan(basin_width(np.arange(4.0), np.array([0.0, np.nan, 0.5, 5.0]), 1.0))
    assert basin_width(np.array([-1.0, 0.0, 1.0]), np.array([np.inf, 0.0, np.inf]), 1.0) == 0.0


def test_a_barrier_counts_from_the_straight_line():
    x = np.linspace(-0.5, 1.5, 9)
    assert barrier(x, np.where(x == 0.5, 3.0, x)) == pytest.approx(2.5)
    assert barrier(x, -(x**0)) == 0.0
    assert math.isnan(barrier(x[1:-1] + 0.1, x[1:-1]))


def test_roughness_counts_bumps_times_their_height():
    x = np.linspace(-1, 1, 201)
    assert roughness(x**2) == pytest.approx(0, abs=1e-12)
    assert roughness(np.exp(3 * x)) == pytest.approx(0, abs=1e-12)
    assert roughness(np.cos(2 * np.pi * 2 * x)) == pytest.approx(3, abs=0.01)  # four valleys, three bumps between
    assert math.isnan(roughness(np.array([1.0, np.nan, np.inf])))


def test_open_and_failed_points_do_not_count():
    surface = surface_of(lambda x: x**2, np.linspace(-1, 1, 5))
    surface["loss"].values[0], surface["status"].values[0] = 99.0, 3
    assert float(numbers(surface).highest) == 1.0


def test_the_spread_over_directions_surrounds_the_filter_weighted_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 4, dtype=torch.float64, generator=generator)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x, (x[:, 0] > 0).long())])
    lines = [landscape.random_line(model, seed=seed) for seed in range(200)]
    surface = landscape.evaluate(risk, lines, landscape.grid(3, extent=1e-3), paired=False)
    found = numbers(surface)
    assert found.curvature.dims == ("direction", "axis") and found.curvature.shape == (200, 1)
    trace = curvature.filter_weighted_trace(risk, directions=400, seed=1)
    error = math.hypot(float(found.curvature_se), trace.standard_error)
    assert abs(float(found.curvature_mean) - trace.value) < 4 * error
    assert float(found.curvature_se) < 0.2 * abs(trace.value)


def test_splits_stay_apart():
    surface = surface_of(lambda x: np.stack([x**2, 2 * x**2]), np.linspace(-1, 1, 5), splits=["train", "test"])
    np.testing.assert_allclose(numbers(surface).curvature.sel(split="test"), [4])


def test_bands_name_their_estimand():
    surface = surface_of(lambda x: x**2, np.linspace(-1, 1, 5))
    surface["loss_se"].values[...] = 0.1
    wide = bands(surface)
    assert float(wide.upper[2]) == pytest.approx(0.1 * 1.9842, rel=1e-4) and wide.attrs["estimand"] == "population"
    subset = bands(surface, estimand="data set", size=400)
    np.testing.assert_allclose(subset.upper - surface.loss, (wide.upper - surface.loss) * math.sqrt(0.75))
    whole = bands(surface, estimand="data set", size=100)
    np.testing.assert_array_equal(whole.lower, surface.loss)


def test_all_of_a_data_set_is_reliable_however_skew():
    surface = new_surface([0.0], metrics=["loss", "loss_skew"], errors=["loss"], attrs={"samples": 100})
    surface["loss"].values[:], surface["loss_se"].values[:], surface["loss_skew"].values[:] = 1.0, 0.1, 5.0
    assert not bands(surface).reliable and not bands(surface, estimand="data set", size=400).reliable
    assert bands(surface, estimand="data set", size=100).reliable


def test_results_of_another_kind_are_named():
    with pytest.raises(StoreError, match="expected a surface, but this result is a trajectory"):
        bands(new_trajectory([[0.0, 1.0]], steps=[0], variables={}))
    with pytest.raises(StoreError, match="expected a trajectory, but this result is a surface"):
        landscape.grid_around(surface_of(lambda x: x**2, np.linspace(-1, 1, 5)), 3, 3)


def test_the_finite_population_factor_gives_the_spread_that_subsets_really_have():
    generator = np.random.default_rng(0)
    values, n = generator.standard_normal(300), 200
    means, errors = [], []
    for _ in range(2000):
        chosen = generator.choice(values, n, replace=False)
        means.append(chosen.mean())
        errors.append(chosen.std(ddof=1) / math.sqrt(n) * math.sqrt(1 - n / 300))
    assert np.std(means) == pytest.approx(np.mean(errors), rel=0.06)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda s: numbers(s, metric="los"), "metric"),
        (lambda s: numbers(s, metric="status"), "metric"),
        (lambda s: numbers(s, delta=0), "delta"),
        (lambda s: bands(s, level=1.0), "level"),
        (lambda s: bands(s, estimand="data set"), "size"),
        (lambda s: bands(s, estimand="data set", size=99), "size"),
        (lambda s: bands(s, estimand="sample"), "estimand"),
        (lambda s: bands(s.drop_vars("loss_se")), "metric"),
    ],
)
def test_bad_arguments(call, name):
    with pytest.raises(InputError, match=f"`{name}`"):
        call(surface_of(lambda x: x**2, np.linspace(-1, 1, 5)))
