"""Figures for the screen: specs drawn with plotly, to turn, zoom and read off.

Plotly reads a little HTML in its texts; names are escaped, so that a hostile one stays text.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import get_colorscale
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from lowland.viz import spec as specs
from lowland.viz import style
from lowland.viz.field import FloatArray
from lowland.viz.plotly_canvas import GRID, Canvas, escape
from lowland.viz.plotly_curves import draw_line, draw_scatter
from lowland.viz.plotly_fields import draw_contour, draw_heat_map, draw_surface

_BELOW = {"yref": "container", "yanchor": "bottom", "y": 0.0}  # where no axis title can be

# Turn one scene and the others follow; plotly puts the id of the plot in place of the braces.
_FOLLOW = """
(function () {
  const plot = document.getElementById("{plot_id}");
  const scenes = Object.keys(plot.layout).filter((key) => /^scene\\d*$/.test(key));
  let following = false;
  function turn(change) {
    const source = scenes.find((scene) => change[scene + ".camera"]);
    if (!source || following) return;
    following = true;
    const changes = {};
    for (const scene of scenes) if (scene !== source) changes[scene + ".camera"] = change[source + ".camera"];
    Plotly.relayout(plot, changes).then(() => { following = false; }, () => { following = false; });
  }
  plot.on("plotly_relayouting", turn);
  plot.on("plotly_relayout", turn);
})();
"""


def draw(spec: specs.Figure, *, size: str | tuple[float, float] | None = None) -> go.Figure:
    """Draw a spec."""
    moving = isinstance(spec, specs.Animation | specs.Film)  # its legend stands above, the slider below
    if isinstance(spec, specs.Animation):
        figure = _draw_animation(spec)
    elif isinstance(spec, specs.Film):
        figure = _draw_film(spec)
    elif isinstance(spec, specs.Panels):
        figure = _draw_panels(spec)
    else:
        figure = go.Figure()
        _draw_into(Canvas(figure), spec)
    figure.update_layout(
        template="none",  # plotly's default would add 7 kB to every figure, to say what is said here
        font={"family": f"{style.FONT}, Verdana, sans-serif", "size": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        modebar={
            "bgcolor": "rgba(0,0,0,0)",
            "color": "#9aa3ad",
            "activecolor": "#5b6570",
        },  # else a gray slab, after the paper
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 56, "r": 12, "t": 40, "b": 48},
        hoverlabel={"namelength": -1},
        legend={"orientation": "h", "xanchor": "left", "x": 0, **({} if moving else _BELOW)},
        meta={"caption": escape(spec.caption)},
    )
    if isinstance(spec, specs.Surface3D):
        figure.update_layout(margin={"l": 0, "r": 0, "t": 36, "b": 0})
    if not isinstance(spec, specs.Panels):
        figure.update_layout(title={"text": escape(spec.title), "font": {"size": 14}, "x": 0, "xref": "paper"})
    if size is not None:
        width, height = style.figure_size(size)
        figure.update_layout(width=round(96 * width), height=round(96 * height))
    return figure


def save(figure: go.Figure, path: str | FilePath) -> None:
    """Write a figure as one HTML file that opens offline."""
    scenes = [key for key in figure.layout.to_plotly_json() if key.startswith("scene")]
    script = [_FOLLOW] if len(scenes) > 1 else None
    figure.write_html(path, include_plotlyjs=True, full_html=True, post_script=script)


def script() -> str:
    """Return plotly's own script, for a page that must open offline."""
    text: str = get_plotlyjs()
    return text


def color_stops(color_map: str) -> list[tuple[float, str]]:
    """Return places in [0, 1] and colors of a color map."""
    return [(float(place), str(color)) for place, color in get_colorscale(style.COLOR_MAPS[color_map])]


def _draw_into(canvas: Canvas, spec: specs.Single) -> None:
    if not isinstance(spec, specs.Surface3D):
        canvas.axes(x=_axis(spec.x_axis), y=_axis(spec.y_axis))
    _DRAW[type(spec)](canvas, spec)


_DRAW: dict[type, Any] = {
    specs.Contour: draw_contour,
    specs.Surface3D: draw_surface,
    specs.HeatMap: draw_heat_map,
    specs.Line: draw_line,
    specs.Scatter: draw_scatter,
}


def _draw_animation(spec: specs.Animation) -> go.Figure:
    contour = replace(spec.contour, title=spec.title or spec.contour.title)
    figure = go.Figure()
    _draw_into(Canvas(figure), contour)
    # The casing stays in full, so that the way ahead is seen; only the colored trail grows.
    figure.update_traces(opacity=0.45, selector={"type": "scatter", "mode": "lines"})
    figure.update_traces(visible=False, selector={"type": "scatter", "mode": "lines+markers"})
    start = len(figure.data)
    for number, path in enumerate(contour.paths):
        color = style.curve_style(number).color
        head = {"size": _head(path.x.size), "color": color, "line": {"width": 2, "color": "white"}}
        trail = {"mode": "lines+markers", "line": {"color": color, "width": 3}, "showlegend": len(contour.paths) > 1}
        figure.add_trace(go.Scatter(x=_single(path.x), y=_single(path.y), name=escape(path.name), marker=head, **trail))
    moving = list(range(start, len(figure.data)))
    figure.frames = [
        go.Frame(name=str(step), traces=moving, data=[_grown(path, step) for path in contour.paths])
        for step in spec.frames
    ]
    _add_controls(figure, spec.frames)
    return figure


