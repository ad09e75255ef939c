"""From stored lines, spectra and runs to figure specs of curves and points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lowland.core.errors import InputError, require
from lowland.core.schema import STATUS_INTERPOLATED, STATUS_MEASURED, check, check_dataset
from lowland.results.choosing import Choice, check_metric, select
from lowland.results.ways import holds_ways
from lowland.viz.caption import caption_of
from lowland.viz.field import Field, FloatArray
from lowland.viz.spec import Axis, Curve, Line, Scatter, ScatterPoint
from lowland.viz.surfaces import by_name, metric_axis

if TYPE_CHECKING:
    import xarray as xr

_LOG_FROM = 20.0  # a line is read off its axis; below this span a linear axis reads better
_DENSITY_FLOOR = 1e-6  # of the highest density; a Gaussian-broadened spectrum has no true zeros to show below


def build_line(
    lines: xr.Dataset | Mapping[str, xr.Dataset],
    metric: str = "loss",
    *,
    split: Choice = None,
    log: bool | None = None,
    title: str = "",
    caption: str | None = None,
) -> Line:
    """Make the spec of curves along one direction, overlaid for several runs."""
    # A line measured along several directions becomes its mean with the range over the directions as a band;
    # one with standard errors has a band of one standard error.
    named = by_name(lines, "")
    require(named, "lines", "must hold at least one line")
    curves = [curve for name, line in named.items() for curve in _curves(name, line, metric, split)]
    values = np.concatenate([curve.y[np.isfinite(curve.y)] for curve in curves])
    require(values.size != 0, "line", "has no finished point with a finite value, so there is nothing to draw")
    if log is None:
        log = bool(values.min() > 0 and values.max() >= _LOG_FROM * values.min())
    elif log and values.min() <= 0:
        raise InputError("log", "needs positive values only", float(values.min()), "use log=False")
    first = next(iter(named.values()))
    axis = metric_axis(first, metric)
    x_axis = Axis(str(first["x"].attrs.get("long_name", "direction")), _range_unit(first))
    text = caption_of(first) if caption is None else caption
    return Line(tuple(curves), x_axis, Axis(axis.label, axis.unit, log), title, text)


def build_density(
    spectra: Mapping[str, tuple[FloatArray, ...]],
    *,
    eigenvalues: Sequence[float] = (),
    x_label: str = "eigenvalue",
    title: str = "",
    caption: str = "",
) -> Line:
    """Make the spec of spectral densities by name, on a logarithmic axis as in Ghorbani et al. (2019)."""
    # each a grid with a density, and its standard error where it is known
    require(spectra, "spectra", "must hold at least one density")
    curves = []
    for name, (grid, density, *errors) in spectra.items():
        if grid.shape != density.shape or grid.ndim != 1:
            rule = "must pair a grid with a density of the same length"
            raise InputError("spectra", rule, (grid.shape, density.shape))
        # Below the floor a density is numerical noise that would stretch the logarithmic axis over many decades.
        floor = _DENSITY_FLOOR * float(np.nanmax(density))
        band = [
            (np.maximum(density - error, floor), np.maximum(density + error, floor), "± one standard error")
            for error in errors
        ]
        curves.append(Curve(name, grid, np.where(density > floor, density, np.nan), *(band[0] if band else ())))
    axis = Axis("spectral density", log=True)
    return Line(tuple(curves), Axis(x_label), axis, title, caption, rug=tuple(float(v) for v in eigenvalues))


def build_spectrum(results: xr.Dataset | Mapping[str, xr.Dataset], *, title: str = "") -> Line:
    """Make the spec of stored spectral densities."""
    named = by_name(results, "spectrum")
    for name, result in named.items():
        require("density" in result, "results", "must hold a spectral density", name)
    scales = {str(result.attrs.get("scale", "linear")) for result in named.values()}
    require(len(scales) <= 1, "results", "must hold densities on one scale", sorted(scales))
    spectra = {}
    for name, result in named.items():
        parts = ["eigenvalue_grid", "density"]
        if "density_se" in result and np.isfinite(result["density_se"].values).all():
            parts.append("density_se")
        spectra[name] = tuple(np.asarray(result[part].values, dtype=np.float64) for part in parts)
    log = scales == {"log"}
    ends = [] if log else [float(v) for result in named.values() for v in result["eigenvalue"].values]
    label = "log₁₀ |eigenvalue|" if log else "eigenvalue"
    caption = caption_of(next(iter(named.values())))
    return build_density(spectra, eigenvalues=ends, x_label=label, title=title, caption=caption)


def build_cost(estimates: Sequence[ScatterPoint], *, title: str = "", caption: str = "") -> Scatter:
    """Make the spec of accuracy against cost, with the Pareto front of the means (more of y is better)."""
    require(estimates, "estimates", "must hold at least one method")
    front = front_line(estimates, pareto_front([(one.x, one.y) for one in estimates]))
    axes = Axis("forward-backward passes"), Axis("test accuracy", "%")
    return Scatter(tuple(estimates), *axes, title, caption, front)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Tell which points no other point beats in both cost and quality."""

    def beaten(own: tuple[float, float]) -> bool:
        return any(
            cost <= own[0] and quality >= own[1] and (cost, quality) != own
            for cost, quality in points
            if not math.isnan(cost + quality)
        )

    return [not math.isnan(sum(point)) and not beaten(point) for point in points]


