"""Landscapes in a report: all surfaces on one scale, each with the reasons to trust it or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lowland.report.basins import basin_blocks
from lowland.report.curvature import part_of
from lowland.report.marks import shows, weights_of
from lowland.report.sections import Block, Figure, Gallery, Paragraph, Section, Table
from lowland.report.statistics import show
from lowland.report.trust import trust_box
from lowland.results.merge_trees import merge_tree
from lowland.results.run import Run
from lowland.results.ways import holds_ways, ways
from lowland.viz.caption import axes_of
from lowland.viz.curves import build_line
from lowland.viz.films import is_film
from lowland.viz.spec import Scale
from lowland.viz.surfaces import (
    basin_marks,
    build_contour,
    build_convexity_map,
    build_surface,
    field_of,
    metric_axis,
    shared_scale,
)

if TYPE_CHECKING:
    import xarray as xr

_MOST_SOLIDS = 8
"""Surfaces in three dimensions on one page: browsers keep 8 to 16 such canvases alive and blank the oldest."""

_CONVEXITY = (
    "Where the Hessian has negative curvature: negative beyond its residual, undecided, or none found. A Krylov run "
    "cannot promise that nothing was missed, and a subset of the samples biases both ends outward: compare maps of "
    "equal size only."
)


def landscapes_section(runs: Sequence[Run], metric: str = "loss") -> Section | None:
    """Build the section with contours and surfaces of all runs on one color scale."""
    # Surfaces over the plane of a path have their own units and stand with the path.
    planes = [
        (run, name, surface)
        for run in runs
        for name, surface in run.surfaces.items()
        if "y" in surface.dims and name != path_plane(run) and not is_film(surface)
    ]
    drawable = [entry for entry in planes if metric in entry[2] and field_of(entry[2], metric).known.any()]
    lines = [*_lines(runs, metric), *_ways(runs, metric)]
    if not planes and not lines:
        return None
    blocks: list[Block] = []
    empty = [f"{run.name} ({name})" for run, name, surface in planes if all(surface is not e[2] for e in drawable)]
    if empty:
        blocks.append(Paragraph(f"Not drawn, since no point with a finite {metric} is finished: {', '.join(empty)}."))
    if drawable:
        scale = shared_scale([surface for _, _, surface in drawable], metric)
        said = shows([(run, weights_of(s)) for run, _, s in drawable], sorted({part_of(s) for _, _, s in drawable}))
        blocks = [*said, Paragraph(_introduction(drawable, scale)), *blocks, *_galleries(drawable, metric, scale)]
    maps = [
        Figure(build_convexity_map(surface, title=f"{run.name}: negative curvature"), run.name)
        for run, _, surface in planes
        if "negative_curvature" in surface
    ]
    if maps:
        blocks += [Paragraph(_CONVEXITY), Gallery(tuple(maps))]
    return Section("Landscapes", (*blocks, *lines))


def path_plane(run: Run) -> str | None:
    """Return the name of the surface over the plane of the run's path."""
    planes = {name: s for name, s in run.surfaces.items() if "y" in s.dims and not is_film(s)}
    if run.trajectory is None:
        return None
    axes = axes_of(run.trajectory)
    for name, surface in planes.items():
        if axes and axes_of(surface) == axes:
            return name
    return next((name for name, s in planes.items() if "trajectory" in name and not (axes and axes_of(s))), None)


def _lines(runs: Sequence[Run], metric: str) -> list[Block]:
    # the lines of all runs that have the same name, overlaid with their bands
    named: dict[str, dict[str, xr.Dataset]] = {}
    for run in runs:
        for name, line in run.surfaces.items():
            if "y" not in line.dims and not holds_ways(line) and metric in line and _finished(line[metric]):
                named.setdefault(name, {})[run.name] = line
    titles = {name: "Loss along a line" if [*named] == ["line"] else f"Along the line {name!r}" for name in named}
    figures = [Figure(build_line(lines, metric, title=titles[name]), height=400) for name, lines in named.items()]
    boxes = [trust_box(line, f"{run}: {name}", run=run) for name, lines in named.items() for run, line in lines.items()]
    return [*figures, Gallery(tuple(boxes))] if figures else []


_WAYS = (
    "Barrier: highest rise above the straight line between the values of two networks. Mean: over the length of the "
    "way. Length: over that of the straight one. Batch-norm statistics belong to each point."
)


def _ways(runs: Sequence[Run], metric: str) -> list[Block]:
    # between networks: every way of a result in one figure and one table
    blocks: list[Block] = []
    for run in runs:
        for name, surface in run.surfaces.items():
            if not holds_ways(surface) or metric not in surface or not _finished(surface[metric]):
                continue
            title = f"{run.name}: ways to other networks ({name})"
            numbers = ways(surface, metric=metric)
            splits = [str(split) for split in surface["split"].values] if "split" in surface.dims else [""]
            rows = []
            for way in (str(label) for label in surface["direction"].values):
                for split in splits:
                    row = numbers.sel(direction=way) if not split else numbers.sel(direction=way, split=split)
                    cells = {name: show(float(row[name])) for name in ("barrier", "highest", "mean", "length")}
                    rows.append({"way": way, "data": split or part_of(surface), **cells})
            blocks += [Figure(build_line(surface, metric, title=title), run.name, height=400)]
            blocks += [Table.of(rows, title, (_WAYS,))]
    return blocks


def _finished(values: xr.DataArray) -> bool:
    # whether some point is known along all directions, whose mean is drawn
    finite = values.copy(data=np.isfinite(values.values))
    return bool((finite.all("direction") if "direction" in finite.dims else finite).any())


def _introduction(drawable: Sequence[tuple[Run, str, Any]], scale: Scale) -> str:
    kind = "logarithmic" if scale.log else "linear"
    text = f"All {len(drawable)} surfaces share one {kind} color scale" if len(drawable) > 1 else f"The scale is {kind}"
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
    contours, surfaces, boxes, trees = [], [], [], []
    height = 440 if len(drawable) in (1, 2, 4) else 360  # two columns are wider than three
    for run, name, surface in drawable:
        single = sum(entry[0] is run for entry in drawable) == 1
        title = run.name if single else f"{run.name}: {name}"
        trees.append((run.name, title, tree := merge_tree(surface, metric=metric)))
        marks = basin_marks(tree) if len(tree.basins) > 1 else ()
        contour = replace(build_contour(surface, metric, scale=scale, title=title), basins=marks)
        contours.append(Figure(contour, run.name, height=height))
        solid = build_surface(surface, metric, scale=scale, title=title, caption="")
        surfaces.append(Figure(solid, run.name, link="surfaces", height=height))
        boxes.append(trust_box(surface, title, run=run.name, curvature=run.final_curvature))
    rows = [contours, surfaces[:_MOST_SOLIDS]]
    if len(drawable) == 1:  # side by side
        rows = [[*contours, *surfaces]]
    blocks: list[Block] = [Gallery(tuple(row)) for row in rows]
    blocks.append(Gallery(tuple(boxes)))
    if len(surfaces) > _MOST_SOLIDS:
        blocks.insert(2, Paragraph(f"In three dimensions: the first {_MOST_SOLIDS} of {len(surfaces)}.", note=True))
    found = [entry for entry in trees if entry[2].basins]
    return [*blocks, *(basin_blocks(found, metric_axis(drawable[0][2], metric), log=scale.log) if found else [])]
