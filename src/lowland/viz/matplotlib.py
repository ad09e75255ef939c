"""Figures for paper: specs drawn with matplotlib; PDF, SVG and PNG with text as text and fonts embedded.

No pyplot and no global state: figures are plain objects that close themselves. User text is never read as
mathematics, so a run called ``$x_1$`` keeps its name.
"""

from __future__ import annotations

import textwrap
from dataclasses import replace
from io import BytesIO
from pathlib import Path as FilePath
from typing import Any

import matplotlib as mpl
import matplotlib.figure
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lowland.core.errors import InputError
from lowland.viz import spec as specs
from lowland.viz import style
from lowland.viz.matplotlib_curves import draw_line, draw_scatter, rows_below, turned
from lowland.viz.matplotlib_fields import draw_contour, draw_heat_map, draw_surface
from lowland.viz.svg import embed_font

_RC: Any = {
    "font.family": style.FONT,
    "font.size": style.FONT_SIZE,
    "axes.titlesize": style.FONT_SIZE + 1,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": style.FONT_SIZE - 1,
    "lines.linewidth": 1.2,
    "text.parse_math": False,
    "text.usetex": False,
    "axes.unicode_minus": True,
    "pdf.fonttype": 42,  # TrueType: text stays text, and journals refuse Type 3
    "svg.fonttype": "none",
    "svg.hashsalt": "lowland",
    "savefig.bbox": None,
}


class MatplotlibFigure(matplotlib.figure.Figure):
    """A matplotlib figure that saves with embedded fonts and shows itself in a notebook without pyplot."""

    def savefig(self, fname: Any, *, transparent: bool | None = None, **options: Any) -> None:
        """Save the figure; PDF and SVG keep text as text and are the same bytes each time."""
        kind = str(options.get("format") or FilePath(str(fname)).suffix.lstrip(".")).lower()
        if kind in ("pdf", "svg") and "metadata" not in options:
            options["metadata"] = {"CreationDate" if kind == "pdf" else "Date": None}
        with mpl.rc_context(_RC):
            if kind != "svg":
                super().savefig(fname, transparent=transparent, **options)
                return
            stream = BytesIO()
            super().savefig(stream, transparent=transparent, **{**options, "format": "svg"})
        text = embed_font(stream.getvalue().decode("utf-8"), style.FONT).encode("utf-8")
        if hasattr(fname, "write"):
            fname.write(text)
        else:
            FilePath(fname).write_bytes(text)

    def _repr_png_(self) -> bytes:
        stream = BytesIO()
        self.savefig(stream, format="png", dpi=144)
        return stream.getvalue()


def draw(spec: specs.Figure, *, size: str | tuple[float, float] | None = None) -> MatplotlibFigure:
    """Draw a spec."""
    if isinstance(spec, specs.Animation | specs.Film):
        raise InputError("backend", "cannot show what moves", "matplotlib", 'use backend="plotly", .gif or .mp4')
    with mpl.rc_context(_RC):
        panels, inches = _arranged(spec, size)
        figure = MatplotlibFigure(figsize=inches, dpi=200.0, layout="compressed")
        FigureCanvasAgg(figure)
        _draw_panels(figure, panels)
        if spec.caption:
            text = "\n".join(_caption_lines(spec.caption, figure.get_figwidth()))
            figure.supxlabel(text, fontsize=style.FONT_SIZE - 2, color="#555555", x=0.01, ha="left")
        if isinstance(spec, specs.Panels) and spec.title:
            figure.suptitle(spec.title, fontsize=style.FONT_SIZE + 2)
    return figure


def save(figure: MatplotlibFigure, path: str | FilePath) -> None:
    """Write a figure to a file whose suffix names the format."""
    figure.savefig(path)


def _arranged(
    spec: specs.Single | specs.Panels, size: str | tuple[float, float] | None
) -> tuple[specs.Panels, tuple[float, float]]:
    """Return panels and a size; those too narrow for a named width stand below each other."""
    width, height = _size(spec, size)
    if not isinstance(spec, specs.Panels):
        return specs.Panels((spec,)), (width, height)
    if not isinstance(size, str):
        return spec, (width, height)
    if width / spec.shape[1] < _NARROW:
        spec = replace(spec, columns=max(1, int(width / _NARROW)))
    rows, columns = spec.shape
    return spec, (width, max(height, 0.85 * rows * width / columns) + _ROW * len(_caption_lines(spec.caption, width)))


