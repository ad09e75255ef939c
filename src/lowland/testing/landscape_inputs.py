"""Rules of landscape tools: what comes in at the door, ambient state, storage, and whose values are returned."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowland.testing import ambient
from lowland.testing.adapters import LandscapeAdapter, Loss, Surface
from lowland.testing.places import failing_in_the_middle, plain_loss
from lowland.testing.rulebook import NotOffered, demand, rule


@rule("Losses near a minimum differ in their last digits, which float32 does not have.")
def precision_is_kept(adapter: LandscapeAdapter) -> None:
    """A model and data in float64 are measured in float64."""
    net, x, y = adapter.network()
    net, x, y = net.double(), x.double() if x.is_floating_point() else x, y.double()
    wanted, value = plain_loss(net, x, y), float(adapter.plane(net, nn.MSELoss(), [(x, y)]).values[2, 2])
    demand(
        abs(value - wanted) < 1e-12 * wanted, f"in float64 the middle value is {abs(value - wanted) / wanted:.1g} off"
    )


@rule("A loader that is used up, or a filter that keeps nothing, gives a picture of nothing.")
def empty_data_is_refused(adapter: LandscapeAdapter) -> None:
    """A survey without batches is an error."""
    try:
        values = adapter.plane(adapter.network()[0], nn.MSELoss(), []).values
    except NotOffered:
        raise
    except Exception:
        return  # which error is the tool's choice
    demand(False, f"without batches the middle value is {values[2, 2]}")


@rule("Cells of a notebook, validation loops and settings of a device are where surveys are called.")
def survey_ignores_surroundings(adapter: LandscapeAdapter) -> None:
    """Under ``no_grad``, inference mode, autocast, deterministic algorithms and other defaults values are the same."""
    net, x, y = adapter.network()
    plain = adapter.plane(net, nn.MSELoss(), [(x, y)]).values
    for name, around in ({"inference mode": torch.inference_mode} | ambient.SURROUNDINGS).items():
        with around():
            found = adapter.plane(net, nn.MSELoss(), [(x, y)]).values
        # fused kernels of torch step aside under a default device, and round otherwise
        gap = float(np.abs(found - plain).max() / np.abs(plain).max())
        demand(gap < 1e-6, f"under {name} values differ by up to {gap:.2g} of the largest")


@rule("Gradients that stay off after a survey, or a default that stays changed, show up far away from it.")
def survey_leaves_surroundings(adapter: LandscapeAdapter) -> None:
    """After a survey, and after one that failed, grad mode, autocast, defaults and flags are as before."""
    net, x, y = adapter.network()
    for name, around in ({"gradients": torch.enable_grad} | ambient.SURROUNDINGS).items():
        for loss, when in ((nn.MSELoss(), ""), (failing_in_the_middle(), " as it fails")):
            with around():
                before = ambient.read(randomness=False)
                with suppress(ArithmeticError):
                    adapter.plane(net, loss, [(x, y)])
                changed = ambient.changed(before)
            demand(not changed, f"a survey under {name} changes {changed}{when}")


@rule("They are those of the training, often views of the whole data set.")
def data_are_left_alone(adapter: LandscapeAdapter) -> None:
    """A survey does not write to the batches."""
    net, x, y = adapter.network()
    before = x.clone(), y.clone()
    adapter.plane(net, nn.MSELoss(), [(x, y)])
    demand(torch.equal(x, before[0]) and torch.equal(y, before[1]), "inputs or targets are changed")


@rule("Two pictures that share memory are one picture, and the one before is lost.")
def surfaces_are_their_own(adapter: LandscapeAdapter) -> None:
    """Values that were returned are not changed by the next survey, nor the next survey by what is written to them."""
    net, x, y = adapter.network()
    first = adapter.plane(net, nn.MSELoss(), [(x, y)])
    kept = first.values.copy(), np.array(first.x), np.array(first.y)
    adapter.plane(net, nn.MSELoss(), [(x.flip(0), y)], extent=0.5)
    same = all(np.array_equal(now, old) for now, old in zip((first.values, first.x, first.y), kept, strict=True))
    demand(same, "the next survey changes the values or coordinates of the one before")
    if first.values.flags.writeable:
        first.values[:] = -1.0
    again = adapter.plane(net, nn.MSELoss(), [(x, y)]).values
    demand(np.array_equal(again, kept[0]), "what is written to the values of one survey is in the next")


Case = tuple[str, nn.Module, Loss, Tensor, Tensor]


def _scaled(scale: float) -> Loss:
    return lambda output, target: scale * F.mse_loss(output, target)


def _others(adapter: LandscapeAdapter, survey: Callable[[nn.Module, Loss, Tensor, Tensor], object]) -> Iterator[Case]:
    """Survey, and yield the same with another loss of the same name, other data, and other weights, in place."""
    for what in ("loss", "data", "weights"):
        (net, x, y), scale = adapter.network(), 1.0
        x = x.clone()  # which may be the adapter's own
        survey(net, _scaled(scale), x, y)
        with torch.no_grad():
            if what == "loss":
                scale = 3.0
            elif what == "data":
                x.copy_(x.flip(0))
            else:
                other = dict(adapter.network(5)[0].named_parameters())
                for name, parameter in net.named_parameters():
                    parameter.copy_(other[name])
        yield what, net, _scaled(scale), x, y


def _middle(surface: Surface, wanted: float, what: str, where: str) -> None:
    value = float(surface.values[2, 2])
    demand(
        abs(value - wanted) < 1e-5 * abs(wanted),
        f"with other {what} {where} has {value:.6g} in the middle, not {wanted:.6g}",
    )


@rule("A cache by object or by name returns the picture of yesterday's weights, or of another loss.")
def surface_follows_its_inputs(adapter: LandscapeAdapter) -> None:
    """A second survey with another loss of the same name, other data or other weights in place is of those."""
    for what, net, loss, x, y in _others(adapter, lambda net, loss, x, y: adapter.plane(net, loss, [(x, y)])):
        wanted = float(loss(net(x), y))
        _middle(adapter.plane(net, loss, [(x, y)]), wanted, what, "the surface")


@rule("A folder that is taken for the same survey by its name alone shows another loss, data set or checkpoint.")
def old_store_is_not_returned(adapter: LandscapeAdapter) -> None:
    """A store is not returned for another loss, other data or other weights: it is an error, or measured anew."""
    with tempfile.TemporaryDirectory() as parent:
        folders = iter(range(9))
        folder = ""

        def survey(net: nn.Module, loss: Loss, x: Tensor, y: Tensor) -> object:
            nonlocal folder
            folder = f"{parent}/{next(folders)}"
            return adapter.stored(net, loss, [(x, y)], folder)

        for what, net, loss, x, y in _others(adapter, survey):
            wanted = float(loss(net(x), y))
            try:
                found = adapter.stored(net, loss, [(x, y)], folder)
            except Exception:
                continue  # which error is the tool's choice
            _middle(found, wanted, what, "the store")
