"""Which curvatures may be compared: at the end where train losses are close, else where the paths had equal losses.

Cross-entropy curvature vanishes as a network memorises, so that the flatter of two networks may only be the one whose
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
    """Return whether train losses are close enough to compare curvatures.

    Args:
        losses: Train losses; None where unknown.

    Returns:
        True where all are known, not negative and within a factor of `LOSS_RATIO`.

    Example:
        >>> comparable([1.0, 1.4]), comparable([1.0, 1.6])
        (True, False)
    """
    known = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    if len(known) < len(losses):
        return False
    return not known or (min(known) >= 0 and max(known) <= LOSS_RATIO * min(known))


def common_loss(ends: Sequence[float | None]) -> float | None:
    """Return the train loss to compare paths at: the lowest that every one of them has reached.

    Args:
        ends: Train loss at the end of each path; None where unknown.

    Returns:
        The largest of them, or None where one is unknown, not finite or not positive.

    Example:
        >>> common_loss([0.1, 0.4])
        0.4
    """
    known = [loss for loss in ends if loss is not None and math.isfinite(loss) and loss > 0]
    return max(known) if known and len(known) == len(ends) else None


def nearest(losses: Mapping[Place, float], target: float) -> Place:
    """Return the place of a path at which its train loss is nearest in ratio to a common one.

    Args:
        losses: Place along the path, in its order -> train loss.
        target: The common loss.

    Returns:
        The place; the last of several that are equally near.

    Example:
        >>> nearest({0: 2.3, 100: 0.5, 200: 0.3}, 0.4)
        100
    """
    places = list(losses)
    return min(reversed(places), key=lambda place: _distance(losses[place], target))


def within(loss: float, target: float) -> bool:
    """Return whether a train loss is near enough to a common one.

    Args:
        loss: The loss at the nearest place.
        target: The common loss.

    Returns:
        Whether they differ by a factor of at most `LOSS_RATIO`.
    """
    return loss > 0 and comparable([loss, target])


def _distance(loss: float, target: float) -> float:
    return abs(math.log(max(loss, 1e-300) / max(target, 1e-300))) if math.isfinite(loss) else math.inf
