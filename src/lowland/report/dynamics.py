"""What happened during training: curves over epochs, and the path with its random-walk null."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowland.report.runs import Run
from lowland.report.sections import Block, Figure, Gallery, Paragraph, Section, Table
from lowland.viz.paths import build_animation, build_path, two_axes
from lowland.viz.spec import Axis, Contour, Curve, Line

__all__ = ["training_section", "trajectories_section"]

_CURVES = (
    ("train_loss", "train loss", "loss"),
    ("validation_loss", "validation loss", "loss"),
    ("train_accuracy", "train accuracy", "fraction"),
    ("validation_accuracy", "validation accuracy", "fraction"),
)


def training_section(runs: Sequence[Run]) -> Section | None:
    """Build the section with the training curves of all runs.

    Args:
        runs: Runs; those without metrics are left out.

    Returns:
        The section, or None where no run has metrics.
    """
    figures = []
    for column, title, unit in _CURVES:
        curves = tuple(curve for run in runs if (curve := _curve(run, column)) is not None)
        if curves:
            values = np.concatenate([curve.y for curve in curves])
            positive = unit == "loss" and bool((values[np.isfinite(values)] > 0).all())
            axis = Axis(title, "" if unit == "loss" else unit, log=positive)
            figures.append(Figure(Line(curves, Axis("epoch"), axis, title), height=360))
    return Section("Training", (Gallery(tuple(figures)),)) if figures else None


def _curve(run: Run, column: str) -> Curve | None:
    rows = [row for row in run.metrics if isinstance(row.get(column), float)]
    if not rows:
        return None
    x = [row["epoch"] if isinstance(row.get("epoch"), float) else float(k) for k, row in enumerate(rows)]
    return Curve(run.name, np.array(x), np.array([row[column] for row in rows]))


def trajectories_section(runs: Sequence[Run]) -> Section | None:
    """Build the section with each run's path in its principal plane, beside the null of a random walk.

    Args:
        runs: Runs; those without a trajectory are left out.

    Returns:
        The section, or None where no run has a trajectory.
    """
    walked = [run for run in runs if run.trajectory is not None]
    if not walked:
        return None
    figures = []
    for run in walked:
        assert run.trajectory is not None
        plane = next((s for name, s in run.surfaces.items() if "trajectory" in name and "y" in s.dims), None)
        figure = build_path({run.name: run.trajectory}, plane, title=run.name)
        if isinstance(figure, Contour):
            figures.append(Figure(build_animation(figure), run.name, height=520))
        else:
            figures.append(Figure(figure, run.name))
    text = (
        "Each path is projected on its own two principal directions. A random walk with the same step lengths also "
        "puts most of its variance on two directions, so a share counts only as far as it exceeds the null."
    )
    blocks: list[Block] = [Paragraph(text), _null_table(walked), Gallery(tuple(figures))]
    return Section("Trajectories", tuple(blocks))


def _null_table(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        assert run.trajectory is not None
        share, null = two_axes(run.trajectory, "variance_share"), two_axes(run.trajectory, "null_share")
        above = "–" if share is None or null is None else f"{100 * (share - null):+.1f} points".replace("-", "−")
        if share is not None and null is not None and share <= null:
            above += ": no more than a walk"
        distance = run.trajectory["distance"].values if "distance" in run.trajectory else None
        rows.append(
            (
                run.name,
                str(run.trajectory.sizes["snapshot"]),
                "–" if share is None else f"{share:.1%}",
                "not stored" if null is None else f"{null:.1%}",
                above,
                "–" if distance is None else f"{float(np.nanmax(distance)):.3g}",
                str(run.trajectory.attrs.get("anchored", "–")),
            )
        )
    header = ("run", "snapshots", "variance on two axes", "random-walk null", "above the null",
              "largest distance from the plane", "anchored")  # fmt: skip
    return Table(header, tuple(rows), "How much of each path its plane shows")
