"""Slow twin of the filter normalization: loops over outputs, knows every layer type by name, shares no code."""

import math

import torch
from torch import nn


def _sliced(direction, weight, places):
    for place in places:
        d = math.sqrt(sum(float(v) ** 2 for v in direction[place].reshape(-1)))
        w = math.sqrt(sum(float(v) ** 2 for v in weight[place].reshape(-1)))
        direction[place] = direction[place] * (w / d) if d > 0 and w > 0 else 0.0


def filter_normalize(module: nn.Module, name: str, direction: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the normalized direction of one parameter of one layer, as Li et al. 2018, Section 4 define it."""
    direction, weight = direction.clone().double(), weight.detach().double()
    if weight.ndim <= 1:
        return torch.zeros_like(weight)
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        rows, columns = weight.shape[0] // module.groups, weight.shape[1]
        places = [
            (slice(group * rows, (group + 1) * rows), column)
            for group in range(module.groups)
            for column in range(columns)
        ]
    else:  # one output unit, token or packed row per entry of the first axis
        places = [(row,) for row in range(weight.shape[0])]
    _sliced(direction, weight, places)
    return direction
