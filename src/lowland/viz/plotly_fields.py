"""Plotly traces of fields: contours, surfaces and heat maps, with their color axis and marked points."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from lowland.viz import style
from lowland.viz.field import Field, FloatArray
from lowland.viz.plotly_text import Place, anchor_of, escape
from lowland.viz.scale import format_number
from lowland.viz.spec import Contour, HeatMap, Scale, Surface3D

__all__ = ["draw_contour", "draw_heat_map", "draw_surface"]

_WIRE = "rgb(150,150,150)"  # scenes draw no transparent grid
_CAMERA = {"eye": {"x": 1.35, "y": -1.6, "z": 0.9}, "center": {"x": 0, "y": 0, "z": -0.12}}


def _color_axis(scale: Scale) -> dict[str, Any]:
    low, high = scale.transform(np.array([scale.minimum, scale.maximum]))
    return {
        "cmin": float(low),
        "cmax": float(high),
        "colorscale": style.COLOR_MAPS[scale.color_map],
        "colorbar": {
            "title": {"text": escape(scale.label), "side": "right"},
            "tickvals": [float(tick) for tick in scale.transform(np.array(scale.ticks))],
            "ticktext": [format_number(tick) for tick in scale.ticks],
            "thickness": 12,
            "len": 0.9,
            "outlinewidth": 0,
        },
    }


def _grid(values: FloatArray) -> Any:
    # Rows along y, as plotly wants; single precision halves the file and is finer than any screen.
    return np.ascontiguousarray(values.T, dtype=np.float32)


def _hover(spec: Contour | Surface3D | HeatMap) -> tuple[Any, str]:
    label = escape(spec.scale.label)
    where = "x %{x:.3g}, y %{y:.3g}<br>"
    if spec.field.error is None:
        return _grid(spec.field.values)[..., None], where + label + " %{customdata[0]:.4g}<extra></extra>"
    data = np.stack([_grid(spec.field.values), _grid(spec.field.error)], axis=-1)
    return data, where + label + " %{customdata[0]:.4g} ± %{customdata[1]:.2g} (s.e.)<extra></extra>"


def draw_contour(figure: go.Figure, spec: Contour, place: Place, colors: str) -> None:
    """Draw contour lines, filled or not, with paths and marked points."""
    field, scale = spec.field, spec.scale
    z = _grid(scale.transform(field.shown))
    levels = scale.transform(np.array(scale.levels))
    size = float(levels[1] - levels[0]) if levels.size > 1 else 1.0
    data, template = _hover(spec)
    filled = spec.filled and field.finished
    if not field.finished:
        # Lines need whole cells; the points that are there are shown one by one.
        figure.add_trace(go.Heatmap(x=field.x, y=field.y, z=z, coloraxis=colors, hoverinfo="skip"), **place)
    figure.add_trace(
        go.Contour(
            x=field.x,
            y=field.y,
            z=z,
            customdata=data,
            hovertemplate=template,
            connectgaps=False,
            contours={
                "start": float(levels[0]),
                "end": float(levels[-1]),
                "size": size,
                "coloring": "heatmap" if filled else "lines" if field.finished else "none",
            },
            line={"width": 1.0, "color": "rgba(255,255,255,0.7)"} if filled or not field.finished else {"width": 1.4},
            coloraxis=colors,
            name=escape(spec.title),
            showlegend=False,
        ),
        **place,
    )
    figure.update_layout({colors: _color_axis(scale)})
    _mark_points(figure, field, spec.points, place)
    _draw_paths(figure, spec, place)
    if spec.center and not spec.paths and field.x[0] <= 0 <= field.x[-1] and field.y[0] <= 0 <= field.y[-1]:
        figure.add_trace(
            go.Scatter(
                x=[0.0], y=[0.0], mode="markers", name="the model", showlegend=False, hoverinfo="skip",
                marker={"symbol": "cross-thin", "size": 10, "line": {"width": 2, "color": "white"}},
            ),
            **place,
        )  # fmt: skip
    _equal_axes(figure, field, place)


def _equal_axes(figure: go.Figure, field: Field, place: Place) -> None:
    if field.x.size < 2 or field.y.size < 2 or not 1 / 3 <= np.ptp(field.x) / np.ptp(field.y) <= 3:
        return
    figure.update_yaxes(scaleanchor=anchor_of(figure, place), constrain="domain", **place)
    figure.update_xaxes(constrain="domain", constraintoward="right", **place)  # beside the color bar


def _mark_points(figure: go.Figure, field: Field, points: bool | None, place: Place) -> None:
    for kind, (x, y) in field.marks(points=points).items():
        look = style.MARKS[kind]
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                mode="markers",
                name=f"{look.label} ({x.size})",
                marker={"symbol": look.plotly_symbol, "color": look.color, "size": 1.8 * look.size},
                hovertemplate=f"x %{{x:.3g}}, y %{{y:.3g}}<br>{look.label}<extra></extra>",
            ),
            **place,
        )


def _draw_paths(figure: go.Figure, spec: Contour, place: Place) -> None:
    for number, path in enumerate(spec.paths):
        look = style.curve_style(number)
        data = path.steps[:, None].astype(np.float64)
        template = "step %{customdata[0]}"
        if path.distance is not None:
            data = np.column_stack([data, path.distance])
            template += "<br>distance from the plane %{customdata[1]:.3g}"
        casing = {"color": "white", "width": 5}  # tells a path from any color below it
        figure.add_trace(
            go.Scatter(x=path.x, y=path.y, mode="lines", line=casing, showlegend=False, hoverinfo="skip"), **place
        )
        figure.add_trace(
            go.Scatter(
                x=path.x, y=path.y, mode="lines+markers", name=escape(path.name), customdata=data,
                showlegend=len(spec.paths) > 1,
                hovertemplate=template + "<extra></extra>",
                line={"color": look.color, "width": 2, "dash": look.plotly_dash},
                marker={"size": [5] * (path.x.size - 1) + [11], "symbol": look.plotly_marker,
                        "line": {"width": 1, "color": "white"}},
            ),
            **place,
        )  # fmt: skip


def draw_surface(figure: go.Figure, spec: Surface3D, place: Place, colors: str) -> None:
    """Draw a surface that can be turned."""
    field, scale = spec.field, spec.scale
    data, template = _hover(spec)
    heights = scale.transform(field.shown)
    low, high = (float(v) for v in scale.transform(np.array([scale.minimum, scale.maximum])))
    figure.add_trace(
        go.Surface(x=field.x, y=field.y, z=_grid(heights), coloraxis=colors, customdata=data,
                   hovertemplate=template, name=escape(spec.title)),
        **place,
    )  # fmt: skip
    for kind, (x, y) in field.marks(points=False).items():
        if kind == "open":
            continue  # holes in the surface say so already, and markers would float above them
        look = style.MARKS[kind]
        symbol = look.plotly_symbol if look.plotly_symbol in ("x", "diamond", "circle", "square-open") else "cross"
        figure.add_trace(
            go.Scatter3d(x=x, y=y, z=np.full(x.size, low if kind == "-inf" else high), mode="markers",
                         name=f"{look.label} ({x.size})",
                         marker={"size": 3, "color": look.color, "symbol": symbol}),
            **place,
        )  # fmt: skip
    bar = _color_axis(scale)
    figure.update_layout({colors: bar})
    left, right, bottom, top = field.extent
    ticks = {key: bar["colorbar"][key] for key in ("tickvals", "ticktext")}
    figure.update_scenes(
        xaxis=_scene_axis(spec.x_axis.text, left, right, nticks=5),
        yaxis=_scene_axis(spec.y_axis.text, bottom, top, nticks=5),
        zaxis=_scene_axis(scale.label, low, high, **ticks),
        aspectmode="manual",
        aspectratio={"x": 1, "y": 1, "z": 0.75},
        camera=_CAMERA,
        **place,
    )


def _scene_axis(label: str, first: float, last: float, **ticks: Any) -> dict[str, Any]:
    title = {"text": escape(label), "font": {"size": 11}}
    # No colored walls: they would stay white on a dark page.
    return {"title": title, "range": [first, last], "gridcolor": _WIRE, "showbackground": False, **ticks}


def draw_heat_map(figure: go.Figure, spec: HeatMap, place: Place, colors: str) -> None:
    """Draw one colored cell per point."""
    field = spec.field
    data, template = _hover(spec)
    values = field.shown if spec.categories else spec.scale.transform(field.shown)
    bar = _color_axis(spec.scale)
    if spec.categories:
        count = len(spec.categories)
        edges = [(k + side) / count for k in range(count) for side in (0, 1)]
        steps = [[edge, style.CATEGORY_COLORS[k // 2]] for k, edge in enumerate(edges)]
        bar |= {"cmin": -0.5, "cmax": count - 0.5, "colorscale": steps}
        bar["showscale"] = False
        for name, color in zip(spec.categories, style.CATEGORY_COLORS, strict=False):
            square = {"symbol": "square", "size": 11, "color": color}
            figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", name=escape(name), marker=square), **place)
    figure.add_trace(
        go.Heatmap(x=field.x, y=field.y, z=_grid(values), coloraxis=colors, customdata=data,
                   hovertemplate=template),
        **place,
    )  # fmt: skip
    figure.update_layout({colors: bar})
    _mark_points(figure, field, None, place)
    _equal_axes(figure, field, place)
