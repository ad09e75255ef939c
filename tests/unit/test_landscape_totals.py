"""Surveys of metrics of which only totals are known: a value at every point, and no standard error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lowland as ll

X, Y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2
BATCHES = [(X[:4], Y[:4]), (X[4:], Y[4:])]


def layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def totals(model: nn.Module, batch: ll.Batch) -> dict[str, tuple[torch.Tensor, float]]:
    return {"loss": (nn.functional.cross_entropy(model(batch.input), batch.target, reduction="sum"), float(batch.size))}


def scalar_mean(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output, target)


@pytest.mark.parametrize("given", ["evaluate", "loss"])
def test_a_survey_of_totals_has_the_values_of_the_exact_one_and_no_errors(given: str):
    model = layer()
    line, grid = ll.landscape.random_line(model, 0), ll.landscape.grid(5)
    known = {"evaluate": totals} if given == "evaluate" else {"loss": scalar_mean}
    risk = ll.EmpiricalRisk(model, batches=BATCHES, **known)
    exact = ll.EmpiricalRisk(model, nn.CrossEntropyLoss(), BATCHES)
    found, wanted = ll.landscape.evaluate(risk, line, grid), ll.landscape.evaluate(exact, line, grid)
    assert "loss_se" not in found and "loss_difference_se" not in found
    torch.testing.assert_close(torch.tensor(found["loss"].values), torch.tensor(wanted["loss"].values))
    assert (found["status"] == 1).all()
