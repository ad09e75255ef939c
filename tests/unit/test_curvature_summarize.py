"""One-step sharpness in closed form, and the survey's Dataset."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import nn

from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import check
from lowland.curvature import Hessian, SummaryOptions, sam_sharpness, summarize


def risk_of(*, batches: int = 2, batch_norm: str = "running", scale: float = 1.0) -> EmpiricalRisk:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).double()
    x, y = torch.randn(24, 1, 4, 4).double(), torch.randint(0, 4, (24,))
    with torch.no_grad():
        net[4].weight.mul_(scale)
    size = 24 // batches
    data = [(x[i : i + size], y[i : i + size]) for i in range(0, 24, size)]
    return EmpiricalRisk(net, nn.CrossEntropyLoss(), data, batch_norm=batch_norm)  # type: ignore[arg-type]


def linear_risk(weights: list[float], targets: float = 0.0) -> EmpiricalRisk:
    layer = nn.Linear(len(weights), 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
    data = torch.eye(len(weights)).double()
    return EmpiricalRisk(layer, nn.MSELoss(), [(data, torch.full((len(weights), 1), targets).double())])


def test_sam_sharpness_in_closed_form() -> None:
    # L = (9 + 16) / 2, gradient (3, 4) of norm 5: w + rho g / ||g|| = w (1 + rho / 5)
    found = sam_sharpness(linear_risk([3.0, 4.0]), rho=0.5)
    assert found.value == pytest.approx(12.5 * (1.1**2 - 1), rel=1e-12)
    assert found.loss == 12.5 and math.isnan(found.standard_error)


def test_adaptive_sam_sharpness_in_closed_form() -> None:
    # step rho w^2 g / ||w g|| with g = w = (3, 4)
    w = torch.tensor([3.0, 4.0], dtype=torch.float64)
    moved = w + 0.5 * w**3 / (w**2).norm()
    found = sam_sharpness(linear_risk([3.0, 4.0]), rho=0.5, adaptive=True)
    assert found.value == pytest.approx(float((moved**2).sum() / 2) - 12.5, rel=1e-12)


def test_at_a_minimum_the_one_step_sharpness_is_exactly_zero() -> None:
    found = sam_sharpness(linear_risk([0.0, 0.0]), rho=0.5)
    assert found.value == 0.0 and found.raw == 0.0


def test_m_sharpness_is_the_mean_over_batches_each_with_its_own_ascent() -> None:
    risk = risk_of(batches=3)
    parts = [sam_sharpness(EmpiricalRisk(risk.model, nn.CrossEntropyLoss(), [batch])).value for batch in risk.batches()]
    found = sam_sharpness(risk, per_batch=True)
    assert found.value == pytest.approx(sum(parts) / 3, rel=1e-12)
    assert found.samples == 3 and found.standard_error > 0
    with pytest.raises(InputError, match="rho"):
        sam_sharpness(risk, rho=-1.0)


@pytest.mark.parametrize("mode", ["running", "batch", "recalibrated"])
def test_the_survey_holds_what_the_report_reads_and_leaves_the_model_alone(mode: str) -> None:
    risk = risk_of(batch_norm=mode)
    risk.model.train()
    before = [t.detach().clone() for t in (*risk.model.parameters(), *risk.model.buffers())]
    seen: list[int] = []
    result = summarize(risk, SummaryOptions(trace_products=12, directions=8, max_products=40), on_product=seen.append)
    assert same_bits(before, [t.detach() for t in (*risk.model.parameters(), *risk.model.buffers())])
    assert risk.model.training
    assert check(result, "curvature") == "curvature"
    scalars = (
        "trace",
        "trace_se",
        "filter_trace",
        "filter_trace_se",
        "lambda_max",
        "lambda_min",
        "lambda_min_converged",
        "lambda_min_bound",
        "picture_curvature",
        "picture_curvature_se",
        "kinks",
        "kinks_se",
        "sam_sharpness",
        "train_loss",
        "train_accuracy",
        "weight_norm",
    )
    assert all(result[name].dims == () for name in scalars)
    assert result.attrs["batch_norm"] == mode and result.attrs["samples"] == 24
    assert result.attrs["products"] == seen[-1] == len(seen)
    assert float(result.kinks) == pytest.approx(float(result.picture_curvature - result.filter_trace), rel=1e-9)
    assert result.kinks.attrs["spacing"] == 0.04 and "Relu" in result.kinks.attrs["causes"]
    dense = torch.linalg.eigvalsh(Hessian(risk).dense())
    assert float(result.lambda_max) == pytest.approx(float(dense[-1]), rel=2e-3)
    assert abs(float(result.trace) - float(dense.sum())) <= 5 * float(result.trace_se)
    assert float(result.train_loss) == risk.evaluate()["loss"].value


def test_the_survey_can_hold_everything_at_once() -> None:
    risk = risk_of()
    found = summarize(
        risk,
        SummaryOptions(trace_products=6, directions=2, top=3, density_probes=2, layer_probes=4, sharpness=True),
    )
    assert check(found, "curvature") == "curvature"
    values = torch.linalg.eigvalsh(Hessian(risk).dense()).flip(0)[:3].numpy()
    assert found.top_eigenvalue.values == pytest.approx(values, rel=1e-3) and bool(found.top_checked)
    assert found.sizes["layer"] == 6 and str(found.layer.values[0]) == "0.weight"
    assert found.sizes["measure"] == found.sharpness.size == 10 and found.sharpness.attrs["apgd_steps"] == 20
    assert found.density.dims == ("grid",) and found.sizes["rank"] == 3


def test_batch_norm_modes_give_different_curvature() -> None:
    running, batch = (
        summarize(risk_of(batch_norm=mode), SummaryOptions(trace_products=6, directions=2))
        for mode in ("running", "batch")
    )
    assert abs(float(running.lambda_max) / float(batch.lambda_max) - 1) > 0.05


def test_the_survey_does_not_depend_on_batching_or_repetition() -> None:
    first, again, other = summarize(risk_of()), summarize(risk_of()), summarize(risk_of(batches=4))
    for name in first.data_vars:
        assert float(first[name].sum()) == float(again[name].sum())
        assert float(other[name].sum()) == pytest.approx(float(first[name].sum()), rel=1e-6, abs=1e-9)


def test_options_are_taken_by_name_too():
    risk = EmpiricalRisk(torch.nn.Linear(4, 4), torch.nn.CrossEntropyLoss(), [(torch.eye(4), torch.arange(4))])
    found, same = summarize(risk, top=2), summarize(risk, SummaryOptions(top=2))
    assert found.equals(same) and found.sizes["rank"] == 2
    with pytest.raises(InputError, match="unexpected keyword argument 'tpo'.*Known: max_products"):
        summarize(risk, tpo=2)
    with pytest.raises(InputError, match="`rho` must be positive"):
        summarize(risk, rho=-1.0)


def test_all_of_the_summary_shares_one_graph_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("lowland.curvature.summarize")  # the package gives its function for this name
    made: list[Hessian] = []

    class Kept(Hessian):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(module, "Hessian", Kept)
    summarize(risk_of(), SummaryOptions(max_products=6, trace_products=6, directions=2))
    assert [one.built for one in made] == [2]
