"""Plotly traces of curves with bands, and of estimates with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from lowland.viz import style
from lowland.viz.field import FloatArray
from lowland.viz.plotly_text import Place, anchor_of, escape
from lowland.viz.scale import format_number, nice_ticks
from lowland.viz.spec import Axis, Line, Scatter

__all__ = ["draw_line", "draw_scatter"]


def draw_line(figure: go.Figure, spec: Line, place: Place) -> None:
    """Draw curves with their bands, marked points and rug."""
    number = 0
    finite = np.concatenate([c.y[np.isfinite(c.y)] for c in spec.curves] or [np.zeros(0)])
    top = float(finite.max()) if finite.size else 1.0
    for curve in spec.curves:
        look = style.curve_style(number)
        number += not curve.reference
        line: dict[str, Any] = {"color": look.color, "dash": look.plotly_dash, "width": 2}
        if curve.reference:
            line = {"color": style.REFERENCE_COLOR, "dash": "dot", "width": 1.5}
        name = escape(curve.name)
        entry = f"{name}, {escape(curve.band)}" if curve.band else name
        group = {"legendgroup": name}
        if curve.low is not None and curve.high is not None:
            edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", **group}
            figure.add_trace(go.Scatter(x=curve.x, y=curve.low, showlegend=False, **edge), **place)
            shade = go.Scatter(x=curve.x, y=curve.high, fill="tonexty", fillcolor=_transparent(line["color"]),
                               showlegend=False, **edge)  # fmt: skip
            figure.add_trace(shade, **place)
        marker = {"symbol": look.plotly_marker, "size": 6}
        mode = "lines+markers" if curve.markers else "lines"
        figure.add_trace(
            go.Scatter(
                x=curve.x, y=curve.y, mode=mode, name=entry, line=line, marker=marker, connectgaps=False, **group
            ),
            **place,
        )
        for kind, x in curve.marks.items():
            mark = style.MARKS[kind]
            figure.add_trace(
                go.Scatter(x=x, y=np.full(x.size, top), mode="markers", name=f"{name}: {mark.label} ({x.size})",
                           marker={"symbol": mark.plotly_symbol, "color": mark.color, "size": 8}, **group),
                **place,
            )  # fmt: skip
    if spec.rug:
        floor = float(finite[finite > 0].min()) if spec.y_axis.log and (finite > 0).any() else 0.0
        figure.add_trace(
            go.Scatter(x=spec.rug, y=np.full(len(spec.rug), floor), mode="markers", name="eigenvalues",
                       marker={"symbol": "line-ns-open", "size": 12, "color": style.REFERENCE_COLOR}),
            **place,
        )  # fmt: skip
    _name_decades(figure, spec.x_axis, "update_xaxes", [c.x for c in spec.curves], place)
    _name_decades(figure, spec.y_axis, "update_yaxes", [c.y for c in spec.curves], place)
    if spec.equal:
        figure.update_yaxes(scaleanchor=anchor_of(figure, place), **place)


def _name_decades(figure: go.Figure, axis: Axis, update: str, values: list[FloatArray], place: Place) -> None:
    """Label a logarithmic axis with whole numbers: plotly's own labels show a lone 2 or 5 between powers."""
    known = np.concatenate([*values, np.zeros(0)])
    known = known[np.isfinite(known) & (known > 0)]
    if axis.log and known.size:
        low, high = (float(known.min()), float(known.max())) if axis.limits is None else axis.limits
        if low == high:  # a run of one epoch: plotly names the one value by itself
            return
        ticks = nice_ticks(low, high, True)
        getattr(figure, update)(tickvals=list(ticks), ticktext=[format_number(t) for t in ticks], **place)


def _transparent(color: str) -> str:
    red, green, blue = (int(color[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"


def draw_scatter(figure: go.Figure, spec: Scatter, place: Place) -> None:
    """Draw estimates with intervals and the single seeds behind them."""
    if spec.front:  # steps: between two methods nothing better is known than the cheaper one
        x, y = np.array(spec.front).T
        line = {"color": style.REFERENCE_COLOR, "dash": "dash", "width": 1, "shape": "hv"}
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines", name="Pareto front", line=line), **place)
    for number, estimate in enumerate(spec.estimates):
        look = style.curve_style(number)
        name = escape(estimate.name)
        if estimate.seeds:
            x, y = np.array(estimate.seeds).T
            figure.add_trace(
                go.Scatter(x=x, y=y, mode="markers", showlegend=False, legendgroup=name, opacity=0.4,
                           name=f"{name}, single seed",
                           marker={"color": look.color, "symbol": look.plotly_marker, "size": 6}),
                **place,
            )  # fmt: skip
        bars = None
        if estimate.interval is not None:
            low, high = estimate.interval
            bars = {"type": "data", "array": [high - estimate.y], "arrayminus": [estimate.y - low]}
        figure.add_trace(
            go.Scatter(x=[estimate.x], y=[estimate.y], mode="markers", name=name, legendgroup=name, error_y=bars,
                       marker={"color": look.color, "symbol": look.plotly_marker, "size": 11}),
            **place,
        )  # fmt: skip
