"""The demo: methods at their published defaults from the same initial weights and order, on real images, with headroom.

Few training images of the handwritten digits with noisy labels, so that a plain run errs on 10 to 20 % of the test
images (with all 897 clean ones every method ends near 99 % and nothing is to be seen). The epoch is chosen on the
validation part, the test part is looked at once. One seed of each method is surveyed: the same Gaussian directions,
normalized to each network's own filters, on one scale; and its curvature again at matched train loss.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Final

from lowland import report, workflows
from lowland.core.errors import LowlandError
from lowland.core.settings import SummaryOptions
from lowland.engine import OnEvent, Workers, select
from lowland.report.comparison import comparison_table
from lowland.results.matched import matched_steps
from lowland.results.run import Run
from lowland.study.run import Progress
from lowland.workflows import DemoSpec, FitSpec, LossSpec, OptimizerSpec, curvature, fit, line, surface, trajectory
from lowland.workflows.measured import threads_of_torch

METHODS: Final = {
    "sgd": ("SGD", OptimizerSpec(), LossSpec()),
    "sam": ("SAM", OptimizerSpec(method="sam"), LossSpec()),
    "sala": ("SALA", OptimizerSpec(method="sala"), LossSpec()),
    "llr": ("LLR", OptimizerSpec(), LossSpec(method="llr")),
    "saf": ("SAF", OptimizerSpec(), LossSpec(method="saf")),
    "mesa": ("MESA", OptimizerSpec(), LossSpec(method="mesa")),
}
"""Name in the spec -> name in the report, optimizer, loss; no option is set, so that all are at published defaults."""

_FIRST_PARTS: Final = (("fit", "line", "surface", "curvature"), ("fit", "line", "curvature"))
"""What the first page shows of the first two methods: their results are those of the whole page."""

_UNFINISHED: Final = (
    "This is a first page, of one run of the first methods: the whole one replaces it when the demo is done. If that "
    "was broken off, it goes on with: lowland demo "
)

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
        commands: What to try next.
    """

    table: report.Table
    report: Path
    commands: tuple[str, ...]


def demo(spec: DemoSpec, progress: Progress, on_page: Callable[[Path], None] | None = None) -> DemoResult:
    """Train, survey and report; what is already there is not done again.

    A first page of two methods and one seed comes as soon as it can; the whole one replaces it, and shows its runs and
    results again.

    Args:
        spec: The sizes.
        progress: Gives a receiver of events for each label.
        on_page: Called with the place of the first page, unless there is a page already.

    Returns:
        The comparison, the page's path and the commands to try next.
    """
    runs = {(name, seed): fit_spec(spec, name, seed) for seed in range(spec.seeds) for name in spec.methods}
    surveyed = {name: runs[name, _SURVEYED] for name in spec.methods}
    works = {name: {"fit": partial(fit, run), **_surveys(spec, run.folder)} for name, run in surveyed.items()}
    rest = [partial(fit, run) for (_, seed), run in runs.items() if seed != _SURVEYED]
    page = Path(spec.folder) / "report.html"
    with select(_engine(spec)).open(nullcontext) as workers:
        first = [
            [works[name].pop(part) for part in parts] for name, parts in zip(spec.methods, _FIRST_PARTS, strict=False)
        ]
        _do(workers, first, progress("first page"))
        if not page.exists():  # a whole one is not replaced by a part of it
            _write(spec, {(name, _SURVEYED): surveyed[name] for name in _shown(spec, whole=False)}, page, whole=False)
            if on_page is not None:
                on_page(page)
        fits = [[parts.pop("fit")] for parts in works.values() if "fit" in parts]
        _do(workers, [*fits, *([work] for work in rest)], progress("training"))
        _do(workers, [[work] for parts in works.values() for work in parts.values()], progress("surveying"))
        _do(workers, [[work] for work in _matched(spec, surveyed)], progress("curvature at matched loss"))
    table = _write(spec, runs, page, whole=True)
    return DemoResult(table, page, _commands(*list(runs.values())[:2]))


def _matched(spec: DemoSpec, surveyed: Mapping[str, FitSpec]) -> list[Work]:
    """Return what measures the curvature of all at the same train loss."""
    with threads_of_torch(_THREADS):
        steps = matched_steps([workflows.open_run(run.folder) for run in surveyed.values()])
    return [
        partial(
            curvature,
            run.folder,
            _summary(spec),
            name="matched",
            risk=workflows.RiskSpec(weights=str(step)),
            threads=_THREADS,
        )
        for run, step in zip(surveyed.values(), steps, strict=True)
    ]


