"""Learning-rate schedules as pure functions of progress, so that a resume needs no schedule state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from lowland.core.errors import InputError
from lowland.core.names import unknown

_KINDS = ("cosine", "constant", "step")


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run, as a multiple of each parameter group's own rate.

    With t the progress in epochs, W the warm-up and E the length of the run, the multiple is t'/W while t' <= W (t'
    counts the step just begun as done, so that the first step is not lost), and afterwards

    - cosine: floor + (1 - floor) (1 + cos(pi (t - W) / (E - W))) / 2 (Loshchilov and Hutter 2017, one period);
    - step: factor to the number of milestones passed (He et al. 2016: a tenth at given epochs);
    - constant: 1.

    Args:
        kind: ``"cosine"``, ``"constant"`` or ``"step"``.
        warmup: Epochs of linear warm-up, fractions allowed. Default 0.
        milestones: Epochs at which the rate drops (kind "step").
        factor: What the rate is multiplied by at each milestone. Default 0.1 (He et al. 2016).
        floor: Where the cosine ends, as a multiple. Default 0.

    Raises:
        InputError: If a value is out of range.

    Example:
        >>> [round(Schedule("cosine")(epoch, 1 / 10, 4), 2) for epoch in (0, 2, 4)]
        [1.0, 0.5, 0.0]
    """

    kind: Literal["cosine", "constant", "step"] = "cosine"
    warmup: float = 0.0
    milestones: tuple[float, ...] = ()
    factor: float = 0.1
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise unknown("schedule", self.kind, _KINDS)
        if not (math.isfinite(self.warmup) and self.warmup >= 0):
            raise InputError("warmup", "must be a finite number of epochs, at least 0", self.warmup)
        if self.kind == "step" and not self.milestones:
            raise InputError("milestones", 'must hold at least one epoch for the schedule "step"', self.milestones)
        if not (self.factor > 0 and 0 <= self.floor <= 1):
            raise InputError("factor, floor", "must be positive, and in [0, 1]", (self.factor, self.floor))

    def __call__(self, progress: float, step: float, epochs: int) -> float:
        """Return the multiple of the learning rate for one optimizer step.

        Args:
            progress: Epochs done before this step, fractions included.
            step: Length of one step in epochs.
            epochs: Length of the run in epochs.

        Returns:
            The multiple, at least 0.
        """
        if progress < self.warmup:
            return min(1.0, (progress + step) / self.warmup)
        if self.kind == "constant":
            return 1.0
        if self.kind == "step":
            passed = sum(progress >= milestone for milestone in self.milestones)
            return float(self.factor**passed)
        done = min(1.0, (progress - self.warmup) / max(epochs - self.warmup, 1e-12))
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2


ScheduleLike: TypeAlias = "Schedule | str | Callable[[float, float, int], float]"
"""A `Schedule`, the name of a kind, or a function of (progress, step, epochs) that returns the multiple."""


def as_schedule(schedule: ScheduleLike) -> Callable[[float, float, int], float]:
    """Turn a name into a schedule with defaults; anything callable passes."""
    if isinstance(schedule, str):
        return Schedule(schedule)  # type: ignore[arg-type]
    if not callable(schedule):
        raise InputError("schedule", "must be a Schedule, a name or a function", type(schedule).__name__)
    return schedule