def _size(spec: specs.Figure, size: str | tuple[float, float] | None) -> tuple[float, float]:
    if size is not None:
        return style.figure_size(size)
    if isinstance(spec, specs.Panels):
        width = style.SIZES["text"][0]
        rows, columns = spec.shape
        cell = min(width / columns, 3.2)
        return cell * columns + 0.3, cell * 0.98 * rows + 0.4
    if isinstance(spec, specs.Surface3D):
        return 4.6, 3.8
    if isinstance(spec, specs.Line | specs.Scatter):
        return 4.2, (3.8 if turned(spec.x_axis) else 3.0) + _ROW * max(0, rows_below(spec) - _ROWS)
    return 4.2, 3.6


_NARROW = 2.2
"""Width of a panel in inches below which labels, bar and legend leave no room to draw in."""
_SOLID = 4.0
"""Width of a figure in inches below which the labels of a solid stick out of it."""
_ROW = 0.14
"""Height of a row of a legend in inches."""
_ROWS = 3
"""Rows that the default height has room for."""


def _draw_panels(figure: MatplotlibFigure, spec: specs.Panels) -> None:
    colored: list[tuple[Axes, specs.Single, ScalarMappable]] = []
    for number, panel in enumerate(spec.panels, start=1):
        projection = "3d" if isinstance(panel, specs.Surface3D) else None
        axes: Axes = figure.add_subplot(*spec.shape, number, projection=projection)
        if (mappable := _draw_one(axes, panel)) is not None:
            colored.append((axes, panel, mappable))
        # the layout knows nothing of labels that stick out of a solid
        if projection and (len(spec.panels) > 1 or figure.get_figwidth() < _SOLID):
            axes.set(zlabel="")
            axes.tick_params(pad=0)
            axes.xaxis.labelpad = axes.yaxis.labelpad = 1
            axes.set_box_aspect(None, zoom=min(0.84, 0.23 * figure.get_figwidth()))  # type: ignore[call-arg]
            axes.patch.set_visible(False)
    scales = {panel.scale for _, panel, _ in colored if isinstance(panel, specs.OfField)}
    if len(scales) == 1:  # one scale: one bar for all
        _color_bar(figure, colored[0][2], [axes for axes, _, _ in colored], colored[0][1])
    else:
        for axes, panel, mappable in colored:
            _color_bar(figure, mappable, [axes], panel)


def _draw_one(axes: Axes, spec: specs.Single) -> ScalarMappable | None:
    if spec.title:
        axes.set_title("\n".join(textwrap.wrap(spec.title, 46)))
    axes.set_xlabel(spec.x_axis.text)
    axes.set_ylabel(spec.y_axis.text)
    mappable: ScalarMappable | None = _DRAW[type(spec)](axes, spec)
    return mappable


_DRAW: dict[type, Any] = {
    specs.Contour: draw_contour,
    specs.Surface3D: draw_surface,
    specs.HeatMap: draw_heat_map,
    specs.Line: draw_line,
    specs.Scatter: draw_scatter,
}


def _color_bar(figure: MatplotlibFigure, mappable: ScalarMappable, axes: list[Axes], spec: specs.Single) -> None:
    assert isinstance(spec, specs.OfField)
    solid = isinstance(spec, specs.Surface3D)
    bar = figure.colorbar(mappable, ax=axes, shrink=0.85, pad=0.16 if solid else 0.03)
    if not (solid and axes[0].get_zlabel()):  # type: ignore[attr-defined]  # whose axis says it
        bar.set_label(spec.scale.label)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_locator(FixedLocator(spec.scale.ticks))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.format_number(value)))


def _caption_lines(caption: str, width: float) -> list[str]:
    return textwrap.wrap(caption, int(20 * width))
