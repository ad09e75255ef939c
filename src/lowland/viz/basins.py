"""From a stored surface to its merge tree: which basins meet where, beside the contours on which they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lowland.results.choosing import Choice
from lowland.results.merge_trees import MergeTree, merge_tree
from lowland.viz.field import FloatArray
from lowland.viz.spec import Axis, Curve, Line, Panels, Scale
from lowland.viz.surfaces import View, basin_marks, build_contour, metric_axis, shared_scale

if TYPE_CHECKING:
    import xarray as xr


def build_basins(
    surface: xr.Dataset,
    metric: str = "loss",
    *,
    scale: Scale | None = None,
    split: Choice = None,
    direction: Choice = None,
    title: str = "",
    caption: str | None = None,
) -> Panels:
    """Make the spec of contours with marked basins, and of the merge tree on the same scale beside them."""
    scale = scale or shared_scale([surface], metric, split=split, direction=direction)
    tree = merge_tree(surface, metric=metric, split=split, direction=direction)
    view: View = {"scale": scale, "split": split, "direction": direction, "title": title, "caption": ""}
    contour = replace(build_contour(surface, metric, **view), basins=basin_marks(tree))
    text = " ".join(tree.said) if caption is None else caption
    return Panels((contour, build_tree(tree, metric_axis(surface, metric), log=scale.log)), 2, "", text)


def build_tree(tree: MergeTree, axis: Axis, *, log: bool, title: str = "", caption: str = "") -> Line:
    """Make the spec of a merge tree: a stem per basin from its minimum to the saddle where it meets another."""
    order = _in_order(tree, 0)
    columns = {basin: column for column, basin in enumerate(order, 1)}
    ends = [basin.death for basin in tree.basins[1:]] + [tree.basins[0].edge]
    top = max((end for end in ends if math.isfinite(end)), default=tree.basins[0].birth)
    whole, certain = [], []
    for number, basin in enumerate(tree.basins):
        x, end = float(columns[number]), min(basin.death, top)
        beside = x if basin.parent is None else float(columns[basin.parent])
        whole.append(([x, x, beside], [basin.birth, end, end]))
        low = basin.birth + basin.error
        certain.append(([x, x], [low, min(low + min(basin.interval[0], basin.resolved), max(low, top))]))
    curves = (
        Curve("depth beyond the errors", *_joined(certain), markers=True),
        Curve("merge tree", *_joined(whole), reference=True),
    )
    x_axis = Axis("basin", limits=(0.5, len(order) + 0.5), categories=tuple(str(basin + 1) for basin in order))
    return Line(curves, x_axis, replace(axis, log=log), title, caption)


def _in_order(tree: MergeTree, basin: int) -> list[int]:
    """Return a basin and those that meet it so that no stem crosses a branch: what meets it lowest is nearest."""
    others = [k for k, other in enumerate(tree.basins) if other.parent == basin]
    others.sort(key=lambda k: tree.basins[k].death)
    return [basin, *(one for other in others for one in _in_order(tree, other))]


def _joined(lines: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[FloatArray, FloatArray]:
    """Return lines as one curve with gaps."""
    x, y = ([value for line in lines for value in (*line[axis], math.nan)] for axis in (0, 1))
    return np.array(x), np.array(y)
