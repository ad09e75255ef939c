"""From a surface to numbers of its non-convexity, none of which the error of the surface could have made."""

from __future__ import annotations

import json
import math
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from lowland.landscape import Tolerance
from lowland.results import basins

__all__ = ["GUESSING", "allowed_error", "local_minima", "non_convex", "numbers_of", "outward"]

Values = NDArray[np.float64]

GUESSING: Final = math.log(10)
"""Loss of a network that gives ten classes the same probability."""

_SPANS: Final = (1, 2, 4, 8, 16)
_WAYS: Final = ((1, 0), (0, 1), (1, 1), (1, -1))


def numbers_of(surface: xr.Dataset, tolerance: Tolerance) -> dict[str, float]:
    """Return the numbers of a surface, over the whole plane and over the inner half of both axes."""
    values, x, y = surface["loss"].values, surface["x"].values, surface["y"].values
    finite = np.isfinite(values)
    values = np.where(finite, values, values[finite].max(initial=0.0))  # what overflows is as high as the highest
    center = float(values[np.abs(x).argmin(), np.abs(y).argmin()])
    error = allowed_error(values, center, tolerance)
    rim = np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])
    low = tolerance.floor * center
    found = {
        "center": center,
        "rim": float(np.median(rim)),
        "highest": float(values.max()),
        "not_finite": float((~finite).mean()),
        "below_guessing": float((values < GUESSING).mean()),
        "outward": outward(values, error, x, y),
    }
    inner = np.ix_(np.abs(x) <= 0.5 * np.abs(x).max(), np.abs(y) <= 0.5 * np.abs(y).max())
    for name, part in (("", np.s_[:, :]), ("_inner", inner)):
        found[f"non_convex{name}"] = float(non_convex(values[part], error[part]).mean())
        found[f"minima{name}"] = float(local_minima(values[part], low, tolerance))
    return found


def allowed_error(values: Values, center: float, tolerance: Tolerance) -> Values:
    """Return the largest error that a refined survey promises, at every point, measured ones too."""
    # One ruler for all points: a number must not depend on how many of them were measured.
    allowed = tolerance.value * np.maximum(np.abs(values), tolerance.floor * abs(center))
    return np.asarray(np.minimum(tolerance.range * np.ptp(values), allowed))


def non_convex(values: Values, error: Values) -> NDArray[np.bool_]:
    """Tell at which points the surface lies above a chord through two others, by more than their errors."""
    # A convex function lies on or below every chord; these have their middle at the point, lie along the axes and the
    # diagonals of the grid, and reach 1 to 16 points to each side.
    found = np.zeros(values.shape, dtype=np.bool_)
    nx, ny = values.shape
    for span in _SPANS:
        for across, up in _WAYS:
            i, j = np.meshgrid(np.arange(nx), np.arange(ny), indexing="ij")
            di, dj = span * across, span * up
            inside = (
                (i - di >= 0) & (i + di < nx) & (np.minimum(j - dj, j + dj) >= 0) & (np.maximum(j - dj, j + dj) < ny)
            )
            i, j = i[inside], j[inside]
            ends = ((i - di, j - dj), (i + di, j + dj))
            above = values[i, j] - error[i, j] - sum((values[end] + error[end]) / 2 for end in ends)
            found[i, j] |= above > 0
    return found


def local_minima(values: Values, low: float, tolerance: Tolerance) -> int:
    """Count local minima inside the plane, but the lowest, whose depth is more than twice the error."""
    # In the logarithm an error that is a share of the value is the same everywhere; which minima there are is not
    # changed by it.
    heights = np.log(np.maximum(values, max(low, 1e-12)))
    return sum(not basin.on_edge for basin in basins(heights, error=math.log1p(tolerance.value), neighbors=4)[1:])


def outward(values: Values, error: Values, x: Values, y: Values) -> float:
    """Return the share of inner points from which downhill leads away from the center, beyond the error."""
    slope_x = values[2:, 1:-1] - values[:-2, 1:-1]
    slope_y = values[1:-1, 2:] - values[1:-1, :-2]
    across, up = np.meshgrid(x[1:-1], y[1:-1], indexing="ij")
    distance = np.maximum(np.hypot(across, up), 1e-12)
    rise = (across * slope_x + up * slope_y) / distance
    return float((rise < -2 * error[1:-1, 1:-1]).mean())


def float_error(surface: xr.Dataset, exact: xr.Dataset) -> float:
    """Return the largest relative difference to a few points measured in double precision."""
    found = [0.0]
    for x in exact["x"].values:
        for y in exact["y"].values:
            ours, true = (one.sel(x=x, y=y) for one in (surface, exact))
            if int(ours["status"]) == 1:
                found.append(abs(float(ours["loss"]) / float(true["loss"]) - 1))
    return max(found)


def promise_of(surface: xr.Dataset) -> dict[str, Any]:
    """Return what the refined survey promises of its picture."""
    report = json.loads(surface.attrs["refinement"])
    return {key: report[key] for key in ("measured", "points", "checked", "failures", "statement") if key in report}
