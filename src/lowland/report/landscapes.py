"""Landscapes in a report: all surfaces on one scale, each with the reasons to trust it or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lowland.core.schema import STATUS_FAILED, STATUS_INTERPOLATED, STATUS_MEASURED, STATUS_OPEN
from lowland.report.runs import Run
from lowland.report.sections import Block, Box, Figure, Gallery, Paragraph, Section
from lowland.report.statistics import show
from lowland.viz.spec import Scale
from lowland.viz.surfaces import build_contour, build_surface, field_of, shared_scale

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["landscapes_section", "trust_box"]

_CHECKS: tuple[tuple[str, str, str], ...] = (
    ("axes_cosine", "cosine between the axes", "0 means that they are orthogonal"),
    ("precision_error", "precision error", "largest difference to the same points in double precision"),
    ("interpolation_error", "interpolation error", "on random held-out points"),
    ("interpolation_statement", "interpolated pixels", ""),
    ("direction_spread", "spread over directions", "of the central curvature; one picture is one draw"),
    ("variance_share", "variance explained", "share of the path's variance in this plane"),
    ("path_distance", "distance of the path from the plane", "largest over the snapshots"),
    ("filter_trace", "mean curvature over all directions", "filter-weighted trace"),
    ("basin_width", "basin width", ""),
    ("barrier", "barrier height", ""),
    ("roughness", "roughness", ""),
    ("batch_norm", "batch norm", "mode in which every point was measured"),
    ("samples", "samples", "on which every point was measured"),
    ("precision", "precision", ""),
)
"""Attribute of a surface -> what the box calls it; a check appears only where the attribute is there."""


def trust_box(surface: xr.Dataset, name: str, *, run: str = "") -> Box:
    """Build the box "Can I trust this figure?" of a surface.

    Args:
        surface: A surface of schema v1.
        name: Name of the surface for the title.
        run: Name of the run it belongs to.

    Returns:
        The box; it holds only checks for which the surface stores a value.
    """
    checks = [_points(surface)]
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
            label = f"largest standard error of {variable.removesuffix('_se')}"
            checks.append((label, show(largest, 2), "over the points of the figure"))
    return Box(f"Can I trust this figure? {name}", tuple(checks), run)


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
    planes = [(run, name, surface) for run in runs for name, surface in run.surfaces.items() if "y" in surface.dims]
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
    for run, name, surface in drawable:
        title = run.name if len(run.surfaces) == 1 else f"{run.name}: {name}"
        contours.append(Figure(build_contour(surface, metric, scale=scale, title=title), run.name))
        solid = build_surface(surface, metric, scale=scale, title=title, caption="")
        surfaces.append(Figure(solid, run.name, link="surfaces", height=400))
        boxes.append(trust_box(surface, title, run=run.name))
    return [Gallery(tuple(contours)), Gallery(tuple(surfaces)), Gallery(tuple(boxes))]
