"""How a learning rate falls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from lowland.core.errors import require
from lowland.core.names import unknown

Decay: TypeAlias = str | Callable[[float], float]
"""How a rate falls: ``"linear"``, ``"cosine"``, ``"1-sqrt"``, or a function of the share done that returns a factor."""

DECAYS: Final[Mapping[str, Callable[[float], float]]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "1-sqrt": lambda done: 1 - math.sqrt(done),
}
"""Factor on the learning rate by the share of the decay that is done."""


def decay_of(decay: Decay, floor: float) -> Callable[[float], float]:
    """Return a decay by its name, from 1 to a floor."""
    if isinstance(decay, str) and decay not in DECAYS:
        raise unknown("decay", decay, DECAYS)
    require(0 <= floor <= 1, "floor", "must lie in [0, 1]", floor)
    factor = DECAYS[decay] if isinstance(decay, str) else decay
    return lambda done: floor + (1 - floor) * factor(done)
