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

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Final

import numpy as np

from lowland.core.seeds import generator
from lowland.landscape.grid import Grid, levels
from lowland.landscape.known import Indices, Known, Measure, places_of
from lowland.landscape.splines import Carried, Values, spline
from lowland.landscape.tolerance import Tolerance

_FIRST: Final = 5
"""Points a side of the coarsest level."""
_NEXT: Final = 65
"""Doubts are looked for on the first level with so many times the coarsest level's points, then on all finer ones."""
_ROUND: Final = 0.08
"""Points measured in a round, as a share of those measured so far."""
_MANY: Final = 0.5
"""Where more than this share of the places is in doubt, a round is as large a share."""
_ROUGH: Final = 0.1
"""Where more than this share of the checks fails after every try, the rest of the grid is measured."""
_TRIES: Final = 3
_STRICTER: Final = 1.6
"""Factor on the safety from one try to the next; between 1.4 and 2 pictures differ little."""
_STRATA: Final = 4
"""Levels of the loss among which the checks are shared equally, so that the low ones have theirs."""


@dataclass(frozen=True, slots=True)
class Refined:
    """A refined picture."""

    measured: Indices  # Flat numbers of the measured points, ascending
    guessed: Indices  # Flat numbers of the others, ascending
    values: Values  # Losses at ``guessed``, shape [points, splits]
    report: dict[str, Any]  # What was promised and found, as plain JSON values
    known: Known

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
    known = Known(grid, tolerance, measure, Carried(places_of(grid), carried, weights))
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
    """Interpolate another metric from the measured points, within their range; NaN where they lie in too few rows."""
    places = places_of(grid)
    result = np.full((len(wanted), values.shape[1]), np.nan)
    for column in range(values.shape[1]):
        finite = np.isfinite(values[:, column])
        if finite.sum() <= 3:
            continue
        with suppress(np.linalg.LinAlgError):
            known = values[finite, column]
            guess = spline(places[measured[finite]], known[:, None], places[wanted], "cubic")[:, 0]
            result[:, column] = np.clip(guess, known.min(), known.max())
    return result


def _descend(grid: Grid, known: Known, safety: float) -> None:
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


def _bound(failures: int, checked: int) -> float:
    """Return the upper 95 % limit of a share (Clopper and Pearson 1934), made wider since up to three are looked at."""
    from scipy import special  # slow to import; most workers do without

    confidence = 1 - 0.05 / _TRIES
    return 1.0 if failures >= checked else float(special.betaincinv(failures + 1, checked - failures, confidence))


def _report(
    known: Known, guessed: int = 0, failures: int = 0, found: Values | None = None, ratios: Values | None = None
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
