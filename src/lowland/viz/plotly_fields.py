"""Plotly traces of fields: contours, surfaces and heat maps, with their color axis and marked points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from plotly.colors import sequential

from lowland.viz import style
from lowland.viz.field import Field, FloatArray, Mark
from lowland.viz.plotly_canvas import Canvas, escape
from lowland.viz.plotly_curves import draw_paths
from lowland.viz.spec import Contour, HeatMap, OfField, Scale, Surface3D

_WIRE = "rgb(150,150,150)"  # scenes draw no transparent grid
_CAMERA = {"eye": {"x": 1.35, "y": -1.6, "z": 0.9}, "center": {"x": 0, "y": 0, "z": -0.12}}
_FLOOR = 0.07  # of the height of a scene


def color_stops(color_map: str) -> list[tuple[float, str]]:
    """Return places in [0, 1] and colors of a color map."""
    colors = getattr(sequential, style.COLOR_MAPS[color_map])
    return [(k / (len(colors) - 1), str(color)) for k, color in enumerate(colors)]


def _color_axis(scale: Scale) -> dict[str, Any]:
    low, high = scale.ends
    title = {"text": escape(scale.label), "side": "right"}
    places, texts = scale.labels
    ticks = {"tickvals": places, "ticktext": texts}
    bar = {"title": title, "thickness": 12, "len": 0.9, "outlinewidth": 0, **ticks}
    return {"cmin": low, "cmax": high, "colorscale": color_stops(scale.color_map), "colorbar": bar}


def _grid(values: FloatArray) -> Any:
    # Rows along y, as plotly wants; single precision halves the file and is finer than any screen.
    return np.ascontiguousarray(values.T, dtype=np.float32)


def _shown(spec: OfField, canvas: Canvas, z: FloatArray) -> dict[str, Any]:
    """Return what every trace of a field has: places, colored values, and the true ones under the pointer."""
    field = spec.field
    text = f"x %{{x:.3g}}, y %{{y:.3g}}<br>{escape(spec.scale.label)} %{{customdata[0]:.4g}}"
    data = _grid(field.values)[..., None]
    if field.error is not None:
        data = np.stack([_grid(field.values), _grid(field.error)], axis=-1)
        text += " ± %{customdata[1]:.2g} (s.e.)"
    hover = {"customdata": data, "hovertemplate": text + "<extra></extra>"}
    return {"x": field.x, "y": field.y, "z": _grid(z), "coloraxis": canvas.colors, **hover}


def draw_contour(canvas: Canvas, spec: Contour) -> None:
    """Draw contour lines, filled or not, with paths and marked points."""
    field, scale = spec.field, spec.scale
    shown = _shown(spec, canvas, scale.transform(field.shown))
    levels = scale.transform(np.array(scale.levels))
    size = float(levels[1] - levels[0]) if levels.size > 1 else 1.0
    filled = spec.filled and field.finished
    if not field.finished:
        # Lines need whole cells; the points that are there are shown one by one.
        cells = {key: shown[key] for key in ("x", "y", "z", "coloraxis")}
        canvas.add("heatmap", **cells, hoverinfo="skip")
    coloring = "heatmap" if filled else "lines" if field.finished else "none"
    contours = {"start": float(levels[0]), "end": float(levels[-1]), "size": size, "coloring": coloring}
    line = {"width": 1.0, "color": "rgba(255,255,255,0.7)"} if filled or not field.finished else {"width": 1.4}
    options = {"contours": contours, "line": line, "connectgaps": False, "showlegend": False}
    canvas.add("contour", **shown, **options, name=escape(spec.title))
    canvas.color_axis(_color_axis(scale))
    _mark_points(canvas, spec.marks)
    draw_paths(canvas, spec)
    if spec.cross:
        cross = {"symbol": "cross-thin", "size": 10, "line": {"width": 2, "color": "white"}}
        canvas.points([0.0], [0.0], cross, name="the model", showlegend=False, hoverinfo="skip")
    _equal_axes(canvas, field)


def _equal_axes(canvas: Canvas, field: Field) -> None:
    if field.square:
        beside = {"constrain": "domain", "constraintoward": "right"}  # the color bar
        canvas.axes(x=beside, y={"scaleanchor": canvas.anchor, "constrain": "domain"})


def _mark_points(canvas: Canvas, marks: Sequence[Mark]) -> None:
    for mark in marks:
        look = mark.look
        marker = {"symbol": look.plotly_symbol, "color": look.color, "size": 1.8 * look.size}
        hover = f"x %{{x:.3g}}, y %{{y:.3g}}<br>{look.label}<extra></extra>"
        texts: dict[str, Any] = {}
        if mark.texts:
            font = {"color": look.color}
            texts = {"mode": "markers+text", "text": mark.texts, "textposition": "top right", "textfont": font}
        canvas.points(mark.x, mark.y, marker, name=mark.label, hovertemplate=hover, **texts)


def draw_surface(canvas: Canvas, spec: Surface3D) -> None:
    """Draw a surface that can be turned."""
    scale = spec.scale
    shown = _shown(spec, canvas, scale.transform(spec.field.shown))
    canvas.add("surface", **shown, name=escape(spec.title))
    for mark, z in spec.marks:
        symbol = mark.look.plotly_symbol
        symbol = symbol if symbol in ("x", "diamond", "circle", "square-open") else "cross"
        marker = {"size": 3, "color": mark.look.color, "symbol": symbol}
        canvas.add("scatter3d", x=mark.x, y=mark.y, z=z, mode="markers", name=mark.label, marker=marker)
    canvas.color_axis(_color_axis(scale))
    left, right, bottom, top = spec.field.extent
    canvas.scene(
        xaxis=_scene_axis(spec.x_axis.text, left, right, nticks=5),
        yaxis=_scene_axis(spec.y_axis.text, bottom, top, nticks=5),
        zaxis=_scene_axis(scale.label, *scale.ends, **_above_the_floor(scale)),
        aspectmode="manual",
        aspectratio={"x": 1, "y": 1, "z": 0.75},
        camera=_CAMERA,
    )


def _above_the_floor(scale: Scale) -> dict[str, Any]:
    # a height near the floor would be written over the first number of an axis there
    low, high = scale.ends
    kept = [pair for pair in zip(*scale.labels, strict=True) if pair[0] - low >= _FLOOR * (high - low)]
    return {"tickvals": [place for place, _ in kept], "ticktext": [text for _, text in kept]}


def _scene_axis(label: str, first: float, last: float, **ticks: Any) -> dict[str, Any]:
    title = {"text": escape(label), "font": {"size": 11}}
    # No colored walls: they would stay white on a dark page.
    return {"title": title, "range": [first, last], "gridcolor": _WIRE, "showbackground": False, **ticks}


def draw_heat_map(canvas: Canvas, spec: HeatMap) -> None:
    """Draw one colored cell per point."""
    field = spec.field
    bar = _color_axis(spec.scale)
    if spec.categories:
        count = len(spec.categories)
        edges = [(k + side) / count for k in range(count) for side in (0, 1)]
        steps = [[edge, style.CATEGORY_COLORS[k // 2]] for k, edge in enumerate(edges)]
        bar |= {"cmin": -0.5, "cmax": count - 0.5, "colorscale": steps, "showscale": False}
        for name, color in zip(spec.categories, style.CATEGORY_COLORS, strict=False):
            canvas.points([None], [None], {"symbol": "square", "size": 11, "color": color}, name=escape(name))
    values = field.shown if spec.categories else spec.scale.transform(field.shown)
    canvas.add("heatmap", **_shown(spec, canvas, values))
    canvas.color_axis(bar)
    _mark_points(canvas, field.marks())
    _equal_axes(canvas, field)
