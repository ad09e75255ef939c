"""What every figure backend must draw: numbers, not pixels.

A backend joins with one reader: a function that turns its native figure back into the numbers that it shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.contour import QuadContourSet
from matplotlib.text import Text
from tests.report_cases import asymmetric, plane, walk

from lowland import viz
from lowland.core.errors import InputError
from lowland.core.schema import new_surface
from lowland.viz.spec import Contour, HeatMap
from lowland.viz.surfaces import build_contour, build_convexity_map, build_heat_map


@dataclass
class Shown:
    """What a figure shows, read back from it."""

    levels: np.ndarray
    limits: tuple[float, float]
    x_label: str
    y_label: str
    color_label: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    marks: dict[str, list[tuple[float, float]]]
    line_points: np.ndarray
    texts: list[str]


def read_matplotlib(figure: Any) -> Shown:
    axes, bar = figure.axes[0], figure.axes[1]
    lines = [c for c in axes.collections if isinstance(c, QuadContourSet) and not c.filled]
    colored = next(c for c in axes.collections if isinstance(c, QuadContourSet | QuadMesh))
    points = (
        np.concatenate([p.vertices for p in lines[0].get_paths() if len(p.vertices)]) if lines else np.zeros((0, 2))
    )
    marks = {}
    for line in axes.lines:
        if line.get_linestyle() == "None" and "(" in str(line.get_label()):
            marks[line.get_label().rsplit(" (", 1)[0]] = list(zip(*map(np.asarray, line.get_data()), strict=True))
    return Shown(
        np.array(lines[0].levels) if lines else np.zeros(0),
        (colored.norm.vmin, colored.norm.vmax),
        axes.get_xlabel(),
        axes.get_ylabel(),
        bar.get_ylabel(),
        axes.get_xlim(),
        axes.get_ylim(),
        marks,
        points,
        [t.get_text() for t in figure.findobj(Text)],
    )


def read_plotly(figure: Any) -> Shown:
    layout, axis = figure.layout, figure.layout.coloraxis
    log = not np.allclose(axis.colorbar.tickvals, [float(t.replace("−", "-")) for t in axis.colorbar.ticktext])
    back = (lambda v: 10.0 ** np.asarray(v)) if log else np.asarray
    contour = next((t for t in figure.data if t.type == "contour"), None)
    levels = np.zeros(0)
    if contour is not None:
        spacing = contour.contours
        levels = np.arange(spacing.start, spacing.end + spacing.size / 2, spacing.size)
    marks = {
        t.name.rsplit(" (", 1)[0]: list(zip(t.x, t.y, strict=True))
        for t in figure.data
        if t.type == "scatter" and t.mode == "markers" and "(" in (t.name or "")
    }
    texts = [layout.title.text or "", *(t.name or "" for t in figure.data)]
    return Shown(
        back(levels),
        (float(back(axis.cmin)), float(back(axis.cmax))),
        layout.xaxis.title.text,
        layout.yaxis.title.text,
        axis.colorbar.title.text,
        tuple(layout.xaxis.range),
        tuple(layout.yaxis.range),
        marks,
        _plotly_line_points(contour, back(levels), back) if contour is not None else np.zeros((0, 2)),
        [t.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&") for t in texts],
    )


def _plotly_line_points(trace: Any, levels: np.ndarray, back: Callable[[Any], Any]) -> np.ndarray:
    """Where the levels cross the grid's edges along x, from the arrays handed to plotly (rows along y)."""
    x, y, z = np.asarray(trace.x), np.asarray(trace.y), np.asarray(trace.z, dtype=float)
    found = []
    for row, height in enumerate(y):
        for level in levels:
            f = back(z[row]) - level
            for k in np.nonzero(f[:-1] * f[1:] < 0)[0]:
                share = f[k] / (f[k] - f[k + 1])
                found.append((x[k] + share * (x[k + 1] - x[k]), height))
    return np.array(found)


READERS = {"matplotlib": read_matplotlib, "plotly": read_plotly}

backends = pytest.mark.parametrize("backend", list(READERS))


