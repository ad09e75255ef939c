"""Pictures from fewer points: measure where errors are likely, interpolate the rest, check it at random.

The coarsest level of the full grid comes first (for 51 points a side: 5 of them). Then, in rounds, the values measured
so far are interpolated by two polyharmonic splines (radial basis functions r^3 and r^5, with their polynomials), in the
scale (logarithm, cube root, or as they are) in which each measured value is best foretold by the others. In doubt is
what the second spline's own deviation leaves open by more than a fraction of the tolerance and the two disagree about:
the deviation is right more often, but takes all ground around a kink for rough, also where the two agree. The worst
places are measured, not too close to each other, since every new value changes the splines all around it. On rough
ground, where most places are in doubt, rounds grow until all is measured.

Once the picture is final, random points of it, spread evenly over the levels of the loss, are measured and compared
with what it says there: how many are wrong bounds the share of wrong pixels. They are shown as measured and change no
other pixel, so that what was checked is what is delivered. Where one is missed, the points join the rest, the
procedure goes on more strictly, and what it gives is checked on new ones; the bound counts that up to three pictures
are looked at.

In a series of pictures that resemble each other, such as the frames of a film, those that are finished are carried
over: a picture is a combination of its neighbors and splines through what is left, so that fewer points are measured
first. Its checks are its own, and the promise is that of any picture.

The promise is about the share of pixels, not about every one: a pit narrower than the distance between measured points
that no random check hits is not seen. Only the loss decides; other metrics are interpolated at the same points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowland.core.errors import InputError, require
from lowland.core.seeds import generator
from lowland.landscape.grid import Grid, levels
from lowland.landscape.splines import (
    ALL,
    SCALES,
    Carried,
    Kind,
    Scale,
    Values,
    deviation,
    left_out,
    spline,
    spline_beside,
)

Indices: TypeAlias = NDArray[np.int64]
Measure: TypeAlias = Callable[[Indices], Values]
"""Measures points by flat number and returns their losses, one column per split: shape [points, splits]."""

_FIRST: Final = 5
"""Points a side of the coarsest level."""
_CARRIED: Final = (0, 1, 2, 4, 8)
"""How many components of carried pictures are tried."""
_DEVIATION, _DISAGREEMENT = 0.4, 2.8
"""Factors on the spline's deviation and on the disagreement of two; the smaller estimate of the error counts. Chosen on
half of 23 networks, tried on the others (`benchmarks/error_models.py`)."""
_NEXT: Final = 65
"""Doubts are looked for on the first level with so many times the coarsest level's points, then on all finer ones."""
_ROUND: Final = 0.06
"""Points measured in a round, as a share of those measured so far."""
_MANY: Final = 0.3
"""Where more than this share of the places is in doubt, a round is as large a share."""
_APART: Final = 0.6
"""Smallest distance between the points of a round, in units of the mean distance between measured points."""
_ROUGH: Final = 0.1
"""Where more than this share of the checks fails after every try, the rest of the grid is measured."""
_TRIES: Final = 3
_STRICTER: Final = 1.6
"""Factor on the safety from one try to the next; between 1.4 and 2 pictures differ little."""
_WORTH: Final = 1.2
"""The scale is chosen again when so many times more points are measured."""
_STRATA: Final = 4
"""Levels of the loss among which the checks are shared equally, so that the low ones have theirs."""


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
            Default 5; with 10 and more points nearly all pictures are inside at every pixel.

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


@dataclass(frozen=True, slots=True)
class Refined:
    """A refined picture."""

    measured: Indices  # Flat numbers of the measured points, ascending
    guessed: Indices  # Flat numbers of the others, ascending
    values: Values  # Losses at ``guessed``, shape [points, splits]
    report: dict[str, Any]  # What was promised and found, as plain JSON values
    known: _Known

    def carried(self) -> Values:
        """Return the picture that others may start from: with its checks among what it is interpolated from."""
        return self.known.whole()


