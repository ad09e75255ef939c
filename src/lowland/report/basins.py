"""Basins of surfaces in a report: how many there are beyond the errors, how deep they are, and where they meet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lowland.report.sections import Block, Figure, Gallery, Table
from lowland.report.statistics import show
from lowland.results.merge_trees import MergeTree
from lowland.results.topology import Basin
from lowland.viz.basins import build_tree
from lowland.viz.spec import Axis

_MOST = 8
"""Basins of one surface in the table of a page."""

_NOTES = (
    "Basins are minima of the picture that its errors could not have made; points are joined across diagonals too.",
    "Depth: up to the saddle over which a basin meets a lower one, with the least and the largest that the errors "
    "allow. Whole plane: what it has at least, wherever the ground leads beyond the edge. Further ones: what "
    "the errors may hide.",
)


def basin_cells(tree: MergeTree) -> list[dict[str, str]]:
    """Return the rows of the table of basins, as text."""
    return [
        {
            "basin": str(number),
            "at": ", ".join(show(float(x)) for x in place),
            "lowest": show(basin.birth),
            "depth": _depth(basin),
            "meets": "–" if basin.parent is None else f"{basin.parent + 1} at {show(basin.death)}",
            "reaches the edge": f"from {show(basin.edge)}" if basin.reaches_edge else "no",
            "depth in the whole plane": f"at least {show(basin.enclosed)}",
        }
        for number, (basin, place) in enumerate(zip(tree.basins, tree.places, strict=True), 1)
    ]


def _depth(basin: Basin) -> str:
    if math.isinf(basin.depth):
        return "lowest"
    low, high = basin.interval
    grid = "" if basin.resolved else ", maybe of the grid alone"
    return show(basin.depth) + (f" ({show(low)} to {show(high)})" if low < high else "") + grid


def basin_blocks(trees: Sequence[tuple[str, str, MergeTree]], axis: Axis, *, log: bool) -> list[Block]:
    """Build the table of all surfaces, by run and title, and the merge trees of those with several basins."""
    rows = [
        {"surface": title} | cells | {"further ones": f"at most {show(tree.resolution)} deep"}
        for _, title, tree in trees
        for cells in basin_cells(tree)[:_MOST]
    ]
    said = {text: None for _, _, tree in trees for text in tree.said if not text.startswith("Interpolation")}
    figures = [
        Figure(build_tree(tree, axis, log=log, title=f"{title}: merge tree"), run, height=360)
        for run, title, tree in trees
        if len(tree.basins) > 1
    ]
    table = Table.of(rows, f"Basins of the {axis.label}", (*_NOTES, *said))
    return [table, *([Gallery(tuple(figures))] if figures else [])]
