"""What measured points say about the others of a grid: their values, and how wrong these may be."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowland.landscape.grid import Grid
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
from lowland.landscape.tolerance import Tolerance, too_far

Indices: TypeAlias = NDArray[np.int64]
Measure: TypeAlias = Callable[[Indices], Values]
"""Measures points by flat number and returns their losses, one column per split: shape [points, splits]."""

_CARRIED: Final = (0, 1, 2, 4, 8)
"""How many components of carried pictures are tried."""
_DEVIATION, _DISAGREEMENT = 0.4, 2.8
"""Factors on the spline's deviation and on the disagreement of two; the smaller estimate of the error counts. Chosen on
half of 23 networks, tried on the others (`benchmarks/error_models.py`)."""
_APART: Final = 0.6
"""Smallest distance between the points of a round, in units of the mean distance between measured points."""
_WORTH: Final = 1.2
"""The scale is chosen again when so many times more points are measured."""


class Known:
    """The measured points of a picture, and what they say about the others."""

    def __init__(self, grid: Grid, tolerance: Tolerance, measure: Measure, carried: Carried | None = None) -> None:
        self._carried = carried or Carried(places_of(grid))
        self.tolerance, self._places, self._measure, self._center = tolerance, places_of(grid), measure, grid.center()
        self._mask = np.zeros(grid.size, dtype=np.bool_)
        self._values: Values = np.zeros((grid.size, 0))
        self._scale: Scale = "root"
        self._terms = 0  # how many components of the carried pictures are used
        self._judged = 0  # measured points when the scale was chosen last

    @property
    def columns(self) -> int:
        """Number of splits; 0 before anything is measured."""
        return int(self._values.shape[1])

    def measured(self) -> Indices:
        """Return the flat numbers of the measured points, ascending."""
        return np.flatnonzero(self._mask)

    def open(self) -> Indices:
        """Return those of the others."""
        return np.flatnonzero(~self._mask)

    def add(self, indices: Indices) -> None:
        """Measure points."""
        if len(indices):
            self.put(indices, self._measure(indices))

    def put(self, indices: Indices, found: Values) -> None:
        """Take values that were measured already."""
        if self._values.shape[1] == 0:
            self._values = np.full((len(self._mask), found.shape[1]), np.nan)
        self._values[indices], self._mask[indices] = found, True

    def span(self) -> Values:
        """Return the range of each split's finite values, 1 where it has none."""
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
        """Return errors in units of the tolerance."""
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
        if losses:
            self._scale, self._terms = min(losses, key=lambda choice: losses[choice])

    def _foretold(self, usable: NDArray[np.bool_], scale: Scale, terms: int) -> float | None:
        """Return how far measured values are from what the others foretell; None where that cannot be."""
        (there, back), values = SCALES[scale], self._values[usable]
        if (scale == "log" and not (values > 0).all()) or not self._enough(len(values), scale, terms):
            return None
        places, foretold = self._places[usable], np.empty_like(values)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"), suppress(np.linalg.LinAlgError):
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
        """Return what the measured values foretell; NaN where they are fewer than ten, or lie in too few rows."""
        usable, found = self._usable(), np.full((len(indices), self.columns), np.nan)
        if usable.sum() < 10:
            return found
        there, back = SCALES[self._scale]
        known, wanted = self._places[usable], self._places[indices]
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"), suppress(np.linalg.LinAlgError):
            values = there(self._values[usable])
            if not self._terms:
                return back(spline(known, values, wanted, kernel))
            for split, column in enumerate(values.T):
                terms = self._beside(self._scale, split, self._terms)
                found[:, split] = spline_beside(known, column, wanted, kernel, terms[usable], terms[indices])
            return back(found)
        return np.full_like(found, np.nan)

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
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"), suppress(np.linalg.LinAlgError):
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


def places_of(grid: Grid) -> Values:
    """Return the place of every point in units of the axes' lengths, shape [points, axes of more than one point]."""
    axes = [grid.x] if grid.y is None or len(grid.y) == 1 else [grid.x, grid.y][len(grid.x) == 1 :]
    scaled = [(a - a.min()) / max(float(np.ptp(a)), np.finfo(np.float64).tiny) for a in axes]
    return np.stack([part.reshape(-1) for part in np.meshgrid(*scaled, indexing="ij")], 1)
