"""What every plotly module shares: escaped text, places of subplots, the color of grid lines."""

from __future__ import annotations

import html
from typing import TypeAlias

import plotly.graph_objects as go

__all__ = ["GRID", "Place", "anchor_of", "escape"]

Place: TypeAlias = dict[str, int]
"""Row and column of a subplot for plotly's methods; empty for a figure of one."""

GRID = "rgba(128,128,128,0.25)"
"""Grey that is quiet on a white and on a dark page."""


def escape(text: str) -> str:
    """Escape a text for plotly, which would read ``<b>`` or ``<a href>`` as HTML."""
    return html.escape(text, quote=False)


def anchor_of(figure: go.Figure, place: Place) -> str:
    """Return the short name of a subplot's x axis, to which its y axis can be scaled."""
    return str(figure.get_subplot(**place).xaxis.plotly_name).replace("axis", "") if place else "x"
