"""Legends and color scales of figures, written by the page: once for a row of figures that share them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from lowland.report.sections import Figure
from lowland.viz import style
from lowland.viz.plotly_canvas import escape
from lowland.viz.plotly_fields import color_stops
from lowland.viz.spec import Animation, Contour, Film, HeatMap, Line, OfField, Panels, Scale, Scatter, Surface3D
from lowland.viz.spec import Figure as Spec

_SHAPES: Final = {
    "circle": "M-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0",
    "square": "M-3,-3h6v6h-6z",
    "diamond": "M0,-4L4,0L0,4L-4,0z",
    "triangle-up": "M0,-4L4,3H-4z",
    "triangle-down": "M0,4L4,-3H-4z",
    "cross": "M-1,-4h2v3h3v2h-3v3h-2v-3h-3v-2h3z",
    "x": "M-3,-4L0,-1L3,-4L4,-3L1,0L4,3L3,4L0,1L-3,4L-4,3L-1,0L-4,-3z",
    "star": "M0,-5L1.4,-1.6L5,-1.5L2.2,0.7L3.1,4.2L0,2.2L-3.1,4.2L-2.2,0.7L-5,-1.5L-1.4,-1.6z",
    "cross-thin": "M-0.7,-4h1.4v3.3h3.3v1.4h-3.3v3.3h-1.4v-3.3h-3.3v-1.4h3.3z",
    "line-ns": "M-0.8,-5h1.6v10h-1.6z",
}
_DASHES: Final = {"solid": "", "dash": "6 3", "dashdot": "6 3 1.5 3", "dot": "1.5 3"}

_APART: Final = 13  # per cent of the scale between two numbers, on the narrowest page


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a legend."""

    name: str
    color: str
    shape: str = ""  # Path of the marker in SVG; "" for none
    dash: str | None = None  # Pattern of the line in SVG; None for no line
    note: str = ""  # What follows the name
    fixed: bool = False  # Whether it cannot be hidden by a click

    @property
    def curve(self) -> str:
        """What plotly's traces are called that it stands for."""
        return escape(self.name)


@dataclass(frozen=True, slots=True)
class Key:
    """What the colors and signs of some figures mean."""

    entries: tuple[Entry, ...]
    scale: Scale | None = None

    def __bool__(self) -> bool:
        return bool(self.entries) or self.scale is not None

    @property
    def ramp(self) -> str:
        """The color scale as the stops of a gradient."""
        assert self.scale is not None
        return ", ".join(f"{color} {100 * place:.4g}%" for place, color in color_stops(self.scale.color_map))

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places of the ticks in per cent of the scale, and what stands at them."""
        assert self.scale is not None
        low, high = self.scale.ends
        places, texts = self.scale.labels
        found: list[tuple[float, str]] = []
        for place, text in zip(places, texts, strict=True):
            share = 100 * (place - low) / (high - low)
            if not found or share - found[-1][0] >= _APART:
                found.append((share, text))
        return found


def key_of(figure: Figure) -> Key:
    """Return the key of one figure."""
    return _merged([figure]) or Key(())


def key_of_row(figures: Sequence[object]) -> Key | None:
    """Return the key that all figures of a row share; None where they do not agree."""
    drawn = [figure for figure in figures if isinstance(figure, Figure)]
    return _merged(drawn) if drawn else None


def captions_of(figures: Sequence[object]) -> tuple[str, list[str]]:
    """Return what the captions of a row have in common, and what each has of its own."""
    # hashes stand in the appendix
    parts = [
        [part for part in block.spec.caption.split("; ") if not part.startswith("recipe ")]
        if isinstance(block, Figure)
        else []
        for block in figures
    ]
    said = [each for each in parts if any(each)]
    common = [part for part in said[0] if all(part in each for each in said)] if len(said) > 1 else []
    return "; ".join(common), ["; ".join(part for part in each if part not in common) for each in parts]


def _merged(figures: Sequence[Figure]) -> Key | None:
    found: dict[str, Entry] = {}
    most = 0
    scales: list[Scale] = []
    for figure in figures:
        spec = figure.spec
        spec = spec.frames[-1] if isinstance(spec, Film) else spec.contour if isinstance(spec, Animation) else spec
        entries = list(_entries(spec))
        most = max(most, len(entries))
        for entry in entries:
            if found.setdefault(entry.name, entry) != entry:
                return None
        if isinstance(spec, OfField) and not (isinstance(spec, HeatMap) and spec.categories):
            scales.append(spec.scale)
    if len(set(scales)) > 1 or len(found) > most + 2:  # figures of different things: a legend of all would help nobody
        return None
    single = len(found) == 1 and all(isinstance(figure.spec, Line) for figure in figures)
    kept = tuple(found.values())
    return Key(() if single and not kept[0].note else kept, scales[0] if scales else None)


def _entries(spec: Spec) -> Iterator[Entry]:
    if isinstance(spec, Line):
        yield from _of_line(spec)
    elif isinstance(spec, Scatter):
        if spec.front:
            yield Entry("Pareto front", style.REFERENCE_COLOR, dash=_DASHES["dash"])
        if spec.diagonal:
            yield Entry(spec.diagonal, style.REFERENCE_COLOR, dash=_DASHES["dot"])
        for estimate, look, _ in spec.styled:
            yield Entry(estimate.name, look.color, _SHAPES[look.plotly_marker])
    elif isinstance(spec, HeatMap) and spec.categories:
        for name, color in zip(spec.categories, style.CATEGORY_COLORS, strict=False):
            yield Entry(name, color, _SHAPES["square"])
    elif not isinstance(spec, Panels):
        yield from _of_field(spec)


def _of_line(spec: Line) -> Iterator[Entry]:
    for curve, look in spec.styled:
        shape = _SHAPES[look.plotly_marker] if curve.markers else ""
        yield Entry(curve.name, look.color, shape, _DASHES[look.plotly_dash], curve.band)
        for _, mark, _ in curve.gaps:
            yield Entry(f"{curve.name}: {mark.label}", mark.color, _SHAPES[mark.plotly_symbol])
    if any(curve.stars for curve in spec.curves):
        yield Entry(spec.star, style.REFERENCE_COLOR, _SHAPES["star"], fixed=True)
    if spec.rug:
        yield Entry("eigenvalues", style.REFERENCE_COLOR, _SHAPES["line-ns"])


def _of_field(spec: Contour | Surface3D | HeatMap | Animation | Film) -> Iterator[Entry]:
    if not isinstance(spec, OfField):
        return
    marks = spec.field.marks(spec.points if isinstance(spec, Contour) else False)
    if isinstance(spec, Surface3D):
        marks = [mark for mark, _ in spec.marks]
    for mark in marks:
        yield Entry(mark.look.label, mark.look.color, _SHAPES[mark.look.plotly_symbol])
    if not isinstance(spec, Contour):
        return
    for number, path in enumerate(spec.paths):
        look = style.curve_style(number)
        single = len(spec.paths) == 1
        name, dash = "path of training" if single else path.name, _DASHES[look.plotly_dash]
        yield Entry(name, look.color, _SHAPES[look.plotly_marker], dash, fixed=single)
    if spec.cross:
        yield Entry("the model", style.REFERENCE_COLOR, _SHAPES["cross-thin"], fixed=True)
