"""The slope of LLR over the losses met in training, from a run to a figure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from lowland import viz
from lowland.core.errors import InputError
from lowland.losses import LLR, Sech, slope_over_losses
from lowland.viz.curves import build_slope


def recorded() -> LLR:
    model, loss = nn.Linear(4, 3), LLR(nn.CrossEntropyLoss(), Sech(), initial_loss=1.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    x, y = torch.randn(30, 4), torch.randint(0, 3, (30,))
    for _ in range(25):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
        loss.after_step()
    return loss


def test_the_figure_shows_the_slope_and_counts_every_pass():
    loss = recorded()
    result = slope_over_losses(loss.reshaper, loss.multipliers, 1.2)
    histogram, slope, plain = build_slope(result).curves
    np.testing.assert_allclose(slope.y, result.slope.values)
    peak = max(1.0, float(result.slope.max()))
    bars = histogram.y[1:-1:2] * float(result.passes.max()) / peak
    np.testing.assert_allclose(bars, result.passes.values)
    assert result.passes.sum() == 25
    assert plain.reference and plain.y.tolist() == [1.0, 1.0]
    assert viz.slope(result).axes[0].get_xlabel() == "loss of the batch"
    assert viz.slope(result, backend="plotly").data


def test_something_else_is_refused():
    with pytest.raises(InputError, match="slope_over_losses"):
        viz.slope(xr.Dataset({"slope": ("loss", [1.0])}))
