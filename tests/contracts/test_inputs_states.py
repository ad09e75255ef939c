"""What a model keeps beside its parameters is as before after every measurement, and is part of none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lowland as ll

X = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)).double()
PARTS = [slice(0, 4), slice(4, 8), slice(8, 10)]


class Keeping(nn.Module):
    """Keeps things in forward that no number depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3).double()
        self.last, self.pair, self.calls, self.table = None, None, [], {}
        self.count = 0

    def forward(self, x: Any) -> Any:
        self.count += 1
        self.last = self.new = self.head(x)
        self.pair = (self.last, self.last)
        self.calls.append(self.last)
        self.table[self.count] = x
        return self.last


def loss(output: Any, target: Any) -> Any:
    return F.cross_entropy(output, target, reduction="none")


MEASURED = {
    "evaluate": lambda risk: risk.evaluate(),
    "gradient": lambda risk: risk.gradient(),
    "ends": ll.curvature.extreme_eigenvalues,
    "sharpness": ll.curvature.sam_sharpness,
    "surface": lambda risk: ll.landscape.evaluate(risk, ll.landscape.random_plane(risk.model), ll.landscape.grid(3, 3)),
}


@pytest.mark.parametrize("measure", MEASURED.values(), ids=MEASURED)
def test_what_forward_keeps_is_as_before(measure):
    model = Keeping()
    target = torch.arange(10) % 3
    calls, table = model.calls, model.table
    measure(ll.EmpiricalRisk(model, loss, [(X[part], target[part]) for part in PARTS]))
    assert model.last is None and model.pair is None and model.count == 0 and not hasattr(model, "new")
    assert model.calls is calls and model.table is table and calls == [] and table == {}
