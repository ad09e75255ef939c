"""The curve of the critical sharpness: the optimizer's own steps, training unchanged, resumed to the same rows, cheap."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_curvature_curve import OPTIMIZERS, Stop, StopAt, trained
from tests.integration.test_fit import network, splits
from tests.reference.critical import naive_critical_step
from torch import Tensor, nn

from lowland import data, optim
from lowland.cli.show import show_curvature
from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.curvature import SummaryOptions, critical_sharpness
from lowland.report.dynamics import training_section
from lowland.results import Run
from lowland.training import CriticalCurve, CurvatureCurve, FitState, Hook, fit
from lowland.workflows import DataSpec, FitSpec, ModelSpec, curvature, open_run
from lowland.workflows.fitting import fit as fit_run

OPTIMIZERS = OPTIMIZERS | {
    "ema": lambda p: optim.EMA(torch.optim.SGD(p, lr=0.05), decay=0.9),
    "sala": lambda p: optim.SALA(torch.optim.SGD(p, lr=0.05, momentum=0.9), period=2, alpha=0.5, rho=0.05),
}


class Naive(Hook):
    """Follows every step by the slow twin, in float64, on the first half of its batch."""

    def __init__(self) -> None:
        self.steps: dict[int, float] = {}

    def on_fit_start(self, run: FitState) -> None:
        self.before = [p.detach().clone() for p in run.model.parameters()]

    def on_step_end(self, run: FitState) -> None:
        assert run.batch is not None
        after = [p.detach().clone() for p in run.model.parameters()]
        rate = run.optimizer.param_groups[0]["lr"]
        half = math.ceil(run.batch.size / 2)
        x, y = run.batch.input[:half].double(), run.batch.target[:half]
        twin = _like(run.model, self.before)
        update = [(b.double() - a.double()) / rate for b, a in zip(self.before, after, strict=True)]
        self.before = after
        slope = sum(
            float((u * g).sum())
            for u, g in zip(
                update,
                torch.autograd.grad(nn.functional.cross_entropy(twin(x), y), list(twin.parameters())),
                strict=True,
            )
        )
        if slope > 0:
            found = naive_critical_step(twin, lambda net: nn.functional.cross_entropy(net(x), y), update)
            self.steps[run.step] = found


def _like(model: nn.Module, weights: list[Tensor]) -> nn.Module:
    import copy

    twin = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for parameter, value in zip(twin.parameters(), weights, strict=True):
            parameter.copy_(value)
    return twin


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_curve_is_that_of_the_steps_taken_and_leaves_training_as_it_is(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.integration.test_curvature_curve.OPTIMIZERS", OPTIMIZERS)
    curve, naive = CriticalCurve(every_steps=1, samples=4, batch_norm="running"), Naive()
    watched = trained(curve, naive, optimizer=optimizer)
    plain = trained(optimizer=optimizer)
    for mine, other in zip(watched.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    assert [row["step"] for row in curve.rows] == list(range(1, 21))
    assert all(row["passes"] <= 6 for row in curve.rows)
    pairs = [
        (2 / row["critical_sharpness"], naive.steps[int(row["step"])])
        for row in curve.rows
        if int(row["step"]) in naive.steps and not math.isnan(row["critical_sharpness"])
    ]
    assert len(pairs) >= 6
    assert sum(abs(a / b - 1) < 0.1 for a, b in pairs) >= 0.7 * len(pairs)  # on 4 samples some cross more than once
    for row in curve.rows:
        if not math.isnan(row["critical_sharpness"]):
            assert row["critical_ratio"] == pytest.approx(row["learning_rate"] * row["critical_sharpness"] / 2)


def test_a_stopped_run_goes_on_with_the_same_curve(tmp_path: Path) -> None:
    def curve() -> CriticalCurve:
        return CriticalCurve(every_steps=2)

    whole, again = curve(), curve()
    trained(whole, StopAt(None), folder=tmp_path / "whole")
    with pytest.raises(Stop):
        trained(curve(), StopAt(7), folder=tmp_path / "cut")
    trained(again, StopAt(None), folder=tmp_path / "cut")
    assert repr([{**row, "seconds": 0} for row in again.rows]) == repr([{**row, "seconds": 0} for row in whole.rows])
    assert [row["step"] for row in whole.rows] == list(range(2, 21, 2))
    lines = (tmp_path / "cut" / "critical.csv").read_text().splitlines()
    assert lines[0] == "step,critical_sharpness,critical_sharpness_se,critical_ratio,learning_rate,passes,seconds"
    assert len(lines) == 11


def test_of_parametrized_weights_the_effective_ones_count() -> None:
    def measured(model: nn.Module) -> list[float]:
        curve = CriticalCurve(every_steps=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        started, loss = time.perf_counter(), nn.CrossEntropyLoss()
        result = fit(model, optimizer, loss, splits(), epochs=1, batch_size=8, seed=3, hooks=[curve])
        assert 0 < result.seconds < time.perf_counter() - started
        state = curve.state_dict()
        again = CriticalCurve(every_steps=2)
        again.load_state_dict(state)
        again.rows[0]["critical_sharpness"] = -1.0
        assert curve.rows[0]["critical_sharpness"] != -1.0 != state["rows"][0]["critical_sharpness"]
        return [row["critical_sharpness"] for row in curve.rows]

    same = nn.utils.parametrize
    plain, wrapped = network(), network()
    same.register_parametrization(wrapped[-1], "weight", nn.Identity())
    assert measured(wrapped) == pytest.approx(measured(plain), rel=1e-6, nan_ok=True)


def test_other_data_beside_give_the_relative_form() -> None:
    class Late(CriticalCurve):  # which needs the model
        def on_fit_start(self, run: FitState) -> None:
            part = run.data.validation
            self.beside = {"validation": EmpiricalRisk(run.model, nn.CrossEntropyLoss(), list(part.batches(40)))}
            super().on_fit_start(run)

    curve, alone = Late(every_steps=5), CriticalCurve(every_steps=5)
    trained(curve)
    trained(alone)
    own = [row["critical_sharpness"] for row in alone.rows]
    assert [row["critical_sharpness"] for row in curve.rows] == pytest.approx(own, nan_ok=True)
    assert any(row["critical_sharpness_validation"] > 0 for row in curve.rows)


def test_arguments_and_steps_of_rate_zero(tmp_path: Path) -> None:
    for options in ({"every_steps": 0}, {"samples": 0}, {"batch_norm": "own"}):
        with pytest.raises(InputError, match=next(iter(options))):
            CriticalCurve(**options)  # type: ignore[arg-type]
    still = CriticalCurve(every_steps=1)
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    data = splits()
    model(data.train.input[:1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(model, optimizer, nn.CrossEntropyLoss(), data, epochs=1, batch_size=8, schedule=lambda *_: 0.0, hooks=[still])
    assert all(math.isnan(row["critical_sharpness"]) and row["passes"] == 0 for row in still.rows)


@pytest.mark.parametrize(
    "make",
    [lambda p: torch.optim.SGD(p, lr=1.5), lambda p: torch.optim.RMSprop(p, lr=3e-3, alpha=0.999)],
    ids=["sgd", "rmsprop"],
)
def test_it_stays_below_the_ratio_of_the_preconditioned_hessian_and_nears_one_at_the_edge(make: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    critical, ends = CriticalCurve(every_steps=5, samples=300), CurvatureCurve(every_steps=5, samples=300, products=8)
    whole = data.load("digits", train_size=300)
    options: dict[str, Any] = {"epochs": 40, "batch_size": 300, "schedule": "constant", "hooks": [critical, ends]}
    fit(model, make(model.parameters()), nn.CrossEntropyLoss(), whole, **options)
    edge = {row["step"]: row["stability"] for row in ends.rows}
    found = [(row["critical_ratio"], edge[row["step"]]) for row in critical.rows if row["critical_ratio"] > 0]
    assert len(found) >= 5 and all(ratio <= 1.2 * stability for ratio, stability in found)
    near = [ratio for ratio, stability in found if stability > 0.9]
    assert near and max(near) > 0.5 and min(ratio for ratio, _ in found) < 0.1


def test_a_spec_asks_for_the_curve_and_the_report_draws_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="critical_every_steps"):
        FitSpec(critical_every_steps=0)
    options: dict[str, Any] = {"snapshots_every_epochs": None, "threads": 1, "epochs": 3, "batch_size": 40}
    spec = FitSpec(
        folder=str(tmp_path / "run"),
        model=ModelSpec(name="resnet8", options={"width": 4}),
        data=DataSpec(name="digits", options={"train_size": 80}),
        critical_every_steps=1,
        **options,
    )
    fit_run(spec)
    run = Run(tmp_path / "run")
    assert (run.folder / "critical.csv").is_file()
    assert any(row.get("critical_sharpness", 0) > 0 for row in run.metrics)
    section = training_section([run])
    assert section is not None and "step over the critical step" in repr(section)


def test_a_measurement_costs_its_passes_over_a_part_of_the_batch_and_no_more() -> None:
    class Counted(Hook):
        def on_fit_start(self, run: FitState) -> None:
            self.sizes: list[int] = []
            run.model.register_forward_hook(lambda module, inputs, output: self.sizes.append(len(inputs[0])))

    curve, counted, bare = CriticalCurve(every_steps=2, samples=2), Counted(), Counted()
    for hooks in ([counted, curve], [bare]):
        trained(*hooks)
    # the first measurement also looks at the risk
    assert 0 <= sum(counted.sizes) - sum(bare.sizes) - 2 * sum(row["passes"] for row in curve.rows) <= 16
    assert max(row["passes"] for row in curve.rows) <= 6


def test_the_command_measures_the_relative_form(tmp_path: Path) -> None:
    spec = FitSpec(
        folder=str(tmp_path / "run"),
        model=ModelSpec(name="resnet8", options={"width": 4}),
        data=DataSpec(name="digits", options={"train_size": 80}),
        epochs=2,
        snapshots_every_epochs=None,
        threads=1,
    )
    fit_run(spec)
    options = SummaryOptions(max_products=6, trace_products=6, directions=2)
    found, _ = curvature(spec.folder, options, along="validation", threads=1)
    run = open_run(spec.folder)
    risks = run.risks(["train", "validation"])
    expected = critical_sharpness(risks["train"], risks["validation"], max_passes=20)
    assert float(found.relative_critical_sharpness) == pytest.approx(expected.value, nan_ok=True)
    assert found.relative_critical_sharpness.attrs["long_name"].endswith("the gradient of validation")
    shown = show_curvature(
        (found.assign(relative_critical_sharpness=((), math.nan, {"long_name": "r", "missing": "why"})), tmp_path), None
    )  # type: ignore[arg-type]
    assert ["r", "why"] in shown.table
    shown = show_curvature((found, tmp_path), None)  # type: ignore[arg-type]
    assert "critical sharpness along the gradient of validation" in str(shown.table)
