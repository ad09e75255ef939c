"""Rules of landscape tools: values as they were measured, and a model as it was before."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowland.core.contexts import same_bits
from lowland.testing.adapters import LandscapeAdapter
from lowland.testing.places import plain_loss, small
from lowland.testing.problems import bits, split
from lowland.testing.rulebook import NotOffered, demand, rule

__all__: list[str] = []

_Watched = tuple[list[Tensor], list[bool], list[bool], list[Tensor | None]]


class _Cliff(nn.Module):
    """A network that returns a given number where its first weight has grown."""

    def __init__(self, beyond: float) -> None:
        super().__init__()
        self.body = small()[0]
        self.beyond, self.edge = beyond, float(next(self.body.parameters()).detach().reshape(-1)[0])

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores."""
        scores: Tensor = self.body(x)
        grown = float(next(self.body.parameters()).detach().reshape(-1)[0]) > self.edge + 1e-6
        return torch.full_like(scores, self.beyond) if grown else scores


@rule("landscape")
def nan_and_infinity_stay(adapter: LandscapeAdapter) -> None:
    """Losses that are NaN or infinite come back as NaN or infinite, and leave the others alone.

    Filled in with a mean or a maximum, a cliff looks like a plain.
    """
    _, x, y = small()
    for value in (math.nan, math.inf):
        values = adapter.plane(_Cliff(value).eval(), nn.MSELoss(), [(x, y)]).values
        odd = np.isnan(values) if math.isnan(value) else np.isinf(values)
        demand(odd.any(), f"no value is {value}, though the loss is beyond half of the plane")
        demand(np.isfinite(values[~odd]).all() and not odd.all(), f"{value} spread to other points")


@rule("landscape")
def flat_stays_flat(adapter: LandscapeAdapter) -> None:
    """A loss that is the same everywhere comes back as that number, also where it is zero or negative.

    Noise that is added for beauty, and sentinels such as -1 for "not yet measured", show here.
    """
    net, x, y = small()
    for value in (0.25, 0.0, -1.0):

        def level(output: Tensor, target: Tensor, height: float = value) -> Tensor:
            del target
            return output.mean() * 0 + height

        values = adapter.plane(net, level, [(x, y)]).values
        worst = float(np.abs(values - value).max())
        demand(worst == 0, f"a loss of {value} everywhere comes back with errors up to {worst:.2g}")


@rule("landscape")
def same_seed_same_values(adapter: LandscapeAdapter) -> None:
    """Two runs with the same seed give the same values, to the last bit.

    What cannot be repeated cannot be compared.
    """
    net, x, y = small()
    first, second = (adapter.plane(net, nn.MSELoss(), [(x, y)], seed=4).values for _ in range(2))
    demand(np.array_equal(first, second), f"two runs differ by up to {np.abs(first - second).max():.2g}")


@rule("landscape")
def batches_do_not_matter(adapter: LandscapeAdapter) -> None:
    """Data in batches of 5, 5 and 1 give the values of one batch of 11.

    A mean over batch means weights the last sample five times.
    """
    net, x, y = small()
    whole = adapter.plane(net, nn.MSELoss(), [(x, y)]).values
    parts = adapter.plane(net, nn.MSELoss(), split(x, y, (5, 5, 1))).values
    worst = float(np.abs(parts / whole - 1).max())
    demand(worst < 1e-5, f"values differ by up to {worst:.2%}")


@rule("landscape")
def dropout_is_off(adapter: LandscapeAdapter) -> None:
    """A model left in training mode is measured without dropout.

    Otherwise every point is another network.
    """
    net, x, y = small()
    model = nn.Sequential(net[0], nn.Dropout(0.5), net[1], net[2])  # type: ignore[index]
    wanted = plain_loss(model.eval(), x, y)
    value = float(adapter.plane(model.train(), nn.MSELoss(), [(x, y)]).values[2, 2])
    demand(abs(value - wanted) < 1e-5 * wanted, f"the middle value is {value:.4g}; without dropout it is {wanted:.4g}")


