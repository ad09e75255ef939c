"""What a figure shows, as plain data: no drawing library, no torch.

A builder (`surfaces`, `curves`, `paths`) turns stored results into one of these specs, a backend turns the spec
into its native figure. Everything that a reader could get wrong is decided here once for all backends: which axis
is which, limits, levels, labels, and how a point that was not measured is marked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowland.core.errors import require
from lowland.viz import style
from lowland.viz.field import Field, FloatArray, Mark


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: what it says and how it is scaled."""

    label: str  # What is on it
    unit: str = ""  # Its unit; "" for none
    log: bool = False  # Logarithmic; all values must be positive
    limits: tuple[float, float] | None = None  # First and last value shown; None leaves it to the data
    categories: tuple[str, ...] = ()  # What stands at 1, 2, ... instead of numbers; () for numbers

    @property
    def text(self) -> str:
        """Label with its unit in brackets."""
        return f"{self.label} ({self.unit})" if self.unit and self.unit not in ("1", self.label) else self.label


@dataclass(frozen=True, slots=True)
class Scale:
    """A color (and height) scale that several figures can share."""

    label: str  # What is colored
    minimum: float  # Value at the low end of the color map
    maximum: float  # Value at the high end
    levels: tuple[float, ...]  # Contour levels, ascending, evenly spaced (in the logarithm where ``log``)
    log: bool  # Whether colors follow the logarithm
    ticks: tuple[float, ...]  # Values labelled on the color bar
    color_map: str = "viridis"  # One of `style.COLOR_MAPS`

    def transform(self, values: FloatArray) -> FloatArray:
        """Map values onto the axis on which colors are linear."""
        finite = np.where(np.isfinite(values), values, np.nan)
        if not self.log:
            return finite
        return np.log10(np.where(finite > 0, finite, np.nan))

    @property
    def ends(self) -> tuple[float, float]:
        """Low and high end on that axis."""
        low, high = self.transform(np.array([self.minimum, self.maximum]))
        return float(low), float(high)

    @property
    def labels(self) -> tuple[list[float], list[str]]:
        """Places of the ticks on that axis, and what stands at them."""
        return self.transform(np.array(self.ticks)).tolist(), [style.format_number(tick) for tick in self.ticks]


@dataclass(frozen=True, slots=True)
class Path:
    """A training path in the coordinates of a plane."""

    name: str  # Name of the run
    x: FloatArray  # Coordinates, shape [snapshots]
    y: FloatArray  # Coordinates, shape [snapshots]
    steps: NDArray[np.int64]  # Optimizer step of each snapshot, shape [snapshots]
    # Distance of each snapshot from the plane, shape [snapshots]; None where unknown.
    distance: FloatArray | None = None
    counted: str = "step"  # What steps count
    stars: tuple[int, ...] = (-1,)  # Which points are marked: the end of training, or the networks that a curve joins

    def until(self, step: int) -> Path:
        """Return the path up to a step, its first point at least."""
        count = max(1, int(np.searchsorted(self.steps, step, side="right")))
        distance = None if self.distance is None else self.distance[:count]
        return replace(self, x=self.x[:count], y=self.y[:count], steps=self.steps[:count], distance=distance)


@dataclass(frozen=True, slots=True)
class OfField:
    """What every figure of a field has."""

    field: Field
    scale: Scale
    x_axis: Axis
    y_axis: Axis
    title: str = ""
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Contour(OfField):
    """Contour lines of a field, filled or not, with paths on top."""

    filled: bool = True
    paths: tuple[Path, ...] = ()
    points: bool | None = None
    basins: tuple[Mark, ...] = ()  # Minima and saddles

    @property
    def marks(self) -> list[Mark]:
        """Everything that is marked on it but paths."""
        return [*self.field.marks(self.points), *self.basins]

    @property
    def cross(self) -> bool:
        """Whether a cross marks the model at (0, 0)."""
        left, right, bottom, top = self.field.extent
        return not self.paths and left <= 0 <= right and bottom <= 0 <= top


@dataclass(frozen=True, slots=True)
class Surface3D(OfField):
    """A field as a surface over its plane; heights follow the scale, so a log scale gives log heights."""

    @property
    def marks(self) -> Iterator[tuple[Mark, FloatArray]]:
        """Marked points with their heights; none where a point is open, since holes in the surface say that."""
        low, high = self.scale.ends
        for mark in self.field.marks(points=False):
            if mark.kind != "open":
                yield mark, np.full(mark.x.size, low if mark.kind == "-inf" else high)


