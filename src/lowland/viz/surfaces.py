"""From stored surfaces to figure specs: contour, 3-D surface, heat map, convexity map."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

import numpy as np

from lowland.core.errors import require
from lowland.core.schema import check, check_dataset
from lowland.results.choosing import Choice, check_metric, select
from lowland.results.merge_trees import MergeTree, merge_tree
from lowland.results.recipes import planes_of
from lowland.viz.caption import caption_of
from lowland.viz.field import Field, FloatArray, Mark
from lowland.viz.scale import scale_of
from lowland.viz.spec import Axis, Contour, HeatMap, OfField, Path, Scale, Surface3D
from lowland.viz.style import COLOR_MAPS

if TYPE_CHECKING:
    import xarray as xr

FigureT = TypeVar("FigureT", bound=OfField)

CONVEXITY = ("negative beyond its residual", "undecided", "none found")
"""The three values of a convexity map, in the order of their codes (a Krylov run promises no more)."""


def field_of(surface: xr.Dataset, metric: str = "loss", *, split: Choice = None, direction: Choice = None) -> Field:
    """Take one metric of a two-dimensional surface as a `Field`."""
    check(surface, "surface")
    require("y" in surface.dims, "surface", "must have two axes; this one is a line", advice="draw it with viz.line")
    check_metric(surface, metric)
    one, _ = select(surface, split=split, direction=direction)
    if any((np.diff(one[axis].values) < 0).any() for axis in ("x", "y")):
        one = one.sortby(["x", "y"])  # which takes longer than all else here
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
    listed = list(surfaces) if isinstance(surfaces, Iterable) else [surfaces]
    require(color_map in COLOR_MAPS, "color_map", f"must be one of {', '.join(COLOR_MAPS)}", color_map)
    fields = [field_of(surface, metric, split=split, direction=direction) for surface in listed]
    values = np.concatenate([field.values[field.known] for field in fields]) if fields else np.zeros(0)
    label = metric_axis(listed[0], metric).text if listed else metric
    return scale_of(values, label, log, limits, levels, color_map)


class View(TypedDict, total=False):
    """What every figure of a surface can be asked for."""

    scale: Scale | None  # A `shared_scale`; None makes one from this surface
    split: Choice  # Name or position along ``split``; None for the first
    direction: Choice  # Name or position along ``direction``; None for the first
    title: str
    caption: str | None  # Small print; None writes it from the result


def _build(
    kind: Callable[..., FigureT],
    surface: xr.Dataset,
    metric: str = "loss",
    *,
    scale: Scale | None = None,
    split: Choice = None,
    direction: Choice = None,
    title: str = "",
    caption: str | None = None,
    **more: Any,
) -> FigureT:
    field = field_of(surface, metric, split=split, direction=direction)
    one, note = select(surface, split=split, direction=direction)
    scale = scale or shared_scale([surface], metric, split=split, direction=direction)
    if kind is Contour and "paths" not in more:
        more["paths"] = curves_on(surface)
        away = [f"{path.name} at most {np.max(path.distance):.2g} from the plane" for path in more["paths"]]
        note = ", ".join([*([note] if note else []), *away])
    if more.pop("basins", False):
        more["basins"] = basin_marks(merge_tree(surface, metric=metric, split=split, direction=direction))
    caption = caption_of(one, note=note) if caption is None else caption
    return kind(field, scale, *plane_axes(surface), title, caption, **more)


def curves_on(surface: xr.Dataset) -> tuple[Path, ...]:
    """Return the curves between networks that the recipe of a plane holds."""
    found = next(iter(planes_of(surface)), {}).get("paths", {})
    paths = []
    for name, entry in found.items():
        x, y, distance = (np.asarray(entry[part], dtype=np.float64) for part in ("x", "y", "distance"))
        share = np.linspace(0, 1, x.size)
        stars = tuple(int(np.argmin(np.abs(share - end))) for end in entry["ends"])
        paths.append(Path(name, x, y, np.round(100 * share).astype(np.int64), distance, "way done, %:", stars))
    return tuple(paths)


def basin_marks(tree: MergeTree) -> tuple[Mark, ...]:
    """Return the marks of numbered minima, inside and on the edge, and of saddles."""
    marks = []
    for kind, edge in (("minimum", False), ("edge minimum", True)):
        chosen = [k for k, basin in enumerate(tree.basins) if basin.on_edge is edge]
        if chosen:
            x, y = tree.places[chosen].T
            marks.append(Mark(kind, x, y, tuple(str(k + 1) for k in chosen)))
    if len(tree.basins) > 1:
        x, y = tree.saddles[1:].T
        marks.append(Mark("saddle", x, y))
    return tuple(marks)


build_contour = partial(_build, Contour)
"""Make the spec of a contour figure; beyond a `View` it takes `filled`, `paths`, `points` and `basins`."""

build_surface = partial(_build, Surface3D)
"""Make the spec of a 3-D surface."""

build_heat_map = partial(_build, HeatMap)
"""Make the spec of a heat map, one cell per point."""


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
    """Return one result or several as a dictionary; an estimate that can write itself as a result does."""
    one = hasattr(results, "data_vars") or not isinstance(results, Mapping)
    given: dict[str, Any] = {name: results} if one else dict(cast("Mapping[str, xr.Dataset]", results))
    own = {label: getattr(result, "dataset", None) for label, result in given.items()}
    named: dict[str, xr.Dataset] = {n: write() if callable(write := own[n]) else given[n] for n in given}
    for result in named.values():
        check_dataset(result)
    return named


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


def _grid(surface: xr.Dataset, name: str) -> FloatArray:
    return np.asarray(surface[name].transpose("x", "y").values, dtype=np.float64)


def _coordinate(surface: xr.Dataset, name: str) -> FloatArray:
    return np.asarray(surface[name].values, dtype=np.float64)
