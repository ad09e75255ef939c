"""Curves with bands, paths, and estimates with intervals, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from lowland.viz import style
from lowland.viz.field import FloatArray
from lowland.viz.spec import Contour, Line, Scatter
from lowland.viz.style import CurveStyle


def draw_line(axes: Axes, spec: Line) -> None:
    """Draw curves with their bands, marked points and rug."""
    entries: list[tuple[Any, str]] = []
    for curve, look in spec.styled:
        drawn = _plot(axes, curve.x, curve.y, look, marked=curve.markers, label=curve.name)
        handle: Any = drawn
        if curve.low is not None and curve.high is not None:
            shade = axes.fill_between(curve.x, curve.low, curve.high, color=look.color, alpha=0.2, linewidth=0)
            handle = (shade, drawn)
        entries.append((handle, curve.entry))
        for x, mark, label in curve.gaps:  # along the upper edge, since these points have no height
            ticks = _along_edge(axes, x, 0.98, marker=mark.matplotlib_marker, color=mark.color)
            entries.append((ticks, label))
    if spec.rug:
        ticks = _along_edge(axes, np.asarray(spec.rug), 0.015, marker="|", color="black", markersize=7)
        entries.append((ticks, "eigenvalues"))
    _scale_axes(axes, spec)
    if spec.equal:
        axes.set_aspect("equal", adjustable="datalim")
    if len(entries) > 1 or any(curve.band for curve in spec.curves):
        handles, labels = zip(*entries, strict=True)
        axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=_columns(labels, 2))


def draw_paths(axes: Axes, spec: Contour) -> None:
    """Draw training paths with a star at their end."""
    for number, path in enumerate(spec.paths):
        look = style.curve_style(number)
        axes.plot(path.x, path.y, color="white", linewidth=2.2, zorder=3.5)
        _plot(axes, path.x, path.y, look, label=path.name, linewidth=1.1, zorder=3.6)
        axes.plot(path.x[-1:], path.y[-1:], "*", color=look.color, markeredgecolor="white", markersize=8, zorder=3.7)
    if spec.paths:
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.17), ncols=2)


def _plot(axes: Axes, x: FloatArray, y: FloatArray, look: CurveStyle, *, marked: bool = True, **options: Any) -> Any:
    marker = look.matplotlib_marker if marked else ""
    some: dict[str, Any] = {"marker": marker, "markersize": 2.6, "markevery": max(1, x.size // 15)}
    return axes.plot(x, y, look.matplotlib_dash, color=look.color, **some, **options)[0]


def _along_edge(axes: Axes, x: FloatArray, height: float, **look: Any) -> Any:
    heights = np.full(x.size, height)  # of the axes' height
    return axes.plot(x, heights, linestyle="none", transform=axes.get_xaxis_transform(), **look)[0]


def draw_scatter(axes: Axes, spec: Scatter) -> None:
    """Draw estimates with intervals and the single seeds behind them."""
    if spec.front:  # steps: between two methods nothing better is known than the cheaper one
        x, y = np.array(spec.front).T
        steps: dict[str, Any] = {"linestyle": "--", "linewidth": 1, "drawstyle": "steps-post", "zorder": 1}
        axes.plot(x, y, color=style.REFERENCE_COLOR, label="Pareto front", **steps)
    for number, estimate in enumerate(spec.estimates):
        look = style.curve_style(number)
        marker, color = look.matplotlib_marker, look.color
        if estimate.seeds:
            sx, sy = np.array(estimate.seeds).T
            axes.plot(sx, sy, marker, color=color, alpha=0.35, markersize=3, linestyle="none")
        error = None
        if estimate.interval is not None:
            error = [[estimate.y - estimate.interval[0]], [estimate.interval[1] - estimate.y]]
        ends: dict[str, Any] = {"yerr": error, "fmt": marker, "markersize": 5, "capsize": 2.5}
        axes.errorbar([estimate.x], [estimate.y], color=color, label=estimate.name, **ends)
    _scale_axes(axes, spec)
    names = [estimate.name for estimate in spec.estimates]
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=_columns(names, 3))


def _columns(labels: Sequence[str], most: int) -> int:
    # as many columns as short names allow: long ones beside each other run out of the figure
    return 1 if len(labels) < 3 or max(map(len, labels)) > _SHORT[most] else most


_SHORT = {2: 34, 3: 22}
"""Longest name, in characters, of a legend of so many columns at the default width of 4.2 inches."""


def _scale_axes(axes: Axes, spec: Line | Scatter) -> None:
    for name, axis, view in (("x", spec.x_axis, axes.xaxis), ("y", spec.y_axis, axes.yaxis)):
        if axis.log:  # plain numbers: the default formatter writes mathematics, which is switched off here
            axes.set(**{f"{name}scale": "log"})
            view.set_major_formatter(FuncFormatter(lambda value, _: style.format_number(value)))
            view.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        if axis.limits is not None:
            axes.set(**{f"{name}lim": axis.limits})
