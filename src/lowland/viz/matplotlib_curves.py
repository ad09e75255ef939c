"""Curves with bands, and estimates with intervals, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from lowland.viz import style
from lowland.viz.scale import format_number
from lowland.viz.spec import Curve, Line, Scatter

__all__ = ["draw_line", "draw_scatter"]


def draw_line(axes: Axes, spec: Line) -> None:
    """Draw curves with their bands, marked points and rug."""
    entries: list[tuple[Any, str]] = []
    number = 0
    for curve in spec.curves:
        look = style.curve_style(number)
        color = style.REFERENCE_COLOR if curve.reference else look.color
        dash = ":" if curve.reference else look.matplotlib_dash
        number += not curve.reference
        (drawn,) = axes.plot(
            curve.x, curve.y, dash, color=color, marker=look.matplotlib_marker if curve.markers else "",
            markersize=2.6, markevery=max(1, curve.x.size // 15), label=curve.name,
        )  # fmt: skip
        handle: Any = drawn
        if curve.low is not None and curve.high is not None:
            shade = axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.2, linewidth=0)
            handle = (shade, drawn)
        entries.append((handle, f"{curve.name}, {curve.band}" if curve.band else curve.name))
        entries.extend(_mark_gaps(axes, curve))
    if spec.rug:
        (ticks,) = axes.plot(spec.rug, np.full(len(spec.rug), 0.015), "|", color="black", markersize=7,
                             transform=axes.get_xaxis_transform())  # fmt: skip
        entries.append((ticks, "eigenvalues"))
    _scale_axes(axes, spec)
    if spec.equal:
        axes.set_aspect("equal", adjustable="datalim")
    if len(entries) > 1 or any(curve.band for curve in spec.curves):
        handles, labels = zip(*entries, strict=True)
        axes.legend(handles, labels, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=_columns(labels, 2))


def _mark_gaps(axes: Axes, curve: Curve) -> Iterator[tuple[Any, str]]:
    # along the upper edge, since these points have no height
    for kind, x in curve.marks.items():
        mark = style.MARKS[kind]
        (drawn,) = axes.plot(x, np.full(x.size, 0.98), mark.matplotlib_marker, color=mark.color, linestyle="none",
                             transform=axes.get_xaxis_transform())  # fmt: skip
        yield drawn, f"{curve.name}: {mark.label} ({x.size})"


def draw_scatter(axes: Axes, spec: Scatter) -> None:
    """Draw estimates with intervals and the single seeds behind them."""
    if spec.front:  # steps: between two methods nothing better is known than the cheaper one
        x, y = np.array(spec.front).T
        axes.plot(x, y, color=style.REFERENCE_COLOR, linestyle="--", linewidth=1, drawstyle="steps-post", zorder=1,
                  label="Pareto front")  # fmt: skip
    for number, estimate in enumerate(spec.estimates):
        look = style.curve_style(number)
        if estimate.seeds:
            sx, sy = np.array(estimate.seeds).T
            axes.plot(sx, sy, look.matplotlib_marker, color=look.color, alpha=0.35, markersize=3, linestyle="none")
        error = None
        if estimate.interval is not None:
            error = [[estimate.y - estimate.interval[0]], [estimate.interval[1] - estimate.y]]
        axes.errorbar([estimate.x], [estimate.y], yerr=error, fmt=look.matplotlib_marker, color=look.color,
                      markersize=5, capsize=2.5, label=estimate.name)  # fmt: skip
    _scale_axes(axes, spec)
    names = [estimate.name for estimate in spec.estimates]
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.2), ncols=_columns(names, 3))


def _columns(labels: Sequence[str], most: int) -> int:
    # as many columns as short names allow: long ones beside each other run out of the figure
    return 1 if len(labels) < 3 or max(map(len, labels)) > _SHORT[most] else most


_SHORT = {2: 34, 3: 22}
"""Longest name, in characters, of a legend of so many columns at the default width of 4.2 inches."""


def _scale_axes(axes: Axes, spec: Line | Scatter) -> None:
    for axis, scale, limits in (
        (spec.x_axis, axes.set_xscale, axes.set_xlim),
        (spec.y_axis, axes.set_yscale, axes.set_ylim),
    ):
        if axis.log:
            scale("log")
        if axis.limits is not None:
            limits(*axis.limits)
    for axis, view in ((spec.x_axis, axes.xaxis), (spec.y_axis, axes.yaxis)):
        if axis.log:  # plain numbers: the default formatter writes mathematics, which is switched off here
            view.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
            view.set_minor_formatter(FuncFormatter(lambda value, _: ""))