def front_line(estimates: Sequence[ScatterPoint], front: Sequence[bool]) -> tuple[tuple[float, float], ...]:
    """Return the points of a Pareto front in the order in which a line joins them."""
    return tuple(sorted((one.x, one.y) for one, on_front in zip(estimates, front, strict=True) if on_front))


def _curves(name: str, line: xr.Dataset, metric: str, split: Choice) -> list[Curve]:
    check(line, "surface")
    require("y" not in line.dims, "line", "must have one axis; this result has two", advice="draw it with viz.contour")
    check_metric(line, metric)
    line = line.sortby("x")
    if holds_ways(line):
        ways = {str(label): line.isel(direction=k, drop=True) for k, label in enumerate(line["direction"].values)}
        named = {f"{name}, {label}" if name else label: way for label, way in ways.items()}
        return [curve for label, way in named.items() for curve in _curves(label, way, metric, split)]
    if "split" not in line.dims or split is not None:
        one = line if "split" not in line.dims else select(line, split=split)[0]
        return [_curve(name or metric.replace("_", " "), one, metric)]
    labels = [str(label) for label in line["split"].values]
    prefix = f"{name}, " if name else ""
    return [_curve(prefix + label, line.isel(split=k), metric) for k, label in enumerate(labels)]


def _curve(name: str, line: xr.Dataset, metric: str) -> Curve:
    x = np.asarray(line["x"].values, dtype=np.float64)
    values = np.atleast_2d(line[metric].transpose(..., "x").values.astype(np.float64))
    status = np.atleast_2d(line["status"].transpose(..., "x").values)
    known = ((status == STATUS_MEASURED) | (status == STATUS_INTERPOLATED)) & np.isfinite(values)
    whole = known.all(axis=0)  # a mean over some of the directions would jump where one is missing
    y = np.where(whole, np.where(known, values, 0.0).mean(axis=0), np.nan)
    marks = _marks(x, values, status)
    count = values.shape[0]
    if count > 1:
        rows = line["direction"].attrs.get("long_name", "directions") if "direction" in line.coords else "directions"
        low, high = (np.where(whole, edge(np.where(known, values, 0.0), axis=0), np.nan) for edge in (np.min, np.max))
        return Curve(name, x, y, low, high, f"range over {count} {rows}", marks=marks)
    if f"{metric}_se" in line and count == 1:
        error = np.asarray(line[f"{metric}_se"].values, dtype=np.float64).reshape(-1)
        if np.isfinite(error).any() and np.nanmax(error) > 0:
            return Curve(name, x, y, y - error, y + error, "± one standard error", marks=marks)
    return Curve(name, x, y, marks=marks)


def _marks(x: FloatArray, values: FloatArray, status: FloatArray) -> dict[str, FloatArray]:
    rows = np.arange(values.shape[0], dtype=np.float64)
    field = Field(rows, x, values, status.astype(np.uint8))
    return {mark.kind: np.unique(mark.y) for mark in field.marks()}


def _range_unit(line: xr.Dataset) -> str:
    unit = str(line["x"].attrs.get("units", ""))
    return "" if unit == "normalized direction" else unit


def build_slope(result: xr.Dataset, *, title: str = "") -> Line:
    """Make the spec of LLR's slope over the histogram of the losses that training met."""
    # Both share one axis: the histogram is scaled so that its highest bin reaches the highest slope.
    check_dataset(result)
    missing = {"slope", "passes", "mean_multiplier", "left", "right"} - set(map(str, result.variables))
    require(not missing, "result", "must come from lowland.losses.slope_over_losses", sorted(missing))
    losses, slope = result["loss"].values.astype(float), result["slope"].values.astype(float)
    passes = result["passes"].values.astype(float)
    scale = float(np.nanmax(np.append(slope, 1.0))) / max(float(passes.max()), 1.0)
    edges = np.repeat(np.append(result["left"].values, result["right"].values[-1]), 2)
    steps = np.concatenate([[0.0], np.repeat(passes * scale, 2), [0.0]])
    ones = np.ones(2)
    curves = (
        Curve("losses met (scaled)", edges, steps, low=np.zeros_like(steps), high=steps, band="histogram"),
        Curve("slope f'", losses, slope),
        Curve("plain gradient", losses[[0, -1]], ones, reference=True),
    )
    caption = (
        f"{result.attrs.get('reshaper', '')}, initial loss {float(result.attrs.get('initial_loss', np.nan)):.4g}; mean "
        f"multiplier of the gradient {float(result['mean_multiplier']):.3g}; highest bin: {passes.max():.0f} of "
        f"{passes.sum():.0f} passes"
    )
    return Line(curves, Axis("loss of the batch"), Axis("multiplier of the gradient"), title, caption)
