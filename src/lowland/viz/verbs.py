"""One verb per figure kind: build the spec, draw it, return the backend's own figure.

What the verbs share is described once, at `contour`; what a verb has of its own stands beside the argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

from lowland.core.settings import FigureOptions
from lowland.results.choosing import Choice
from lowland.viz.backends import draw
from lowland.viz.basins import build_basins
from lowland.viz.curves import build_cost, build_line, build_slope, build_spectrum
from lowland.viz.export import build_figure
from lowland.viz.films import build_film
from lowland.viz.paths import build_animation, build_path
from lowland.viz.spec import Contour, Scale, ScatterPoint
from lowland.viz.surfaces import View, build_contour, build_convexity_map, build_heat_map, build_surface, by_name

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
    filled: bool = True,
    points: bool | None = None,
    basins: bool = False,
    size: Size = None,
    **view: Unpack[View],
) -> Any:
    """Draw the contours of a surface.

    Args:
        result: A surface with two axes.
        metric: Variable that is drawn: "loss", "accuracy" or another that was measured.
        backend: "matplotlib", for paper, or "plotly", to zoom and read off.
        filled: Fill between the lines.
        points: Mark measured and interpolated points; None where both occur.
        basins: Mark the basins that errors could not have made, numbered as in `merge_tree`, and their saddles.
        size: "column", "text", "slide", a venue's such as "icml-column", or width and height in inches.
        **view: ``scale``, a `shared_scale` (None makes one from this surface); ``split`` and ``direction``, name or
            position (None for the first); ``title``, plain text above the figure; ``caption`` (None writes it).

    Returns:
        A matplotlib figure (``.savefig("contour.pdf")``) or a plotly figure.
    """
    return draw(build_contour(result, metric, filled=filled, points=points, basins=basins, **view), backend, size=size)


def merge_tree(
    result: xr.Dataset, metric: str = "loss", *, backend: str = "matplotlib", size: Size = None, **view: Unpack[View]
) -> Any:
    """Draw the basins of a surface and their saddles on its contours, and beside them the merge tree; see `contour`."""
    return draw(build_basins(result, metric, **view), backend, size=size)


def surface(
    result: xr.Dataset, metric: str = "loss", *, backend: str = "plotly", size: Size = None, **view: Unpack[View]
) -> Any:
    """Draw a surface in three dimensions, in plotly to turn; "vtk" is a backend too; options as in `contour`."""
    return draw(build_surface(result, metric, **view), backend, size=size)


def heat_map(
    result: xr.Dataset, metric: str = "loss", *, backend: str = "matplotlib", size: Size = None, **view: Unpack[View]
) -> Any:
    """Draw a surface as one colored cell per point, without interpolation; options as in `contour`."""
    return draw(build_heat_map(result, metric, **view), backend, size=size)


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


def film(
    result: xr.Dataset,  # of `landscape.film`
    metric: str = "loss",
    *,
    split: Choice = None,
    scale: Scale | None = None,
    title: str = "",
    size: Size = None,
) -> Any:
    """Show the landscape along training with a slider, in plotly; `export` writes .gif and .mp4; see `contour`."""
    return draw(build_film(result, metric, split=split, scale=scale, title=title), "plotly", size=size)


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
    return draw(build_figure(by_name(results, ""), kind, options=options), backend, size=size)


def slope(result: xr.Dataset, *, backend: str = "matplotlib", title: str = "", size: Size = None) -> Any:
    """Draw LLR's slope over the losses met, as `lowland.losses.slope_over_losses` returns it; see `contour`."""
    return draw(build_slope(result, title=title), backend, size=size)
