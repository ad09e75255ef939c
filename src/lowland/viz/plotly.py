"""Figures for the screen: specs drawn with plotly, to turn, zoom and read off.

Plotly reads a little HTML in its texts; names are escaped, so that a hostile one stays text.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import numpy as np

from lowland.viz import spec as specs
from lowland.viz import style
from lowland.viz.field import FloatArray
from lowland.viz.plotly_canvas import GRID, Canvas, Drawn, escape
from lowland.viz.plotly_curves import draw_line, draw_scatter
from lowland.viz.plotly_fields import draw_contour, draw_heat_map, draw_surface

if TYPE_CHECKING:
    import plotly.graph_objects as go

_BELOW = {"yref": "container", "yanchor": "bottom", "y": 0.0}  # where no axis title can be
_ABOVE = {"yanchor": "bottom", "y": 1.0}

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
    import plotly.graph_objects as go  # half a second, which a page does not need

    figure = go.Figure(plain(spec, size=size))
    figure.update_layout(template="none")  # plotly's default would add 7 kB to every figure, to say what is said here
    return figure


def plain(spec: specs.Figure, *, size: str | tuple[float, float] | None = None) -> Drawn:
    """Draw a spec in plotly's own words."""
    moving = isinstance(spec, specs.Animation | specs.Film)  # its legend stands above, the slider below
    figure: Drawn = {"data": [], "layout": {}}
    _WHOLE.get(type(spec), _draw_one)(figure, spec)
    layout = figure["layout"]
    layout |= {
        "font": {"family": f"{style.FONT}, Verdana, sans-serif", "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        # else a gray slab, after the paper
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#9aa3ad", "activecolor": "#5b6570"},
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 56, "r": 12, "t": 40, "b": 48},
        "hoverlabel": {"namelength": -1},
        "legend": {"orientation": "h", "xanchor": "left", "x": 0, **(_ABOVE if moving else _BELOW)},
        "meta": {"caption": escape(spec.caption)},
    }
    if isinstance(spec, specs.Surface3D):
        layout["margin"] = {"l": 0, "r": 0, "t": 36, "b": 0}
    if not isinstance(spec, specs.Panels):
        layout["title"] = {"text": escape(spec.title), "font": {"size": 14}, "x": 0, "xref": "paper"}
    if size is not None:
        width, height = style.figure_size(size)
        layout |= {"width": round(96 * width), "height": round(96 * height)}
    return figure


def save(figure: go.Figure, path: str | FilePath) -> None:
    """Write a figure as one HTML file that opens offline."""
    scenes = [key for key in figure.layout.to_plotly_json() if key.startswith("scene")]
    script = [_FOLLOW] if len(scenes) > 1 else None
    figure.write_html(path, include_plotlyjs=True, full_html=True, post_script=script)


@cache
def script() -> str:
    """Return plotly's own script, for a page that must open offline."""
    from plotly.offline import get_plotlyjs

    text: str = get_plotlyjs()
    return text


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


def _draw_one(figure: Drawn, spec: specs.Single) -> None:
    _draw_into(Canvas(figure), spec)


def _draw_animation(figure: Drawn, spec: specs.Animation) -> None:
    contour = replace(spec.contour, title=spec.title or spec.contour.title)
    _draw_one(figure, contour)
    for trace in filter(_is_path, figure["data"]):
        # The casing stays in full, so that the way ahead is seen; only the colored trail grows.
        trace.update({"opacity": 0.45} if trace["mode"] == "lines" else {"visible": False})
    start = len(figure["data"])
    for number, path in enumerate(contour.paths):
        color = style.curve_style(number).color
        head = {"size": _head(path.x.size), "color": color, "line": {"width": 2, "color": "white"}}
        trail = {"mode": "lines+markers", "line": {"color": color, "width": 3}, "showlegend": len(contour.paths) > 1}
        place = {"x": _single(path.x), "y": _single(path.y), "name": escape(path.name)}
        figure["data"].append({"type": "scatter", **place, "marker": head, **trail})
    moving = list(range(start, len(figure["data"])))
    figure["frames"] = [
        {"name": str(step), "traces": moving, "data": [_grown(path.until(step)) for path in contour.paths]}
        for step in spec.frames
    ]
    _add_controls(figure, spec.frames)


