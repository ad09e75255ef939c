"""Where a landscape tool has really been: a network that notes its own weights whenever it is called."""

from __future__ import annotations

import copy
import itertools
import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lowland.testing.adapters import LandscapeAdapter, Loss, Surface
from lowland.testing.networks import flat
from lowland.testing.rulebook import demand


class Noting(nn.Module):
    """A network that notes its parameters at each call."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.places: deque[Tensor] = deque()  # no list or dict: a tool may put those of a module back as they were

    def __deepcopy__(self, memory: dict[int, Any]) -> Noting:
        """Return a copy that notes into the same list."""
        twin = Noting(copy.deepcopy(self.body, memory))
        twin.training, twin.places = self.training, self.places
        return twin

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores."""
        self.places.append(flat(list(self.body.parameters())).double())
        scores: Tensor = self.body(x)
        return scores


@dataclass(frozen=True)
class Lattice:
    """The plane that a tool has evaluated, found from the values it returned and the weights it visited."""

    u: dict[str, Tensor]  # Move of the weights per unit of the first stated coordinate, by parameter name
    v: dict[str, Tensor]  # The same for the second
    origin: Tensor  # Weights at the stated coordinates (0, 0), shape [P]
    error: float  # Largest distance of a place from the plane's regular grid, in steps of the grid
    center: Tensor  # The model's weights, shape [P]


def failing_in_the_middle() -> Loss:
    """Return the mean squared error as a function that raises in its ninth call."""
    calls = itertools.count(1)

    def failing(output: Tensor, target: Tensor) -> Tensor:
        if next(calls) == 9:
            raise ArithmeticError("in the middle")
        return F.mse_loss(output, target)

    return failing


def plain_loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the mean squared error of a model as it stands."""
    with torch.no_grad():
        return float(F.mse_loss(model(x), y))


def surveyed(
    adapter: LandscapeAdapter, network: tuple[nn.Module, Tensor, Tensor] | None = None, **options: Any
) -> tuple[Surface, Noting, Lattice]:
    """Let a tool draw a plane around a noting network, and find out where it has been."""
    net, x, y = network or adapter.network()
    model = Noting(net).eval()
    center = flat(net).double()
    surface = adapter.plane(model, nn.MSELoss(), [(x, y)], **options)
    return surface, model, lattice(surface, model, (x, y), center)


def lattice(surface: Surface, model: Noting, data: tuple[Tensor, Tensor], center: Tensor) -> Lattice:
    """Find the place of each value among those visited, and fit a regular grid through them."""
    demand(surface.values.shape == (len(surface.x), len(surface.y)), f"values have the shape {surface.values.shape}")
    places = list({tuple(place.tolist()): place for place in model.places}.values())
    losses = np.array([_loss_at(model.body, place, *data) for place in places])
    rows, design, matched = [], [], 0
    for i, a in enumerate(surface.x):
        for j, b in enumerate(surface.y):
            nearest = int(np.argmin(np.abs(losses - surface.values[i, j])))
            if abs(losses[nearest] - surface.values[i, j]) <= 1e-5 * abs(losses[nearest]):
                matched += 1
                rows.append(places[nearest].numpy())
                design.append([1.0, float(a), float(b)])
    share = matched / surface.values.size
    demand(share > 0.5, f"{1 - share:.0%} of the values are those of no place that the tool has visited")
    matrix, targets = np.array(design), np.stack(rows)
    solved = np.linalg.lstsq(matrix, targets, rcond=None)[0]
    spacing = min(_step(surface.x) * np.linalg.norm(solved[1]), _step(surface.y) * np.linalg.norm(solved[2]))
    error = float(np.linalg.norm(targets - matrix @ solved, axis=1).max() / max(spacing, 1e-300))
    parts = [_by_name(model.body, torch.as_tensor(row)) for row in solved[1:]]
    return Lattice(parts[0], parts[1], torch.as_tensor(solved[0]), error, center)


def _step(axis: NDArray[Any]) -> float:
    return float(abs(axis[1] - axis[0])) if len(axis) > 1 else math.inf


def _by_name(body: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    named = dict(body.named_parameters())
    parts = torch.split(vector, [p.numel() for p in named.values()])
    return {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}


def _loss_at(body: nn.Module, place: Tensor, x: Tensor, y: Tensor) -> float:
    weights = {name: value.float() for name, value in _by_name(body, place).items()}
    with torch.no_grad():
        return float(F.mse_loss(functional_call(body, weights, (x,)), y))
