"""Densities on planted spectra, diagonals and traces by tensor, and their error bars."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.unit.test_curvature_eigenvalues import EDGES, SPECTRA, planted
from tests.unit.test_curvature_trace import small_risk

from lowland.core.errors import InputError
from lowland.core.schema import check
from lowland.curvature import Hessian, MatrixOperator, diagonal, layer_traces, spectral_density


def smoothed(values: np.ndarray, grid: np.ndarray, width: float) -> np.ndarray:
    bells = np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2) / (width * math.sqrt(2 * math.pi))
    return bells.mean(1)


@pytest.mark.parametrize("name", ["positive", "pairs", "degenerate", "low rank", "trained net"])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_planted_densities(name: str, scale: str) -> None:
    values = SPECTRA[name].double().numpy()
    found = spectral_density(planted(SPECTRA[name]), probes=40, steps=60, scale=scale, width=0.4)  # type: ignore[arg-type]
    axis = values if scale == "linear" else np.log10(np.maximum(np.abs(values), 1e-6 * np.abs(values).max()))
    exact = smoothed(axis, found.grid, 0.4)
    assert np.trapezoid(found.density, found.grid) == pytest.approx(1.0, abs=1e-3)
    assert np.abs(found.density - exact).max() < 5 * found.standard_error.max() + 1e-3
    assert found.products <= 40 * 60


def test_weights_sum_to_one_and_moments_are_exact() -> None:
    values = SPECTRA["trained net"].double()
    found = spectral_density(planted(SPECTRA["trained net"]), probes=30, steps=20)
    for run in found.runs:
        assert run.weights.sum() == pytest.approx(1.0, abs=1e-12) and (run.weights >= 0).all()
    mean, error = found.mean(lambda x: x**2)
    assert abs(mean - float((values**2).mean())) < 4 * error


def test_bands_of_the_density_at_one_two_and_five_standard_errors() -> None:
    operator, values = planted(SPECTRA["pairs"]), SPECTRA["pairs"].double().numpy()
    deviations = []
    for seed in range(200):
        found = spectral_density(operator, probes=12, steps=30, width=0.5, seed=seed, points=9)
        middle = int(np.argmin(np.abs(found.grid - 2.0)))
        exact = smoothed(values, found.grid, 0.5)[middle]
        deviations.append(abs(found.density[middle] - exact) / found.standard_error[middle])
    shares = [float(np.mean(np.asarray(deviations) <= limit)) for limit in (1, 2, 5)]
    assert 0.60 <= shares[0] <= 0.75 and 0.90 <= shares[1] <= 0.99 and shares[2] >= 0.995


@pytest.mark.slow
@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize(("probes", "steps"), [(8, 30), (8, 6), (2, 20)])
def test_intervals_of_a_mean_cover_at_their_rate(name: str, probes: int, steps: int) -> None:
    values = EDGES[name].double()
    operator, truth, hits = planted(values), float(values.mean()), []
    for seed in range(240):
        low, high = spectral_density(operator, probes=probes, steps=steps, points=4, seed=seed).interval(lambda x: x)
        hits.append(low - 1e-12 <= truth <= high + 1e-12)
    assert np.mean(hits) >= 0.91  # 0.95 less three errors of 240 tries


def test_an_interval_surrounds_its_mean_and_widens_with_its_level() -> None:
    found = spectral_density(planted(SPECTRA["pairs"]), probes=4, steps=8)
    mean, _ = found.mean(lambda x: x**2)
    low, high = found.interval(lambda x: x**2)
    wide = found.interval(lambda x: x**2, level=0.99)
    assert wide[0] < low < mean < high < wide[1]


def test_intervals_of_one_start_vector_are_not_known() -> None:
    assert all(math.isnan(edge) for edge in spectral_density(planted(SPECTRA["pairs"]), probes=1).interval(lambda x: x))


def test_the_zero_operator_and_single_probes() -> None:
    found = spectral_density(MatrixOperator(torch.zeros(20, 20, dtype=torch.float64)), probes=1, steps=5, scale="log")
    assert np.isfinite(found.density).all() and np.isnan(found.standard_error).all()
    assert found.lambda_max == found.lambda_min == 0.0


def test_the_density_is_stored_as_a_curvature_result() -> None:
    found = spectral_density(small_risk(), probes=2, steps=6, points=16).dataset()
    assert check(found, "curvature") and found.sizes["grid"] == 16 and found.attrs["products"] == 12


@pytest.mark.parametrize(
    "options", [{"probes": 0}, {"steps": 1}, {"points": 1}, {"scale": "sqrt"}, {"width": 0.0}, {"floor": 1.0}]
)
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        spectral_density(planted(SPECTRA["pairs"]), **options)  # type: ignore[arg-type]


def test_the_diagonal_lies_within_its_errors() -> None:
    operator = planted(SPECTRA["trained net"])
    found = diagonal(operator, probes=64)
    z = ((found.values - operator.matrix.diagonal()) / found.standard_error).abs()
    assert 0.60 <= float((z <= 1).double().mean()) <= 0.75 and float((z <= 2).double().mean()) >= 0.9
    with pytest.raises(InputError, match="probes"):
        diagonal(operator, probes=1)


def test_layer_traces_add_up_and_lie_within_their_errors() -> None:
    risk = small_risk()
    hessian = Hessian(risk)
    exact = {name: float(part.sum()) for name, part in hessian.split(hessian.dense().diagonal()).items()}
    found = layer_traces(risk, probes=64)
    assert list(found) == list(exact)
    assert all(abs(found[name].value - exact[name]) <= 4 * found[name].standard_error for name in exact)
    with pytest.raises(InputError, match="names"):
        layer_traces(MatrixOperator(torch.eye(3)))


def test_an_operator_is_opened_once_for_all_probes() -> None:
    class Counting(MatrixOperator):
        opened = 0

        def open(self) -> None:
            self.opened += 1

    operator = Counting(torch.diag(torch.arange(1.0, 9.0)))
    spectral_density(operator, probes=2, steps=3)
    assert operator.opened == 1 and operator.products == 6
