"""Landscapes in a report: all surfaces on one scale, each with the reasons to trust it or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lowland.core.schema import STATUS_FAILED, STATUS_INTERPOLATED, STATUS_MEASURED, STATUS_OPEN
from lowland.report.curvature import scalar, with_error
from lowland.report.runs import Run, final_curvature, path_plane
from lowland.report.sections import Block, Box, Figure, Gallery, Paragraph, Section
from lowland.report.statistics import show
from lowland.viz.caption import planes_of, recipe_of
from lowland.viz.spec import Scale
from lowland.viz.surfaces import build_contour, build_surface, field_of, shared_scale

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["landscapes_section", "trust_box"]

_CHECKS: tuple[tuple[str, str, str], ...] = (
    ("precision_error", "precision error", "largest difference to the same points in double precision"),
    ("interpolation_error", "interpolation error", "on random held-out points"),
    ("interpolation_statement", "interpolated pixels", ""),
    ("direction_spread", "spread over directions", "of the central curvature; one picture is one draw"),
    ("filter_trace", "mean curvature over all directions", "filter-weighted trace"),
    ("basin_width", "basin width", ""),
    ("barrier", "barrier height", ""),
    ("roughness", "roughness", ""),
    ("batch_norm", "batch norm", "mode in which every point was measured"),
    ("samples", "samples", "on which every point was measured"),
    ("precision", "precision", ""),
)
"""Attribute of a surface -> what the box calls it; a check appears only where the attribute is there."""


def trust_box(surface: xr.Dataset, name: str, *, run: str = "", curvature: xr.Dataset | None = None) -> Box:
    """Build the box "Can I trust this figure?" of a surface.

    Args:
        surface: A surface of schema v1.
        name: Name of the surface for the title.
        run: Name of the run it belongs to.
        curvature: Curvature at the centre of the surface, for the mean over all directions.

    Returns:
        The box; it holds only checks for which the surface stores a value.
    """
    checks = [_points(surface), *_axes(surface), *_mean_curvature(curvature)]
    for key, title, meaning in _CHECKS:
        value = surface.attrs.get(key)
        if value is None or value == "null" or isinstance(value, bool):
            continue
        error = surface.attrs.get(f"{key}_se")
        text = show(float(value)) if isinstance(value, int | float) and key != "samples" else str(value)
        if isinstance(error, int | float):
            text += f" ± {show(float(error), 2)}"
        checks.append((title, text, meaning))
    errors = [str(v) for v in surface.data_vars if str(v).endswith("_se")]
    for variable in errors:
        largest = float(np.nanmax(np.where(np.isfinite(surface[variable]), surface[variable], np.nan), initial=-1))
        if largest >= 0:
            what = variable.removesuffix("_se").replace("_", " ")
            what = "loss minus loss at the centre" if what == "loss difference" else what
            checks.append((f"largest standard error of {what}", show(largest, 2), "over the points of the figure"))
    return Box(f"Can I trust this figure? {name}", tuple(checks), run)


def _axes(surface: xr.Dataset) -> list[tuple[str, str, str]]:
    planes = planes_of(recipe_of(surface))
    cosines = [plane["cosine"] for plane in planes if isinstance(plane.get("cosine"), int | float)]
    if not cosines:
        return []
    widest = max(cosines, key=abs)
    return [("cosine between the axes", show(float(widest), 2), "0 means that they are orthogonal")]


def _mean_curvature(curvature: xr.Dataset | None) -> list[tuple[str, str, str]]:
    if scalar(curvature, "filter_trace") is None:
        return []
    text = with_error(curvature, "filter_trace")
    spread = scalar(curvature, "filter_trace_spread")
    meaning = "filter-weighted trace" + ("" if spread is None else f"; single directions vary by {show(spread, 2)}")
    return [("mean curvature over all directions", text, meaning)]


def _points(surface: xr.Dataset) -> tuple[str, str, str]:
    status = np.asarray(surface["status"])
    count = {code: int((status == code).sum()) for code in range(4)}
    parts = [f"{count[STATUS_MEASURED]} of {status.size} measured"]
    for code, word in ((STATUS_INTERPOLATED, "interpolated"), (STATUS_FAILED, "failed"), (STATUS_OPEN, "open")):
        if count[code]:
            parts.append(f"{count[code]} {word}")
    meaning = "unfinished: drawn as far as it is" if count[STATUS_OPEN] else ""
    return "points", ", ".join(parts), meaning


def landscapes_section(runs: Sequence[Run], metric: str = "loss") -> Section | None:
    """Build the section with contours and surfaces of all runs on one colour scale.

    Args:
        runs: Runs; those without a drawable surface are named in a note.
        metric: Metric to draw.

    Returns:
        The section, or None where no run has a surface with two axes.
    """
    # Surfaces over the plane of a path have their own units and stand with the path.
    planes = [
        (run, name, surface)
        for run in runs
        for name, surface in run.surfaces.items()
        if "y" in surface.dims and name != path_plane(run)
    ]
    drawable = [entry for entry in planes if metric in entry[2] and field_of(entry[2], metric).known.any()]
    if not planes:
        return None
    blocks: list[Block] = []
    empty = [f"{run.name} ({name})" for run, name, surface in planes if all(surface is not e[2] for e in drawable)]
    if empty:
        blocks.append(Paragraph(f"Not drawn, since no point with a finite {metric} is finished: {', '.join(empty)}."))
    if drawable:
        scale = shared_scale([surface for _, _, surface in drawable], metric)
        blocks = [Paragraph(_introduction(drawable, scale)), *blocks, *_galleries(drawable, metric, scale)]
    return Section("Landscapes", tuple(blocks))


def _introduction(drawable: Sequence[tuple[Run, str, Any]], scale: Scale) -> str:
    kind = "logarithmic" if scale.log else "linear"
    text = (
        f"All {len(drawable)} surfaces share one {kind} colour scale" if len(drawable) > 1 else f"The scale is {kind}"
    )
    text += f" from {show(scale.minimum)} to {show(scale.maximum)}."
    if scale.log:
        text += " Heights of the surfaces follow the same logarithm."
    if len(drawable) > 1:
        text += " Turn one surface and the others follow."
    ranges = {tuple(map(float, field_of(s).extent)) for _, _, s in drawable if "loss" in s}
    if len(ranges) > 1:
        text += " The surfaces span different ranges; read the axes before comparing widths."
    return text


def _galleries(drawable: Sequence[tuple[Run, str, Any]], metric: str, scale: Scale) -> list[Block]:
    contours, surfaces, boxes = [], [], []
    height = 440 if len(drawable) in (1, 2, 4) else 360  # two columns are wider than three
    for run, name, surface in drawable:
        single = sum(entry[0] is run for entry in drawable) == 1
        title = run.name if single else f"{run.name}: {name}"
        contours.append(Figure(build_contour(surface, metric, scale=scale, title=title), run.name, height=height))
        solid = build_surface(surface, metric, scale=scale, title=title, caption="")
        surfaces.append(Figure(solid, run.name, link="surfaces", height=height))
        boxes.append(trust_box(surface, title, run=run.name, curvature=final_curvature(run)))
    return [Gallery(tuple(contours)), Gallery(tuple(surfaces)), Gallery(tuple(boxes))]
