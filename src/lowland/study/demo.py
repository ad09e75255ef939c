"""The demo: methods at their published defaults from the same initial weights and order, on real images, with headroom.

Few training images of the handwritten digits with noisy labels, so that a plain run errs on 10 to 20 % of the test
images (with all 897 clean ones every method ends near 99 % and nothing is to be seen). The epoch is chosen on the
validation part, the test part is looked at once. One seed of each method is surveyed: the same Gaussian directions,
normalized to each network's own filters, on one scale; and its curvature again at matched train loss.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Final

from lowland import report
from lowland.core.errors import LowlandError
from lowland.engine import OnEvent, select
from lowland.report.comparison import comparison_table
from lowland.results.matched import matched_steps
from lowland.results.run import Run
from lowland.workflows import (
    DataSpec,
    DemoSpec,
    FitSpec,
    LossSpec,
    OptimizerSpec,
    RiskSpec,
    curvature,
    fit,
    surface,
    trajectory,
)
from lowland.workflows.measured import threads_of_torch
from lowland.workflows.sources import open_run

__all__ = ["DemoResult", "demo"]

Progress = Callable[[str], OnEvent]
"""Label -> receiver of events."""

METHODS: Final = {
    "sgd": ("SGD", OptimizerSpec(), LossSpec()),
    "sam": ("SAM", OptimizerSpec(method="sam"), LossSpec()),
    "sala": ("SALA", OptimizerSpec(method="sala"), LossSpec()),
    "llr": ("LLR", OptimizerSpec(), LossSpec(method="llr")),
    "saf": ("SAF", OptimizerSpec(), LossSpec(method="saf")),
    "mesa": ("MESA", OptimizerSpec(), LossSpec(method="mesa")),
}
"""Name in the spec -> name in the report, optimizer, loss; no option is set, so that all are at published defaults."""

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
    runs = {(name, seed): fit_spec(spec, name, seed) for seed in range(spec.seeds) for name in spec.methods}
    surveyed = {name: runs[name, _SURVEYED].folder for name in spec.methods}
    _do(spec, [partial(fit, run) for run in runs.values()], progress("training"))
    _do(spec, [work for run in surveyed.values() for work in _surveys(spec, run)], progress("surveying"))
    with threads_of_torch(_THREADS):
        steps = matched_steps([open_run(run) for run in surveyed.values()])
    matched = [
        partial(curvature, run, name="matched", risk=RiskSpec(weights=str(step)), threads=_THREADS)
        for run, step in zip(surveyed.values(), steps, strict=True)
    ]
    _do(spec, matched, progress("curvature at matched loss"))
    found = [
        Run(run.folder, name=f"{METHODS[name][0]}, seed {seed}", method=METHODS[name][0], seed=seed)
        for (name, seed), run in runs.items()
    ]
    page = Path(spec.folder) / "report.html"
    report.write(report.build(found, title="Lowland demo: ways to flat minima", lead=_lead(spec), date=""), page)
    return DemoResult(comparison_table(found), page)


def fit_spec(spec: DemoSpec, name: str, seed: int) -> FitSpec:
    """Return one run of the demo."""
    _, optimizer, loss = METHODS[name]
    data = DataSpec(name="digits", options={"train_size": spec.train_size, "label_noise": spec.label_noise})
    return FitSpec(
        folder=str(Path(spec.folder) / "runs" / f"{name}-{seed}"), data=data, batch_size=32, seed=seed,
        optimizer=optimizer, loss=loss, epochs=spec.epochs, threads=_THREADS,
        snapshots_every_epochs=1 if seed == _SURVEYED else None,
    )  # fmt: skip


Work = partial[Any]
"""One of the commands with its arguments, whose result is on disk."""


def _surveys(spec: DemoSpec, run: str) -> list[Work]:
    points = (spec.points, spec.points)
    return [
        partial(surface, run, points=points, extent=spec.extent, threads=_THREADS),
        partial(trajectory, run, threads=_THREADS),
        partial(curvature, run, threads=_THREADS),
    ]


def _work(context: None, works: Sequence[Work]) -> list[None]:
    """Do some works, whose results are on disk."""
    for work in works:
        work()
    return [None] * len(works)


def _do(spec: DemoSpec, works: Sequence[Work], on_event: OnEvent) -> None:
    """Do all works on the engine of the spec."""
    engine = spec.engine
    if engine == "auto":
        engine = "processes:2" if len(os.sched_getaffinity(0)) > 1 else "serial"
    for result in select(engine).map(nullcontext, _work, works, on_event=on_event):
        if result.failed:
            raise LowlandError(f"{works[result.index].func.__name__} failed: {result.error}")


def _lead(spec: DemoSpec) -> tuple[str, ...]:
    names = ", ".join(METHODS[name][0] for name in spec.methods)
    noise = f" with {100 * spec.label_noise:g} % of the labels drawn anew" if spec.label_noise else ""
    return (
        f"A ResNet-8 was trained on {spec.train_size} of the 897 training images of scikit-learn's handwritten "
        f"digits{noise} for {spec.epochs} epochs, {spec.seeds} times with each of {names}, all at their published "
        "defaults. Runs of one seed share initial weights and order of the images. The epoch was chosen on 300 "
        "validation images; the 600 test images were looked at once. All runs see the same training images, so that "
        "intervals cover initial weights and order, not the choice of images.",
        f"Seed {_SURVEYED} of each method was surveyed on its training images, with running batch-norm statistics. All "
        "surfaces use the same random numbers, scaled to each network's own filters, and one color scale. Nothing was "
        "tuned, and the published defaults were found on larger networks and data: this page shows what can be seen, "
        "it is not a claim about the methods.",
        "Repeat it with: lowland demo "
        + " ".join(f"--{field.name} {_flag(getattr(spec, field.name))}" for field in fields(spec)),
    )


def _flag(value: Any) -> str:
    return "'[" + ", ".join(value) + "]'" if isinstance(value, list) else str(value)
