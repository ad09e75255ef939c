"""What a figure shows in words, for readers who cannot see it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowland.viz.spec import Animation, Contour, Figure, Film, HeatMap, Line, OfField, Panels, Path, Scatter
from lowland.viz.style import format_number

_MOST = 8  # what is listened to must end


def describe(spec: Figure) -> str:
    """Say what a figure shows: axes, extremes, where curves begin and end."""
    if isinstance(spec, Panels):
        return " ".join(f"{panel.title}: {describe(panel)}" for panel in spec.panels[:_MOST])
    if isinstance(spec, Film):
        steps = f"{len(spec.frames)} frames from step {spec.steps[0]} to {spec.steps[-1]}"
        return f"{steps}. In the last one: {describe(spec.frames[-1])}"
    if isinstance(spec, Animation):
        return describe(spec.contour)
    if isinstance(spec, Line):
        curves = [_curve(curve.name, curve.x, curve.y) for curve in spec.curves]
        return f"{spec.y_axis.text} over {spec.x_axis.text}. {_list(curves)}"
    if isinstance(spec, Scatter):
        points = [f"{one.name} {format_number(one.y)} at {format_number(one.x)}" for one in spec.estimates]
        return f"{spec.y_axis.text} against {spec.x_axis.text}. {_list(points)}"
    return _field(spec)


def _list(parts: Sequence[str]) -> str:
    left = len(parts) - _MOST
    return "; ".join(parts[:_MOST]) + (f"; and {left} more" if left > 0 else "") + "."


def _curve(name: str, x: np.ndarray, y: np.ndarray) -> str:
    known = np.isfinite(y)
    if not known.any():
        return f"{name}: no finite value"
    x, y = x[known], y[known]
    low = int(np.argmin(y))
    first, last, least = (f"{format_number(y[k])} at {format_number(x[k])}" for k in (0, -1, low))
    return f"{name} from {first} to {last}, lowest {least}" if y.size > 1 else f"{name} {first}"


def _field(spec: OfField) -> str:
    field = spec.field
    left, right, bottom, top = map(format_number, field.extent)
    over = f"over {spec.x_axis.text} ({left} to {right}) and {spec.y_axis.text} ({bottom} to {top})"
    if not field.known.any():
        return f"{spec.scale.label} {over}: no finite value."
    if isinstance(spec, HeatMap) and spec.categories:
        values = field.values[field.known].round()
        shares = [f"{name} at {np.mean(values == k):.0%}" for k, name in enumerate(spec.categories)]
        return f"{spec.scale.label} {over}: {', '.join(shares)} of the points."
    places = [np.unravel_index(int(pick(field.shown)), field.shown.shape) for pick in (np.nanargmin, np.nanargmax)]
    ends = [
        f"{word} {format_number(field.values[i, j])} at ({format_number(field.x[i])}, {format_number(field.y[j])})"
        for word, (i, j) in zip(("lowest", "highest"), places, strict=True)
    ]
    paths = [_path(path) for path in spec.paths] if isinstance(spec, Contour) else []
    return f"{spec.scale.label} {over}: {', '.join(ends)}." + (f" {_list(paths)}" if paths else "")


def _path(path: Path) -> str:
    begin, end = (f"({format_number(path.x[k])}, {format_number(path.y[k])})" for k in (0, -1))
    return f"{path.name} goes from {begin} to {end}"
