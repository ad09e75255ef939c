"""The merge tree as a figure, the marks of basins on contours, and their table on a page."""

import math

import numpy as np
import pytest

from lowland import report, viz
from lowland.core.errors import InputError
from lowland.core.schema import new_surface
from lowland.results import Run
from lowland.results.merge_trees import merge_tree
from lowland.viz.basins import build_basins, build_tree
from lowland.viz.spec import Axis
from lowland.viz.surfaces import build_contour

X = np.arange(9.0)
ROW = np.array([5.0, 1.0, 3.0, 2.0, 4.0, 0.5, 4.5, 1.75, 6.0])
"""Basins at x = 5, 1, 7 and 3, the last of which is part of that at 1."""


def row_of_basins(error=0.0):
    surface = new_surface(X, [0.0, 1.0, 2.0], errors=["loss"], attrs={"samples": 500})
    surface["loss"][:] = np.stack([ROW + 3, ROW, ROW + 3], axis=1)
    surface["loss_se"][:], surface["status"][:] = error, 1
    return surface


def stems(tree, **options):
    certain, whole = build_tree(tree, Axis("loss"), log=False, **options).curves
    return [[(x, y) for x, y in zip(curve.x, curve.y, strict=True) if not math.isnan(x)] for curve in (certain, whole)]


def test_a_stem_per_basin_ends_where_it_meets_another_and_none_is_crossed():
    tree = merge_tree(row_of_basins())
    assert [basin.minimum for basin in tree.basins] == [(5, 1), (1, 1), (7, 1), (3, 1)]
    figure = build_tree(tree, Axis("loss"), log=False)
    assert figure.x_axis.categories == ("1", "2", "4", "3")  # the one that meets at 4 before that at 4.5
    _, whole = stems(tree)
    assert whole[:3] == [(1, 0.5), (1, 4.5), (1, 4.5)]
    assert whole[3:6] == [(2, 1.0), (2, 4.0), (1, 4.0)]
    assert whole[6:9] == [(4, 1.75), (4, 4.5), (1, 4.5)]
    assert whole[9:] == [(3, 2.0), (3, 3.0), (2, 3.0)]


def test_what_is_within_the_errors_is_drawn_thin():
    tree = merge_tree(row_of_basins(0.05))
    certain, _ = stems(tree)
    error = tree.basins[0].error
    for number, basin in enumerate(tree.basins[1:], 1):
        low, high = (y for _, y in certain[2 * number : 2 * number + 2])
        assert (low, high) == pytest.approx((basin.birth + error, basin.death - error))


@pytest.mark.parametrize("backend", ["matplotlib", "plotly"])
def test_contours_mark_numbered_minima_and_saddles(backend, tmp_path):
    surface = row_of_basins()
    spec = build_contour(surface, basins=True)
    assert {mark.kind: (mark.x.tolist(), mark.texts) for mark in spec.marks} == {
        "minimum": ([5.0, 1.0, 7.0, 3.0], ("1", "2", "3", "4")),
        "saddle": ([4.0, 6.0, 2.0], ()),
    }
    assert build_contour(surface).marks == []
    figure = viz.merge_tree(surface, backend=backend)
    texts = [t.get_text() for t in figure.axes[0].texts] if backend == "matplotlib" else figure.data[1].text
    assert {"1", "2", "3", "4"} <= set(texts)
    viz.export({"row": surface}, tmp_path / "tree.html", "merge-tree")
    with pytest.raises(InputError, match="one surface for the kind merge-tree"):
        viz.export({"a": surface, "b": surface}, tmp_path / "two.html", "merge-tree")


def test_minima_on_the_edge_are_squares():
    surface = row_of_basins()
    surface["loss"][0, 1] = 0.2
    assert [mark.kind for mark in build_contour(surface, basins=True).marks] == ["minimum", "edge minimum", "saddle"]
    assert build_basins(surface).panels[1].x_axis.label == "basin"


def test_a_page_has_a_row_per_basin_and_what_holds_beyond_the_picture():
    run = Run(name="row", surfaces={"plane": row_of_basins(0.01)}, result={"test_accuracy": 0.5})
    section = next(part for part in report.build([run], date="").sections if part.title == "Landscapes")
    table = next(block for block in section.blocks if isinstance(block, report.Table) and "Basins" in block.caption)
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    assert [row["depth"].split(" ")[0] for row in rows] == ["lowest", "3.00", "2.75", "1.00"]
    assert [row["meets"] for row in rows] == ["–", "1 at 4.00", "1 at 4.50", "2 at 3.00"]
    assert rows[3]["reaches the edge"] == "no"
    assert rows[0]["reaches the edge"].startswith("from 3.4")
    assert any("standard errors of the loss" in note for note in table.notes)