def _write(spec: DemoSpec, runs: Mapping[tuple[str, int], FitSpec], page: Path, *, whole: bool) -> report.Table:
    """Write the page of some runs, in whole or not at all, and return its comparison."""
    found = [
        Run(run.folder, name=f"{METHODS[name][0]}, seed {seed}", method=METHODS[name][0], seed=seed)
        for (name, seed), run in runs.items()
    ]
    report.write(
        report.build(found, title="Lowland demo: ways to flat minima", lead=_lead(spec, whole=whole), date=""), page
    )
    return comparison_table(found)


def _commands(*runs: FitSpec) -> tuple[str, ...]:
    first, second = (shlex.quote(run.folder) for run in runs)
    return (
        f"lowland film {first}",
        f"lowland line {first} --other {second}",
        "lowland fit runs/mine --model.name resnet8 --data.name digits --optimizer.method sam",
    )


def fit_spec(spec: DemoSpec, name: str, seed: int) -> FitSpec:
    """Return one run of the demo."""
    _, optimizer, loss = METHODS[name]
    data = workflows.DataSpec(name="digits", options={"train_size": spec.train_size, "label_noise": spec.label_noise})
    return FitSpec(
        folder=str(Path(spec.folder) / "runs" / f"{name}-{seed}"),
        data=data,
        batch_size=32,
        seed=seed,
        optimizer=optimizer,
        loss=loss,
        epochs=spec.epochs,
        threads=_THREADS,
        snapshots_every_epochs=1 if seed == _SURVEYED else None,
    )


def _summary(spec: DemoSpec) -> SummaryOptions:
    """Return what is measured of the curvature: that of pictures at the spacing of the surfaces."""
    return SummaryOptions(spacing=2 * spec.extent / max(spec.points - 1, 1))


Work = partial[Any]
"""One of the commands with its arguments, whose result is on disk."""


def _surveys(spec: DemoSpec, run: str) -> dict[str, Work]:
    points, options = (spec.points, spec.points), workflows.SurveyOptions(threads=_THREADS)
    return {
        "line": partial(line, run, options, start=-spec.extent, stop=spec.extent),
        "surface": partial(surface, run, options, points=points, extent=spec.extent),
        "trajectory": partial(trajectory, run, threads=_THREADS),
        "curvature": partial(curvature, run, _summary(spec), threads=_THREADS),
    }


def _work(context: None, chains: Sequence[Sequence[Work]]) -> list[None]:
    """Do some chains of works, whose results are on disk."""
    for chain in chains:
        for work in chain:
            work()
    return [None] * len(chains)


def _engine(spec: DemoSpec) -> str:
    if spec.engine != "auto":
        return spec.engine
    return "processes:2" if len(os.sched_getaffinity(0)) > 1 else "serial"


def _do(workers: Workers, chains: Sequence[Sequence[Work]], on_event: OnEvent) -> None:
    """Do all chains, each in its order."""
    for result in workers.map(_work, chains, on_event=on_event):
        if result.failed:
            names = ", ".join(work.func.__name__ for work in chains[result.index])
            raise LowlandError(f"{names} failed: {result.error}")


def _shown(spec: DemoSpec, *, whole: bool) -> list[str]:
    return spec.methods if whole else spec.methods[: len(_FIRST_PARTS)]


def _lead(spec: DemoSpec, *, whole: bool) -> tuple[str, ...]:
    names, times = ", ".join(METHODS[name][0] for name in _shown(spec, whole=whole)), f"{spec.seeds} times"
    noise = f" with {100 * spec.label_noise:g} % of the labels drawn anew" if spec.label_noise else ""
    return (
        f"A ResNet-8 was trained on {spec.train_size} of the 897 training images of scikit-learn's handwritten "
        f"digits{noise} for {spec.epochs} epochs, {times if whole else 'once'} with each of {names}, all at their "
        "published defaults. Runs of one seed share initial weights and order of the images. The epoch was chosen on "
        "300 validation images; the 600 test images were looked at once. All runs see the same training images, so "
        "that intervals cover initial weights and order, not the choice of images.",
        f"Seed {_SURVEYED} of each method was surveyed on its training images, with running batch-norm statistics. All "
        "surfaces use the same random numbers, scaled to each network's own filters, and one color scale. Nothing was "
        "tuned, and the published defaults were found on larger networks and data: this page shows what can be seen, "
        "it is not a claim about the methods.",
        ("Repeat it with: lowland demo " if whole else _UNFINISHED)
        + " ".join(f"--{field.name} {_flag(getattr(spec, field.name))}" for field in fields(spec)),
    )


def _flag(value: Any) -> str:
    return "'[" + ", ".join(value) + "]'" if isinstance(value, list) else str(value)
