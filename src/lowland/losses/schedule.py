"""When a method is active: epochs as numbers or as fractions of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowland.core.errors import InputError, require


def as_epochs(name: str, value: int | float, epochs: int | None) -> int:
    """Turn a number of epochs, or a fraction of a run, into a number of epochs."""
    if isinstance(value, int) and not isinstance(value, bool):
        require(value >= 0, name, "must not be negative", value)
        return value
    if not isinstance(value, float) or not 0 < value < 1 or not math.isfinite(value):
        raise InputError(name, "must be an integer number of epochs or a fraction of the run in (0, 1)", value)
    if epochs is None:
        rule = "is a fraction of the run, whose length is unknown"
        raise InputError(name, rule, value, "call loss.prepare(epochs=...) first")
    return max(1, round(value * epochs))


@dataclass(frozen=True)
class ActiveEpochs:
    """The epochs in which a method is active: ``start <= epoch < stop``, without the last `calm_down` of the run.

    ``start=5`` means that epochs 0 to 4 are plain.

    Args:
        start: First active epoch, or a fraction of the run. Default 0.
        stop: First epoch that is plain again, or a fraction of the run; None for never. Default None.
        calm_down: Plain epochs at the end of the run, or a fraction of it. Default 0.

    Raises:
        InputError: If a value is neither a number of epochs nor a fraction, or nothing is left.

    Example:
        >>> window = ActiveEpochs(start=1, stop=3)
        >>> [window.contains(epoch, None) for epoch in range(4)]
        [False, True, True, False]
    """

    start: int | float = 0
    stop: int | float | None = None
    calm_down: int | float = 0

    def __post_init__(self) -> None:
        for name in ("start", "stop", "calm_down"):
            value = getattr(self, name)
            if value is not None:
                as_epochs(name, value, 1)  # checks the form alone
        both_numbers = isinstance(self.start, int) and isinstance(self.stop, int)
        if both_numbers and self.stop is not None and self.stop <= self.start:
            raise InputError("stop", f"must be above start={self.start}", self.stop)

    def first(self, epochs: int | None) -> int:
        """Return the first active epoch of a run of so many; None where its length is unknown."""
        return as_epochs("start", self.start, epochs)

    def contains(self, epoch: int, epochs: int | None) -> bool:
        """Tell whether the method is active in an epoch (from 0); fractions and a calm end need the run's length."""
        if epoch < self.first(epochs):
            return False
        if self.stop is not None and epoch >= as_epochs("stop", self.stop, epochs):
            return False
        if not self.calm_down:
            return True
        if epochs is None:
            rule = "counts from the end of the run, whose length is unknown"
            raise InputError("calm_down", rule, self.calm_down, "call loss.prepare(epochs=...) first")
        return epoch < epochs - as_epochs("calm_down", self.calm_down, epochs)
