"""Where plotly's traces go: a figure in plotly's own words, or one subplot of it; and what every plotly module shares.

Figures are plain data: plotly's objects check every value, which takes longer than all else, and a page needs none.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

GRID = "rgba(128,128,128,0.25)"
"""Grey that is quiet on a white and on a dark page."""

Drawn: TypeAlias = dict[str, Any]
"""A figure as plotly's JSON has it: ``data``, ``layout`` and what moves, ``frames``; its arrays are NumPy's."""

_TYPED: Final = ("i1", "i2", "i4", "u1", "u2", "u4", "f4", "f8")
"""Arrays that plotly's script reads as they lie in memory."""


@dataclass(frozen=True)
class Canvas:
    """A figure of one, or one subplot of several."""

    figure: Drawn
    number: str = ""  # What its axes or its scene have in their names: "" for the first, "2", "3" ...
    colors: str = "coloraxis"  # The color axis that fields are colored on

    def add(self, kind: str, **trace: Any) -> None:
        """Add a trace."""
        names = ("scene",) if kind in ("surface", "scatter3d") else ("xaxis", "yaxis")
        where = {name: name.removesuffix("axis") + self.number for name in names if self.number}
        self.figure["data"].append({"type": kind, **trace, **where})

    def points(self, x: Any, y: Any, marker: dict[str, Any], **options: Any) -> None:
        """Add markers."""
        self.add("scatter", x=x, y=y, marker=marker, **{"mode": "markers", **options})

    def axes(self, *, x: Mapping[str, Any] | None = None, y: Mapping[str, Any] | None = None) -> None:
        """Set what is wanted of the axes."""
        for name, settings in (("xaxis", x), ("yaxis", y)):
            self.figure["layout"].setdefault(name + self.number, {}).update(settings or {})

    def scene(self, **settings: Any) -> None:
        """Set what is wanted of the scene in which a surface stands."""
        self.figure["layout"].setdefault("scene" + self.number, {}).update(settings)

    def color_axis(self, settings: dict[str, Any]) -> None:
        """Set the color axis."""
        self.figure["layout"][self.colors] = settings

    @property
    def anchor(self) -> str:
        """Short name of the x axis, to which the y axis can be scaled."""
        return f"x{self.number}"


def escape(text: str) -> str:
    """Escape a text for plotly, which would read ``<b>`` or ``<a href>`` as HTML."""
    return html.escape(text, quote=False)


def encoded(figure: Drawn) -> str:
    """Return a figure as JSON for plotly's script."""
    return json.dumps(figure, default=_plain, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(values: Any) -> Any:
    # numbers as the bytes they are, which are smaller and keep NaN; whole numbers in as few as hold them
    if isinstance(values, np.generic):
        return values.item()
    array = np.ascontiguousarray(values)
    if array.dtype.kind in "iu" and array.size:
        array = array.astype(np.promote_types(*(np.min_scalar_type(end) for end in (array.min(), array.max()))))
    kind = f"{array.dtype.kind}{array.dtype.itemsize}"
    if kind not in _TYPED or not array.size:
        return array.tolist()
    shape = {"shape": str(array.shape)[1:-1]} if array.ndim > 1 else {}
    return {"dtype": kind, "bdata": base64.b64encode(array.tobytes()).decode("ascii"), **shape}
