"""How figures look: color maps, colors, markers, sizes and fonts, the same for every backend.

The color maps are perceptually uniform in lightness and safe for readers with any color deficiency (viridis
family: Smith and van der Walt 2015; cividis: Nunez, Anderton and Renslow 2018). Curves use the palette of Okabe
and Ito (2008), and besides the color each curve has its own dash and marker.
"""

from __future__ import annotations

from dataclasses import dataclass

from lowland.core.errors import require

COLOR_MAPS: dict[str, str] = {
    "viridis": "Viridis",
    "cividis": "Cividis",
    "magma": "Magma",
    "inferno": "Inferno",
    "plasma": "Plasma",
}
"""Name (as in matplotlib) -> name in plotly."""

FONT = "DejaVu Sans"  # ships with matplotlib, so a figure looks the same on every machine
FONT_SIZE = 8.0  # points; the size of captions in two-column papers
REFERENCE_COLOR = "#7f7f7f"

_WIDTHS = {
    "icml": (3.25, 6.75),
    "neurips": (2.7, 5.5),  # one column of text: half of its width, and all of it
    "iclr": (2.7, 5.5),
    "jmlr": (2.95, 6.0),
    "cvpr": (3.25, 6.875),
    "acl": (3.03, 6.3),
    "ieee": (3.5, 7.16),
    "acm": (3.33, 7.0),
    "nature": (3.5, 7.2),  # 89 and 183 mm
    "elsevier": (3.54, 7.48),  # 90 and 190 mm
}
"""Widths in inches of one column and of two, from the templates of venues."""

SIZES: dict[str, tuple[float, float]] = {
    "column": (3.4, 2.9),
    "text": (6.9, 4.2),
    "slide": (10.0, 5.6),
    **{f"{venue}-column": (one, round(0.85 * one, 2)) for venue, (one, _) in _WIDTHS.items()},
    **{f"{venue}-text": (two, round(0.6 * two, 2)) for venue, (_, two) in _WIDTHS.items()},
}
"""Named figure sizes in inches: one column, the text width of a two-column paper, a 16:9 slide; those of venues."""

CATEGORY_COLORS = ("#D55E00", "#BBBBBB", "#0072B2")
"""Vermilion, gray, blue for three-valued maps: tell apart under every color deficiency and in gray print."""


@dataclass(frozen=True, slots=True)
class CurveStyle:
    """Color (hex), dash and marker of a curve, in the words of matplotlib and of plotly."""

    color: str
    matplotlib_dash: str
    plotly_dash: str
    matplotlib_marker: str
    plotly_marker: str


CURVES: tuple[CurveStyle, ...] = (
    CurveStyle("#0072B2", "-", "solid", "o", "circle"),
    CurveStyle("#D55E00", "--", "dash", "s", "square"),
    CurveStyle("#009E73", "-.", "dashdot", "^", "triangle-up"),
    CurveStyle("#CC79A7", ":", "dot", "D", "diamond"),
    CurveStyle("#56B4E9", "-", "solid", "v", "triangle-down"),
    CurveStyle("#E69F00", "--", "dash", "P", "cross"),
    CurveStyle("#8C6D31", "-.", "dashdot", "X", "x"),
    CurveStyle("#6F4E9C", ":", "dot", "*", "star"),
)


SIGNS = {
    1: {"matplotlib_marker": "^", "plotly_marker": "triangle-up"},
    -1: {"matplotlib_marker": "v", "plotly_marker": "triangle-down"},
}
"""Markers of a curve that shows the size of values above zero, or below it."""


@dataclass(frozen=True, slots=True)
class MarkStyle:
    """How a kind of grid point is marked, and what the legend calls it."""

    label: str
    color: str
    matplotlib_marker: str
    plotly_symbol: str
    size: float


MARKS: dict[str, MarkStyle] = {
    "open": MarkStyle("not computed yet", "#9a9a9a", ".", "circle", 1.6),
    "failed": MarkStyle("failed", "#D55E00", "x", "x", 5.0),
    "nan": MarkStyle("not a number", "#CC79A7", "D", "diamond", 4.0),
    "inf": MarkStyle("+infinite", "#E69F00", "^", "triangle-up", 4.5),
    "-inf": MarkStyle("−infinite", "#56B4E9", "v", "triangle-down", 4.5),
    "measured": MarkStyle("measured", "#202020", ".", "circle", 2.0),
    "interpolated": MarkStyle("interpolated", "#f5f5f5", ".", "circle", 1.2),
    "minimum": MarkStyle("basin", "#D55E00", "o", "circle", 4.0),
    "edge minimum": MarkStyle("basin, lowest on the edge", "#D55E00", "s", "square", 4.0),
    "saddle": MarkStyle("saddle", "#CC79A7", "X", "x", 5.0),
}


def format_number(value: float) -> str:
    """Write a number for a label: three digits, no trailing zeros, a true minus sign."""
    return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace("-", "−")


def curve_style(index: int) -> CurveStyle:
    """Return the style of the n-th curve; styles repeat after eight."""
    return CURVES[index % len(CURVES)]


def figure_size(size: str | tuple[float, float]) -> tuple[float, float]:
    """Return a size in inches."""
    if isinstance(size, str):
        require(size in SIZES, "size", f"must be one of {', '.join(SIZES)} or (width, height) in inches", size)
        return SIZES[size]
    width, height = float(size[0]), float(size[1])
    require(0 < width < 200 and 0 < height < 200, "size", "must be between 0 and 200 inches", size)
    return width, height
