"""From stored trajectories to figure specs: paths on a contour, paths alone, and the animation of a path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lowland.core.errors import InputError, require
from lowland.core.schema import check
from lowland.viz.caption import axes_of, caption_of
from lowland.viz.field import FloatArray
from lowland.viz.spec import Animation, Axis, Contour, Curve, Line, Path, Scale
from lowland.viz.surfaces import build_contour

if TYPE_CHECKING:
    import xarray as xr

_FRAMES = 40  # as many as a slider on a phone can tell apart, and the file stays small


def path_of(trajectory: xr.Dataset, name: str = "path") -> Path:
    """Take the first two axes of a trajectory as a path."""
    check(trajectory, "trajectory")
    coordinates = np.asarray(trajectory["coordinate"].transpose("snapshot", "axis").values, dtype=np.float64)
    if coordinates.shape[1] < 2 or coordinates.shape[0] == 0:
        raise InputError("trajectory", "must have snapshots and two axes", coordinates.shape)
    distance = None
    if "distance" in trajectory:
        distance = np.asarray(trajectory["distance"].values, dtype=np.float64)
    steps = np.asarray(trajectory["step"].values, dtype=np.int64)
    return Path(name, coordinates[:, 0], coordinates[:, 1], steps, distance)


def build_path(
    trajectories: Mapping[str, xr.Dataset],
    surface: xr.Dataset | None = None,
    metric: str = "loss",
    *,
    scale: Scale | None = None,
    title: str = "",
    caption: str | None = None,
) -> Contour | Line:
    """Make the spec of training paths, on the contours of their plane or alone."""
    require(trajectories, "trajectories", "must hold at least one trajectory")
    paths = tuple(path_of(trajectory, name) for name, trajectory in trajectories.items())
    first = next(iter(trajectories.values()))
    x_axis, y_axis = (_principal_axis(first, k, alone=len(paths) == 1) for k in (0, 1))
    note = "; ".join(f"{name}: {walk_note(trajectory)}" for name, trajectory in trajectories.items())
    if surface is None:
        curves = tuple(Curve(path.name, path.x, path.y, markers=True) for path in paths)
        return Line(curves, x_axis, y_axis, title, note if caption is None else caption, equal=True)
    for name, trajectory in trajectories.items():
        if axes_of(trajectory) and axes_of(surface) and axes_of(trajectory) != axes_of(surface):
            raise InputError("surface", "must be over the plane of the path", name)
    text = caption_of(surface, note=note) if caption is None else caption
    contour = build_contour(surface, metric, scale=scale, paths=paths, title=title, caption=text)
    left, right, bottom, top = _around(contour, paths)
    return replace(contour, x_axis=replace(x_axis, limits=(left, right)), y_axis=replace(y_axis, limits=(bottom, top)))


def build_animation(contour: Contour, *, frames: int = _FRAMES) -> Animation:
    """Make the animation of the paths on a contour."""
    require(contour.paths, "contour", "must carry at least one path to animate", advice="build it with build_path")
    steps = np.unique(np.concatenate([path.steps for path in contour.paths]))
    kept = np.unique(np.linspace(0, steps.size - 1, min(frames, steps.size)).round().astype(int))
    return Animation(contour, tuple(int(step) for step in steps[kept]), contour.title, contour.caption)


def walk_note(trajectory: xr.Dataset) -> str:
    """Say how much of a path its plane shows, beside what a random walk with the same steps would show."""
    # A Gaussian random walk puts most of its variance on two principal components (Antognini and Sohl-Dickstein
    # 2018), so the share alone is no finding.
    share = two_axes(trajectory, "variance_share")
    null = two_axes(trajectory, "null_share")
    if share is None:
        return "variance explained not stored"
    text = f"two axes hold {share:.0%} of the path's {_measure(trajectory)}"
    if null is None:
        return text + " (random-walk null not stored)"
    text += f", a random walk with the same step lengths {null:.0%}"
    return text + ": no more than a random walk" if is_walk(trajectory) else text


def is_walk(trajectory: xr.Dataset) -> bool:
    """Return whether two axes show no more of a path than they would of a random walk."""
    share, null = two_axes(trajectory, "variance_share"), two_axes(trajectory, "null_share")
    if share is None or null is None:
        return False
    return share <= null + 2 * null_spread(trajectory)


def null_spread(trajectory: xr.Dataset) -> float:
    """Return the standard deviation over walks of the sum of two shares; 0 where it is not known."""
    known = trajectory.attrs.get("null_share_sd_of_two")
    if known is None and "null_share_sd" in trajectory:  # an older file: more than it is, as if shares were independent
        known = np.linalg.norm(trajectory["null_share_sd"].values[:2])
    return float(known) if known is not None and np.isfinite(known) else 0.0


def two_axes(trajectory: xr.Dataset, name: str) -> float | None:
    """Return the sum of a share over the first two axes."""
    return float(np.sum(trajectory[name].values[:2])) if name in trajectory else None


def _principal_axis(trajectory: xr.Dataset, k: int, *, alone: bool) -> Axis:
    label = f"principal direction {k + 1}"
    if alone and "variance_share" in trajectory:
        label += f" ({float(trajectory['variance_share'].values[k]):.0%})"  # of what, the caption says
    return Axis(label)


def _around(contour: Contour, paths: tuple[Path, ...]) -> tuple[float, float, float, float]:
    """Return limits that hold the field and every path."""
    left, right, bottom, top = contour.field.extent
    x: FloatArray = np.concatenate([path.x for path in paths])
    y: FloatArray = np.concatenate([path.y for path in paths])
    return min(left, x.min()), max(right, x.max()), min(bottom, y.min()), max(top, y.max())


def _measure(trajectory: xr.Dataset) -> str:
    # directions through the end of the path hold shares of squared distances to it, not of a variance about the mean
    return "squared distance" if trajectory.attrs.get("anchored") else "variance"
