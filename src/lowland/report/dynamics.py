"""What happened during training: curves over epochs, and the path with its random-walk null."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lowland.report.comparison import methods_of
from lowland.report.landscapes import path_plane
from lowland.report.marks import chosen_of, epoch_of, shows, weights_of
from lowland.report.sections import Block, Box, Figure, Gallery, Paragraph, Section, Table
from lowland.report.statistics import show
from lowland.report.trust import trust_box
from lowland.results.run import Run
from lowland.viz.caption import axes_of
from lowland.viz.paths import build_animation, build_path, is_walk, null_spread, two_axes
from lowland.viz.spec import Axis, Contour, Curve, Line

if TYPE_CHECKING:
    import xarray as xr

_CURVES = (
    ("train_loss", "train loss", "loss"),
    ("validation_loss", "validation loss", "loss"),
    ("train_accuracy", "train accuracy", "fraction"),
    ("validation_accuracy", "validation accuracy", "fraction"),
    ("lambda_max", "largest Hessian eigenvalue", "loss per squared weight"),
    ("stability", "step size over the edge of stability", "ratio"),
    ("critical_sharpness", "critical sharpness", "loss per squared weight"),
    ("critical_ratio", "step over the critical step", "ratio"),
)


def training_section(runs: Sequence[Run]) -> Section | None:
    """Build the section with the training curves: one per method, with the range over its seeds."""
    figures, chosen = [], chosen_of(runs)
    for column, title, unit in _CURVES:
        curves = tuple(c for name, group in methods_of(runs).items() if (c := _curve(name, group, column)) is not None)
        if curves:
            values = np.concatenate([curve.y for curve in curves])
            positive = unit == "loss" and bool((values[np.isfinite(values)] > 0).all())
            axis = Axis(title, "" if unit == "loss" else unit, log=positive)
            figures.append(Figure(Line(curves, Axis("epoch"), axis, title, star=_STAR), height=320))
    if not figures:
        return None
    also = ". ".join([_EPOCH_MEANS, *(["A star marks the epoch whose weights count"] if chosen else [])])
    return Section("Training", (*shows(chosen, ("train", "validation"), also), Gallery(tuple(figures))))


_STAR = "chosen epoch"
_EPOCH_MEANS = "Train curves are means over the batches of an epoch while they were trained on"


def _curve(name: str, runs: Sequence[Run], column: str) -> Curve | None:
    series = []
    for run in runs:
        rows = [row for row in run.metrics if isinstance(row.get(column), float)]
        if rows:
            series.append({float(row.get("epoch", k)): float(row[column]) for k, row in enumerate(rows)})
    shared = sorted(set.intersection(*(set(one) for one in series))) if series else []
    if not shared:
        return None
    values = np.array([[one[epoch] for epoch in shared] for one in series])
    x = np.array(shared)
    stars = tuple(sorted({epoch for run, _ in chosen_of(runs) if (epoch := epoch_of(run, "best")) in shared}))
    if len(series) == 1:
        return Curve(name, x, values[0], stars=stars)
    band = f"range over {len(series)} seeds"
    return Curve(name, x, values.mean(0), values.min(0), values.max(0), band, stars=stars)


def trajectories_section(runs: Sequence[Run]) -> Section | None:
    """Build the section with each run's path in its principal plane, beside the null of a random walk."""
    walked = [(run, run.trajectory) for run in runs if run.trajectory is not None]
    if not walked:
        return None
    shared = _shared_planes(walked)
    text = (
        "A random walk with the same step lengths also puts most of its variance on two directions: a share counts "
        "only as far as it exceeds the null. The boxes say how far the plane is from the path. "
        + (_JOINT if shared else _ALONE if len(walked) > 1 else "")
    )
    blocks: list[Block] = [*shows([(run, weights_of(path)) for run, path in walked], ("train",), of="Plane through")]
    for group in shared:
        blocks.append(Gallery(_joint_figures(group)))
    joint = {run.name for group in shared for run, _ in group}
    alone = [(run, path) for run, path in walked if run.name not in joint]
    wide = 460 if len(alone) in (1, 2, 4) else 290  # in two columns or three
    blocks.append(Gallery(tuple(_path_figure(run, path, wide) for run, path in alone)))
    blocks += [Paragraph(text.strip()), _null_table(walked)]
    losses = [figure for run, path in walked if (figure := _loss_figure(run, path)) is not None]
    blocks += [Gallery(tuple(losses)), Gallery(tuple(_path_box(run, path) for run, path in walked))]
    kept = [block for block in blocks if not isinstance(block, Gallery) or block.blocks]
    return Section("Trajectories", tuple(kept))


_ALONE = "Each path is projected on its own two principal directions, so two pictures cannot be laid over each other."
_JOINT = "Paths that were projected on one plane share a picture; how far each of them is from it stands beside."