def refine(
    grid: Grid,
    tolerance: Tolerance,
    measure: Measure,
    carried: Sequence[Values] = (),
    weights: Sequence[float] = (),
) -> Refined:
    """Measure as few points of a grid as the tolerance allows, beginning from pictures that resemble it."""
    # What is measured depends on the grid, the tolerance and the values alone, so that a run that goes on does
    # the same.
    known = _Known(grid, tolerance, measure, Carried(_places(grid), carried, weights))
    known.add(np.union1d(_levels(grid)[0], [grid.center()]))
    stream = generator(tolerance.seed, "probe", "refinement")
    for attempt in range(_TRIES):
        _descend(grid, known, tolerance.safety * _STRICTER**attempt)
        rest = known.open()
        if len(rest) <= tolerance.checks:  # as many as would be checked
            break
        guessed = known.predict(rest)
        chosen = _spread(guessed[:, 0], tolerance.checks, stream)
        found = measure(rest[chosen])
        ratios = known.too_far(guessed[chosen] - found, found).max(axis=1)
        ratios = np.where(np.isfinite(found).all(1) & np.isfinite(ratios), ratios, np.inf)
        failures = int((ratios > 1).sum())
        if failures == 0 or (attempt == _TRIES - 1 and failures <= _ROUGH * len(chosen)):
            others = np.setdiff1d(np.arange(len(rest)), chosen)
            measured = np.union1d(known.measured(), rest[chosen])
            report = _report(known, len(others), failures, found[:, 0], ratios)
            known.put(rest[chosen], found)
            return Refined(measured, rest[others], guessed[others], report, known)
        known.put(rest[chosen], found)
    known.add(known.open())  # few points are left, or it is too rough to be guessed
    return Refined(known.measured(), known.open(), np.zeros((0, known.columns)), _report(known), known)


def _spread(guessed: Values, count: int, stream: np.random.Generator) -> Indices:
    """Draw places among guessed values, equally from equal shares of them, from the lowest to the highest."""
    # Shares of equal size and the same number from each (but for one): then the limit of Clopper and Pearson for
    # draws from the whole is on the safe side (Hoeffding 1956).
    shares = np.array_split(np.argsort(guessed, kind="stable"), _STRATA)
    parts = [len(part) for part in np.array_split(np.arange(count), _STRATA)]
    drawn = [stream.choice(share, part, replace=False) for share, part in zip(shares, parts, strict=True) if part]
    return np.sort(np.concatenate(drawn))


def interpolated(grid: Grid, measured: Indices, values: Values, wanted: Indices) -> Values:
    """Interpolate another metric from the measured points, kept within the range of what was measured."""
    places = _places(grid)
    result = np.full((len(wanted), values.shape[1]), np.nan)
    for column in range(values.shape[1]):
        finite = np.isfinite(values[:, column])
        if finite.sum() > 3:
            known = values[finite, column]
            guess = spline(places[measured[finite]], known[:, None], places[wanted], "cubic")[:, 0]
            result[:, column] = np.clip(guess, known.min(), known.max())
    return result


