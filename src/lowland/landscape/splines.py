"""Polyharmonic splines through scattered values, beside polynomials and, where pictures are carried over, those.

A picture that resembles others (the next frame of a film) is written as a combination of them, a polynomial and a
spline through what is left, all solved together: where the others say it all, nothing is left to interpolate (kriging
with external drift). Only as many of their principal components are used as foretell measured values best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Values: TypeAlias = NDArray[np.float64]
Kind: TypeAlias = Literal["cubic", "quintic"]
Scale: TypeAlias = Literal["log", "root", "plain"]

ALL: Final = 1200
"""Up to so many measured points one spline is fitted to all of them, beyond to the nearest `_NEAR` of each place."""
_NEAR: Final = 60
_SCALED: Final = 8
"""A spline's deviation has the scale of so many of the nearest values."""
_SMALLEST: Final = 1e-4
"""Components below this share of the largest are no more than the errors of what was interpolated."""

SCALES: Final[dict[Scale, tuple[Callable[[Values], Values], Callable[[Values], Values]]]] = {
    "log": (np.log, np.exp),
    "root": (np.cbrt, lambda roots: roots**3),
    "plain": (lambda values: values, lambda values: values),
}
_DEGREE: Final = {"cubic": 1, "quintic": 2}
_RADIAL: Final[dict[Kind, Callable[[Values], Values]]] = {
    "cubic": lambda apart: apart * apart**2,
    "quintic": lambda apart: -apart * (apart**2) ** 2,
}


class Carried:
    """Pictures that resemble the one that is made: its neighbors in a film, each weighing more the nearer it is."""

    def __init__(self, places: Values, pictures: Sequence[Values] = (), weights: Sequence[float] = ()) -> None:
        self._places, self._pictures, self._weights = places, pictures, weights
        self.terms = cache(self._terms)

    def __bool__(self) -> bool:
        return len(self._pictures) > 0

    def _terms(self, scale: Scale, split: int) -> Values:
        """Return their principal components beside polynomials, the largest first, shape [points, terms]."""
        there = SCALES[scale][0]
        with np.errstate(divide="ignore", invalid="ignore"):
            columns = [there(p[:, split]) * w for p, w in zip(self._pictures, self._weights, strict=True)]
        kept = [column for column in columns if np.isfinite(column).all()]
        if not kept:
            return np.zeros((len(self._places), 0))
        plain, seen = _powers(self._places, 2), np.stack(kept, 1)
        left, sizes, _ = np.linalg.svd(seen - plain @ np.linalg.lstsq(plain, seen, rcond=None)[0], full_matrices=False)
        least = _SMALLEST * max(float(sizes[0]), _SMALLEST * float(np.linalg.norm(seen)))
        return np.asarray(left[:, sizes > least] * np.sqrt(len(left)))


def spline(places: Values, values: Values, wanted: Values, kernel: Kind) -> Values:
    """Interpolate values, shape [points, columns], at other places."""
    from scipy.interpolate import RBFInterpolator  # slow to import; most workers do without

    if not len(wanted):
        return np.zeros((0, values.shape[1]))
    near = None if len(places) <= ALL else _NEAR
    return np.asarray(RBFInterpolator(places, values, kernel=kernel, neighbors=near)(wanted))


def spline_beside(
    places: Values, values: Values, wanted: Values, kernel: Kind, terms: Values, wanted_terms: Values
) -> Values:
    """Interpolate values, shape [points], by a combination of terms and a spline, solved together."""
    known = np.concatenate([_powers(places, _DEGREE[kernel]), terms], 1)
    there = np.concatenate([_powers(wanted, _DEGREE[kernel]), wanted_terms], 1)
    if len(places) > ALL:  # one after the other: the spline is of the nearest points alone
        fitted = np.linalg.lstsq(known, values, rcond=None)[0]
        return np.asarray(there @ fitted + spline(places, (values - known @ fitted)[:, None], wanted, kernel)[:, 0])
    corner = np.zeros((known.shape[1],) * 2)
    system = np.block([[_radial(places, places, kernel), known], [known.T, corner]])
    solved = np.linalg.solve(system, np.concatenate([values, np.zeros(len(corner))]))
    return np.asarray(np.concatenate([_radial(wanted, places, kernel), there], 1) @ solved)


def left_out(places: Values, terms: Values) -> Values:
    """Return the matrix that gives how far each value is from the quintic spline through the others (Rippa 1999)."""
    inverse = _inverse(places, terms)[: len(places), : len(places)]
    return np.asarray(inverse / np.diag(inverse)[:, None])


def deviation(places: Values, values: Values, wanted: Values, terms: Values, wanted_terms: Values) -> Values:
    """Return the standard deviation of the quintic spline through values, shape [points], at wanted places.

    That of a Gaussian process with this kernel, its scale from how far the nearest values are from what the others
    foretell: ground may be smooth in one place and rough in another.
    """
    inverse, count = _inverse(places, terms), len(places)
    apart = _apart(wanted, places)
    rows = np.concatenate([_RADIAL["quintic"](apart), _powers(wanted, 2), wanted_terms], 1)
    shape = np.maximum(-np.einsum("ij,ij->i", rows @ inverse, rows), 0)
    scale = (inverse[:count, :count] @ values) ** 2 / np.abs(np.diag(inverse)[:count])
    near = np.argpartition(apart, min(_SCALED, count - 1), axis=1)[:, :_SCALED]
    return np.asarray(np.sqrt(shape * scale[near].mean(1)))


def _inverse(places: Values, terms: Values) -> Values:
    known = np.concatenate([_powers(places, 2), terms], 1)
    corner = np.zeros((known.shape[1],) * 2)
    return np.asarray(np.linalg.inv(np.block([[_radial(places, places, "quintic"), known], [known.T, corner]])))


def _radial(first: Values, second: Values, kernel: Kind) -> Values:
    return _RADIAL[kernel](_apart(first, second))


def _apart(first: Values, second: Values) -> Values:
    parts = zip(first.T, second.T, strict=True)  # axis by axis: a norm of differences takes ten times as long
    return np.asarray(np.sqrt(sum((one[:, None] - other) ** 2 for one, other in parts)))


def _powers(places: Values, degree: int) -> Values:
    powers = [powers for powers in product(range(degree + 1), repeat=places.shape[1]) if sum(powers) <= degree]
    return np.stack([np.prod(places ** np.array(power), axis=1) for power in powers], 1)
