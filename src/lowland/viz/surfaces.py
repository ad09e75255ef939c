"""From stored surfaces to figure specs: contour, 3-D surface, heat map, convexity map."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack, cast

import numpy as np

from lowland.core.errors import InputError
from lowland.core.schema import check
from lowland.viz.caption import caption_of
from lowland.viz.field import Field, FloatArray
from lowland.viz.scale import scale_of
from lowland.viz.spec import Axis, Contour, HeatMap, Path, Scale, Surface3D

if TYPE_CHECKING:
    import xarray as xr

Choice: TypeAlias = str | int | None

CONVEXITY = ("negative beyond its residual", "undecided", "none found")
"""The three values of a convexity map, in the order of their codes (a Krylov run promises no more)."""


def select(surface: xr.Dataset, *, split: Choice = None, direction: Choice = None) -> tuple[xr.Dataset, str]:
    """Take one split and one direction of a surface."""
    notes = []
    for name, choice in (("split", split), ("direction", direction)):
        if name not in surface.dims:
            if choice is not None:
                raise InputError(name, "cannot be chosen, this surface has only one", choice)
            continue
        labels = [str(label) for label in surface[name].values]
        position = 0 if choice is None else choice if isinstance(choice, int) else _position(name, choice, labels)
        if not -len(labels) <= position < len(labels):
            raise InputError(name, f"must be one of {labels} or a position below {len(labels)}", choice)
        surface = surface.isel({name: position})
        notes.append(f"{name} {labels[position]} of {len(labels)}" if len(labels) > 1 else "")
    return surface, ", ".join(note for note in notes if note)


def field_of(surface: xr.Dataset, metric: str = "loss", *, split: Choice = None, direction: Choice = None) -> Field:
    """Take one metric of a two-dimensional surface as a `Field`."""
    check(surface, "surface")
    if "y" not in surface.dims:
        raise InputError("surface", "must have two axes; this one is a line", advice="draw it with viz.line")
    check_metric(surface, metric)
    one, _ = select(surface, split=split, direction=direction)
    one = one.sortby(["x", "y"])
    values = _grid(one, metric)
    status = np.asarray(one["status"].transpose("x", "y").values, dtype=np.uint8)
    error = _grid(one, f"{metric}_se") if f"{metric}_se" in one else None
    return Field(_coordinate(one, "x"), _coordinate(one, "y"), values, status, error)


def shared_scale(
    surfaces: Iterable[xr.Dataset],
    metric: str = "loss",
    *,
    split: Choice = None,
    direction: Choice = None,
    log: bool | None = None,
    limits: tuple[float | None, float | None] = (None, None),
    levels: Iterable[float] | int | None = None,
    color_map: str = "viridis",
) -> Scale:
    """Make the one color scale on which several surfaces can be compared.

    Args:
        surfaces: Of any number of runs, each with two axes.
        metric: Variable of the surfaces that is colored: "loss", "accuracy" or another that was measured.
        split: Name or position along ``split``; None for the first.
        direction: Name or position along ``direction``; None for the first.
        log: Logarithmic colors; None takes them for positive values whose largest is 1.5 times the smallest.
        limits: Low and high end; None takes the smallest and largest finite value.
        levels: Contour levels, evenly spaced on the scale, or the least number of them; None for 9.
        color_map: viridis, cividis, magma, inferno or plasma.

    Returns:
        The scale, to be handed to every figure as ``scale=``.
    """
    listed = list(surfaces)
    fields = [field_of(surface, metric, split=split, direction=direction) for surface in listed]
    label = metric_axis(listed[0], metric).text if listed else metric
    return scale_of(fields, label=label, log=log, limits=limits, levels=levels, color_map=color_map)


class View(TypedDict, total=False):
    """What every figure of a surface can be asked for."""

    scale: Scale | None  # A `shared_scale`; None makes one from this surface
    split: Choice  # Name or position along ``split``; None for the first
    direction: Choice  # Name or position along ``direction``; None for the first
    title: str
    caption: str | None  # Small print; None writes it from the result


def build_contour(
    surface: xr.Dataset,
    metric: str = "loss",
    *,
    filled: bool = True,
    paths: Sequence[Path] = (),
    points: bool | None = None,
    **view: Unpack[View],
) -> Contour:
    """Make the spec of a contour figure."""
    return Contour(**_parts(surface, metric, **view), filled=filled, paths=tuple(paths), points=points)


def build_surface(surface: xr.Dataset, metric: str = "loss", **view: Unpack[View]) -> Surface3D:
    """Make the spec of a 3-D surface."""
    return Surface3D(**_parts(surface, metric, **view))


def build_heat_map(surface: xr.Dataset, metric: str = "loss", **view: Unpack[View]) -> HeatMap:
    """Make the spec of a heat map, one cell per point."""
    return HeatMap(**_parts(surface, metric, **view))


def build_convexity_map(
    surface: xr.Dataset, *, direction: Choice = None, title: str = "", caption: str | None = None
) -> HeatMap:
    """Make the spec of a three-valued convexity map."""
    # The answers come from the probe that measured the map, which knows whether each run converged.
    field = field_of(surface, "negative_curvature", direction=direction)
    code = 1.0 - field.values
    coded = replace(field, values=code, error=None)
    scale = Scale("lowest eigenvalue", 0.0, 2.0, (0.5, 1.5), False, (0.0, 1.0, 2.0))
    x_axis, y_axis = plane_axes(surface)
    text = caption_of(surface, note=_cold_checks(surface)) if caption is None else caption
    return HeatMap(coded, scale, x_axis, y_axis, title, text, CONVEXITY)


def _cold_checks(surface: xr.Dataset) -> str:
    if "cold_check" not in surface or "cold_disagreement" not in surface:
        return ""
    checks, missed = (int(np.nansum(surface[name].values)) for name in ("cold_check", "cold_disagreement"))
    found = "none found by" if missed == 0 else f"{missed} found and redone by"
    return f"missed crossings: {found} cold checks at {checks} points"


def by_name(results: xr.Dataset | Mapping[str, xr.Dataset], name: str) -> dict[str, xr.Dataset]:
    """Return one result or several as a dictionary."""
    if hasattr(results, "data_vars"):
        return {name: cast("xr.Dataset", results)}
    return dict(results)


def check_metric(surface: xr.Dataset, metric: str) -> None:
    """Refuse a metric that a surface does not have."""
    known = [str(name) for name in surface.data_vars if name not in ("status", "error")]
    if metric not in known:
        raise InputError("metric", f"must be one of {', '.join(known)}", metric)


def metric_axis(surface: xr.Dataset, metric: str) -> Axis:
    """Return the axis of a metric, with its unit."""
    return Axis(metric.replace("_", " "), str(surface[metric].attrs.get("units", "")))


def plane_axes(surface: xr.Dataset) -> tuple[Axis, Axis]:
    """Return the axes of a plane; a label stored in a coordinate's attribute ``long_name`` wins."""
    axes = []
    for name, default in (("x", "first direction"), ("y", "second direction")):
        label = str(surface[name].attrs.get("long_name", default))
        values = _coordinate(surface, name)
        axes.append(Axis(label, limits=(float(values.min()), float(values.max()))))
    return axes[0], axes[1]


def _parts(
    surface: xr.Dataset,
    metric: str,
    *,
    scale: Scale | None = None,
    split: Choice = None,
    direction: Choice = None,
    title: str = "",
    caption: str | None = None,
) -> dict[str, Any]:
    field = field_of(surface, metric, split=split, direction=direction)
    one, note = select(surface, split=split, direction=direction)
    label = metric_axis(surface, metric).text
    x_axis, y_axis = plane_axes(surface)
    return {
        "field": field,
        "scale": scale or scale_of([field], label=label),
        "x_axis": x_axis,
        "y_axis": y_axis,
        "title": title,
        "caption": caption_of(one, note=note) if caption is None else caption,
    }


def _grid(surface: xr.Dataset, name: str) -> FloatArray:
    return np.asarray(surface[name].transpose("x", "y").values, dtype=np.float64)


def _coordinate(surface: xr.Dataset, name: str) -> FloatArray:
    return np.asarray(surface[name].values, dtype=np.float64)


def _position(name: str, label: str, labels: list[str]) -> int:
    if label not in labels:
        raise InputError(name, f"must be one of {labels}", label)
    return labels.index(label)
