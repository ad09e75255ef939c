"""What every backend must draw of the other kinds: 3-D surfaces, curves with bands, estimates, paths, panels."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from tests.report_cases import asymmetric, plane, spectrum, walk

from lowland import viz
from lowland.core.schema import new_surface
from lowland.viz.curves import build_cost, build_density
from lowland.viz.spec import Axis, Figure, Scatter, ScatterPoint
from lowland.viz.surfaces import build_surface

Points = np.ndarray
"""Rows (x, y, value) read back from a figure."""


def surface_of_matplotlib(spec: Figure) -> Points:
    """Corners of the drawn polygons; heights are logarithms, the axis says so by its tick labels."""
    axes = viz.draw(spec, "matplotlib").axes[0]
    polygons = next(c for c in axes.collections if isinstance(c, Poly3DCollection))
    # matplotlib has no public way back from a 3-D polygon; the private one has two forms since 3.9
    corners = polygons._faces.reshape(-1, 3) if hasattr(polygons, "_faces") else polygons._vec[:3].T
    x, y, z = corners.T
    return np.stack([x, y, 10.0**z], axis=-1)


def surface_of_plotly(spec: Figure) -> Points:
    trace = next(t for t in viz.draw(spec, "plotly").data if t.type == "surface")
    x, y = np.meshgrid(trace.x, trace.y)  # rows along y
    return np.stack([x.ravel(), y.ravel(), 10.0 ** np.asarray(trace.z, dtype=float).ravel()], axis=-1)


def surface_of_vtk(spec: Figure) -> Points:
    scene = viz.draw(spec, "vtk")
    return np.column_stack([scene.points[:, :2], scene.data["loss"]])


SURFACES: dict[str, Callable[[Figure], Points]] = {
    "matplotlib": surface_of_matplotlib,
    "plotly": surface_of_plotly,
    "vtk": surface_of_vtk,
}


@pytest.mark.parametrize("backend", list(SURFACES))
def test_a_surface_stands_over_the_right_points(backend: str) -> None:
    surface = plane(23, 17)
    spec = build_surface(surface)
    assert spec.scale.log
    points = SURFACES[backend](spec)
    planted = np.array([asymmetric(np.array([x]), np.array([y]))[0, 0] for x, y, _ in points])
    np.testing.assert_allclose(points[:, 2], planted, rtol=1e-6)
    assert {round(v, 9) for v in points[:, 0]} == {round(v, 9) for v in surface["x"].values}
    assert {round(v, 9) for v in points[:, 1]} == {round(v, 9) for v in surface["y"].values}


@pytest.mark.parametrize("backend", ["matplotlib", "plotly"])
def test_heights_are_labelled_with_values_not_logarithms(backend: str) -> None:
    spec = build_surface(plane())
    figure = viz.draw(spec, backend)
    if backend == "matplotlib":
        places, texts = figure.axes[0].get_zticks(), [t.get_text() for t in figure.axes[0].get_zticklabels()]
        label = figure.axes[0].get_zlabel()
    else:
        axis = figure.layout.scene.zaxis
        places, texts, label = axis.tickvals, axis.ticktext, axis.title.text
    assert label == "loss"
    np.testing.assert_allclose([float(text) for text in texts], 10.0 ** np.asarray(places), rtol=1e-2)


def curves_of_matplotlib(figure: Any) -> tuple[dict[str, Points], list[Points]]:
    axes = figure.axes[0]
    lines = {line.get_label(): np.column_stack(line.get_data()) for line in axes.lines}
    bands = [c.get_paths()[0].vertices for c in axes.collections if isinstance(c, FillBetweenPolyCollection)]
    return lines, bands


def curves_of_plotly(figure: Any) -> tuple[dict[str, Points], list[Points]]:
    lines = {t.name.split(",")[0]: np.column_stack([t.x, t.y]) for t in figure.data if t.showlegend is not False}
    edges = [np.column_stack([t.x, t.y]) for t in figure.data if t.line.width == 0]
    return lines, [np.concatenate(edges[k : k + 2]) for k in range(0, len(edges), 2)]


CURVES = {"matplotlib": curves_of_matplotlib, "plotly": curves_of_plotly}
flat = pytest.mark.parametrize("backend", list(CURVES))


@flat
def test_a_line_is_the_mean_over_directions_and_its_band_their_range(backend: str) -> None:
    x = np.linspace(-1, 1, 9)
    line = new_surface(x, directions=["0", "1", "2"])
    values = np.stack([1 + k * x**2 for k in (1, 2, 6)])
    line["loss"][:], line["status"][:] = values, 1
    lines, bands = CURVES[backend](viz.line({"run": line}, backend=backend))
    np.testing.assert_allclose(lines["run"], np.column_stack([x, values.mean(0)]))
    assert len(bands) == 1
    for edge in (values.min(0), values.max(0)):
        drawn = {(round(a, 9), round(b, 9)) for a, b in bands[0]}
        assert {(round(a, 9), round(b, 9)) for a, b in zip(x, edge, strict=True)} <= drawn


@flat
def test_a_line_with_standard_errors_has_a_band_of_one(backend: str) -> None:
    x = np.linspace(-1, 1, 5)
    line = new_surface(x, errors=["loss"])
    line["loss"][:], line["loss_se"][:], line["status"][:] = 2 + x, 0.25, 1
    _, bands = CURVES[backend](viz.line(line, backend=backend))
    assert np.isclose(bands[0][:, 1].min(), 1 - 0.25) and np.isclose(bands[0][:, 1].max(), 3 + 0.25)


@flat
def test_open_and_infinite_points_break_a_line_and_are_marked(backend: str) -> None:
    line = new_surface(np.arange(6.0))
    line["loss"][:], line["status"][:] = [1, 2, np.inf, 2, 1, np.nan], [1, 1, 1, 1, 1, 0]
    figure = viz.line({"run": line}, backend=backend)
    lines, _ = CURVES[backend](figure)
    assert np.isnan(lines["run"][[2, 5], 1]).all() and np.isfinite(lines["run"][[0, 1, 3, 4], 1]).all()
    if backend == "matplotlib":
        texts = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    else:
        texts = [t.name for t in figure.data]
    assert "run: +infinite (1)" in texts and "run: not computed yet (1)" in texts


@flat
def test_paths_keep_their_coordinates_and_run_over_their_plane(backend: str) -> None:
    path = walk()
    figure = viz.path({"SGD": path, "SAM": walk(seed=1)}, plane(), backend=backend)
    if backend == "matplotlib":
        drawn = [np.column_stack(line.get_data()) for line in figure.axes[0].lines if line.get_label() == "SGD"]
        x_range = figure.axes[0].get_xlim()
    else:
        drawn = [np.column_stack([t.x, t.y]) for t in figure.data if t.name == "SGD"]
        x_range = figure.layout.xaxis.range
    np.testing.assert_allclose(drawn[0], path["coordinate"].values)
    every = np.concatenate([path["coordinate"].values[:, 0], walk(seed=1)["coordinate"].values[:, 0], [-1.0, 1.5]])
    np.testing.assert_allclose(x_range, (every.min(), every.max()))


@flat
def test_a_density_has_a_logarithmic_axis_and_marks_the_ends(backend: str) -> None:
    figure = viz.density({"run": spectrum()}, backend=backend)
    lines, bands = CURVES[backend](figure)
    grid = spectrum()["eigenvalue_grid"].values
    np.testing.assert_allclose(lines["run"][:, 0], grid)
    assert len(bands) == 1
    if backend == "matplotlib":
        axes = figure.axes[0]
        assert (axes.get_yscale(), axes.get_xlabel()) == ("log", "eigenvalue")
        marked = next(line for line in axes.lines if line.get_marker() == "|").get_xdata()
    else:
        assert (figure.layout.yaxis.type, figure.layout.xaxis.title.text) == ("log", "eigenvalue")
        marked = next(t for t in figure.data if t.name == "eigenvalues").x
    np.testing.assert_allclose(marked, [-0.2, 10.0])


@flat
def test_estimates_carry_their_interval_and_seeds(backend: str) -> None:
    estimate = ScatterPoint("SAM", 200.0, 91.0, (90.0, 93.0), ((200.0, 90.5), (200.0, 91.5)))
    figure = viz.draw(build_cost([estimate]), backend)
    if backend == "matplotlib":
        container = figure.axes[0].containers[0]
        (segment,) = container.lines[2][0].get_segments()
        found = (*container.lines[0].get_data(), segment[0][1], segment[1][1])
        labels = (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel())
    else:
        trace = next(t for t in figure.data if t.name == "SAM")
        found = (trace.x, trace.y, trace.y[0] - trace.error_y.arrayminus[0], trace.y[0] + trace.error_y.array[0])
        labels = (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text)
    assert [float(np.ravel(v)[0]) for v in found] == [200.0, 91.0, 90.0, 93.0]
    assert labels == ("forward-backward passes", "test accuracy (%)")


@flat
def test_accuracy_against_cost_has_a_stepped_line_along_the_front(backend: str) -> None:
    points = {"SAM": (200.0, 93.0), "SGD": (100.0, 90.0), "dear": (300.0, 92.0), "poor": (150.0, 89.0)}
    figure = viz.draw(build_cost([ScatterPoint(name, *point) for name, point in points.items()]), backend)
    if backend == "matplotlib":
        line = next(line for line in figure.axes[0].lines if line.get_label() == "Pareto front")
        found, steps = np.column_stack(line.get_data()), line.get_drawstyle() == "steps-post"
    else:
        trace = next(t for t in figure.data if t.name == "Pareto front")
        found, steps = np.column_stack([trace.x, trace.y]), trace.line.shape == "hv"
    np.testing.assert_array_equal(found, [points["SGD"], points["SAM"]])
    assert steps


@flat
def test_a_diagonal_spans_the_points(backend: str) -> None:
    points = [ScatterPoint(str(x), x, 0.0) for x in (0.3, -0.1, 0.2)]
    figure = viz.draw(Scatter(tuple(points), Axis("a"), Axis("b"), diagonal="a is b"), backend)
    if backend == "matplotlib":
        ends = next(line for line in figure.axes[0].lines if line.get_label() == "a is b").get_xydata()
    else:
        ends = np.column_stack(next((t.x, t.y) for t in figure.data if t.name == "a is b"))
    np.testing.assert_array_equal(ends, [[-0.1, -0.1], [0.3, 0.3]])


@flat
@pytest.mark.parametrize("kind", ["contour", "surface", "heat-map"])
def test_panels_share_one_color_bar(backend: str, kind: str) -> None:
    results = {"a": plane(), "b": plane(scale=20.0), "c": plane(scale=3.0), "d": plane()}
    figure = viz.compare(results, kind=kind, backend=backend)
    if backend == "matplotlib":
        titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
        assert len(figure.axes) == 5  # four panels, one bar
    else:
        titles = [note.text for note in figure.layout.annotations]
        assert {t.coloraxis for t in figure.data if t.type != "scatter"} == {"coloraxis"}
    assert titles == ["a", "b", "c", "d"]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_labels_of_solids_beside_each_other_lie_over_no_other_text(count: int) -> None:
    figure = viz.compare({name: plane() for name in "abcd"[:count]}, kind="surface", backend="matplotlib")
    figure.savefig(io.BytesIO(), format="png")
    boxes = []
    for axes in figure.axes:
        texts = [axes.title, *(axis.label for axis in axes._axis_map.values())]
        boxes += [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    labels = [text for text, _ in boxes]
    assert labels.count("loss") == 1 and labels.count("first direction") == count  # the bar says what is high
    for number, (text, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
        assert not any(box.overlaps(other) for _, other in boxes[number + 1 :]), text


def test_a_density_below_its_floor_is_left_out() -> None:
    grid = np.linspace(0, 1, 4)
    spec = build_density({"a": (grid, np.array([1.0, 1e-3, 1e-9, 0.0]))})
    np.testing.assert_array_equal(spec.curves[0].y, [1.0, 1e-3, np.nan, np.nan])
