"""Fields drawn with matplotlib: contours, surfaces and heat maps, with marked points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, Normalize
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from lowland.viz import style
from lowland.viz.field import Field, Mark
from lowland.viz.matplotlib_curves import below, draw_paths
from lowland.viz.spec import Axis, Contour, HeatMap, Scale, Surface3D

_NARROW = 4.0
"""Width of a figure in inches below which a legend has one column."""


def _norm_of(scale: Scale) -> Normalize:
    return (LogNorm if scale.log else Normalize)(scale.minimum, scale.maximum)


def draw_contour(axes: Axes, spec: Contour) -> ScalarMappable:
    """Draw contour lines, filled or not, with paths and marked points."""
    field, scale = spec.field, spec.scale
    norm, colors = _norm_of(scale), scale.color_map
    shown = np.ma.masked_invalid(field.shown.T)  # matplotlib wants rows along y
    drawable = min(shown.shape) > 1 and bool((~np.ma.getmaskarray(shown)).any())
    if not field.finished:
        # Lines need whole cells; the points that are there are shown one by one.
        axes.pcolormesh(field.x, field.y, shown, norm=norm, cmap=colors, shading="nearest", zorder=0.5)
    elif spec.filled and drawable:
        bands: dict[str, Any] = {"levels": list(scale.levels), "norm": norm, "cmap": colors, "extend": "both"}
        filled = axes.contourf(field.x, field.y, shown, zorder=0.5, **bands)
        filled.set_edgecolor("face")  # no white hairlines between the bands in PDF viewers
        filled.set_linewidth(0.2)
    if drawable:
        ink: dict[str, Any] = {"colors": "white", "alpha": 0.75} if spec.filled else {"cmap": colors, "norm": norm}
        lines = axes.contour(field.x, field.y, shown, levels=list(scale.levels), linewidths=0.6, **ink)
        named = scale.levels[::2] if len(scale.levels) > 9 else scale.levels  # more would hide the lines
        axes.clabel(lines, named, fmt=style.format_number, fontsize=style.FONT_SIZE - 2, inline=True, inline_spacing=2)
    _frame_plane(axes, field, spec.x_axis, spec.y_axis)
    _mark_points(axes, spec.x_axis, spec.marks)
    draw_paths(axes, spec)
    if spec.cross:
        for color, width in (("white", 1.4), ("black", 0.7)):
            axes.plot([0], [0], "+", color=color, markersize=6, markeredgewidth=width, zorder=4)
    return ScalarMappable(norm, colors)


def _frame_plane(axes: Axes, field: Field, x_axis: Axis, y_axis: Axis) -> None:
    left, right, bottom, top = field.extent
    axes.set_xlim(*(x_axis.limits if x_axis.limits and left < right else (left - 0.5, right + 0.5)))
    axes.set_ylim(*(y_axis.limits if y_axis.limits and bottom < top else (bottom - 0.5, top + 0.5)))
    for view in (axes.xaxis, axes.yaxis):
        view.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    if field.square:
        axes.set_aspect("equal", adjustable="box")


def _mark_points(axes: Axes, x_axis: Axis, marks: Sequence[Mark]) -> None:
    for mark in marks:
        axes.plot(mark.x, mark.y, **_symbols(mark), zorder=3, clip_on=False)
        for x, y, text in zip(mark.x, mark.y, mark.texts, strict=False):
            halo = [withStroke(linewidth=1.5, foreground="white")]
            beside: dict[str, Any] = {"xytext": (3, 3), "textcoords": "offset points", "path_effects": halo}
            axes.annotate(text, (x, y), **beside, color=mark.look.color, zorder=3.1)
    if marks:
        figure = axes.get_figure(root=True)
        # a legend wider than its axes would push the color bar away
        columns = 1 if figure is not None and figure.get_figwidth() < _NARROW else 2
        axes.legend(**below(axes, x_axis), ncols=columns, handletextpad=0.2)


def _symbols(mark: Mark) -> dict[str, Any]:
    look: dict[str, Any] = {
        "marker": mark.look.matplotlib_marker,
        "color": mark.look.color,
        "markersize": mark.look.size,
    }
    look |= {"markeredgewidth": 0.6}
    if mark.kind == "interpolated":  # pale: an edge shows it on white, in the legend
        look |= {"markeredgewidth": 0.25, "markeredgecolor": "#6a6a6a"}
    return {"linestyle": "none", "label": mark.label, **look}


def draw_surface(axes: Any, spec: Surface3D) -> ScalarMappable:
    """Draw a surface in three dimensions."""
    field, scale = spec.field, spec.scale
    heights = scale.transform(field.shown)
    low, high = scale.ends
    norm = Normalize(low, high)
    colors = mpl.colormaps[scale.color_map]
    x, y = np.meshgrid(field.x, field.y, indexing="ij")
    flat = {"linewidth": 0, "antialiased": False, "shade": False, "rasterized": field.values.size > 10_000}
    faces = colors(norm(np.nan_to_num(heights, nan=low)))
    axes.plot_surface(x, y, heights, facecolors=faces, rcount=101, ccount=101, **flat)
    axes.set_xlim(*field.extent[:2])
    axes.set_ylim(*field.extent[2:])
    axes.set_zlim(low, high)
    places, texts = scale.labels
    axes.set_zticks(places, labels=texts)
    axes.set_zlabel(scale.label)
    for view in (axes.xaxis, axes.yaxis):
        view.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.view_init(elev=32, azim=-58)
    marks = list(spec.marks)
    for mark, z in marks:
        axes.plot(mark.x, mark.y, z, **_symbols(mark))
    if marks:
        axes.legend(loc="upper left")
    return ScalarMappable(_norm_of(scale), scale.color_map)


def draw_heat_map(axes: Axes, spec: HeatMap) -> ScalarMappable | None:
    """Draw one colored cell per point."""
    field = spec.field
    norm, colors = _heat_colors(spec)
    shown = np.ma.masked_invalid(field.shown.T)
    # edges in the color of their cell: no white hairlines between the cells in PDF viewers
    edges: dict[str, Any] = {"edgecolors": "face", "linewidth": 0.2}
    axes.pcolormesh(field.x, field.y, shown, norm=norm, cmap=colors, shading="nearest", **edges)
    half_x, half_y = (0.5 * float(np.ptp(v)) / max(1, v.size - 1) or 0.5 for v in (field.x, field.y))
    left, right, bottom, top = field.extent
    x_axis = replace(spec.x_axis, limits=(left - half_x, right + half_x))
    _frame_plane(axes, field, x_axis, replace(spec.y_axis, limits=(bottom - half_y, top + half_y)))
    if spec.categories:
        patches = [Patch(color=style.CATEGORY_COLORS[k], label=name) for k, name in enumerate(spec.categories)]
        axes.legend(handles=patches, **below(axes, spec.x_axis), title=spec.scale.label)
        return None
    _mark_points(axes, spec.x_axis, field.marks())
    return ScalarMappable(norm, colors)


def _heat_colors(spec: HeatMap) -> tuple[Normalize, Any]:
    if not spec.categories:
        return _norm_of(spec.scale), spec.scale.color_map
    count = len(spec.categories)
    return BoundaryNorm(np.arange(count + 1) - 0.5, count), ListedColormap(style.CATEGORY_COLORS[:count])