def _used() -> tuple[nn.Module, Tensor, Tensor]:
    """Return a model as training leaves it: in training mode, with statistics, gradients and a frozen weight."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).train()
    nn.init.normal_(model[1].bias)  # type: ignore[arg-type]
    x, y = torch.randn(9, 1, 4, 4), torch.randn(9, 3)
    F.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
    next(model.parameters()).requires_grad_(False)
    return model, x, y


def _state(model: nn.Module) -> _Watched:
    return (
        bits(model),
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
    )


def _demand_same(before: _Watched, model: nn.Module, when: str) -> None:
    after = _state(model)
    count = len(list(model.parameters()))
    demand(same_bits(before[0][:count], after[0][:count]), f"weights are changed {when}")
    demand(same_bits(before[0][count:], after[0][count:]), f"batch-norm statistics are changed {when}")
    demand(before[1] == after[1], f"training mode is changed {when}")
    demand(before[2] == after[2], f"requires_grad is changed {when}")
    demand([g is None for g in before[3]] == [g is None for g in after[3]], f"gradients come or go {when}")
    kept = [(a, b) for a, b in zip(before[3], after[3], strict=True) if a is not None and b is not None]
    demand(all(torch.equal(a, b) for a, b in kept), f"gradients are changed {when}")


@rule("landscape")
def model_is_as_before(adapter: LandscapeAdapter) -> None:
    """After a survey the model has the same bits: weights, statistics, modes, flags and gradients.

    A survey in the middle of training must not change the training.
    """
    model, x, y = _used()
    before = _state(model)
    adapter.plane(model, nn.MSELoss(), [(x, y)])
    _demand_same(before, model, "after a survey")


@rule("landscape")
def model_is_as_before_after_failure(adapter: LandscapeAdapter) -> None:
    """After a loss that raised in the middle the model has the same bits too.

    A model left at some point of the plane is trained on from there.
    """
    model, x, y = _used()
    before, calls = _state(model), [0]

    def failing(output: Tensor, target: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] == 9:
            raise ArithmeticError("in the middle")
        return F.mse_loss(output, target)

    with suppress(ArithmeticError):
        adapter.plane(model, failing, [(x, y)])
    _demand_same(before, model, "after an exception")


@rule("landscape")
def line_leaves_both_models(adapter: LandscapeAdapter) -> None:
    """After a line between two models both are as before.

    They are the results of two trainings.
    """
    (first, x, y), second = small(), small(5)[0]
    before = _state(first), _state(second)
    adapter.line(first, second, nn.MSELoss(), [(x, y)], points=5)
    _demand_same(before[0], first, "at the start of a line")
    _demand_same(before[1], second, "at the end of a line")


@rule("landscape")
def random_state_stays(adapter: LandscapeAdapter) -> None:
    """A survey leaves the random states of Python, NumPy and torch as they were.

    Otherwise looking at a model changes how it is trained from there.
    """
    net, x, y = small()
    adapter.plane(net, nn.MSELoss(), [(x, y)])  # what is drawn once, on import or first use, is no matter
    states: list[Callable[[], object]] = [random.getstate, _numpy_state, lambda: torch.get_rng_state().tolist()]
    before = [state() for state in states]
    adapter.plane(net, nn.MSELoss(), [(x, y)], seed=1)
    changed = [
        name for name, a, b in zip(("Python", "NumPy", "torch"), before, [s() for s in states], strict=True) if a != b
    ]
    demand(not changed, f"the random state of {' and '.join(changed)} is changed")


@rule("landscape")
def resumed_survey_is_the_same(adapter: LandscapeAdapter) -> None:
    """A survey that was interrupted and started again gives the bits of an uninterrupted one.

    Pictures that take hours are interrupted.
    """
    net, x, y = small()
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


def _numpy_state() -> object:
    return np.random.get_state()[1].tolist()  # type: ignore[index]
