"""Pictures from fewer points: measure where two interpolants disagree, interpolate the rest, check it at random.

The coarsest level of the full grid comes first (for 51 points a side: 9 of them). Then, in rounds, the cube root of the
values measured so far is interpolated by two polyharmonic splines (radial basis functions r^3 and r^5, with the
polynomials they need); where they disagree by more than a fraction of the tolerance, the worst places are measured, not
too close to each other, since every new value changes the splines all around it. On rough ground, where most places are
in doubt, rounds grow until all is measured. Random points are kept out of all this: how well they are predicted bounds
the share of wrong pixels. Where one is missed, the procedure goes on more strictly and is checked on the same points;
since nothing but when to stop depends on them, each try is as good a test as the first. In the end they join the rest.

The promise is about the share of pixels, not about every one: a pit narrower than the distance between measured points
that no random check hits is not seen. Only the loss decides; other metrics are interpolated at the same points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.interpolate import RBFInterpolator

from lowland.core.errors import InputError
from lowland.core.seeds import generator
from lowland.landscape.grid import Grid, levels

__all__ = ["Measure", "Refined", "Tolerance", "interpolated", "refine", "too_far"]

Indices: TypeAlias = NDArray[np.int64]
Values: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["cubic", "quintic"]
Measure: TypeAlias = Callable[[Indices], Values]
"""Measures points by flat number and returns their losses, one column per split: shape [points, splits]."""

_FIRST: Final = 9
"""Points a side of the coarsest level."""
_NEXT: Final = 20
"""Doubts are looked for on the first level with so many times the coarsest level's points, then on all finer ones."""
_ROUND: Final = 0.06
"""Points measured in a round, as a share of those measured so far."""
_MANY: Final = 0.3
"""Where more than this share of the places is in doubt, a round is as large a share."""
_APART: Final = 0.6
"""Smallest distance between the points of a round, in units of the mean distance between measured points."""
_ALL: Final = 1200
"""Up to so many measured points one spline is fitted to all of them, beyond to the nearest `_NEAR` of each place."""
_NEAR: Final = 60
_ROUGH: Final = 0.1
"""Where more than this share of the checks fails after every try, the rest of the grid is measured."""
_TRIES: Final = 3
_STRICTER: Final = 1.6
"""Factor on the safety from one try to the next; between 1.4 and 2 pictures differ little."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How exact a refined picture must be, and how that is checked.

    Args:
        range: Largest error as a fraction of the range of the loss. Default 0.01.
        value: Largest error as a fraction of the value itself; values below a thousandth of the range count as that.
            Default 0.06. Both must hold.
        checks: Random points on which the picture is checked; 59 without a failure say "at most 6.7 % of the pixels
            are beyond the tolerance" with 95 % confidence. Default 59.
        seed: Seed of the checks.
        safety: How much smaller than the tolerance a disagreement of the interpolants must be at first; more where the
            checks say so. Default 5, with which at least 99 % of the pixels were inside in all pictures of
            ``benchmarks/landscape.py``; with 10 and more points nearly all pictures are inside at every pixel.

    Example:
        >>> Tolerance().checks
        59
    """

    range: float = 0.01
    value: float = 0.06
    checks: int = 59
    seed: int = 0
    safety: float = 5.0

    def __post_init__(self) -> None:
        for name in ("range", "value", "safety"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(name, "must be positive", getattr(self, name))
        if self.checks < 1:
            raise InputError("checks", "must be at least 1", self.checks)

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return asdict(self)


def too_far(error: Values, values: Values, span: Values | float, tolerance: Tolerance) -> Values:
    """Return errors in units of the tolerance; above 1 is too far."""
    allowed = np.minimum(tolerance.range * span, tolerance.value * np.maximum(np.abs(values), 1e-3 * span))
    return np.asarray(np.abs(error) / np.maximum(allowed, np.finfo(np.float64).tiny))


@dataclass(frozen=True, slots=True)
class Refined:
    """A refined picture."""

    measured: Indices  # Flat numbers of the measured points, ascending
    guessed: Indices  # Flat numbers of the others
    values: Values  # Losses at ``guessed``, shape [points, splits]
    report: dict[str, Any]  # What was promised and found, as plain JSON values


def refine(grid: Grid, tolerance: Tolerance, measure: Measure) -> Refined:
    """Measure as few points of a grid as the tolerance allows."""
    # What is measured depends on the grid, the tolerance and the values alone, so that a run that goes on does
    # the same.
    known = _Known(grid, measure)
    known.add(_levels(grid)[0])
    stream = generator(tolerance.seed, "probe", "refinement")
    ratios: Values = np.zeros(0)
    if len(known.open()) > tolerance.checks:
        ratios = _improve(grid, tolerance, known, stream)
    failures, checked, worst = int((ratios > 1).sum()), len(ratios), float(ratios.max(initial=0.0))
    rest = known.open()
    if checked == 0 or failures > _ROUGH * checked:  # few points left, or too rough to be guessed
        known.add(rest)
        rest = known.open()
    guessed = known.predict(rest) if len(rest) else np.zeros((0, known.columns))
    return Refined(known.measured(), rest, guessed, _report(tolerance, known, rest, failures, checked, worst))


def _improve(grid: Grid, tolerance: Tolerance, known: _Known, stream: np.random.Generator) -> Values:
    """Return how far the checks are off, in units of the tolerance, once what it needs has been measured."""
    ratios: Values = np.zeros(0)
    for attempt in range(_TRIES):
        if not len(known.checks):
            known.hold(np.sort(stream.choice(known.open(), min(tolerance.checks, len(known.open())), replace=False)))
        _descend(grid, replace(tolerance, safety=tolerance.safety * _STRICTER**attempt), known)
        if not len(known.open()):  # nothing is left that the checks could speak of
            break
        guessed, found = known.predict(known.checks), known.found()
        ratios = np.nanmax(too_far(guessed - found, found, known.span(), tolerance), axis=1, initial=0.0)
        ratios = np.where(np.isfinite(found).all(1), ratios, np.inf)
        if not (ratios > 1).any():
            break
        if not np.isfinite(found).all():  # what is broken must be known, for the ground around it to be measured
            known.release()
    known.release()
    return ratios


def interpolated(grid: Grid, measured: Indices, values: Values, wanted: Indices) -> Values:
    """Interpolate another metric from the measured points, kept within the range of what was measured."""
    places = _places(grid)
    result = np.full((len(wanted), values.shape[1]), np.nan)
    for column in range(values.shape[1]):
        finite = np.isfinite(values[:, column])
        if finite.sum() > 3:
            known = values[finite, column]
            guess = _spline(places[measured[finite]], known[:, None], places[wanted], "cubic")[:, 0]
            result[:, column] = np.clip(guess, known.min(), known.max())
    return result


class _Known:
    """The points measured so far, and what they say about the others."""

    def __init__(self, grid: Grid, measure: Measure) -> None:
        self._places, self._measure = _places(grid), measure
        self._mask = np.zeros(grid.size, dtype=np.bool_)
        self._values: Values = np.zeros((grid.size, 0))
        self.checks: Indices = np.zeros(0, dtype=np.int64)
        self._found: Values | None = None

    @property
    def columns(self) -> int:
        return int(self._values.shape[1])

    def measured(self) -> Indices:
        return np.flatnonzero(self._mask)

    def open(self) -> Indices:
        return np.setdiff1d(np.flatnonzero(~self._mask), self.checks)

    def hold(self, indices: Indices) -> None:
        """Keep some points out of all that follows."""
        self.checks, self._found = indices, None

    def found(self) -> Values:
        """Return the values of the points that are kept out."""
        if self._found is None:
            self._found = self._measure(self.checks)
        return self._found

    def release(self) -> None:
        """Let the points that were kept out join the others."""
        if self._found is not None:
            self._mask[self.checks], self._values[self.checks] = True, self._found
        self.checks = self.checks[:0]

    def add(self, indices: Indices) -> Values:
        if len(indices):
            found = self._measure(indices)
            if self._values.shape[1] == 0:
                self._values = np.full((len(self._mask), found.shape[1]), np.nan)
            self._values[indices], self._mask[indices] = found, True
        return self._values[indices]

    def span(self) -> Values:
        finite = np.where(np.isfinite(self._values), self._values, np.nan)
        if not np.isfinite(finite).any(0).all():
            return np.ones(self.columns)
        span = np.nanmax(finite, 0) - np.nanmin(finite, 0)
        return np.where(span > 0, span, 1.0)

    def predict(self, indices: Indices, kernel: Kind = "quintic") -> Values:
        usable = self._mask & np.isfinite(self._values).all(1)
        if usable.sum() < 10:
            return np.full((len(indices), self.columns), np.nan)
        roots = _spline(self._places[usable], np.cbrt(self._values[usable]), self._places[indices], kernel)
        return np.asarray(roots**3)

    def doubts(self, indices: Indices, tolerance: Tolerance) -> Values:
        """Return how far two interpolants disagree; above 1 is a doubt, infinity where something near is not finite."""
        first, second = self.predict(indices, "cubic"), self.predict(indices)
        ratios = too_far(first - second, second, self.span(), tolerance).max(1) * tolerance.safety
        ratios = np.where(np.isnan(ratios), np.inf, ratios)
        broken = self._places[self._mask & ~np.isfinite(self._values).all(1)]
        if len(broken):
            apart = np.abs(self._places[indices][:, None] - broken[None]).max(2).min(1)
            ratios[apart <= 1.5 * self._spacing(indices)] = np.inf
        return np.asarray(ratios)

    def worst(self, indices: Indices, doubts: Values, count: int) -> Indices:
        """Return the points of largest doubt, not too close to each other."""
        apart = _APART / self._mask.sum() ** (1 / self._places.shape[1])
        chosen: list[int] = []
        for index in indices[np.argsort(-doubts, kind="stable")]:
            if not chosen or np.abs(self._places[chosen] - self._places[index]).max(1).min() >= apart:
                chosen.append(int(index))
            if len(chosen) == count:
                break
        return np.array(chosen, dtype=np.int64)

    def _spacing(self, indices: Indices) -> float:
        """Return the distance between measured points, so that a broken one casts doubt on its neighbors."""
        share = self._mask.mean() ** (1 / self._places.shape[1])
        return float(1 / max(1.0, share * len(self._mask) ** (1 / self._places.shape[1]) - 1))


def _descend(grid: Grid, tolerance: Tolerance, known: _Known) -> None:
    """Measure what is in doubt on each level finer than the first, the worst first."""
    first, *finer = _levels(grid)
    for level in finer:
        if len(level) < min(_NEXT * len(first), grid.size):
            continue
        while len(rest := np.intersect1d(level, known.open())):
            doubts = known.doubts(rest, tolerance)
            share = float((doubts > 1).mean())
            if share == 0.0:
                break
            count = max(4, int((share if share > _MANY else _ROUND) * len(known.measured())))
            known.add(np.sort(known.worst(rest[doubts > 1], doubts[doubts > 1], count)))


def _levels(grid: Grid) -> list[Indices]:
    """Return the flat numbers of nested levels, from the coarsest to the whole grid."""
    axes = [[level for level in levels(n) if len(level) >= min(_FIRST, n)] for n in grid.shape]
    depth = max(len(axis) for axis in axes)
    chosen = [[axis[min(k, len(axis) - 1)] for axis in axes] for k in range(depth)]
    return [np.ravel_multi_index(np.array(list(product(*level))).T, grid.shape) for level in chosen]


def _places(grid: Grid) -> Values:
    """Return the place of every point in units of the axes' lengths, shape [points, axes]."""
    axes = [grid.x] if grid.y is None else [grid.x, grid.y]
    scaled = [(a - a.min()) / max(float(np.ptp(a)), np.finfo(np.float64).tiny) for a in axes]
    return np.stack([part.reshape(-1) for part in np.meshgrid(*scaled, indexing="ij")], 1)


def _spline(places: Values, values: Values, wanted: Values, kernel: Kind) -> Values:
    if not len(wanted):
        return np.zeros((0, values.shape[1]))
    near = None if len(places) <= _ALL else _NEAR
    return np.asarray(RBFInterpolator(places, values, kernel=kernel, neighbors=near)(wanted))


def _bound(failures: int, checked: int) -> float:
    """Return the upper 95 % limit of a share (Clopper and Pearson 1934), made wider since up to three are looked at."""
    confidence = 1 - 0.05 / _TRIES
    return 1.0 if failures >= checked else float(stats.beta.ppf(confidence, failures + 1, checked - failures))


def _report(
    tolerance: Tolerance, known: _Known, rest: Indices, failures: int, checked: int, worst: float
) -> dict[str, Any]:
    """Return what the picture promises."""
    total = len(rest) + len(known.measured())
    if not len(rest):
        return {"measured": total, "points": total, "statement": "every point was measured", **tolerance.describe()}
    share = _bound(failures, checked)
    limits = f"{100 * tolerance.range:g} % of the range and {100 * tolerance.value:g} % of the value"
    return {
        "measured": total - len(rest),
        "points": total,
        "checked": checked,
        "failures": failures,
        "worst_check": worst,
        "share_bound": share,
        "statement": f"at most {100 * share:.1f} % of the interpolated pixels are beyond {limits} (95 % confidence, "
        f"{checked} random checks); a pit narrower than the distance between measured points may be missed",
        **tolerance.describe(),
    }
