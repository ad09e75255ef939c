"""Where plotly's traces go: a figure or one subplot of it, with its color axis; and what every plotly module shares."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go

GRID = "rgba(128,128,128,0.25)"
"""Grey that is quiet on a white and on a dark page."""


@dataclass(frozen=True)
class Canvas:
    """A figure of one, or one subplot of several."""

    figure: go.Figure
    place: dict[str, int] = field(
        default_factory=dict
    )  # Row and column for plotly's methods; empty for a figure of one
    colors: str = "coloraxis"  # The color axis that fields are colored on

    def add(self, trace: Any) -> None:
        """Add a trace."""
        self.figure.add_trace(trace, **self.place)

    def points(self, x: Any, y: Any, marker: dict[str, Any], **options: Any) -> None:
        """Add markers."""
        self.add(go.Scatter(x=x, y=y, marker=marker, **{"mode": "markers", **options}))

    def axes(self, *, x: dict[str, Any] | None = None, y: dict[str, Any] | None = None) -> None:
        """Set what is wanted of the axes."""
        self.figure.update_xaxes(**(x or {}), **self.place)
        self.figure.update_yaxes(**(y or {}), **self.place)

    def color_axis(self, settings: dict[str, Any]) -> None:
        """Set the color axis."""
        self.figure.update_layout({self.colors: settings})

    @property
    def anchor(self) -> str:
        """Short name of the x axis, to which the y axis can be scaled."""
        return str(self.figure.get_subplot(**self.place).xaxis.plotly_name).replace("axis", "") if self.place else "x"


def escape(text: str) -> str:
    """Escape a text for plotly, which would read ``<b>`` or ``<a href>`` as HTML."""
    return html.escape(text, quote=False)