class _Known:
    """The points measured so far, and what they say about the others."""

    def __init__(self, grid: Grid, tolerance: Tolerance, measure: Measure, carried: Carried | None = None) -> None:
        self._carried = carried or Carried(_places(grid))
        self.tolerance, self._places, self._measure, self._center = tolerance, _places(grid), measure, grid.center()
        self._mask = np.zeros(grid.size, dtype=np.bool_)
        self._values: Values = np.zeros((grid.size, 0))
        self._scale: Scale = "root"
        self._terms = 0  # how many components of the carried pictures are used
        self._judged = 0  # measured points when the scale was chosen last

    @property
    def columns(self) -> int:
        return int(self._values.shape[1])

    def measured(self) -> Indices:
        return np.flatnonzero(self._mask)

    def open(self) -> Indices:
        return np.flatnonzero(~self._mask)

    def add(self, indices: Indices) -> None:
        if len(indices):
            self.put(indices, self._measure(indices))

    def put(self, indices: Indices, found: Values) -> None:
        if self._values.shape[1] == 0:
            self._values = np.full((len(self._mask), found.shape[1]), np.nan)
        self._values[indices], self._mask[indices] = found, True

    def span(self) -> Values:
        finite = np.where(np.isfinite(self._values), self._values, np.nan)
        if not np.isfinite(finite).any(0).all():
            return np.ones(self.columns)
        span = np.nanmax(finite, 0) - np.nanmin(finite, 0)
        return np.where(span > 0, span, 1.0)

    def floor(self) -> Values:
        """Return the value below which no one reads the picture more finely."""
        center = np.abs(self._values[self._center])
        return self.tolerance.floor * np.where(np.isfinite(center), center, 0.0)

    def too_far(self, error: Values, values: Values) -> Values:
        return too_far(error, values, self.span(), self.floor(), self.tolerance)

    def _usable(self) -> NDArray[np.bool_]:
        return np.asarray(self._mask & np.isfinite(self._values).all(1))

    def choose_scale(self) -> None:
        """Take the scale, and as much of the carried pictures, from which each measured value is best foretold."""
        usable = self._usable()
        if not _WORTH * self._judged <= usable.sum() <= ALL or usable.sum() < 10:
            return
        self._judged = int(usable.sum())
        tried = [(scale, terms) for scale in SCALES for terms in (_CARRIED if self._carried else (0,))]
        losses = {choice: loss for choice in tried if (loss := self._foretold(usable, *choice)) is not None}
        self._scale, self._terms = min(losses, key=lambda choice: losses[choice])

    def _foretold(self, usable: NDArray[np.bool_], scale: Scale, terms: int) -> float | None:
        """Return how far measured values are from what the others foretell; None where that cannot be."""
        (there, back), values = SCALES[scale], self._values[usable]
        if (scale == "log" and not (values > 0).all()) or not self._enough(len(values), scale, terms):
            return None
        places, foretold = self._places[usable], np.empty_like(values)
        with np.errstate(over="ignore", invalid="ignore"), suppress(np.linalg.LinAlgError):
            shared = None if terms else left_out(places, np.zeros((len(places), 0)))
            for split, column in enumerate(there(values).T):
                matrix = left_out(places, self._beside(scale, split, terms)[usable]) if shared is None else shared
                foretold[:, split] = back(column - matrix @ column)
            ratios = self.too_far(foretold - values, values)
            # the mean of logarithms: neither the few worst nor the many that are right anyway decide
            return float(np.log(np.clip(np.nan_to_num(ratios, nan=1e6), 1e-3, 1e6)).mean())
        return None

    def _enough(self, count: int, scale: Scale, terms: int) -> bool:
        """Return whether there are so many components, and measured values enough to judge them."""
        known = min(self._carried.terms(scale, split).shape[1] for split in range(self.columns)) if terms else 0
        return terms <= known and 2 * terms < count

    def _beside(self, scale: Scale, split: int, terms: int) -> Values:
        return self._carried.terms(scale, split)[:, :terms]

    def predict(self, indices: Indices, kernel: Kind = "quintic") -> Values:
        usable = self._usable()
        if usable.sum() < 10:
            return np.full((len(indices), self.columns), np.nan)
        there, back = SCALES[self._scale]
        known, wanted = self._places[usable], self._places[indices]
        with np.errstate(over="ignore", invalid="ignore"):
            values = there(self._values[usable])
            if not self._terms:
                return back(spline(known, values, wanted, kernel))
            found = np.empty((len(indices), self.columns))
            for split, column in enumerate(values.T):
                terms = self._beside(self._scale, split, self._terms)
                found[:, split] = spline_beside(known, column, wanted, kernel, terms[usable], terms[indices])
            return back(found)

    def _deviations(self, indices: Indices, guessed: Values) -> Values:
        """Return how far values that are one deviation off in the present scale are off."""
        usable, (there, back) = self._usable(), SCALES[self._scale]
        found = np.empty_like(guessed)
        for split, column in enumerate(there(self._values[usable]).T):
            terms = self._beside(self._scale, split, self._terms)
            off = deviation(self._places[usable], column, self._places[indices], terms[usable], terms[indices])
            middle = there(guessed[:, split])
            found[:, split] = np.maximum(*(np.abs(back(middle + sign * off) - guessed[:, split]) for sign in (1, -1)))
        return found

    def whole(self) -> Values:
        """Return all values, measured ones as they are."""
        values, rest = self._values.copy(), self.open()
        values[rest] = self.predict(rest)
        return values

    def doubts(self, indices: Indices, safety: float) -> Values:
        """Return estimated errors; above 1 is a doubt, infinity where something near is not finite."""
        first, second = self.predict(indices, "cubic"), self.predict(indices)
        with np.errstate(over="ignore", invalid="ignore"):
            apart = safety * _DISAGREEMENT * self.too_far(first - second, second)
            high = np.flatnonzero(~(apart.max(1) <= 1))
            if 10 <= self._usable().sum() <= ALL:  # of more points the spline is of the nearest alone
                own = self.too_far(self._deviations(indices[high], second[high]), second[high])
                apart[high] = np.minimum(safety * _DEVIATION * own, apart[high])
        ratios = np.where(np.isnan(apart), np.inf, apart).max(1)
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


