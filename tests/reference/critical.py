"""The slow twin of the critical sharpness: walk until the loss is above where it began, then halve for ever."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def naive_critical_step(model: nn.Module, loss: Callable[[nn.Module], Tensor], update: Sequence[Tensor]) -> float:
    """Return the smallest eta at which the loss is back, on a fine walk from 0; the model is in float64."""
    base = [p.detach().clone() for p in model.parameters()]

    def rise(eta: float) -> float:
        with torch.no_grad():
            for parameter, value, part in zip(model.parameters(), base, update, strict=True):
                parameter.copy_(value - eta * part)
            return float(loss(model)) - start

    start = 0.0
    start = rise(0.0)
    low = high = 1e-6
    while rise(high) <= 0:
        low, high = high, high * 1.1
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if rise(middle) <= 0 else (low, middle)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), base, strict=True):
            parameter.copy_(value)
    return (low + high) / 2
