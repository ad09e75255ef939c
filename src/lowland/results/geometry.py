"""Numbers taken from a surface: curvature at the center, basin width, barrier, roughness; bands around its values.

Everything here reads a stored Dataset and needs neither model nor data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowland.core.errors import InputError, require
from lowland.core.schema import STATUS_FAILED, STATUS_OPEN, check
from lowland.results.choosing import check_metric

if TYPE_CHECKING:
    import xarray as xr

Values: TypeAlias = NDArray[np.float64]


def numbers(surface: xr.Dataset, *, metric: str = "loss", delta: float = 0.1) -> xr.Dataset:
    """Return one row of numbers per surface, that can be correlated and compared.

    Args:
        surface: A surface or line, several directions or splits among them.
        metric: Which metric. Default ``"loss"``.
        delta: Height above the center at which the basin is measured, in units of the metric. Default 0.1.

    Returns:
        A Dataset over ``direction`` and ``split`` (where the surface has them) and ``axis``: ``center``, ``lowest``,
        ``highest``, ``curvature`` and ``basin_width`` per axis, ``roughness``, and for a line through two models
        ``barrier``. ``curvature`` is the second difference over the three points nearest to the center, their distance
        is ``curvature_spacing``, and ``curvature_wider`` the same over twice the distance: with kinks (ReLU, max
        pooling) it depends on it. With several directions also ``curvature_mean`` and ``curvature_se`` over directions
        (and axes), which for smooth networks alone estimate the filter-weighted trace.
    """
    import xarray as xr

    check(surface, "surface")
    check_metric(surface, metric)
    require(math.isfinite(delta) and delta > 0, "delta", "must be positive", delta)
    axes = [name for name in ("x", "y") if name in surface.dims]
    outer = [str(dim) for dim in surface[metric].dims if dim not in axes]
    parts = [_row(part, metric, axes, delta) for part in _each(surface, outer)]
    shape = tuple(surface.sizes[dim] for dim in outer)
    coords = {dim: surface[dim] for dim in outer if dim in surface.coords}
    variables: dict[str, Any] = {}
    for name, first in parts[0].items():
        values = np.asarray([part[name] for part in parts])
        dims = (*outer, "axis") if np.ndim(first) else tuple(outer)
        variables[name] = (dims, values.reshape((*shape, *np.shape(first))))
    result = xr.Dataset(variables, coords={**coords, "axis": axes}, attrs={"metric": metric, "delta": delta})
    result.attrs["curvature"] = "at curvature_spacing; kinks count in it, and not in the filter-weighted trace"
    if "direction" in outer:
        samples = result["curvature"].stack(sample=("direction", "axis"))
        result["curvature_mean"] = samples.mean("sample")
        result["curvature_se"] = samples.std("sample", ddof=1) / math.sqrt(samples.sizes["sample"])
    return result


def _row(part: xr.Dataset, metric: str, axes: list[str], delta: float) -> dict[str, Any]:
    values = part[metric].values
    place = tuple(int(np.argmin(np.abs(part[axis].values))) for axis in axes)
    finite = values[np.isfinite(values)]
    row: dict[str, Any] = {
        "center": float(values[place]),
        "lowest": float(finite.min()) if finite.size else math.nan,
        "highest": float(finite.max()) if finite.size else math.nan,
        "curvature": [],
        "curvature_spacing": [],
        "curvature_wider": [],
        "basin_width": [],
        "roughness": roughness(values),
    }
    for number, axis in enumerate(axes):
        line = values if len(axes) == 1 else np.moveaxis(values, number, 0)[:, place[1 - number]]
        x = part[axis].values
        row["curvature"].append(central_curvature(x, line))
        row["curvature_spacing"].append(_spacing(x))
        row["curvature_wider"].append(central_curvature(*_every_second(x, line)))
        row["basin_width"].append(basin_width(x, line, delta))
    if len(axes) == 1:
        row["barrier"] = barrier(part[axes[0]].values, values)
    return row


def central_curvature(x: Values, values: Values) -> float:
    """Return the second derivative at 0 of the parabola through the three points nearest to it.

    Args:
        x: Coordinates, ascending, shape [n].
        values: Values there, shape [n].

    Returns:
        The second derivative; NaN with fewer than three points or where one of the three is not finite.

    Example:
        >>> central_curvature(np.array([-1.0, 0.0, 0.5, 1.0]), np.array([3.0, 0.0, 0.75, 3.0]))
        6.0
    """
    if len(x) < 3:
        return math.nan
    middle = _middle(x)
    a, b, c = x[middle - 1 : middle + 2]
    fa, fb, fc = values[middle - 1 : middle + 2]
    return float(2 * ((fc - fb) / (c - b) - (fb - fa) / (b - a)) / (c - a))


def _middle(x: Values) -> int:
    return int(np.clip(np.argmin(np.abs(x)), 1, len(x) - 2))


def _spacing(x: Values) -> float:
    """Return half the distance between the outer two of the three points nearest to 0."""
    return float(x[_middle(x) + 1] - x[_middle(x) - 1]) / 2 if len(x) > 2 else math.nan


def _every_second(x: Values, values: Values) -> tuple[Values, Values]:
    """Return every second point, the one nearest to 0 among them."""
    first = int(np.argmin(np.abs(x))) % 2 if len(x) else 0
    return x[first::2], values[first::2]


def basin_width(x: Values, values: Values, delta: float) -> float:
    """Return how wide the region around 0 is in which the value stays below that at the center plus delta.

    Args:
        x: Coordinates, ascending, shape [n].
        values: Values there, shape [n].
        delta: Height above the center.

    Returns:
        The width between the nearest crossings left and right, linearly interpolated; infinite where the line ends
        before one is met, NaN where the center or a value before the crossing is NaN.

    Example:
        >>> basin_width(np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), np.array([4.0, 1.0, 0.0, 1.0, 4.0]), 1.0)
        2.0
    """
    start = int(np.argmin(np.abs(x)))
    level = values[start] + delta
    return _reach(x[start:], values[start:], level) + _reach(-x[start::-1], values[start::-1], level)


def _reach(x: Values, values: Values, level: float) -> float:
    """Return the distance to the first crossing of a level along ascending coordinates."""
    for k in range(1, len(x)):
        if math.isnan(values[k]) or math.isnan(level):
            return math.nan
        if values[k] >= level:
            if math.isinf(values[k]):
                return float(x[k - 1] - x[0])
            share = (level - values[k - 1]) / (values[k] - values[k - 1])
            return float(x[k - 1] + share * (x[k] - x[k - 1]) - x[0])
    return math.inf


def barrier(x: Values, values: Values) -> float:
    """Return how far a line between two models rises above the straight line between their values.

    ``max over x in [0, 1] of values(x) - ((1 - x) values(0) + x values(1))`` (Frankle et al. 2020, Section 2).

    Args:
        x: Coordinates, shape [n]; the models lie at 0 and 1.
        values: Values there, shape [n].

    Returns:
        The barrier, at least 0; NaN unless 0 and 1 are among the coordinates.

    Example:
        >>> barrier(np.array([0.0, 0.5, 1.0]), np.array([1.0, 4.0, 3.0]))
        2.0
    """
    start, end = np.flatnonzero(x == 0.0), np.flatnonzero(x == 1.0)
    if not len(start) or not len(end):
        return math.nan
    inside = slice(int(start[0]), int(end[0]) + 1)
    straight = (1 - x[inside]) * values[start[0]] + x[inside] * values[end[0]]
    return float(np.max(values[inside] - straight))


def roughness(values: Values) -> float:
    """Return the ups and downs of all grid lines beyond one valley each, relative to the range of values.

    For a line f the total variation sum |f_i+1 - f_i| is at least (f_first - min) + (f_last - min), with equality if f
    falls to one valley and rises again. Every further bump adds its height twice, going up and coming down. Half of
    what is left over, averaged over all lines and divided by the range of the surface, is thus the number of extra
    bumps times their relative height: 0 for every surface whose lines have one valley.

    Args:
        values: Shape [nx] or [nx, ny].

    Returns:
        The roughness; NaN where fewer than three points of every line are finite.

    Example:
        >>> roughness(np.array([1.0, 0.0, 0.5, 0.0, 1.0]))
        0.5
    """
    finite = values[np.isfinite(values)]
    span = float(np.ptp(finite)) if finite.size else 0.0
    if span == 0.0:
        return 0.0 if finite.size > 2 else math.nan
    lines = [values] if values.ndim == 1 else [*values, *values.T]
    excess = []
    for line in lines:
        kept = line[np.isfinite(line)]
        if len(kept) > 2:
            excess.append(np.abs(np.diff(kept)).sum() - (kept[0] + kept[-1] - 2 * kept.min()))
    return float(np.mean(excess)) / (2 * span) if excess else math.nan


def bands(
    surface: xr.Dataset,
    *,
    metric: str = "loss",
    level: float = 0.95,
    estimand: Literal["population", "data set"] = "population",
    size: int | None = None,
) -> xr.Dataset:
    """Return confidence bands around the values of a surface, with a named estimand.

    Args:
        surface: A surface with ``NAME_se``.
        metric: Which metric. Default ``"loss"``.
        level: Nominal coverage. Default 0.95.
        estimand: ``"population"``: the mean over all data the samples were drawn from (default). ``"data set"``: the
            mean over a data set of ``size`` of which the samples are a random subset; the error is then smaller by the
            finite-population factor sqrt(1 - n / size), and 0 where all of it was measured.
        size: Samples in the data set; needed for ``"data set"``.

    Returns:
        ``lower``, ``upper`` and ``reliable`` (False where the per-sample values are so skewed that the band covers less
        than it says: n < 25 skewness^2), with the surface's dims; the estimand is in the attributes. True is no
        promise: rare large values that no sample has hit show in no sample.

    Raises:
        InputError: If the surface has no errors of that metric, or the arguments do not fit.

    Example:
        >>> from lowland.core.schema import new_surface
        >>> line = new_surface([0.0], metrics=["loss", "loss_skew"], errors=["loss"], attrs={"samples": 101})
        >>> line["loss"].values[:], line["loss_se"].values[:], line["loss_skew"].values[:] = 1.0, 0.1, 5.0
        >>> found = bands(line)
        >>> round(float(found.upper[0]), 4), bool(found.reliable[0])
        (1.1984, False)
    """
    check(surface, "surface")
    check_metric(surface, metric)
    require(f"{metric}_se" in surface, "metric", "must be one with standard errors", metric)
    require(0 < level < 1, "level", "must lie between 0 and 1", level)
    count = int(surface.attrs.get("samples", 0))
    factor = finite_factor(surface, estimand, size)
    import xarray as xr
    from scipy.special import stdtrit  # a third of a second, which figures and bad input need not wait for

    half = surface[f"{metric}_se"] * (factor * float(stdtrit(max(count - 1, 1), (1 + level) / 2)))
    reliable = xr.ones_like(surface[metric], dtype=bool)
    if f"{metric}_skew" in surface:
        reliable = (count >= 25 * surface[f"{metric}_skew"] ** 2) | (factor == 0.0)
    attrs = {"metric": metric, "level": level, "estimand": estimand, "samples": count, "factor": factor}
    attrs["reliable"] = "no sign of skewness in these samples; rare large values that none of them holds cannot be seen"
    return xr.Dataset(
        {"lower": surface[metric] - half, "upper": surface[metric] + half, "reliable": reliable}, attrs=attrs
    )


def finite_factor(surface: xr.Dataset, estimand: str, size: int | None) -> float:
    """Return what standard errors are multiplied by: for a subset of a data set the finite-population factor."""
    count = int(surface.attrs.get("samples", 0))
    if estimand == "data set":
        if size is None or size < max(count, 1):
            raise InputError("size", f"must be at least the {count} samples measured", size)
        return math.sqrt(1 - count / size)
    require(estimand == "population", "estimand", 'must be "population" or "data set"', estimand)
    return 1.0


def _each(surface: xr.Dataset, outer: list[str]) -> Iterator[xr.Dataset]:
    """Yield the parts of a surface along its outer dims, in order; open and failed points are NaN."""
    usable = ~surface["status"].isin([STATUS_OPEN, STATUS_FAILED])
    surface = surface.drop_vars("error").where(usable)
    shape = tuple(surface.sizes[dim] for dim in outer)
    for place in np.ndindex(*shape):
        yield surface.isel(dict(zip(outer, place, strict=True)))
