"""Traces against closed forms, and their error bars at one and two standard errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.unit.test_curvature_eigenvalues import EDGES, SPECTRA, planted
from torch import nn

from lowland.core.contexts import weights_restored
from lowland.core.errors import InputError
from lowland.core.params import ParameterSpace
from lowland.core.risk import EmpiricalRisk
from lowland.core.seeds import normal
from lowland.curvature import Hessian, MatrixOperator, filter_weighted_trace, trace


@pytest.mark.parametrize("name", ["positive", "pairs", "low rank", "zero", "trained net"])
@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_planted_traces_lie_within_five_errors(name: str, method: str) -> None:
    operator = planted(SPECTRA[name])
    found = trace(operator, method=method, products=60)  # type: ignore[arg-type]
    assert abs(found.value - float(SPECTRA[name].sum())) <= 5 * found.standard_error + 1e-9
    assert found.products == operator.products <= 60


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_error_bars_at_one_two_and_five_standard_errors(method: str) -> None:
    operator, truth = planted(SPECTRA["trained net"]), float(SPECTRA["trained net"].sum())
    deviations = []
    for seed in range(200):
        found = trace(operator, method=method, products=60, seed=seed)  # type: ignore[arg-type]
        deviations.append(abs(found.value - truth) / found.standard_error)
    shares = [float(np.mean(np.asarray(deviations) <= limit)) for limit in (1, 2, 5)]
    assert 0.60 <= shares[0] <= 0.75 and 0.90 <= shares[1] <= 0.99 and shares[2] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("products", [6, 30, 60])
@pytest.mark.parametrize("name", ["one outlier", "outlier over equal ones", "ten outliers", "flat", "two values"])
def test_intervals_of_hutch_plus_plus_cover(name: str, products: int) -> None:
    values = EDGES[name].double()
    operator, truth, hits = planted(values), float(values.sum()), []
    for seed in range(240):
        low, high = trace(operator, products=products, seed=seed).interval()
        hits.append(low - 1e-9 <= truth <= high + 1e-9)
    assert np.mean(hits) >= 0.88  # as its documentation says


def test_plain_probes_of_one_outlier_say_that_they_are_skewed() -> None:
    found = [trace(planted(EDGES["one outlier"].double()), method="hutchinson", products=12, seed=s) for s in range(60)]
    assert np.mean([one.skewed for one in found]) > 0.8
    even = [trace(planted(EDGES["flat"].double()), method="hutchinson", products=200, seed=s) for s in range(10)]
    assert not any(one.skewed for one in even)


def test_hutch_plus_plus_beats_hutchinson_where_few_eigenvalues_dominate() -> None:
    operator = planted(SPECTRA["trained net"])
    better, plain = trace(operator, products=60), trace(operator, products=60, method="hutchinson")
    assert better.standard_error < 0.5 * plain.standard_error


def test_chunks_change_nothing() -> None:
    operator = planted(SPECTRA["pairs"])
    assert trace(operator, chunk=1).value == pytest.approx(trace(operator, chunk=60).value, rel=1e-12)


def test_intervals_use_t_quantiles() -> None:
    found = trace(planted(SPECTRA["pairs"]), method="hutchinson", products=4)
    low, high = found.interval(0.95)
    assert (high - low) / 2 == pytest.approx(3.182446 * found.standard_error, rel=1e-5)
    assert found.spread == pytest.approx(found.samples.std(ddof=1))


@pytest.mark.parametrize(
    "options", [{"products": 1, "method": "hutchinson"}, {"products": 5}, {"chunk": 0}, {"method": "x"}]
)
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        trace(planted(SPECTRA["pairs"]), **options)  # type: ignore[arg-type]


def small_risk() -> EmpiricalRisk:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    data = [(torch.randn(20, 5).double(), torch.randint(0, 3, (20,))) for _ in range(2)]
    return EmpiricalRisk(net, nn.CrossEntropyLoss(), data)


def exact_filter_trace(risk: EmpiricalRisk) -> float:
    """Naive twin: sum over filters of ||w||^2 / n times the trace of the filter's block of the dense Hessian."""
    diagonal, total, start = Hessian(risk).dense().diagonal(), 0.0, 0
    for parameter in risk.model.parameters():
        for row in range(parameter.shape[0] if parameter.ndim == 2 else 0):
            width = parameter.shape[1]
            block = diagonal[start + row * width : start + (row + 1) * width]
            total += float(parameter[row].detach().square().sum()) / width * float(block.sum())
        start += parameter.numel()
    return total


