"""One function for ``lowland figure``: draw stored results in any style and write the file, without recomputing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowland.core.errors import InputError, require
from lowland.core.settings import FigureOptions
from lowland.viz.backends import backend_for, save
from lowland.viz.basins import build_basins
from lowland.viz.curves import build_line, build_spectrum
from lowland.viz.films import build_film, is_film
from lowland.viz.paths import build_animation, build_path
from lowland.viz.spec import Contour, Figure, Film, Panels, Scale, Single
from lowland.viz.style import COLOR_MAPS
from lowland.viz.surfaces import build_contour, build_convexity_map, build_heat_map, build_surface, shared_scale

if TYPE_CHECKING:
    import xarray as xr

KINDS = ("contour", "surface", "heat-map", "convexity", "line", "density", "path", "animation", "film", "merge-tree")
"""Kinds of figure that can be made from stored surfaces, lines, curvature and trajectories."""


def export(
    results: Mapping[str, xr.Dataset],
    path: str | Path,
    kind: str = "contour",
    *,
    trajectories: Mapping[str, xr.Dataset] | None = None,
    options: FigureOptions | None = None,
) -> Path:
    """Draw stored results and write the file; the suffix chooses format and backend.

    Args:
        results: Surfaces, lines or densities by name; several surfaces are drawn side by side on one scale.
        path: Ends in .pdf, .svg, .png, .html, .vts or .vtp; what moves in .html, .gif or .mp4.
        kind: contour, surface, heat-map, convexity, line, density, path, animation, film or merge-tree.
        trajectories: Training paths by name, for the kinds path and animation.
        options: Everything else.

    Returns:
        The path written.

    Raises:
        InputError: If the folder is missing, or as in `build_figure`.
    """
    backend_for(path)  # an unknown suffix is refused before anything is drawn
    require(Path(path).parent.is_dir(), "path", "must lie in a folder that exists", str(Path(path).parent))
    chosen = options or FigureOptions()
    return save(build_figure(results, kind, trajectories=trajectories, options=chosen), path, size=chosen.size)


def build_figure(
    results: Mapping[str, xr.Dataset],
    kind: str = "contour",
    *,
    trajectories: Mapping[str, xr.Dataset] | None = None,
    options: FigureOptions | None = None,
) -> Figure:
    """Make the spec of a figure of stored results."""
    chosen = options or FigureOptions()
    require(kind in KINDS, "kind", f"must be one of {', '.join(KINDS)}", kind)
    if chosen.color_map not in COLOR_MAPS:
        raise InputError("color_map", f"must be one of {', '.join(COLOR_MAPS)}", chosen.color_map)
    if kind in ("path", "animation"):
        return _paths(results, kind, trajectories or {}, chosen)
    require(results, "results", "must name at least one stored result")
    if kind == "line":
        return build_line(
            results, chosen.metric, split=chosen.split, log=chosen.log, title=chosen.title, caption=chosen.caption
        )
    if kind == "density":
        return build_spectrum(results, title=chosen.title)
    if kind == "film":
        require(len(results) == 1, "results", "must be one film", list(results))
        return _film(*next(iter(results.items())), chosen)
    if kind == "merge-tree":
        require(len(results) == 1, "results", "must be one surface for the kind merge-tree", list(results))
        return _merge_tree(*next(iter(results.items())), chosen)
    panels = _panels(results, kind, chosen)
    if len(panels) == 1:
        return panels[0]
    caption = panels[0].caption if chosen.caption is None else chosen.caption
    return Panels(panels, chosen.columns, chosen.title, caption)


def _scale(results: Mapping[str, xr.Dataset], chosen: FigureOptions) -> Scale:
    return shared_scale(
        results.values(),
        chosen.metric,
        split=chosen.split,
        direction=chosen.direction,
        log=chosen.log,
        limits=(chosen.minimum, chosen.maximum),
        levels=chosen.levels,
        color_map=chosen.color_map,
    )


def _panels(results: Mapping[str, xr.Dataset], kind: str, chosen: FigureOptions) -> tuple[Single, ...]:
    scale = _scale(results, chosen) if kind != "convexity" else None
    lines = {"filled": chosen.filled, "points": chosen.points, "basins": chosen.basins} if kind == "contour" else {}
    build: Any = {"contour": build_contour, "surface": build_surface, "heat-map": build_heat_map}.get(kind)
    figures: list[Single] = []
    for name, result in results.items():
        title = chosen.title or name if len(results) == 1 else name
        words: dict[str, Any] = {"direction": chosen.direction, "title": title, "caption": chosen.caption}
        if kind == "convexity":
            figures.append(build_convexity_map(result, **words))
        else:
            figures.append(build(result, chosen.metric, scale=scale, split=chosen.split, **lines, **words))
    return tuple(figures)


def _merge_tree(name: str, result: xr.Dataset, chosen: FigureOptions) -> Panels:
    words: dict[str, Any] = {"split": chosen.split, "direction": chosen.direction, "caption": chosen.caption}
    return build_basins(
        result, chosen.metric, scale=_scale({name: result}, chosen), title=chosen.title or name, **words
    )


def _film(name: str, result: xr.Dataset, chosen: FigureOptions) -> Film:
    frames = {str(k): result.isel(direction=k) for k in range(result.sizes["direction"])} if is_film(result) else {}
    scale = _scale(frames, chosen) if frames else None
    words: dict[str, Any] = {"split": chosen.split, "title": chosen.title or name, "caption": chosen.caption}
    return build_film(result, chosen.metric, scale=scale, **words)


def _paths(
    results: Mapping[str, xr.Dataset], kind: str, trajectories: Mapping[str, xr.Dataset], chosen: FigureOptions
) -> Figure:
    require(trajectories, "trajectories", f"must name at least one trajectory for the kind {kind}")
    require(len(results) <= 1, "results", f"must be one surface at most for the kind {kind}", list(results))
    surface = next(iter(results.values()), None)
    scale = _scale(results, chosen) if surface is not None else None
    figure = build_path(trajectories, surface, chosen.metric, scale=scale, title=chosen.title, caption=chosen.caption)
    if kind == "path":
        return figure
    if not isinstance(figure, Contour):
        raise InputError("results", "must hold the surface over which the path is animated")
    return build_animation(figure)