def _descend(grid: Grid, known: _Known, safety: float) -> None:
    """Measure what is in doubt on each level finer than the first, the worst first."""
    first, *finer = _levels(grid)
    for level in finer:
        if len(level) < min(_NEXT * len(first), grid.size):
            continue
        while len(rest := np.intersect1d(level, known.open())):
            known.choose_scale()
            doubts = known.doubts(rest, safety)
            share = float((doubts > 1).mean())
            if share == 0.0:
                break
            count = max(4, int((share if share > _MANY else _ROUND) * len(known.measured())))
            known.add(np.sort(known.worst(rest[doubts > 1], doubts[doubts > 1], count)))


def _levels(grid: Grid, first: int = _FIRST) -> list[Indices]:
    """Return the flat numbers of nested levels, from the coarsest to the whole grid."""
    axes = [[level for level in levels(n) if len(level) >= min(first, n)] for n in grid.shape]
    depth = max(len(axis) for axis in axes)
    chosen = [[axis[min(k, len(axis) - 1)] for axis in axes] for k in range(depth)]
    return [np.ravel_multi_index(np.array(list(product(*level))).T, grid.shape) for level in chosen]


def _places(grid: Grid) -> Values:
    """Return the place of every point in units of the axes' lengths, shape [points, axes]."""
    axes = [grid.x] if grid.y is None else [grid.x, grid.y]
    scaled = [(a - a.min()) / max(float(np.ptp(a)), np.finfo(np.float64).tiny) for a in axes]
    return np.stack([part.reshape(-1) for part in np.meshgrid(*scaled, indexing="ij")], 1)


def _bound(failures: int, checked: int) -> float:
    """Return the upper 95 % limit of a share (Clopper and Pearson 1934), made wider since up to three are looked at."""
    from scipy import special  # slow to import; most workers do without

    confidence = 1 - 0.05 / _TRIES
    return 1.0 if failures >= checked else float(special.betaincinv(failures + 1, checked - failures, confidence))


def _report(
    known: _Known, guessed: int = 0, failures: int = 0, found: Values | None = None, ratios: Values | None = None
) -> dict[str, Any]:
    """Return what the picture promises."""
    tolerance, points = known.tolerance, len(known.measured()) + len(known.open())
    if found is None or ratios is None:
        return {"measured": points, "points": points, "statement": "every point was measured", **asdict(tolerance)}
    share, floor = _bound(failures, len(ratios)), known.floor()
    limits = f"{100 * tolerance.range:g} % of the range and {100 * tolerance.value:g} % of the value"
    lowest = np.argsort(found, kind="stable")[: len(found) // _STRATA]
    return {
        "measured": points - guessed,
        "points": points,
        "checked": len(ratios),
        "failures": failures,
        "failures_where_lowest": int((ratios[lowest] > 1).sum()),
        "checked_where_lowest": len(lowest),
        "worst_check": float(ratios.max()),
        "share_bound": share,
        "floor_value": [float(value) for value in floor],
        "statement": f"at most {100 * share:.1f} % of the interpolated pixels are beyond {limits}, where values "
        f"below {' and '.join(f'{value:.3g}' for value in floor)} count as that (95 % confidence, {len(ratios)} "
        "random checks spread over the levels of the loss); a pit narrower than the distance between measured points "
        "may be missed",
        **asdict(tolerance),
    }