@backends
def test_levels_limits_labels_and_extents_are_those_of_the_spec(backend: str) -> None:
    surface = plane()
    spec = build_contour(surface)
    shown = READERS[backend](viz.contour(surface, backend=backend))
    values = asymmetric(surface["x"].values, surface["y"].values)
    np.testing.assert_allclose(shown.levels, spec.scale.levels, rtol=1e-6)
    assert len(shown.levels) >= 9
    np.testing.assert_allclose(shown.limits, (values.min(), values.max()), rtol=1e-6)
    assert spec.scale.log
    assert (shown.x_label, shown.y_label, shown.color_label) == ("first direction", "second direction", "loss")
    assert tuple(map(float, shown.x_range)) == (-1.0, 1.5)
    assert tuple(map(float, shown.y_range)) == (-0.5, 1.0)


@backends
def test_x_points_right_and_y_up(backend: str) -> None:
    """On a fine non-square grid every drawn contour point satisfies the planted function at (x, y), not (y, x)."""
    surface = plane(301, 241)
    shown = READERS[backend](viz.contour(surface, backend=backend))
    x, y = shown.line_points.T
    values = np.array([asymmetric(np.array([a]), np.array([b]))[0, 0] for a, b in zip(x, y, strict=True)])
    flipped = np.array([asymmetric(np.array([b]), np.array([a]))[0, 0] for a, b in zip(x, y, strict=True)])

    def distance(measured: np.ndarray) -> np.ndarray:
        return np.abs(np.log(measured[:, None] / shown.levels[None])).min(axis=1)

    # Linear interpolation between points 0.008 apart is off by the second derivative times 1e-5; values exceed 0.1.
    assert distance(values).max() < 5e-3
    assert distance(flipped).max() > 5e-2


@backends
def test_scale_is_shared_when_asked(backend: str) -> None:
    low, high = plane(), plane(scale=50.0)
    scale = viz.shared_scale([low, high])
    limits = {READERS[backend](viz.contour(s, backend=backend, scale=scale)).limits for s in (low, high)}
    assert len(limits) == 1
    np.testing.assert_allclose(limits.pop(), (scale.minimum, scale.maximum), rtol=1e-6)
    assert scale.maximum > 40 * float(low["loss"].max())


@backends
def test_points_that_are_no_numbers_are_marked_as_what_they_are(backend: str) -> None:
    surface = plane()
    surface["status"][0, 0] = 3
    surface["loss"][0, 0] = np.nan
    surface["loss"][1, 2] = np.nan
    surface["loss"][2, 3] = np.inf
    surface["loss"][3, 3] = -np.inf
    surface["status"][8, :] = 0
    surface["loss"][8, :] = np.nan
    x, y = surface["x"].values, surface["y"].values
    shown = READERS[backend](viz.contour(surface, backend=backend))
    assert {k: len(v) for k, v in shown.marks.items()} == {
        "failed": 1,
        "not a number": 1,
        "+infinite": 1,
        "−infinite": 1,
        "not computed yet": 6,
    }
    np.testing.assert_allclose(shown.marks["failed"], [(x[0], y[0])])
    np.testing.assert_allclose(shown.marks["not a number"], [(x[1], y[2])])
    np.testing.assert_allclose(shown.marks["+infinite"], [(x[2], y[3])])
    known = surface["loss"].values[np.isfinite(surface["loss"].values)]
    np.testing.assert_allclose(shown.limits, (known.min(), known.max()), rtol=1e-6)


@backends
def test_measured_and_interpolated_points_can_be_told_apart(backend: str) -> None:
    surface = plane()
    surface["status"][1::2, :] = 2
    shown = READERS[backend](viz.contour(surface, backend=backend))
    assert {k: len(v) for k, v in shown.marks.items()} == {"measured": 30, "interpolated": 24}
    plain = READERS[backend](viz.contour(plane(), backend=backend))
    assert plain.marks == {}