def test_filter_weighted_trace_equals_its_closed_form_within_its_error() -> None:
    risk = small_risk()
    exact = exact_filter_trace(risk)
    shares = []
    for seed in range(60):
        found = filter_weighted_trace(risk, directions=24, seed=seed)
        shares.append(abs(found.value - exact) / found.standard_error)
    assert 0.5 <= float(np.mean(np.asarray(shares) <= 1)) <= 0.85 and max(shares) < 5


def test_the_products_of_an_estimate_are_its_own_and_not_those_that_its_operator_made_before() -> None:
    operator = Hessian(small_risk())
    for estimator in (
        lambda: trace(operator, products=9),
        lambda: trace(operator, method="hutchinson", products=9),
        lambda: filter_weighted_trace(operator, directions=9),
    ):
        assert [estimator().products for _ in range(2)] == [9, 9]


@pytest.mark.parametrize(("options", "most"), [({}, 8), ({"chunk": 3}, 3)])
def test_probes_go_through_eight_at_a_time_unless_told(
    options: dict[str, int], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, sizes = MatrixOperator(torch.eye(60).double()), list[int]()
    one = operator.multiply
    monkeypatch.setattr(operator, "multiply", lambda vectors: sizes.append(len(vectors)) or one(vectors))
    trace(operator, method="hutchinson", products=30, **options)  # type: ignore[arg-type]
    assert max(sizes) == most and sum(sizes) == 30


def test_mean_central_curvature_over_400_lines_is_the_filter_weighted_trace() -> None:
    risk = small_risk()
    step, curvatures = 1e-3, []
    with risk.prepared():
        space = ParameterSpace(risk.model)
        with weights_restored(space) as base, torch.no_grad():
            for index in range(400):
                line = []
                for (name, parameter, rule), weight in zip(space, base, strict=True):
                    values = normal(parameter, 7, "direction", index, name)
                    if rule.kind == "fixed":
                        line.append(torch.zeros_like(values))
                        continue
                    line.append(values / values.norm(dim=1, keepdim=True) * weight.norm(dim=1, keepdim=True))
                losses = []
                for coordinate in (-step, 0.0, step):
                    space.move(base, [line], [coordinate])
                    terms = [risk.loss_terms(batch) for batch in risk.batches()]
                    losses.append(float(sum(t[0] for t in terms)) / float(sum(t[1] for t in terms)))
                curvatures.append((losses[0] - 2 * losses[1] + losses[2]) / step**2)
    lines = np.asarray(curvatures)
    found = filter_weighted_trace(risk, directions=400)
    exact = exact_filter_trace(risk)
    assert abs(lines.mean() - exact) <= 3 * lines.std(ddof=1) / math.sqrt(400)
    assert abs(lines.mean() - found.value) <= 3 * math.hypot(lines.std(ddof=1) / 20, found.standard_error)
    assert found.spread == pytest.approx(lines.std(ddof=1), rel=0.2)


def test_the_filter_weighted_trace_needs_a_risk() -> None:
    with pytest.raises(InputError, match="risk"):
        filter_weighted_trace(MatrixOperator(torch.eye(3)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="directions"):
        filter_weighted_trace(small_risk(), directions=1)


def test_a_graph_serves_every_block_of_probes() -> None:
    operator = Hessian(small_risk())
    trace(operator, products=9, method="hutchinson", chunk=2)
    assert operator.built == 2  # one per batch
