"""The curve of both ends over training: right values, training unchanged, resumed to the same bits, paid for."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_fit import network, splits
from torch import nn

from lowland import optim
from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.curvature import extreme_eigenvalues, stability
from lowland.report.dynamics import training_section
from lowland.results import Run
from lowland.training import CurvatureCurve, FitState, Hook, fit
from lowland.workflows import DataSpec, FitSpec, ModelSpec
from lowland.workflows.fitting import fit as fit_run

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.AdamW(p, lr=0.01),
    "sam": lambda p: optim.SAM(torch.optim.SGD(p, lr=0.05, momentum=0.9), rho=0.05),
    "muon": lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], lr=0.01),
}


class Cold(Hook):
    """Measures from scratch where the curve measures: the slow twin."""

    def __init__(self) -> None:
        self.values: dict[int, tuple[float, float]] = {}

    def on_step_end(self, run: FitState) -> None:
        part = run.data.train
        risk = EmpiricalRisk(run.model, nn.CrossEntropyLoss(), list(part.batches(40)))
        ends = extreme_eigenvalues(risk, max_products=60)
        try:
            ratio = stability(risk, run.optimizer).ratio
        except InputError:
            ratio = float("nan")
        self.values[run.step] = (ends.lambda_max, ratio)


class Stop(Exception):
    pass


class StopAt(Hook):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, run: FitState) -> None:
        if run.step == self.step:
            raise Stop


def trained(*hooks: Hook, optimizer: str = "sgd", folder: Path | None = None) -> nn.Module:
    model = network()
    made = OPTIMIZERS[optimizer](list(model.parameters()))
    options: dict[str, Any] = {"epochs": 4, "batch_size": 8, "seed": 3, "folder": folder, "checkpoint_every_steps": 3}
    return fit(model, made, nn.CrossEntropyLoss(), splits(), hooks=hooks, select="last", **options).model


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_curve_agrees_with_cold_runs_and_leaves_training_as_it_is(optimizer: str) -> None:
    curve, cold, started = CurvatureCurve(every_steps=5, products=8), Cold(), time.perf_counter()
    watched = trained(curve, cold, optimizer=optimizer)
    assert 0 < sum(row["seconds"] for row in curve.rows) < time.perf_counter() - started
    for mine, plain in zip(
        watched.state_dict().values(), trained(optimizer=optimizer).state_dict().values(), strict=True
    ):
        assert torch.equal(mine, plain)
    assert [row["step"] for row in curve.rows] == [0, 5, 10, 15, 20]
    for row in curve.rows[1:]:
        largest, ratio = cold.values[int(row["step"])]
        slack = row["lambda_max_residual"] + 1e-3 * abs(largest)
        assert abs(row["lambda_max"] - largest) <= slack
        assert row["stability"] == pytest.approx(ratio, rel=0.03, nan_ok=True)
    for row in curve.rows[2:]:  # the first of each operator is cold
        assert row["products"] <= (16 if optimizer == "adam" else 8)


def test_a_stopped_run_goes_on_with_the_same_curve(tmp_path: Path) -> None:
    whole = CurvatureCurve(every_steps=2)
    trained(whole, StopAt(None), folder=tmp_path / "whole")
    with pytest.raises(Stop):
        trained(CurvatureCurve(every_steps=2), StopAt(8), folder=tmp_path / "cut")
    again = CurvatureCurve(every_steps=2)
    trained(again, StopAt(None), folder=tmp_path / "cut")
    assert repr([{**row, "seconds": 0} for row in again.rows]) == repr([{**row, "seconds": 0} for row in whole.rows])
    columns = Run(tmp_path / "whole").metrics
    assert [row["lambda_max"] for row in columns] == [whole.rows[k]["lambda_max"] for k in (2, 5, 7, 10)]
    lines = (tmp_path / "cut" / "curvature.csv").read_text().splitlines()
    assert lines[0].startswith("step,lambda_max,") and len(lines) == 1 + len(whole.rows)


def test_a_run_too_short_for_its_share_is_refused_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two measurements"):
        trained(CurvatureCurve(), folder=tmp_path / "run")
    with pytest.raises(InputError, match="share"):
        CurvatureCurve(share=0.0)
    with pytest.raises(InputError, match="every_steps"):
        CurvatureCurve(every_steps=0)


def test_a_spec_asks_for_the_curve_and_the_report_draws_it(tmp_path: Path) -> None:
    spec = FitSpec(
        folder=str(tmp_path / "run"),
        model=ModelSpec(name="resnet8", options={"width": 4}),
        epochs=110,
        curvature_share=1.0,
        data=DataSpec(name="digits", options={"train_size": 40}),
        batch_size=40,
        snapshots_every_epochs=None,
        threads=1,
    )
    with pytest.raises(InputError, match="`curvature_share` .*two measurements"):
        fit_run(replace(spec, epochs=2))
    assert not (tmp_path / "run").exists()
    fit_run(spec)
    rows = Run(tmp_path / "run").metrics
    assert all(row["lambda_max"] > 0 for row in rows)
    ratios = [row["stability"] for row in rows if "stability" in row]
    assert ratios and "stability" not in rows[0] and min(ratios[:-1], default=1.0) > 0
    section = training_section([Run(tmp_path / "run")])
    assert section is not None and "largest Hessian eigenvalue" in repr(section)
