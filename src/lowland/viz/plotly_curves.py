"""Plotly traces of curves with bands, of training paths, and of estimates with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowland.viz import style
from lowland.viz.field import FloatArray
from lowland.viz.plotly_canvas import Canvas, escape
from lowland.viz.scale import nice_ticks
from lowland.viz.spec import Axis, Contour, Curve, Line, Scatter


def draw_line(canvas: Canvas, spec: Line) -> None:
    """Draw curves with their bands, marked points and rug."""
    finite = np.concatenate([c.y[np.isfinite(c.y)] for c in spec.curves] or [np.zeros(0)])
    top, starred = float(finite.max()) if finite.size else 1.0, False
    for curve, look in spec.styled:
        group = {"legendgroup": escape(curve.name)}
        _draw_band(canvas, curve, look.color, group)
        line = {"color": look.color, "dash": look.plotly_dash, "width": 1.5 if curve.reference else 2}
        mode = "lines+markers" if curve.markers else "lines"
        some = {"mode": mode, "line": line, "marker": {"symbol": look.plotly_marker, "size": 6}}
        canvas.add("scatter", x=curve.x, y=curve.y, name=escape(curve.entry), connectgaps=False, **some, **group)
        for x, mark, label in curve.gaps:
            marker = {"symbol": mark.plotly_symbol, "color": mark.color, "size": 8}
            canvas.points(x, np.full(x.size, top), marker, name=escape(label), **group)
        if curve.stars:
            marker = {"symbol": "star", "color": look.color, "size": 13, "line": {"width": 1, "color": "white"}}
            text = f"{escape(curve.name)}: {escape(spec.star)} %{{x:.4g}}<br>%{{y:.4g}}<extra></extra>"
            x, y = curve.starred
            canvas.points(x, y, marker, name=escape(spec.star), hovertemplate=text, showlegend=not starred, **group)
            starred = True
    if spec.rug:
        floor = float(finite[finite > 0].min()) if spec.y_axis.log and (finite > 0).any() else 0.0
        marker = {"symbol": "line-ns-open", "size": 12, "color": style.REFERENCE_COLOR}
        canvas.points(spec.rug, np.full(len(spec.rug), floor), marker, name="eigenvalues")
    canvas.axes(
        x=_decades(spec.x_axis, [c.x for c in spec.curves]), y=_decades(spec.y_axis, [c.y for c in spec.curves])
    )
    if spec.equal:
        canvas.axes(y={"scaleanchor": canvas.anchor})


def _draw_band(canvas: Canvas, curve: Curve, color: str, group: dict[str, str]) -> None:
    if curve.low is None or curve.high is None:
        return
    edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, **group}
    red, green, blue = (int(color[k : k + 2], 16) for k in (1, 3, 5))
    shade = {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},0.2)"}
    canvas.add("scatter", x=curve.x, y=curve.low, **edge)
    canvas.add("scatter", x=curve.x, y=curve.high, **shade, **edge)


def _decades(axis: Axis, values: list[FloatArray]) -> dict[str, Any]:
    # whole numbers on a logarithmic axis: plotly's own labels show a lone 2 or 5 between powers
    known = np.concatenate([*values, np.zeros(0)])
    known = known[np.isfinite(known) & (known > 0)]
    if not (axis.log and known.size):
        return {}
    low, high = (float(known.min()), float(known.max())) if axis.limits is None else axis.limits
    if low == high:  # a run of one epoch: plotly names the one value by itself
        return {}
    ticks = nice_ticks(low, high, True)
    return {"tickvals": list(ticks), "ticktext": [style.format_number(t) for t in ticks]}


def draw_paths(canvas: Canvas, spec: Contour) -> None:
    """Draw paths, what they lead to large."""
    for number, path in enumerate(spec.paths):
        look = style.curve_style(number)
        data = path.steps[:, None].astype(np.float64)
        template = f"{path.counted} %{{customdata[0]}}"
        if path.distance is not None:
            data = np.column_stack([data, path.distance])
            template += "<br>distance from the plane %{customdata[1]:.3g}"
        casing = {"color": "white", "width": 5}  # tells a path from any color below it
        canvas.add("scatter", x=path.x, y=path.y, mode="lines", line=casing, showlegend=False, hoverinfo="skip")
        line = {"color": look.color, "width": 2, "dash": look.plotly_dash}
        sizes = np.full(path.x.size, 5)
        sizes[list(path.stars)] = 11
        marker = {"size": sizes, "symbol": look.plotly_marker, "line": {"width": 1, "color": "white"}}
        hover = {"customdata": data, "hovertemplate": template + "<extra></extra>"}
        some = {"mode": "lines+markers", "line": line, "marker": marker, "showlegend": len(spec.paths) > 1}
        canvas.add("scatter", x=path.x, y=path.y, name=escape(path.name), **some, **hover)


def draw_scatter(canvas: Canvas, spec: Scatter) -> None:
    """Draw estimates with intervals and the single seeds behind them."""
    if spec.front:  # steps: between two methods nothing better is known than the cheaper one
        x, y = np.array(spec.front).T
        line = {"color": style.REFERENCE_COLOR, "dash": "dash", "width": 1, "shape": "hv"}
        canvas.add("scatter", x=x, y=y, mode="lines", name="Pareto front", line=line)
    if spec.diagonal:
        x = np.sort([estimate.x for estimate in spec.estimates])[[0, -1]]
        line = {"color": style.REFERENCE_COLOR, "dash": "dot", "width": 1}
        canvas.add("scatter", x=x, y=x, mode="lines", name=spec.diagonal, line=line)
    for estimate, look, first in spec.styled:
        name = escape(estimate.name)
        marker = {"color": look.color, "symbol": look.plotly_marker}
        if estimate.seeds:
            x, y = np.array(estimate.seeds).T
            quiet = {"showlegend": False, "legendgroup": name, "opacity": 0.4}
            canvas.points(x, y, marker | {"size": 6}, name=f"{name}, single seed", **quiet)
        options: dict[str, Any] = {"name": name, "legendgroup": name, **({} if first else {"showlegend": False})}
        if estimate.interval is not None:
            low, high = estimate.interval
            ends = {"array": np.array([high - estimate.y]), "arrayminus": np.array([estimate.y - low])}
            options["error_y"] = {"type": "data", **ends}
        canvas.points(np.array([estimate.x]), np.array([estimate.y]), marker | {"size": 11}, **options)
