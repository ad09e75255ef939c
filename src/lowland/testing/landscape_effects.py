"""Rules of landscape tools: values as they were measured, and a model as it was before."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowland.testing import ambient
from lowland.testing.adapters import LandscapeAdapter
from lowland.testing.networks import flat, split, unchanged
from lowland.testing.places import failing_in_the_middle, plain_loss
from lowland.testing.rulebook import NotOffered, demand, rule


class _Cliff(nn.Module):
    """A network that returns a given number where the sum of its weights has grown."""

    def __init__(self, body: nn.Module, beyond: float) -> None:
        super().__init__()
        self.body, self.beyond, self.edge = body, beyond, float(flat(body).sum())

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores."""
        scores: Tensor = self.body(x)
        return torch.full_like(scores, self.beyond) if float(flat(self.body).sum()) > self.edge + 1e-4 else scores


@rule("Filled in with a mean or a maximum, a cliff looks like a plain.")
def nan_and_infinity_stay(adapter: LandscapeAdapter) -> None:
    """Losses that are NaN or infinite come back as NaN or infinite, and leave the others alone."""
    net, x, y = adapter.network()
    for value in (math.nan, math.inf):
        values = adapter.plane(_Cliff(net, value).eval(), nn.MSELoss(), [(x, y)]).values
        odd = np.isnan(values) if math.isnan(value) else np.isinf(values)
        demand(odd.any(), f"no value is {value}, though the loss is beyond half of the plane")
        demand(np.isfinite(values[~odd]).all() and not odd.all(), f"{value} spread to other points")


@rule('Noise that is added for beauty, and sentinels such as -1 for "not yet measured", show here.')
def flat_stays_flat(adapter: LandscapeAdapter) -> None:
    """A loss that is the same everywhere comes back as that number, also where it is zero or negative."""
    net, x, y = adapter.network()
    for value in (0.25, 0.0, -1.0):

        def level(output: Tensor, target: Tensor, height: float = value) -> Tensor:
            del target
            return output.mean() * 0 + height

        values = adapter.plane(net, level, [(x, y)]).values
        worst = float(np.abs(values - value).max())
        demand(worst == 0, f"a loss of {value} everywhere comes back with errors up to {worst:.2g}")


@rule("What cannot be repeated cannot be compared.")
def same_seed_same_values(adapter: LandscapeAdapter) -> None:
    """Two runs with the same seed give the same values, to the last bit."""
    net, x, y = adapter.network()
    first, second = (adapter.plane(net, nn.MSELoss(), [(x, y)], seed=4).values for _ in range(2))
    demand(np.array_equal(first, second), f"two runs differ by up to {np.abs(first - second).max():.2g}")


@rule("A mean over batch means weights the last sample five times.")
def batches_do_not_matter(adapter: LandscapeAdapter) -> None:
    """Data in batches of 5, 5 and 1 give the values of one batch of 11."""
    net, x, y = adapter.network()
    whole = adapter.plane(net, nn.MSELoss(), [(x, y)]).values
    parts = adapter.plane(net, nn.MSELoss(), split(x, y, (5, 5, 1))).values
    worst = float(np.abs(parts / whole - 1).max())
    demand(worst < 1e-5, f"values differ by up to {worst:.2%}")


@rule("Otherwise every point is another network.")
def dropout_is_off(adapter: LandscapeAdapter) -> None:
    """A model left in training mode is measured without dropout."""
    net, x, y = adapter.network()
    model = nn.Sequential(net, nn.Dropout(0.5))
    wanted = plain_loss(model.eval(), x, y)
    value = float(adapter.plane(model.train(), nn.MSELoss(), [(x, y)]).values[2, 2])
    demand(abs(value - wanted) < 1e-5 * wanted, f"the middle value is {value:.4g}; without dropout it is {wanted:.4g}")


def _used(adapter: LandscapeAdapter) -> Iterator[tuple[nn.Module, Tensor, Tensor]]:
    """Yield models as training leaves them: in training mode, with statistics, gradients and a frozen weight."""
    convolution = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    nn.init.normal_(convolution.get_parameter("1.bias"))
    for model, x, y in ((convolution, torch.randn(9, 1, 4, 4), torch.randn(9, 3)), adapter.network()):
        F.mse_loss(model.train()(x), y).backward()  # type: ignore[no-untyped-call]
        next(model.parameters()).requires_grad_(False)
        yield model, x, y


@rule("A survey in the middle of training must not change the training.")
def model_is_as_before(adapter: LandscapeAdapter) -> None:
    """After a survey the model has the same bits: weights, statistics, modes, flags and gradients."""
    for model, x, y in _used(adapter):
        with unchanged(model, "after a survey"):
            adapter.plane(model, nn.MSELoss(), [(x, y)])


@rule("A model left at some point of the plane is trained on from there.")
def model_is_as_before_after_failure(adapter: LandscapeAdapter) -> None:
    """After a loss that raised in the middle the model has the same bits too."""
    for model, x, y in _used(adapter):
        with unchanged(model, "after an exception"), suppress(ArithmeticError):
            adapter.plane(model, failing_in_the_middle(), [(x, y)])


@rule("They are the results of two trainings.")
def line_leaves_both_models(adapter: LandscapeAdapter) -> None:
    """After a line between two models both are as before."""
    (first, x, y), second = adapter.network(), adapter.network(5)[0]
    with unchanged(first, "at the start of a line"), unchanged(second, "at the end of a line"):
        adapter.line(first, second, nn.MSELoss(), [(x, y)], points=5)


@rule("Otherwise looking at a model changes how it is trained from there.")
def random_state_stays(adapter: LandscapeAdapter) -> None:
    """A survey leaves the random states of Python, NumPy and torch as they were."""
    net, x, y = adapter.network()
    adapter.plane(net, nn.MSELoss(), [(x, y)])  # what is drawn once, on import or first use, is no matter
    before = {name: of() for name, of in ambient.RANDOM.items()}
    adapter.plane(net, nn.MSELoss(), [(x, y)], seed=1)
    changed = [name.partition("'")[0] for name, of in ambient.RANDOM.items() if of() != before[name]]
    demand(not changed, f"the random state of {' and '.join(changed)} is changed")


@rule("Pictures that take hours are interrupted.")
def resumed_survey_is_the_same(adapter: LandscapeAdapter) -> None:
    """A survey that was interrupted and started again gives the bits of an uninterrupted one."""
    net, x, y = adapter.network()
    whole = adapter.plane(net, lambda output, target: F.mse_loss(output, target), [(x, y)]).values
    calls = [0]
    stopped: list[bool] = []

    def interrupted(output: Tensor, target: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] > 12 and not stopped:
            raise KeyboardInterrupt
        return F.mse_loss(output, target)

    resumed = adapter.resumed(net, interrupted, [(x, y)], stop=lambda: stopped.append(True)).values
    if not stopped:
        raise NotOffered("the run was not interrupted")
    worst = float(np.abs(whole - resumed).max())
    demand(worst == 0, f"values differ by up to {worst:.2g}")
