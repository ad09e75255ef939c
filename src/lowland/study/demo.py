"""The demo: two methods from the same initial weights and order, on real images, with headroom.

Few training images of the handwritten digits, so that a plain run errs on about a tenth of the test images (with all
897 every method ends near 99 % and nothing is to be seen). The epoch is chosen on the validation part, the test part is
looked at once. One seed of each method is surveyed: the same Gaussian directions, normalised to each network's own
filters, on one scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from lowland import report
from lowland.engine import Event
from lowland.report.comparison import comparison_table
from lowland.spec import (
    CurvatureSpec,
    DataSpec,
    DemoSpec,
    FitSpec,
    OptimizerSpec,
    RiskSpec,
    SurfaceSpec,
    TrajectorySpec,
)
from lowland.spec.folder import RunFolder
from lowland.spec.runs import curvature_run, fit_run, surface_run, threads, trajectory_run
from lowland.study.matched import matched_steps

__all__ = ["DemoResult", "demo"]

Progress = Callable[[str], Callable[[Event], None]]
"""Label -> receiver of events."""

_SURVEYED: Final = 0
"""The seed whose networks are surveyed."""

_THREADS: Final = 1
"""The networks are so small that a second thread costs more than it brings; one makes numbers independent of cores."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo ends with.

    Args:
        table: The comparison, as in the report.
        report: The page.
    """

    table: report.Table
    report: Path


def demo(spec: DemoSpec, progress: Progress) -> DemoResult:
    """Train, survey and report; what is already there is not done again.

    Args:
        spec: The sizes.
        progress: Gives a receiver of events for each label.

    Returns:
        The comparison and the page's path.
    """
    folder = Path(spec.folder)
    runs = {(method, seed): _fit_spec(spec, method, seed) for seed in range(spec.seeds) for method in _methods(spec)}
    for (method, seed), fit_spec in runs.items():
        fit_run(fit_spec, on_event=progress(f"training {method}, seed {seed}"))
    surveyed = {method: runs[method, _SURVEYED].folder for method in _methods(spec)}
    for method, run in surveyed.items():
        _survey(spec, run, method, progress)
    with threads(_THREADS):
        steps = matched_steps([RunFolder(run) for run in surveyed.values()], RiskSpec())
    for (method, run), step in zip(surveyed.items(), steps, strict=True):
        matched = CurvatureSpec(run=run, name="matched", risk=RiskSpec(weights=str(step)), threads=_THREADS)
        curvature_run(matched, on_event=progress(f"curvature of {method} at matched loss"))
    found = [
        report.read_run(fit_spec.folder, name=f"{method}, seed {seed}", method=method, seed=seed)
        for (method, seed), fit_spec in runs.items()
    ]
    page = folder / "report.html"
    built = report.build(found, title="Lowland demo: SGD and SAM on handwritten digits", lead=_lead(spec), date="")
    report.write(built, page)
    return DemoResult(comparison_table(found), page)


def _methods(spec: DemoSpec) -> dict[str, OptimizerSpec]:
    return {"SGD": OptimizerSpec(), "SAM": OptimizerSpec(method="sam", options={"rho": spec.rho})}


def _fit_spec(spec: DemoSpec, method: str, seed: int) -> FitSpec:
    data = DataSpec(name="digits", options={"train_size": spec.train_size, "label_noise": spec.label_noise})
    return FitSpec(
        folder=str(Path(spec.folder) / "runs" / f"{method.lower()}-{seed}"), data=data, batch_size=32, seed=seed,
        optimizer=_methods(spec)[method], epochs=spec.epochs, threads=_THREADS,
        snapshots_every_epochs=1 if seed == _SURVEYED else None,
    )  # fmt: skip


def _survey(spec: DemoSpec, run: str, method: str, progress: Progress) -> None:
    points = (spec.points, spec.points)
    surface = SurfaceSpec(run=run, points=points, extent=spec.extent, threads=_THREADS)
    surface_run(surface, on_event=progress(f"surface of {method}"))
    trajectory_run(TrajectorySpec(run=run, threads=_THREADS), on_event=progress(f"path of {method}"))
    curvature_run(CurvatureSpec(run=run, threads=_THREADS), on_event=progress(f"curvature of {method}"))


def _lead(spec: DemoSpec) -> tuple[str, ...]:
    noise = f", {100 * spec.label_noise:g} % of the labels drawn anew," if spec.label_noise else ""
    return (
        f"A ResNet-8 was trained on {spec.train_size} of the 897 training images of scikit-learn's handwritten "
        f"digits{noise} for {spec.epochs} epochs, {spec.seeds} times with plain SGD and {spec.seeds} times with SAM "
        f"(rho {spec.rho:g}). Runs of one seed share initial weights and order of the images. The epoch was chosen on "
        "300 validation images; the 600 test images were looked at once. All runs see the same training images, so "
        "that intervals cover initial weights and order, not the choice of images.",
        f"One seed ({_SURVEYED}) of each method was surveyed on its training images, with running batch-norm "
        "statistics. Both surfaces use the same random numbers, scaled to each network's own filters, and one colour "
        "scale. Neither optimizer was tuned: this page shows what can be seen, it is not a claim about the methods.",
        "Repeat it with: lowland demo "
        + " ".join(f"--{field.name} {getattr(spec, field.name)}" for field in fields(spec)),
    )
