"""The two curves of a run beside training: their numbers in closed form, and nothing of the run is changed by them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.data import TensorData
from lowland.training import CriticalCurve, CurvatureCurve, FitResult, fit

X = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0]))
PART = TensorData(X, torch.zeros(4, 1), torch.arange(4))  # mean squared error of X w: the Hessian is X^2 / 2


def trained(hooks: list[Any], *, adam: bool = False, normed: bool = False, epochs: int = 3) -> FitResult:
    torch.manual_seed(0)
    model: nn.Module = nn.Linear(4, 1, bias=False)
    if normed:
        model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 2)), nn.Linear(2, 1))
    optimizer = (torch.optim.Adam if adam else torch.optim.SGD)(model.parameters(), lr=0.01)
    data = {"train": PART, "validation": PART, "test": PART}
    return fit(model, optimizer, nn.MSELoss(), data, epochs=epochs, schedule="constant", hooks=hooks)


@pytest.mark.parametrize("adam", [False, True])
def test_the_curvature_is_that_of_the_quadratic_at_every_step(adam: bool) -> None:
    curve = CurvatureCurve(samples=4, products=4, every_steps=1)
    result = trained([curve], adam=adam)
    assert [row["step"] for row in curve.rows] == [0, 1, 2, 3]
    assert [row["lambda_max"] for row in curve.rows] == pytest.approx([8.0] * 4, rel=1e-4)
    assert all(0 < row["seconds"] < 60 for row in curve.rows)
    assert [row["lambda_max"] for row in result.rows] == [row["lambda_max"] for row in curve.rows[1:]]
    ratios = [row["stability"] for row in curve.rows]
    assert math.isnan(ratios[0]) and (
        all(r > 0 for r in ratios[1:]) if adam else ratios[1:] == pytest.approx([0.04] * 3)
    )
    assert same_bits(list(result.model.parameters()), list(trained([], adam=adam).model.parameters()))
    with pytest.raises(InputError, match="samples"):
        CurvatureCurve(samples=0)


@pytest.mark.parametrize("normed", [False, True])
def test_the_critical_step_goes_along_the_step_taken_and_training_is_as_without_it(normed: bool) -> None:
    curve = CriticalCurve(every_steps=1, samples=4, batch_norm="running")
    result = trained([curve], normed=normed)
    assert [row["step"] for row in curve.rows] == [1, 2, 3] and all(row["critical_sharpness"] > 0 for row in curve.rows)
    if not normed:  # one step down a quadratic: 2 / eta_c = g H g / |g|^2
        torch.manual_seed(0)
        w = nn.Linear(4, 1, bias=False).weight.detach()[0]
        squares = X.diagonal() ** 2 / 2
        for row in curve.rows:
            g = squares * w
            assert row["critical_sharpness"] == pytest.approx(float((g * squares * g).sum() / (g * g).sum()), rel=0.1)
            w = w - 0.01 * g
    assert same_bits(list(result.model.parameters()), list(trained([], normed=normed).model.parameters()))
    state, other = curve.state_dict(), CriticalCurve()
    other.load_state_dict(state)
    other.rows[0]["step"] = -1.0
    assert state["rows"] == curve.rows and other.rows[1:] == curve.rows[1:]
