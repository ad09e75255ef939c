"""How exact a refined picture must be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowland.core.errors import InputError, require
from lowland.landscape.splines import Values


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How exact a refined picture must be, and how that is checked.

    An error is too large beyond either of two limits: the first is what a linear color scale shows, the second a
    logarithmic one.

    Args:
        range: Largest error as a fraction of the range of the loss. Default 0.01.
        value: Largest error as a fraction of the value itself. Default 0.06.
        floor: Values below this fraction of the loss at the origin count as that for ``value``: no one reads a picture
            more finely. Default 0.1. What it comes to is part of the statement.
        checks: Random points on which the picture is checked; 59 without a failure say "at most 6.7 % of the pixels
            are beyond the tolerance" with 95 % confidence. Default 59.
        seed: Seed of the checks.
        safety: How much smaller than the tolerance the estimated error must be at first; more where the checks say so.
            Default 5; with 10 and a third to three fifths more points, nine of ten pictures of networks are inside at
            every pixel.

    Example:
        >>> Tolerance().checks
        59
    """

    range: float = 0.01
    value: float = 0.06
    floor: float = 0.1
    checks: int = 59
    seed: int = 0
    safety: float = 5.0

    def __post_init__(self) -> None:
        for name in ("range", "value", "floor", "safety"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(name, "must be positive", getattr(self, name))
        require(self.checks >= 1, "checks", "must be at least 1", self.checks)


def too_far(error: Values, values: Values, span: Values | float, floor: Values | float, tolerance: Tolerance) -> Values:
    """Return errors in units of the tolerance; above 1 is too far."""
    allowed = np.minimum(tolerance.range * span, tolerance.value * np.maximum(np.abs(values), floor))
    return np.asarray(np.abs(error) / np.maximum(allowed, np.finfo(np.float64).tiny))