@backends
def test_heat_map_has_the_same_limits_and_marks(backend: str) -> None:
    surface = plane()
    surface["loss"][4, 4] = np.inf
    shown = READERS[backend](viz.heat_map(surface, backend=backend))
    known = surface["loss"].values[np.isfinite(surface["loss"].values)]
    np.testing.assert_allclose(shown.limits, (known.min(), known.max()), rtol=1e-6)
    assert list(shown.marks) == ["+infinite"]


@backends
@pytest.mark.parametrize("name", ["<b>bold</b>", "$x_1$ & co", "<script>alert(1)</script>"])
def test_a_hostile_title_stays_text(backend: str, name: str) -> None:
    shown = READERS[backend](viz.contour(plane(), backend=backend, title=name))
    assert name in shown.texts


@backends
def test_every_figure_kind_draws(backend: str) -> None:
    surface, path = plane(), walk()
    viz.surface(surface, backend=backend)
    viz.path({"SGD": path, "SAM": walk(seed=1)}, backend=backend)
    viz.path({"SGD": path, "SAM": walk(seed=1)}, surface, backend=backend)
    assert viz.contour(surface, backend=backend, filled=False) is not None


@backends
@pytest.mark.parametrize("nx, ny", [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_tiny_and_constant_surfaces_draw(backend: str, nx: int, ny: int) -> None:
    surface = new_surface(np.arange(nx), np.arange(ny))
    surface["loss"][:] = 1.0
    surface["status"][:] = 1
    assert viz.contour(surface, backend=backend) is not None
    assert viz.heat_map(surface, backend=backend) is not None


def test_a_surface_without_a_finished_point_is_refused() -> None:
    with pytest.raises(InputError, match="no finished point"):
        viz.contour(new_surface([0.0, 1.0], [0.0, 1.0]))


@pytest.mark.parametrize(
    "options, match",
    [({"metric": "acuracy"}, "metric"), ({"backend": "gnuplot"}, "backend"), ({"split": "test"}, "split")],
)
def test_bad_input_names_the_argument(options: dict[str, str], match: str) -> None:
    with pytest.raises(InputError, match=match):
        viz.contour(plane(), **options)  # type: ignore[arg-type]


def test_a_line_is_no_contour() -> None:
    line = new_surface([0.0, 1.0])
    with pytest.raises(InputError, match="two axes"):
        viz.contour(line)


def test_convexity_map_has_three_values() -> None:
    surface = new_surface([0.0, 1.0], [0.0, 1.0], metrics=["negative_curvature", "cold_check", "cold_disagreement"])
    surface["negative_curvature"][:] = [[1.0, -1.0], [0.0, np.nan]]
    surface["cold_check"][:] = 1.0
    surface["cold_disagreement"][:] = 0.0
    surface["status"][:] = 1
    spec = build_convexity_map(surface)
    assert isinstance(spec, HeatMap)
    names = [[None if np.isnan(v) else spec.categories[int(v)] for v in row] for row in spec.field.values]
    assert names == [["negative beyond its residual", "none found"], ["undecided", None]]
    assert "missed crossings: none found by cold checks at 4 points" in spec.caption


def test_heat_map_and_contour_specs_hold_the_values_unchanged() -> None:
    surface = plane()
    for spec in (build_contour(surface), build_heat_map(surface)):
        assert isinstance(spec, Contour | HeatMap)
        np.testing.assert_array_equal(spec.field.values, surface["loss"].values)
        np.testing.assert_array_equal(spec.field.x, surface["x"].values)


def test_descending_axes_are_sorted_with_their_values() -> None:
    surface = plane()
    turned = surface.isel(x=slice(None, None, -1), y=slice(None, None, -1))
    np.testing.assert_array_equal(build_contour(turned).field.values, build_contour(surface).field.values)


@pytest.mark.parametrize(
    "verb", ["contour", "surface", "heat_map", "line", "density", "convexity_map", "slope", "path"]
)
def test_a_figure_of_no_result_says_what_to_do_first(verb):
    with pytest.raises(InputError, match=r"`result` must be an xarray.Dataset \(got 'dict'\); measure it first"):
        getattr(viz, verb)({"a": {"loss": 1.0}} if verb in ("line", "density", "path") else {"loss": 1.0})
