"""One verb per figure kind: build the spec, draw it, return the backend's own figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lowland.viz.backends import draw
from lowland.viz.curves import build_cost, build_line, build_slope, build_spectrum
from lowland.viz.export import FigureOptions, build_figure
from lowland.viz.paths import build_animation, build_path
from lowland.viz.spec import Contour, Scale, ScatterPoint
from lowland.viz.surfaces import Choice, build_contour, build_convexity_map, build_heat_map, build_surface, by_name

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "animate",
    "compare",
    "contour",
    "convexity_map",
    "cost",
    "density",
    "heat_map",
    "line",
    "path",
    "slope",
    "surface",
]


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
    size: str | tuple[float, float] | None = None,
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
    backend: str = "plotly",
    scale: Scale | None = None,
    split: Choice = None,
    direction: Choice = None,
    title: str = "",
    size: str | tuple[float, float] | None = None,
) -> Any:
    """Draw a surface in three dimensions.

    Args:
        result: A surface with two axes.
        metric: Variable that is drawn: "loss", "accuracy" or another that was measured.
        backend: "plotly", to turn, "matplotlib", for paper, or "vtk".
        scale: A `shared_scale`; None makes one from this surface.
        split: Name or position along ``split``; None for the first.
        direction: Name or position along ``direction``; None for the first.
        title: Stands above the figure, as plain text.
        size: "column", "text", "slide", or width and height in inches.

    Returns:
        The backend's own figure.
    """
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
    size: str | tuple[float, float] | None = None,
) -> Any:
    """Draw a surface as one colored cell per point, without interpolation.

    Args:
        result: A surface with two axes.
        metric: Variable that is drawn: "loss", "accuracy" or another that was measured.
        backend: "matplotlib", for paper, or "plotly", to zoom and read off.
        scale: A `shared_scale`; None makes one from this surface.
        split: Name or position along ``split``; None for the first.
        direction: Name or position along ``direction``; None for the first.
        title: Stands above the figure, as plain text.
        size: "column", "text", "slide", or width and height in inches.

    Returns:
        The backend's own figure.
    """
    spec = build_heat_map(result, metric, scale=scale, split=split, direction=direction, title=title)
    return draw(spec, backend, size=size)


def path(
    trajectories: xr.Dataset | Mapping[str, xr.Dataset],
    result: xr.Dataset | None = None,
    metric: str = "loss",
    *,
    backend: str = "matplotlib",
    scale: Scale | None = None,
    title: str = "",
    size: str | tuple[float, float] | None = None,
) -> Any:
    """Draw training paths in their plane, over the plane's contours where a surface is given.

    Args:
        trajectories: One trajectory, or several by name on the same plane.
        result: A surface over that plane; None draws the paths alone.
        metric: Variable of the surface: "loss", "accuracy" or another that was measured.
        backend: "matplotlib", for paper, or "plotly", to zoom and read off.
        scale: A `shared_scale`; None makes one from the surface.
        title: Stands above the figure, as plain text.
        size: "column", "text", "slide", or width and height in inches.

    Returns:
        The backend's own figure.
    """
    return draw(build_path(by_name(trajectories, "path"), result, metric, scale=scale, title=title), backend, size=size)


def animate(
    trajectories: xr.Dataset | Mapping[str, xr.Dataset],
    result: xr.Dataset,
    metric: str = "loss",
    *,
    scale: Scale | None = None,
    frames: int = 40,
    title: str = "",
    size: str | tuple[float, float] | None = None,
) -> Any:
    """Animate training paths over the contours of their plane, with a slider for the step.

    Args:
        trajectories: One trajectory, or several by name on the same plane.
        result: A surface over that plane.
        metric: Variable of the surface: "loss", "accuracy" or another that was measured.
        scale: A `shared_scale`; None makes one from the surface.
        frames: How many frames at most.
        title: Stands above the figure, as plain text.
        size: "column", "text", "slide", or width and height in inches.

    Returns:
        A plotly figure.
    """
    contour_spec = build_path(by_name(trajectories, "path"), result, metric, scale=scale, title=title)
    assert isinstance(contour_spec, Contour)
    return draw(build_animation(contour_spec, frames=frames), "plotly", size=size)


def line(
    results: xr.Dataset | Mapping[str, xr.Dataset],
    metric: str = "loss",
    *,
    backend: str = "matplotlib",
    split: Choice = None,
    log: bool | None = None,
    title: str = "",
    size: str | tuple[float, float] | None = None,
) -> Any:
    """Draw curves along one direction, with bands over directions or standard errors.

    Args:
        results: One line (a surface with the axis x only), or several by name.
        metric: Variable that is drawn: "loss", "accuracy" or another that was measured.
        backend: "matplotlib", for paper, or "plotly", to zoom and read off.
        split: Name or position along ``split``; None draws every split.
        log: Logarithmic axis; None decides by the data.
        title: Stands above the figure, as plain text.
        size: "column", "text", "slide", or width and height in inches.

    Returns:
        The backend's own figure.
    """
    return draw(build_line(results, metric, split=split, log=log, title=title), backend, size=size)


def density(
    results: xr.Dataset | Mapping[str, xr.Dataset],
    *,
    backend: str = "matplotlib",
    title: str = "",
    size: str | tuple[float, float] | None = None,
) -> Any:
    """Draw spectral densities.

    Args:
        results: Curvature results with a density, one or several by name.
        backend: "matplotlib", for paper, or "plotly", to zoom and read off.
        title: Stands above the figure, as plain text.
        size: "column", "text", "slide", or width and height in inches.

    Returns:
        The backend's own figure.
    """
    return draw(build_spectrum(results, title=title), backend, size=size)


def convexity_map(
    result: xr.Dataset,
    *,
    backend: str = "matplotlib",
    direction: Choice = None,
    title: str = "",
    size: str | tuple[float, float] | None = None,
) -> Any:
    """Draw where the lowest eigenvalue is negative, undecided, or not found to be negative.

    Args:
        result: A surface with ``negative_curvature``, as `curvature.Convexity` measures it.
        backend: "matplotlib", for paper, or "plotly", to zoom and read off.
        direction: Name or position along ``direction``; None for the first.
        title: Stands above the figure, as plain text.
        size: "column", "text", "slide", or width and height in inches.

    Returns:
        The backend's own figure.
    """
    return draw(build_convexity_map(result, direction=direction, title=title), backend, size=size)


def cost(
    estimates: Sequence[ScatterPoint],
    *,
    backend: str = "matplotlib",
    title: str = "",
    size: str | tuple[float, float] | None = None,
) -> Any:
    """Draw accuracy against cost.

    Args:
        estimates: One per method, with interval and single seeds.
        backend: "matplotlib", for paper, or "plotly", to zoom and read off.
        title: Stands above the figure, as plain text.
        size: "column", "text", "slide", or width and height in inches.

    Returns:
        The backend's own figure.
    """
    return draw(build_cost(estimates, title=title), backend, size=size)


def compare(
    results: Mapping[str, xr.Dataset],
    metric: str = "loss",
    *,
    kind: str = "contour",
    backend: str = "matplotlib",
    columns: int = 3,
    title: str = "",
    size: str | tuple[float, float] | None = None,
) -> Any:
    """Draw any number of surfaces side by side on one scale; plotly's 3-D surfaces turn together once saved.

    Args:
        results: Surfaces by name.
        metric: Variable that is drawn: "loss", "accuracy" or another that was measured.
        kind: "contour", "surface", "heat-map" or "convexity".
        backend: "matplotlib", for paper, or "plotly", to zoom and read off.
        columns: Panels in a row.
        title: Stands above all panels, as plain text.
        size: "column", "text", "slide", or width and height in inches.

    Returns:
        The backend's own figure.
    """
    options = FigureOptions(metric=metric, columns=columns, title=title)
    return draw(build_figure(results, kind, options=options), backend, size=size)


def slope(
    result: xr.Dataset,
    *,
    backend: str = "matplotlib",
    title: str = "",
    size: str | tuple[float, float] | None = None,
) -> Any:
    """Draw the slope of LLR's reshaping over the histogram of the losses that training met.

    Args:
        result: What `lowland.losses.slope_over_losses` returns.
        backend: "matplotlib", for paper, or "plotly", to zoom and read off.
        title: Stands above the figure, as plain text.
        size: "column", "text", "slide", or width and height in inches.

    Returns:
        The backend's own figure.
    """
    return draw(build_slope(result, title=title), backend, size=size)