@dataclass(frozen=True, slots=True)
class HeatMap(OfField):
    """A field as one colored cell per point, without any interpolation."""

    # With ``categories`` the values are indices into them (a convexity map has three) and the scale only
    # labels.

    categories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve with an optional band."""

    name: str  # Legend entry
    x: FloatArray  # Shape [n]
    y: FloatArray  # Shape [n]; NaN breaks the curve
    low: FloatArray | None = None  # Lower edge of the band, shape [n], or None
    high: FloatArray | None = None  # Upper edge of the band, shape [n], or None
    band: str = ""  # What the band is ("standard error", "range over 5 directions"); goes into the legend
    markers: bool = False  # Whether to mark the points
    reference: bool = False  # A null or reference, drawn thin, gray and dashed
    follows: bool = False  # Whether that is one of the curve before it, whose color it takes
    sign: int = 0  # 1 or -1 where a logarithmic axis shows the size of values of one sign alone
    # Points that carry no finite number, kind (`MARK_KINDS`) -> their x, each of shape [count].
    marks: dict[str, FloatArray] = field(default_factory=dict)
    stars: tuple[float, ...] = ()  # Where on x a star stands on the curve, such as at the chosen epoch

    @property
    def starred(self) -> tuple[FloatArray, FloatArray]:
        """Places of the stars, on the finite part of the curve."""
        known = np.isfinite(self.y)
        x = np.array(self.stars if known.any() else ())
        return x, np.interp(x, self.x[known], self.y[known]) if x.size else x

    @property
    def entry(self) -> str:
        """Legend entry, with what the band is."""
        return f"{self.name}, {self.band}" if self.band else self.name

    @property
    def gaps(self) -> Iterator[tuple[FloatArray, style.MarkStyle, str]]:
        """Places of points without a number, their look and their legend entry."""
        for kind, x in self.marks.items():
            yield x, style.MARKS[kind], f"{self.name}: {style.MARKS[kind].label} ({x.size})"


@dataclass(frozen=True, slots=True)
class Line:
    """Curves over a common axis; ``rug`` marks single values (eigenvalues) along the x axis."""

    curves: tuple[Curve, ...]
    x_axis: Axis
    y_axis: Axis
    title: str = ""
    caption: str = ""
    rug: tuple[float, ...] = ()
    equal: bool = False
    star: str = ""  # What the stars on the curves mark

    @property
    def styled(self) -> Iterator[tuple[Curve, style.CurveStyle]]:
        """Curves with their looks; references take no color from the others."""
        number = 0
        for curve in self.curves:
            look = style.curve_style(number - curve.follows)
            number += not curve.reference
            if curve.reference:
                color = look.color if curve.follows else style.REFERENCE_COLOR
                look = replace(look, color=color, matplotlib_dash=":", plotly_dash="dot")
            if curve.sign:
                look = replace(look, **style.SIGNS[curve.sign])
            yield curve, look


@dataclass(frozen=True, slots=True)
class ScatterPoint:
    """A point with its interval and the single runs behind it."""

    name: str  # Legend entry; points of one name share it, and their look
    x: float  # What it cost, or another abscissa
    y: float  # Mean over seeds
    # Lower and upper end of y's interval, or None (below four seeds: the points are the interval).
    interval: tuple[float, float] | None = None
    seeds: tuple[tuple[float, float], ...] = ()  # ``(x, y)`` of single runs


@dataclass(frozen=True, slots=True)
class Scatter:
    """Points with intervals, such as accuracy against cost."""

    estimates: tuple[ScatterPoint, ...]  # The points
    x_axis: Axis  # Horizontal axis
    y_axis: Axis  # Vertical axis
    title: str = ""  # Title of the figure
    caption: str = ""  # Small print
    # Points that no other beats in both directions, by ascending x, joined by steps; () for none.
    front: tuple[tuple[float, float], ...] = ()
    diagonal: str = ""  # Name of the line on which both axes agree, over the range of x; "" for none

    @property
    def styled(self) -> Iterator[tuple[ScatterPoint, style.CurveStyle, bool]]:
        """Points with their looks, and whether each is the first of its name."""
        places: dict[str, int] = {}
        for estimate in self.estimates:
            first = estimate.name not in places
            yield estimate, style.curve_style(places.setdefault(estimate.name, len(places))), first


@dataclass(frozen=True, slots=True)
class Animation:
    """Paths that grow over a contour, frame by frame."""

    contour: Contour  # The landscape with the complete paths
    frames: tuple[int, ...]  # Optimizer steps at which a frame is shown, ascending
    title: str = ""
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Film:
    """A landscape that changes along training, frame by frame, each with the path so far."""

    frames: tuple[Contour, ...]  # On one scale
    steps: tuple[int, ...]  # Optimizer step of each frame, ascending
    title: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        """Check that there is something to show."""
        require(self.frames, "frames", "must hold at least one frame")


Single: TypeAlias = Line | Contour | Surface3D | HeatMap | Scatter


@dataclass(frozen=True, slots=True)
class Panels:
    """Figures side by side; panels on one scale share one color bar."""

    panels: tuple[Single, ...]
    columns: int = 3
    title: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        """Check that there is something to draw."""
        require(self.panels, "panels", "must hold at least one figure")

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns that are used."""
        return -(-len(self.panels) // max(1, self.columns)), min(self.columns, len(self.panels))

    @property
    def scales(self) -> list[Scale]:
        """The different color scales, in the order in which the panels bring them."""
        colored = [panel for panel in self.panels if isinstance(panel, OfField)]
        return list(dict.fromkeys(panel.scale for panel in colored))


Figure: TypeAlias = Single | Panels | Animation | Film
