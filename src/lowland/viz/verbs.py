"""One verb per figure kind: build the spec, draw it, return the backend's own figure.

What the verbs share is described once, at `contour`; what a verb has of its own stands beside the argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from lowland.core.figure_options import FigureOptions
from lowland.viz.backends import draw
from lowland.viz.curves import build_cost, build_line, build_slope, build_spectrum
from lowland.viz.export import build_figure
from lowland.viz.paths import build_animation, build_path
from lowland.viz.spec import Contour, Scale, ScatterPoint
from lowland.viz.surfaces import Choice, build_contour, build_convexity_map, build_heat_map, build_surface, by_name

if TYPE_CHECKING:
    import xarray as xr

Results: TypeAlias = "xr.Dataset | Mapping[str, xr.Dataset]"
"""One result, or several by name."""

Size: TypeAlias = str | tuple[float, float] | None


def contour(
    result: xr.Dataset,
    metric: str = "loss",
    *,
    backend: str = "matplotlib",
    scale: Scale | None = None,
    split: Choice = None,
    direction: Choice = None,
    filled: bool = True,
    points: bool | None = None,
    title: str = "",
    size: Size = None,
) -> Any:
    """Draw the contours of a surface.

    Args:
        result: A surface with two axes.
        metric: Variable that is drawn: "loss", "accuracy" or another that was measured.
        backend: "matplotlib", for paper, or "plotly", to zoom and read off.
        scale: A `shared_scale`; None makes one from this surface.
        split: Name or position along ``split``; None for the first.
        direction: Name or position along ``direction``; None for the first.
        filled: Fill between the lines.
        points: Mark measured and interpolated points; None where both occur.
        title: Stands above the figure, as plain text.
        size: "column", "text", "slide", or width and height in inches.

    Returns:
        A matplotlib figure (``.savefig("contour.pdf")``) or a plotly figure.
    """
    spec = build_contour(
        result, metric, scale=scale, split=split, direction=direction, filled=filled, points=points, title=title
    )
    return draw(spec, backend, size=size)


def surface(
    result: xr.Dataset,
    metric: str = "loss",
    *,
    backend: str = "plotly",  # or "matplotlib", or "vtk"
    scale: Scale | None = None,
    split: Choice = None,
    direction: Choice = None,
    title: str = "",
    size: Size = None,
) -> Any:
    """Draw a surface in three dimensions, in plotly to turn; "vtk" is a backend too; options as in `contour`."""
    spec = build_surface(result, metric, scale=scale, split=split, direction=direction, title=title)
    return draw(spec, backend, size=size)


def heat_map(
    result: xr.Dataset,
    metric: str = "loss",
    *,
    backend: str = "matplotlib",
    scale: Scale | None = None,
    split: Choice = None,
    direction: Choice = None,
    title: str = "",
    size: Size = None,
) -> Any:
    """Draw a surface as one colored cell per point, without interpolation; options as in `contour`."""
    spec = build_heat_map(result, metric, scale=scale, split=split, direction=direction, title=title)
    return draw(spec, backend, size=size)


def path(
    trajectories: Results,  # on one plane
    result: xr.Dataset | None = None,  # over that plane
    metric: str = "loss",
    *,
    backend: str = "matplotlib",
    scale: Scale | None = None,
    title: str = "",
    size: Size = None,
) -> Any:
    """Draw training paths in their plane, over its contours where a surface is given; options as in `contour`."""
    return draw(build_path(by_name(trajectories, "path"), result, metric, scale=scale, title=title), backend, size=size)


def animate(
    trajectories: Results,  # on one plane
    result: xr.Dataset,  # over that plane
    metric: str = "loss",
    *,
    scale: Scale | None = None,
    frames: int = 40,  # at most
    title: str = "",
    size: Size = None,
) -> Any:
    """Animate training paths over the contours of their plane, with a slider for the step; a plotly figure."""
    contour_spec = build_path(by_name(trajectories, "path"), result, metric, scale=scale, title=title)
    assert isinstance(contour_spec, Contour)
    return draw(build_animation(contour_spec, frames=frames), "plotly", size=size)


def line(
    results: Results,  # surfaces with the axis x only
    metric: str = "loss",
    *,
    backend: str = "matplotlib",
    split: Choice = None,  # None draws every split
    log: bool | None = None,  # logarithmic axis; None decides by the data
    title: str = "",
    size: Size = None,
) -> Any:
    """Draw curves along one direction, with bands over directions or standard errors; options as in `contour`."""
    return draw(build_line(results, metric, split=split, log=log, title=title), backend, size=size)


def density(results: Results, *, backend: str = "matplotlib", title: str = "", size: Size = None) -> Any:
    """Draw the spectral densities of curvature results, one or several by name; options as in `contour`."""
    return draw(build_spectrum(results, title=title), backend, size=size)


def convexity_map(
    result: xr.Dataset,  # with ``negative_curvature``, as `curvature.Convexity` measures it
    *,
    backend: str = "matplotlib",
    direction: Choice = None,
    title: str = "",
    size: Size = None,
) -> Any:
    """Draw where the lowest eigenvalue is negative, undecided, or not found to be negative; see `contour`."""
    return draw(build_convexity_map(result, direction=direction, title=title), backend, size=size)


def cost(estimates: Sequence[ScatterPoint], *, backend: str = "matplotlib", title: str = "", size: Size = None) -> Any:
    """Draw accuracy against cost, one estimate per method; options as in `contour`."""
    return draw(build_cost(estimates, title=title), backend, size=size)


def compare(
    results: Mapping[str, xr.Dataset],
    metric: str = "loss",
    *,
    kind: str = "contour",  # or "surface", "heat-map", "convexity"
    backend: str = "matplotlib",
    columns: int = 3,
    title: str = "",
    size: Size = None,
) -> Any:
    """Draw surfaces side by side on one scale; plotly's in three dimensions turn together once saved."""
    options = FigureOptions(metric=metric, columns=columns, title=title)
    return draw(build_figure(results, kind, options=options), backend, size=size)


def slope(result: xr.Dataset, *, backend: str = "matplotlib", title: str = "", size: Size = None) -> Any:
    """Draw LLR's slope over the losses met, as `lowland.losses.slope_over_losses` returns it; see `contour`."""
    return draw(build_slope(result, title=title), backend, size=size)
