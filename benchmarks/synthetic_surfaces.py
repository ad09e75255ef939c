"""Synthetic risks on a plane, to hold refined pictures to their word: over 1 to 8 decades, of five kinds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["KINDS", "surface"]

KINDS = ("bowl", "ripples", "ridge", "shelf", "peaks")


def surface(seed: int, points: int = 51, kind: str | None = None) -> NDArray[np.float64]:
    """Return the losses of one random risk on the square grid over [-1, 1]; kinds take turns with the seed."""
    random = np.random.default_rng((20, seed))
    kind = KINDS[seed % len(KINDS)] if kind is None else kind
    axis = np.linspace(-1, 1, points)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    turn, shift = random.uniform(0, np.pi), random.uniform(-0.3, 0.3, 2)
    u = np.cos(turn) * (x - shift[0]) + np.sin(turn) * (y - shift[1])
    v = np.cos(turn) * (y - shift[1]) - np.sin(turn) * (x - shift[0])
    stretch = random.uniform(0.2, 1.0)
    power = random.uniform(1.0, 3.0)
    height = (u**2 + stretch * v**2) ** (power / 2)
    height /= height.max()
    decades = random.uniform(1.0, 8.0)
    base = 10 ** random.uniform(-3, 0.5)
    loss = base * 10 ** (decades * height)
    if kind == "ripples":  # at every level, also where the loss is low
        waves = random.uniform(2, 10, 2)
        loss = loss * (1 + random.uniform(0.1, 0.6) * np.sin(waves[0] * u) * np.cos(waves[1] * v))
    elif kind == "ridge":
        place, width = random.uniform(-0.5, 0.5), 10 ** random.uniform(-1.3, -0.4)
        loss = loss * (1 + 10 ** random.uniform(-0.5, 1.5) * np.exp(-(((u - place) / width) ** 2)))
    elif kind == "shelf":  # losses are capped by what a network can be wrong, or step from one level to another
        place, width = random.uniform(-0.5, 0.5), 10 ** random.uniform(-1.5, -0.3)
        step = 1 + random.uniform(1, 20) / (1 + np.exp(-(v - place) / width))
        loss = base * (1 + height * 10 ** random.uniform(0, 2)) * step
    elif kind == "peaks":  # nothing but a hit finds them
        number = int(random.integers(1, points * points // 100))
        loss.flat[random.choice(loss.size, number, replace=False)] *= 1 + 10 ** random.uniform(0, 1)
    return loss
