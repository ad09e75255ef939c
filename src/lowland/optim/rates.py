"""Learning rates that belong to a part (`Part.owns_rate`): how they fall, and who else may write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from torch import Tensor

from lowland.core.errors import InputError, require
from lowland.core.names import unknown
from lowland.optim.parts import Held

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


def set_rates(held: Held, factor: float) -> None:
    """Write every group's rate for the coming step: what it was when this began, times a factor."""
    for group in held.groups():
        rate = float(group["lr"])
        if group["plain_rate"] < 0:
            group["plain_rate"] = rate
        elif rate not in (group["plain_rate"], group["own_rate"]):
            rule = f"must be {group['own_rate']:g} still, for from here on the rate belongs to the method"
            raise InputError("lr", rule, rate, "end schedulers before, or let them be constant")
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(group["plain_rate"] * factor)
        else:
            group["lr"] = group["plain_rate"] * factor
        group["own_rate"] = float(group["lr"])
