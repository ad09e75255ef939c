"""Curves with bands, paths, and estimates with intervals, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter
from matplotlib.transforms import ScaledTranslation

from lowland.viz import style
from lowland.viz.field import FloatArray
from lowland.viz.scale import nice_ticks
from lowland.viz.spec import Axis, Contour, Line, Scatter
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
        axes.plot(*curve.starred, "*", color=look.color, markeredgecolor="white", markersize=9, zorder=4)
    if any(curve.stars for curve in spec.curves):
        entries.append((Line2D([], [], linestyle="none", marker="*", color="black", markersize=7), spec.star))
    if spec.rug:
        ticks = _along_edge(axes, np.asarray(spec.rug), 0.015, marker="|", color="black", markersize=7)
        entries.append((ticks, "eigenvalues"))
    _scale_axes(axes, spec)
    if spec.equal:
        axes.set_aspect("equal", adjustable="datalim")
    if len(entries) > 1 or any(curve.band for curve in spec.curves):
        handles, labels = zip(*entries, strict=True)
        axes.legend(handles, labels, **below(axes, spec.x_axis), ncols=_columns(axes, labels, 2))


def draw_paths(axes: Axes, spec: Contour) -> None:
    """Draw paths with stars at what they lead to."""
    for number, path in enumerate(spec.paths):
        look = style.curve_style(number)
        axes.plot(path.x, path.y, color="white", linewidth=2.2, zorder=3.5)
        _plot(axes, path.x, path.y, look, label=path.name, linewidth=1.1, zorder=3.6)
        stars = list(path.stars)
        axes.plot(
            path.x[stars], path.y[stars], "*", color=look.color, markeredgecolor="white", markersize=8, zorder=3.7
        )
    if spec.paths:
        axes.legend(**below(axes, spec.x_axis), ncols=2)


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
    if spec.diagonal:
        line = np.sort([estimate.x for estimate in spec.estimates])[[0, -1]]
        axes.plot(line, line, ":", color=style.REFERENCE_COLOR, label=spec.diagonal, linewidth=1, zorder=1)
    for estimate, look, first in spec.styled:
        marker, color = look.matplotlib_marker, look.color
        if estimate.seeds:
            sx, sy = np.array(estimate.seeds).T
            axes.plot(sx, sy, marker, color=color, alpha=0.35, markersize=3, linestyle="none")
        error = None
        if estimate.interval is not None:
            error = [[estimate.y - estimate.interval[0]], [estimate.interval[1] - estimate.y]]
        ends: dict[str, Any] = {"yerr": error, "fmt": marker, "markersize": 5, "capsize": 2.5}
        axes.errorbar([estimate.x], [estimate.y], color=color, label=estimate.name if first else "_", **ends)
    _scale_axes(axes, spec)
    names = list({estimate.name: None for estimate in spec.estimates})
    axes.legend(**below(axes, spec.x_axis), ncols=_columns(axes, names, 3))


def _columns(axes: Axes | None, labels: Sequence[str], most: int) -> int:
    # as many columns as short names allow: long ones beside each other run out of the figure
    figure = None if axes is None else axes.get_figure(root=True)  # none: of the default width
    room = _SHORT[most] * (1.0 if figure is None else figure.get_figwidth() / 4.2)
    return 1 if len(labels) < 3 or max(map(len, labels)) > room else most


_SHORT = {2: 34, 3: 22}
"""Longest name, in characters, of a legend of so many columns at the default width of 4.2 inches."""


def turned(axis: Axis) -> bool:
    """Tell whether what stands at an x axis is too long for one row."""
    return sum(map(len, axis.categories)) > _ROW


def rows_below(spec: Line | Scatter) -> int:
    """Count the rows of the legend."""
    if isinstance(spec, Scatter):
        names, most = list({estimate.name: None for estimate in spec.estimates}), 3
    else:
        names, most = [name for curve in spec.curves for name in (curve.entry, *(gap[2] for gap in curve.gaps))], 2
    return -(-len(names) // _columns(None, names, most)) if names else 0


def below(axes: Axes, axis: Axis) -> dict[str, Any]:
    """Return where a legend begins: under the labels of the x axis, a length in inches at every size of a figure."""
    length = 0.42 if not turned(axis) else 0.4 + 0.06 * max(map(len, axis.categories))
    figure = axes.get_figure(root=True)
    assert figure is not None
    down = ScaledTranslation(0, -length, figure.dpi_scale_trans)
    return {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": axes.transAxes + down, "borderaxespad": 0}


_ROW = 50
"""Characters of categories that stand beside each other under a figure of the default width; more are turned."""


def _scale_axes(axes: Axes, spec: Line | Scatter) -> None:
    for name, axis, view in (("x", spec.x_axis, axes.xaxis), ("y", spec.y_axis, axes.yaxis)):
        if axis.limits is not None:
            axes.set(**{f"{name}lim": axis.limits})
        if axis.log:  # plain numbers: the default formatter writes mathematics, which is switched off here
            axes.set(**{f"{name}scale": "log"})
            low, high = sorted(view.get_view_interval())
            if 0 < low < high:  # the default locator leaves less than a decade with one number
                view.set_major_locator(FixedLocator(nice_ticks(low, high, True)))
            view.set_major_formatter(FuncFormatter(lambda value, _: style.format_number(value)))
            view.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        if axis.categories:
            view.set_ticks(range(1, len(axis.categories) + 1), axis.categories)
            view.set_tick_params(labelrotation=90 if name == "x" and turned(axis) else 0)
