"""What can be chosen about a figure, as plain data: read by the command line without the rooms that draw."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FigureOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FigureOptions:
    """Everything that can be chosen about a figure of stored results.

    Args:
        metric: Metric to draw.
        split: Name along ``split``; none for the first (lines: all).
        direction: Name along ``direction``; none for the first (lines: mean and range).
        log: Logarithmic scale; none decides by the data.
        minimum: Low end of the scale; none takes the data's.
        maximum: High end of the scale; none takes the data's.
        levels: Least number of contour levels; none for 9.
        color_map: viridis, cividis, magma, inferno or plasma.
        filled: Fill between contour lines.
        points: Mark measured and interpolated points; none where both occur.
        title: Title; with several results their names are the titles of the panels.
        caption: Small print; none writes it from the results, "" leaves it out.
        columns: Panels in a row.
        size: column, text, slide, or width and height in inches.
    """

    metric: str = "loss"
    split: int | str | None = None
    direction: int | str | None = None
    log: bool | None = None
    minimum: float | None = None
    maximum: float | None = None
    levels: int | None = None
    color_map: str = "viridis"
    filled: bool = True
    points: bool | None = None
    title: str = ""
    caption: str | None = None
    columns: int = 3
    size: tuple[float, float] | str | None = None
