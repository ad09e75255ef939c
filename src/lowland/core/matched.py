"""Which curvatures may be compared: at the end where train losses are close, else where the paths had equal losses.

Cross-entropy curvature vanishes as a network memorizes, so that the flatter of two networks may only be the one whose
train loss is lower. This is the one definition for measures, studies and reports; it imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

__all__ = ["LOSS_RATIO", "common_loss", "comparable", "nearest", "within"]

LOSS_RATIO: Final = 1.5
"""Train losses that differ by more make curvatures incomparable."""

Place = TypeVar("Place")


def comparable(losses: Sequence[float | None]) -> bool:
    """Return whether train losses are close enough to compare curvatures."""
    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    if len(known) < len(losses):
        return False
    return not known or (min(known) >= 0 and max(known) <= LOSS_RATIO * min(known))


def common_loss(ends: Sequence[float | None]) -> float | None:
    """Return the train loss to compare paths at: the lowest that every one of them has reached."""
    known = [loss for loss in ends if loss is not None and math.isfinite(loss) and loss > 0]
    return max(known) if known and len(known) == len(ends) else None


def nearest(losses: Mapping[Place, float], target: float) -> Place:
    """Return the place of a path at which its train loss is nearest in ratio to a common one."""
    places = list(losses)
    return min(reversed(places), key=lambda place: _distance(losses[place], target))


def within(loss: float, target: float) -> bool:
    """Return whether a train loss is near enough to a common one."""
    return loss > 0 and comparable([loss, target])


def _distance(loss: float, target: float) -> float:
    return abs(math.log(max(loss, 1e-300) / max(target, 1e-300))) if math.isfinite(loss) else math.inf
