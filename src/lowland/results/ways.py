"""Ways between trained networks: the shape of a curve, and the numbers by which ways are compared.

Everything here reads a stored Dataset and needs neither model nor data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowland.results.choosing import check_metric
from lowland.results.geometry import barrier
from lowland.results.recipes import planes_of

if TYPE_CHECKING:
    import xarray as xr

Values: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class CurveShape:
    """How the points of a curve weigh along it: ``phi(t) = sum_k c_k(t) p_k`` (Garipov et al. 2018, Section 3.2).

    Args:
        kind: ``"bezier"``: Bernstein polynomials, or ``"polychain"``: straight pieces.
        bends: Points between two ends.
        pieces: Pairs of neighbouring ends, each with an equal share of [0, 1].

    Example:
        >>> CurveShape("bezier", 1).weights(0.5).tolist(), CurveShape("polychain", 1).weights(0.25).tolist()
        ([0.25, 0.5, 0.25], [0.5, 0.5, 0.0])
    """

    kind: Literal["bezier", "polychain"]
    bends: int
    pieces: int = 1

    @property
    def points(self) -> int:
        """Number of points, ends among them."""
        return self.pieces * (self.bends + 1) + 1

    def ends(self) -> list[int]:
        """Return which points are ends."""
        return list(range(0, self.points, self.bends + 1))

    def weights(self, t: float) -> Values:
        """Return the weight of every point at t, shape [points]; they sum to 1."""
        return self._spread(t, _bernstein if self.kind == "bezier" else _hats)

    def speeds(self, t: float) -> Values:
        """Return the derivative of the weights by t, from the right where there are two; they sum to 0."""
        found = self._spread(t, _bernstein_slopes if self.kind == "bezier" else _hat_slopes)
        return np.asarray(self.pieces * found)

    def _spread(self, t: float, of: Any) -> Values:
        piece = min(max(int(t * self.pieces), 0), self.pieces - 1)
        degree, result = self.bends + 1, np.zeros(self.points, dtype=np.float64)
        result[piece * degree : piece * degree + degree + 1] = of(degree, t * self.pieces - piece)
        return result


def _bernstein(degree: int, u: float) -> Values:
    return np.array([math.comb(degree, k) * (1 - u) ** (degree - k) * u**k for k in range(degree + 1)])


def _bernstein_slopes(degree: int, u: float) -> Values:
    lower = np.concatenate([[0.0], _bernstein(degree - 1, u), [0.0]])
    found: Values = -degree * np.diff(lower)
    return found


def _hats(degree: int, u: float) -> Values:
    found: Values = np.clip(1 - np.abs(degree * u - np.arange(degree + 1)), 0.0, None)
    return found


def _hat_slopes(degree: int, u: float) -> Values:
    place, result = min(max(int(degree * u), 0), degree - 1), np.zeros(degree + 1)
    result[[place, place + 1]] = -degree, degree
    return result


def holds_ways(surface: xr.Dataset) -> bool:
    """Tell whether the directions of a result are ways by name, and not draws that a band is made of."""
    return "direction" in surface.dims and not all(str(label).isdigit() for label in surface["direction"].values)


def ways(surface: xr.Dataset, *, metric: str = "loss") -> xr.Dataset:
    """Return one row of numbers per way between networks: barrier, highest value, mean and length.

    Args:
        surface: A line whose directions are ways by name, as `lowland connect` stores it; x is t from 0 to 1.
        metric: Which metric. Default ``"loss"``.

    Returns:
        Over ``direction`` and ``split`` (where the surface has them): ``barrier`` (highest rise above the straight line
        between the values of the two ends of a piece), ``highest`` and ``where`` it is, ``mean`` over the arc length
        (Garipov et al. 2018, Section 5.1, integrated by trapezoids), and ``length`` over that of the straight way.
    """
    check_metric(surface, metric)
    outer = [str(dim) for dim in surface[metric].dims if dim != "x"]
    import xarray as xr

    shape = tuple(surface.sizes[dim] for dim in outer)
    x = np.asarray(surface["x"].values, dtype=np.float64)
    planes, found = planes_of(surface), []
    for place in np.ndindex(*shape):
        chosen = dict(zip(outer, place, strict=True))
        number = chosen.get("direction", 0)
        plane = planes[number] if number < len(planes) else {}
        found.append(_row(x, np.asarray(surface[metric].isel(chosen).values, dtype=np.float64), plane))
    variables = {name: (outer, np.reshape([row[name] for row in found], shape)) for name in found[0]}
    coords = {dim: surface[dim] for dim in outer if dim in surface.coords}
    return xr.Dataset(variables, coords=coords, attrs={"metric": metric})


def _row(x: Values, values: Values, plane: Mapping[str, Any]) -> dict[str, float]:
    curve = plane.get("curve")
    shape = CurveShape(curve["kind"], curve["bends"], curve["pieces"]) if curve else CurveShape("polychain", 0)
    gram = np.asarray(curve["gram"]) if curve else np.eye(1)
    between = [k / shape.pieces for k in range(shape.pieces + 1)]
    rises = [barrier(np.round((x - a) * shape.pieces, 12), values) for a in between[:-1]]
    known, top = np.isfinite(values), int(np.argmax(np.where(np.isfinite(values), values, -np.inf)))
    lengths = np.array([_length(shape, gram, a, b) for a, b in pairwise(x)])
    ends = [place - 1 for place in shape.ends()[1:]]
    whole, straight = lengths.sum(), _length(CurveShape("polychain", 0, shape.pieces), gram[np.ix_(ends, ends)], 0, 1)
    mean = float(((values[1:] + values[:-1]) / 2 * lengths).sum() / whole) if whole > 0 and known.all() else math.nan
    return {
        "barrier": float(np.max(rises)) if not np.isnan(rises).any() else math.nan,
        "highest": float(values[top]) if known.any() else math.nan,
        "where": float(x[top]) if known.any() else math.nan,
        "mean": mean,
        "length": float(whole / straight) if straight > 0 else math.nan,
    }


def _length(shape: CurveShape, gram: Values, start: float, stop: float, steps: int = 16) -> float:
    """Return the length of a part of a curve by the midpoint rule; gram holds products of points minus the first."""
    places = start + (stop - start) * (np.arange(steps) + 0.5) / steps
    slopes = np.array([shape.speeds(float(t))[1:] for t in places])
    return float(np.sqrt(np.clip(np.einsum("ti,ij,tj->t", slopes, gram, slopes), 0, None)).mean() * (stop - start))