def _draw_film(spec: specs.Film) -> go.Figure:
    """Draw the last frame, with all others to be put in its place: their field, and the path so far."""
    last = spec.frames[-1]
    figure = go.Figure()
    _draw_into(Canvas(figure), last)
    moving = [number for number, trace in enumerate(figure.data) if trace.type in ("contour", "scatter")]
    # the true values under the pointer would be as many bytes again in every frame
    figure.update_traces(customdata=None, hoverinfo="skip", hovertemplate=None, selector={"type": "contour"})
    figure.frames = [
        go.Frame(name=str(step), traces=moving, data=[_changed(figure.data[k], frame) for k in moving])
        for step, frame in zip(spec.steps, spec.frames, strict=True)
    ]
    _add_controls(figure, spec.steps, redraw=True)
    return figure


def _changed(trace: Any, frame: specs.Contour) -> Any:
    if trace.type == "contour":
        return go.Contour(z=np.ascontiguousarray(frame.scale.transform(frame.field.shown).T, dtype=np.float32))
    path = frame.paths[0]
    grown: dict[str, Any] = {"x": _single(path.x), "y": _single(path.y)}
    return go.Scatter(**grown) if trace.mode == "lines" else go.Scatter(**grown, marker={"size": _head(path.x.size)})


def _grown(path: specs.Path, step: int) -> go.Scatter:
    count = max(1, int(np.searchsorted(path.steps, step, side="right")))
    return go.Scatter(x=_single(path.x[:count]), y=_single(path.y[:count]), marker={"size": _head(count)})


def _single(values: FloatArray) -> Any:
    # half the bytes, finer than any screen: frames repeat the path many times
    return values.astype(np.float32)


def _head(count: int) -> Any:
    """Return marker sizes that show the last point alone."""
    return np.concatenate([np.zeros(count - 1, dtype=np.uint8), np.array([13], dtype=np.uint8)])


def _add_controls(figure: go.Figure, frames: tuple[int, ...], *, redraw: bool = False) -> None:
    """Add slider and buttons; the figure starts, and prints, with the whole path."""
    still = {"mode": "immediate", "frame": {"duration": 0, "redraw": redraw}, "transition": {"duration": 0}}
    play = {"mode": "immediate", "fromcurrent": True, "frame": {"duration": 80, "redraw": redraw}}
    quiet = {"bgcolor": "rgba(128,128,128,0.15)", "bordercolor": GRID}
    active = {"active": len(frames) - 1, "activebgcolor": "rgba(128,128,128,0.6)"}
    steps = [{"method": "animate", "label": str(s), "args": [[str(s)], still]} for s in frames]
    buttons = [
        {"label": "play", "method": "animate", "args": [None, play]},
        {"label": "pause", "method": "animate", "args": [[None], still]},
    ]
    slider = {"steps": steps, "currentvalue": {"prefix": "step "}, "pad": {"t": 64}, "len": 0.8, "x": 0.2}
    menu = {"type": "buttons", "buttons": buttons, "showactive": False}
    below = {"x": 0.14, "y": 0, "pad": {"t": 72}, "yanchor": "top"}
    above = {"y": 1.0, "yanchor": "bottom"}
    figure.update_layout(sliders=[slider | active | quiet], updatemenus=[menu | below | quiet], legend=above)


def _draw_panels(spec: specs.Panels) -> go.Figure:
    rows, columns = spec.shape
    cells: list[list[dict[str, str] | None]] = [[None] * columns for _ in range(rows)]
    for number, panel in enumerate(spec.panels):
        cells[number // columns][number % columns] = {"type": "scene" if isinstance(panel, specs.Surface3D) else "xy"}
    figure = make_subplots(
        rows=rows,
        cols=columns,
        specs=cells,
        subplot_titles=[escape(panel.title) for panel in spec.panels],
        horizontal_spacing=0.16 / columns,
        vertical_spacing=0.24 / rows,
    )
    for number, panel in enumerate(spec.panels):
        index = spec.scales.index(panel.scale) if isinstance(panel, specs.OfField) else 0
        place = {"row": number // columns + 1, "col": number % columns + 1}
        _draw_into(Canvas(figure, place, f"coloraxis{index + 1 if index else ''}"), panel)
    for index in range(1, len(spec.scales)):  # each further scale puts its bar beside the one before
        figure.update_layout({f"coloraxis{index + 1}": {"colorbar": {"x": 1.02 + 0.12 * index}}})
    figure.update_layout(height=80 + 380 * rows)
    return figure


def _axis(axis: specs.Axis) -> dict[str, Any]:
    settings: dict[str, Any] = {"gridcolor": GRID, "zeroline": False, "ticks": "outside", "automargin": True}
    settings["title_text"] = escape(axis.text)
    if axis.log:
        settings |= {"type": "log", "exponentformat": "power"}
    if axis.categories:
        settings |= {
            "tickvals": list(range(1, len(axis.categories) + 1)),
            "ticktext": list(map(escape, axis.categories)),
        }
    if axis.limits is not None:
        settings["range"] = list(np.log10(axis.limits)) if axis.log else list(axis.limits)
    return settings
