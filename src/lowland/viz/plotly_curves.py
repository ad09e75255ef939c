"""Plotly traces of curves with bands, and of estimates with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from lowland.viz import style
from lowland.viz.plotly_text import Place, anchor_of, escape
from lowland.viz.spec import Line, Scatter

__all__ = ["draw_line", "draw_scatter"]


def draw_line(figure: go.Figure, spec: Line, place: Place) -> None:
    """Draw curves with their bands, marked points and rug.

    Args:
        figure: The plotly figure.
        spec: What to draw.
        place: Row and column of the subplot; empty for a figure of one.
    """
    number = 0
    finite = np.concatenate([c.y[np.isfinite(c.y)] for c in spec.curves] or [np.zeros(0)])
    top = float(finite.max()) if finite.size else 1.0
    for curve in spec.curves:
        look = style.curve_style(number)
        number += not curve.reference
        line: dict[str, Any] = {"color": look.colour, "dash": look.plotly_dash, "width": 2}
        if curve.reference:
            line = {"color": style.REFERENCE_COLOUR, "dash": "dot", "width": 1.5}
        name = escape(curve.name)
        group = {"legendgroup": name}
        if curve.low is not None and curve.high is not None:
            edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", **group}
            figure.add_trace(go.Scatter(x=curve.x, y=curve.low, showlegend=False, **edge), **place)
            shade = go.Scatter(x=curve.x, y=curve.high, fill="tonexty", fillcolor=_transparent(line["color"]),
                               name=f"{name}: {escape(curve.band)}", showlegend=bool(curve.band), **edge)  # fmt: skip
            figure.add_trace(shade, **place)
        marker = {"symbol": look.plotly_marker, "size": 6}
        mode = "lines+markers" if curve.markers else "lines"
        figure.add_trace(
            go.Scatter(
                x=curve.x, y=curve.y, mode=mode, name=name, line=line, marker=marker, connectgaps=False, **group
            ),
            **place,
        )
        for kind, x in curve.marks.items():
            mark = style.MARKS[kind]
            figure.add_trace(
                go.Scatter(x=x, y=np.full(x.size, top), mode="markers", name=f"{name}: {mark.label} ({x.size})",
                           marker={"symbol": mark.plotly_symbol, "color": mark.colour, "size": 8}, **group),
                **place,
            )  # fmt: skip
    if spec.rug:
        floor = float(finite[finite > 0].min()) if spec.y_axis.log and (finite > 0).any() else 0.0
        figure.add_trace(
            go.Scatter(x=spec.rug, y=np.full(len(spec.rug), floor), mode="markers", name="eigenvalues",
                       marker={"symbol": "line-ns-open", "size": 12, "color": style.REFERENCE_COLOUR}),
            **place,
        )  # fmt: skip
    if spec.equal:
        figure.update_yaxes(scaleanchor=anchor_of(figure, place), **place)


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.2)"


def draw_scatter(figure: go.Figure, spec: Scatter, place: Place) -> None:
    """Draw estimates with intervals and the single seeds behind them.

    Args:
        figure: The plotly figure.
        spec: What to draw.
        place: Row and column of the subplot; empty for a figure of one.
    """
    for number, estimate in enumerate(spec.estimates):
        look = style.curve_style(number)
        name = escape(estimate.name)
        if estimate.seeds:
            x, y = np.array(estimate.seeds).T
            figure.add_trace(
                go.Scatter(x=x, y=y, mode="markers", showlegend=False, legendgroup=name, opacity=0.4,
                           name=f"{name}, single seed",
                           marker={"color": look.colour, "symbol": look.plotly_marker, "size": 6}),
                **place,
            )  # fmt: skip
        bars = None
        if estimate.interval is not None:
            low, high = estimate.interval
            bars = {"type": "data", "array": [high - estimate.y], "arrayminus": [estimate.y - low]}
        figure.add_trace(
            go.Scatter(x=[estimate.x], y=[estimate.y], mode="markers", name=name, legendgroup=name, error_y=bars,
                       marker={"color": look.colour, "symbol": look.plotly_marker, "size": 11}),
            **place,
        )  # fmt: skip
