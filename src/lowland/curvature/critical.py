"""Critical sharpness: how far the loss falls along an update, found by forward passes alone.

arXiv 2601.16979 ("A Scalable Measure of Loss Landscape Curvature for Analyzing the Training Dynamics of LLMs"):
``eta_c = min{eta > 0: L(w - eta u) > L(w)}`` for an update u, and ``lambda_c = 2 / eta_c``. On a quadratic that is
``u^T H u / u^T g``: with u = g a mean of the eigenvalues, at most lambda_max; with Adam's u = P^-1 g, without momentum,
at most that of P^-1/2 H P^-1/2. The relative form takes the update of one data set and the loss of another.

Deviations from the paper and its code:
1. The zero of the chord's slope ``(L(w - eta u) - L(w)) / eta``, which is linear in eta on a quadratic, is found by
   secants instead of doubling, halving and bisection to 1/16.
2. The number of passes has an end. Where the loss rises from the start, or falls as far as it was followed, the value
   is NaN and says so, instead of halving or doubling for ever.
3. Rises are summed sample by sample, which gives a standard error, and are held against rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, TypeAlias

import torch
from torch import Tensor

from lowland.core.errors import InputError, check_positive, require
from lowland.core.facts import ShowsFacts, with_error
from lowland.core.moments import Estimate, Tally, estimates, wide_type
from lowland.core.params import ParameterSpace
from lowland.core.risk import EmpiricalRisk
from lowland.curvature.numbers import NUMBERS, Number
from lowland.curvature.perturbed_risk import PerturbedRisk, perturbed_risk

Update: TypeAlias = "EmpiricalRisk | Mapping[str, Tensor] | Sequence[Tensor] | Tensor"
"""Tensors by parameter name, one per parameter, or a flat vector; a risk stands for its gradient."""

_FAR: Final = 32.0
"""How far beyond the steps that were tried a secant is believed."""


@dataclass(repr=False, frozen=True, slots=True)
class CriticalSharpness(ShowsFacts):
    """How far the loss falls along an update.

    Args:
        value: ``2 / step``; NaN where no step was found.
        standard_error: Of the value, over samples, to first order; NaN where only totals of batches are known.
        step: eta_c, the step at which the loss is back at its value here.
        bounds: Largest step tried at which the loss had fallen (0: none), smallest at which it had risen (infinity).
        passes: Forward passes over the data.
        missing: Why there is no value; empty where there is one.
    """

    value: float
    standard_error: float
    step: float
    bounds: tuple[float, float]
    passes: int
    missing: str = ""

    def _facts(self) -> dict[str, str]:
        step = "" if math.isnan(self.step) else f"{self.step:.4g}"
        return {
            "": self.missing or with_error(self.value, self.standard_error),
            "step": step,
            "passes": str(self.passes),
        }


def critical_sharpness(
    risk: EmpiricalRisk,
    update: Update | None = None,
    *,
    start: float = 0.1,
    max_passes: int = 6,
    tolerance: float = 1 / 16,
    check: bool = True,
) -> CriticalSharpness:
    """Return the critical sharpness along an update: 2 / eta_c, with L(w - eta_c u) = L(w).

    Args:
        risk: The loss, at its model's present weights.
        update: What a step of 1 takes from the weights: for an optimizer ``(before - after) / learning_rate``. A risk
            of the same model stands for its gradient, which gives the relative critical sharpness of one data set along
            the other's step. None takes the gradient of ``risk``, which costs a backward pass.
        start: Step tried first, such as the learning rate or the last eta_c. Default 0.1.
        max_passes: Most forward passes over the data, at least 3. Default 6, as many as the paper's need; a start that
            is wrong by more than a factor of 10 may take more.
        tolerance: Relative error of the step at which it counts as found, by what the last interpolation moved it.
            Default 1/16, the paper's.
        check: Whether the risk is first seen to be deterministic (once, by three forward passes on its first batch).

    Raises:
        InputError: If an argument is out of range, or the update is 0, not finite, or of another shape.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False).double()
        >>> data = [(torch.full((1, 1), 2.0).double(), torch.ones(1, 1).double())]
        >>> found = critical_sharpness(EmpiricalRisk(layer, torch.nn.MSELoss(), data))  # the loss is (2 w - 1)^2
        >>> round(found.value, 9), found.passes
        (8.0, 3)
    """
    check_positive(start=start, tolerance=tolerance)
    require(max_passes >= 3, "max_passes", "must be at least 3", max_passes)
    along = risk if update is None else update
    if isinstance(along, EmpiricalRisk) and along.model is not risk.model:
        raise InputError("update", "must be a risk of the same model", type(along.model).__name__)
    given = along.gradient() if isinstance(along, EmpiricalRisk) else along
    with perturbed_risk(risk, check=check) as here:
        step = _ordered(here.space, given)
        square = float(sum(part.double().square().sum() for part in step))
        require(math.isfinite(square) and square > 0, "update", "must be finite and not 0", math.sqrt(square))
        rises = _Rises(here, step)
        slope = square if along is risk else None
        trail = _Trail([] if slope is None else [(0.0, -slope)])
        for _ in range(max_passes - 1):
            trial = trail.next(start)
            trail.add(trial, rises(trial))
            if trail.settled(tolerance) or trail.uphill():
                break
        return _result(trail, rises, tolerance)


def _ordered(space: ParameterSpace, update: Mapping[str, Tensor] | Sequence[Tensor] | Tensor) -> list[Tensor]:
    parts = space.unflatten(update) if isinstance(update, Tensor) else space.order(update)
    return [part.detach().to(value) for part, value in zip(parts, space.tensors, strict=True)]


class _Rises:
    """Measures how much higher the loss is after a step, sample by sample: the first call costs a pass more."""

    def __init__(self, here: PerturbedRisk, update: Sequence[Tensor]) -> None:
        self._here, self._update = here, update
        self._center: list[Tensor] = []
        self.passes, self.rounding = 0, 0.0
        self.last: Estimate | None = None

    def __call__(self, step: float) -> float:
        if not self.passes:
            self._center = [values for values, _ in self._measured(0.0)]
            mine = sum(float(values.abs().sum()) * torch.finfo(values.dtype).eps for values in self._center)
            self.rounding = sum(self._here.risk.ranks.gather(mine))
        tally, wide = Tally(), wide_type(self._here.base[0].device)
        for center, (values, weights) in zip(self._center, self._measured(step), strict=True):
            tally.add({"rise": (values.to(wide) - center.to(wide), weights)})
        self.last = estimates([tally], self._here.risk.ranks)[0]["rise"]
        return self.last.value

    def _measured(self, step: float) -> list[tuple[Tensor, Tensor | float | None]]:
        here = self._here
        here.space.move(here.base, [self._update], [-step])
        with torch.no_grad(), here.risk.ranks.together():
            here.risk.recalibrate()
            found = [here.risk.measure(batch)["loss"] for batch in here.risk.batches()]
        self.passes += 1
        return [(values.detach(), weights) for values, weights in found]

    @property
    def coarseness(self) -> float:
        """How large a rise can be that is rounding alone."""
        return math.nan if self.last is None else self.rounding / abs(self.last.weight)


@dataclass(slots=True)
class _Trail:
    """Steps that were tried with the slopes of their chords, and where the slope is 0 by interpolation."""

    points: list[tuple[float, float]]
    low: float = 0.0
    high: float = math.inf
    tried: list[float] = field(default_factory=list)

    def add(self, step: float, rise: float) -> None:
        slope = rise / step if math.isfinite(rise) else math.inf
        self.tried.append(step)
        self.points.append((step, slope))
        if slope > 0:
            self.high = min(self.high, step)
        self.low = max((s for s, r in self.points if r <= 0 and s < self.high), default=0.0)

    def line(self) -> tuple[float, float] | None:
        """Return where the chord's slope is 0 by the last finite point and its neighbours, and how it grows there."""
        finite = [point for point in self.points if math.isfinite(point[1])]
        near = sorted(finite[:-1], key=lambda point: abs(point[0] - finite[-1][0]))[:2] + finite[-1:]
        if len(near) < 2:
            return None
        (a, ra), (b, rb) = near[0], near[-1]
        gain = (rb - ra) / (b - a) if a != b else 0.0
        ordered = sorted(near)
        if len(near) == 3 and all(before[1] < after[1] for before, after in pairwise(ordered)):
            zero = _inverse(ordered)
            if self.low <= zero <= self.high:
                return zero, gain
        return (a - ra / gain, gain) if gain > 0 else None

    def next(self, start: float) -> float:
        if not self.tried:
            return start
        line = self.line()
        if line is not None and self.low <= line[0] <= self.high and line[0] > 0:
            return min(max(line[0], min(self.tried) / _FAR), max(self.tried) * _FAR)
        if math.isfinite(self.high):
            return math.sqrt(self.low * self.high) if self.low > 0 else self.high / (2 if len(self.tried) < 2 else 8)
        return self.low * (2 if len(self.tried) < 2 else 8)

    def uphill(self) -> bool:
        """Whether all that was tried rises, and the two smallest steps say that it does so from the start."""
        if self.low or len(self.tried) < 3:
            return False
        (a, ra), (b, rb) = sorted(self.points)[:2]
        return ra > 0 and math.isfinite(rb) and ra - (rb - ra) * a / (b - a) > ra / 2

    def settled(self, tolerance: float) -> bool:
        """Whether the place is known by what the last point moved it."""
        line = self.line()
        if len(self.points) < 3 or line is None:
            return False
        # what is wrong with an interpolation goes as the square of what it moved, once the two sides are near
        moved, near = abs(line[0] / self.tried[-1] - 1), self.high <= 2 * self.low
        return moved <= (math.sqrt(tolerance) if near else tolerance**2)