def _shared_planes(walked: Sequence[tuple[Run, xr.Dataset]]) -> list[list[tuple[Run, xr.Dataset]]]:
    groups: dict[tuple[str, ...], list[tuple[Run, xr.Dataset]]] = {}
    for run, path in walked:
        if axes_of(path):
            groups.setdefault(axes_of(path), []).append((run, path))
    return [group for group in groups.values() if len(group) > 1]


def _joint_figures(group: Sequence[tuple[Run, xr.Dataset]]) -> tuple[Figure, ...]:
    surfaces = [run.surfaces[name] for run, _ in group if (name := path_plane(run)) is not None]
    figure = build_path({run.name: path for run, path in group}, surfaces[0] if surfaces else None)
    spec = build_animation(figure) if isinstance(figure, Contour) else figure
    curves = tuple(
        Curve(run.name, np.asarray(path["step"].values, dtype=np.float64), np.asarray(path["distance"].values))
        for run, path in group
        if "distance" in path
    )
    joint = Figure(spec, height=500)
    if not curves:
        return (joint,)
    return joint, Figure(Line(curves, Axis("optimizer step"), Axis("distance from the plane")), height=500)


def _path_figure(run: Run, path: xr.Dataset, wide: int) -> Figure:
    plane = path_plane(run)
    surface = None if plane is None else run.surfaces[plane]
    figure = build_path({run.name: path}, surface, title=run.name)
    if not isinstance(figure, Contour):
        return Figure(figure, run.name, height=min(420, wide + 80))
    (left, right), (bottom, top) = (axis.limits or (0.0, 1.0) for axis in (figure.x_axis, figure.y_axis))
    high = (top - bottom) / (right - left) if figure.field.square else 1.0  # no blank above and below one scale
    return Figure(build_animation(figure), run.name, height=round(wide * min(max(high, 0.4), 1.0)) + 110)


def _loss_figure(run: Run, path: xr.Dataset) -> Figure | None:
    # how much of the loss the plane misses
    if "loss" not in path or "plane_loss" not in path:
        return None
    x = np.asarray(path["step"].values, dtype=np.float64)
    pairs = (("at the weights", "loss"), ("at their projection", "plane_loss"))
    curves = tuple(Curve(label, x, np.asarray(path[name].values, dtype=np.float64)) for label, name in pairs)
    values = np.concatenate([curve.y for curve in curves])
    positive = bool((values[np.isfinite(values)] > 0).all())
    line = Line(curves, Axis("optimizer step"), Axis("loss", log=positive), f"{run.name}: loss on and off the plane")
    return Figure(line, run.name, height=340)


def _path_box(run: Run, path: xr.Dataset) -> Box:
    checks: list[tuple[str, str, str]] = []
    if "distance" in path:
        largest = float(np.nanmax(path["distance"].values))
        text = show(largest)
        if "distance_to_origin" in path:
            place = int(np.nanargmax(path["distance"].values))
            whole = float(path["distance_to_origin"].values[place])
            text += f" of {show(whole)}" if whole > 0 else ""
        checks.append(("largest distance from the plane", text, "of the distance to the end of the path"))
    if "loss" in path and "plane_loss" in path:
        ratio = np.abs(path["plane_loss"].values - path["loss"].values)
        checks.append(("largest error of the loss on the plane", show(float(np.nanmax(ratio))), "over the snapshots"))
    if "cosine" in path and np.isfinite(path["cosine"].values).any():
        mean = float(np.nanmean(path["cosine"].values))
        checks.append(("mean cosine of consecutive steps", show(mean), "0 for a random walk"))
    rounding = path.attrs.get("rounding_over_smallest_step")
    if isinstance(rounding, int | float) and np.isfinite(rounding):
        checks.append(("rounding of stored weights", show(float(rounding), 2), "times the smallest step"))
    plane = path_plane(run)
    if plane is not None:
        checks += trust_box(run.surfaces[plane], plane).checks
    return Box(f"Can I trust this figure? {run.name}, path", tuple(checks), run.name)


def _null_table(walked: Sequence[tuple[Run, xr.Dataset]]) -> Table:
    rows = []
    for run, path in walked:
        share, null = two_axes(path, "variance_share"), two_axes(path, "null_share")
        above = "–" if share is None or null is None else f"{100 * (share - null):+.1f} points".replace("-", "−")
        if is_walk(path):
            above += ", no more than a walk"
        anchored = path.attrs.get("anchored")
        row = {"run": run.name, "snapshots": str(path.sizes["snapshot"])}
        row["share on two axes"] = "–" if share is None else f"{share:.1%}"
        spread = f" ± {null_spread(path):.1%}" if null_spread(path) else ""
        row["random-walk null"] = "not stored" if null is None else f"{null:.1%}{spread}"
        row["above the null"] = above
        row["anchored at"] = "–" if anchored is None else "end of the path" if anchored else "mean of the path"
        rows.append(row)
    return Table.of(rows, "How much of each path (squared distance) its plane shows")