def _draw_film(figure: Drawn, spec: specs.Film) -> None:
    """Draw the last frame, with all others to be put in its place: their field, and the path so far."""
    _draw_one(figure, spec.frames[-1])
    traces = figure["data"]
    moving = [k for k, trace in enumerate(traces) if trace["type"] == "contour" or _is_path(trace)]
    for trace in traces:
        if trace["type"] == "contour":  # true values under the pointer would be as many bytes again in every frame
            del trace["customdata"], trace["hovertemplate"]
            trace["hoverinfo"] = "skip"
    figure["frames"] = [
        {"name": str(step), "traces": moving, "data": [_changed(traces[k], frame) for k in moving]}
        for step, frame in zip(spec.steps, spec.frames, strict=True)
    ]
    _add_controls(figure, spec.steps, redraw=True)


def _is_path(trace: dict[str, Any]) -> bool:
    return trace["type"] == "scatter" and trace["mode"] in ("lines", "lines+markers")


def _changed(trace: dict[str, Any], frame: specs.Contour) -> dict[str, Any]:
    if trace["type"] == "contour":
        return {"type": "contour", "z": np.ascontiguousarray(frame.scale.transform(frame.field.shown).T, np.float32)}
    grown = _grown(frame.paths[0])
    return grown if trace["mode"] != "lines" else {name: grown[name] for name in ("type", "x", "y")}


def _grown(path: specs.Path) -> dict[str, Any]:
    return {"type": "scatter", "x": _single(path.x), "y": _single(path.y), "marker": {"size": _head(path.x.size)}}


def _single(values: FloatArray) -> Any:
    # half the bytes, finer than any screen: frames repeat the path many times
    return values.astype(np.float32)


def _head(count: int) -> Any:
    """Return marker sizes that show the last point alone."""
    return np.concatenate([np.zeros(count - 1, dtype=np.uint8), np.array([13], dtype=np.uint8)])


def _add_controls(figure: Drawn, frames: tuple[int, ...], *, redraw: bool = False) -> None:
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
    figure["layout"] |= {"sliders": [slider | active | quiet], "updatemenus": [menu | below | quiet]}


def _draw_panels(figure: Drawn, spec: specs.Panels) -> None:
    rows, columns = spec.shape
    layout, counts = figure["layout"], {"scene": 0, "xaxis": 0}
    layout["annotations"] = []
    for place, panel in enumerate(spec.panels):
        kind = "scene" if isinstance(panel, specs.Surface3D) else "xaxis"
        counts[kind] += 1
        number = str(counts[kind]) if counts[kind] > 1 else ""
        index = spec.scales.index(panel.scale) if isinstance(panel, specs.OfField) else 0
        canvas = Canvas(figure, number, f"coloraxis{index + 1 if index else ''}")
        x, y = _cell(place % columns, columns, 0.16), _cell(rows - 1 - place // columns, rows, 0.24)
        if kind == "scene":
            canvas.scene(domain={"x": x, "y": y})
        else:
            canvas.axes(x={"domain": x, "anchor": f"y{number}"}, y={"domain": y, "anchor": f"x{number}"})
        _draw_into(canvas, panel)
        above = {"xref": "paper", "yref": "paper", "xanchor": "center", "yanchor": "bottom", "showarrow": False}
        title = {"text": escape(panel.title), "font": {"size": 16}, "x": sum(x) / 2, "y": y[1]}
        layout["annotations"] += [title | above] if panel.title else []
    for index in range(1, len(spec.scales)):  # each further scale puts its bar beside the one before
        layout[f"coloraxis{index + 1}"]["colorbar"]["x"] = 1.02 + 0.12 * index
    layout["height"] = 80 + 380 * rows


def _cell(place: int, count: int, apart: float) -> list[float]:
    """Return where a row or column begins and ends; a share of the whole lies between them."""
    width = (1 - apart / count * (count - 1)) / count
    start = place * (width + apart / count)
    return [start, start + width]


_WHOLE: dict[type, Any] = {specs.Animation: _draw_animation, specs.Film: _draw_film, specs.Panels: _draw_panels}


def _axis(axis: specs.Axis) -> dict[str, Any]:
    settings: dict[str, Any] = {"gridcolor": GRID, "zeroline": False, "ticks": "outside", "automargin": True}
    settings["title"] = {"text": escape(axis.text), "standoff": 8}  # else wide tick labels run into it
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