def _inverse(points: Sequence[tuple[float, float]]) -> float:
    """Return where the parabola through (slope, step) meets slope 0; straight on a quadratic, as the points are."""
    return sum(step * math.prod(other / (other - slope) for s, other in points if s != step) for step, slope in points)


def _result(trail: _Trail, rises: _Rises, tolerance: float) -> CriticalSharpness:
    (low, high), passes, line = (trail.low, trail.high), rises.passes, trail.line()
    if line is not None and trail.settled(tolerance):
        step, gain = line
        why = "" if rises.coarseness <= tolerance * step**2 * gain else "the loss falls by less than its rounding"
    elif not low:
        why = f"the loss rises from the start, or before a step of {high:.3g}"
    elif math.isinf(high):
        why = f"the loss falls as far as it was followed, to a step of {low:.3g}"
    else:
        why = f"it lies between steps of {low:.3g} and {high:.3g}, which {passes} passes did not bring together"
    if why:
        return CriticalSharpness(math.nan, math.nan, math.nan, (low, high), passes, why)
    assert rises.last is not None
    error = rises.last.standard_error / (step * gain)  # d rise / d eta at eta_c, where the chord's slope is 0
    return CriticalSharpness(2 / step, 2 / step * error / step, step, (low, high), passes)


def _along_gradient(risk: EmpiricalRisk) -> CriticalSharpness:
    found = critical_sharpness(risk, max_passes=20)  # no last step is known to start from
    if found.missing:
        raise InputError("risk", f"has no critical sharpness along its gradient: {found.missing}")
    return found


NUMBERS["critical_sharpness"] = Number(
    "critical sharpness along the gradient", "loss per squared weight", _along_gradient
)
