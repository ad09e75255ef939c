"""From a spec to a result on disk: train, survey, project, measure. The commands and studies call these."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import torch
import xarray as xr
from torch import nn

from lowland import curvature, landscape, results
from lowland.core.errors import InputError, StoreError
from lowland.core.pace import Clock
from lowland.core.risk import EmpiricalRisk
from lowland.engine import Event
from lowland.results.folders import open_run_folder
from lowland.results.run import Run
from lowland.training import CurvatureCurve, FitState, Hook, Snapshots, fit
from lowland.workflows.build import (
    build_augment,
    build_criterion,
    build_data,
    build_loss,
    build_model,
    build_optimizer,
    build_schedule,
    check_model,
)
from lowland.workflows.parse import from_text, to_yaml
from lowland.workflows.sources import create_run, open_run, subject_run
from lowland.workflows.specs import FitSpec
from lowland.workflows.surveys import CurvatureSpec, LineSpec, RiskSpec, SurfaceSpec, TrajectorySpec

__all__ = [
    "OnEvent",
    "curvature_run",
    "fit_run",
    "leave_processes",
    "line_run",
    "surface_run",
    "threads",
    "trajectory_run",
]

OnEvent: TypeAlias = Callable[[Event], None]


class Announce(Hook):
    """Tells the progress of training as events, so that no room below shows bars."""

    def __init__(self, on_event: OnEvent | None) -> None:
        self._receive = on_event or (lambda event: None)
        self._clock = Clock(0)

    def on_fit_start(self, run: FitState) -> None:
        """Start the clock."""
        self._clock = Clock(run.epochs * run.steps_per_epoch, run.step)
        self._receive(Event("started", run.step, run.epochs * run.steps_per_epoch))

    def on_epoch_end(self, run: FitState) -> None:
        """Tell how far it is."""
        self._tell("rows", run)

    def on_fit_end(self, run: FitState) -> None:
        """Tell that it is done."""
        self._tell("done", run)

    def _tell(self, kind: Any, run: FitState) -> None:
        pace = self._clock.at(run.step)
        total = run.epochs * run.steps_per_epoch
        self._receive(Event(kind, run.step, total, pace.elapsed, pace.remaining, pace.rate))


def fit_run(spec: FitSpec, *, on_event: OnEvent | None = None) -> Run:
    """Train one network into its run folder; an interrupted run goes on, a finished one is left as it is.

    Args:
        spec: The run.
        on_event: Called at the start, after each epoch and at the end.

    Returns:
        The run.

    Raises:
        InputError: If something in the spec is unknown or does not fit, or the folder holds another run.
    """
    splits = build_data(spec.data)  # everything is built before anything is written, so that bad input leaves no trace
    augment = build_augment(spec.augment, splits, spec.loss)
    model = build_model(spec.model, splits, seed=spec.seed)
    check_model(model, splits, build_criterion(spec.loss))
    optimizer = build_optimizer(spec.optimizer, model)
    loss, schedule = build_loss(spec.loss, model, splits), build_schedule(spec.schedule)
    hooks: list[Hook] = []
    if spec.snapshots_every_epochs is not None:
        hooks.append(Snapshots(every_epochs=spec.snapshots_every_epochs, dtype=spec.snapshot_dtype))
    if spec.curvature_share is not None:
        curve = CurvatureCurve(share=spec.curvature_share)
        count: int = len(getattr(splits.train, "dataset", splits.train))
        curve.interval(optimizer, count, math.ceil(count / spec.batch_size), spec.epochs)  # or say why not
        hooks.append(curve)
    hooks.append(Announce(on_event))  # always there, since a run goes on only with the hooks it began with
    run = create_run(spec)
    with threads(spec.threads):
        fit(
            model, optimizer, loss, splits, epochs=spec.epochs, batch_size=spec.batch_size, seed=spec.seed,
            schedule=schedule, augment=augment, clip=spec.clip, select=spec.select, folder=run.folder, hooks=hooks,
            checkpoint_every_steps=spec.checkpoint_every_steps, precision=spec.precision,
            micro_batches=spec.micro_batches, accelerator=spec.accelerator, devices=spec.devices,
        )  # fmt: skip
    return open_run(run.folder)  # anew: it has its result now


def leave_processes() -> None:
    """End the communication between the processes of a run; else gloo's threads can abort Python when it exits."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def surface_run(spec: SurfaceSpec, *, on_event: OnEvent | None = None) -> tuple[xr.Dataset, Path]:
    """Survey the loss on a random plane around the weights of a run; an interrupted survey goes on."""
    run = subject_run(spec)
    path = run.surface_path(spec.name)
    with threads(spec.threads):
        risk = _measured(run, spec.risk, spec.splits)
        plane = landscape.random_plane(_model(risk), spec.seed, normalization=spec.normalization)
        surface = landscape.evaluate(
            risk, plane, landscape.grid(*spec.points, extent=spec.extent), engine=spec.engine, store=path,
            probes=_PROBES[spec.probe](), refined=landscape.Tolerance() if spec.refine else None,
            precision=spec.precision, on_event=on_event,
        )  # fmt: skip
    return surface, path


def line_run(spec: LineSpec, *, on_event: OnEvent | None = None) -> tuple[xr.Dataset, Path]:
    """Survey the loss on a line; an interrupted survey goes on."""
    run = subject_run(spec)
    path = run.surface_path(spec.name)
    with threads(spec.threads):
        risk = _measured(run, spec.risk, spec.splits)
        grid = landscape.grid(spec.points, extent=(spec.start, spec.stop))
        lines = _lines(run, spec, _model(risk))
        line = landscape.evaluate(risk, lines, grid, engine=spec.engine, store=path, on_event=on_event)
    return line, path


def _lines(run: Run, spec: LineSpec, model: nn.Module) -> list[landscape.Plane]:
    if spec.other is None:
        seeds = range(spec.seed, spec.seed + spec.directions)
        return [landscape.random_line(model, seed, normalization=spec.normalization) for seed in seeds]
    other = run.source.other(spec.other, spec.risk.weights)
    if spec.match:
        example = next(iter(_risk(run, spec.risk).batches()))
        other = landscape.match_weights(model, other, example, seed=spec.seed).model
    return [landscape.line_between(model, other, move_statistics=spec.risk.batch_norm == "running")]


_PROBES: dict[str, Callable[[], tuple[landscape.Probe, ...]]] = {
    "none": tuple,
    "gradient": lambda: (landscape.GradientNorm(),),
    "convexity": lambda: (curvature.Convexity(),),
}


def _risk(run: Run, spec: RiskSpec) -> EmpiricalRisk:
    risk: EmpiricalRisk = run.risk(**asdict(spec))
    _open_folder(run)
    return risk


def _measured(run: Run, spec: RiskSpec, splits: list[str] | None) -> EmpiricalRisk | dict[str, EmpiricalRisk]:
    if splits is None:
        return _risk(run, spec)
    risks = dict(run.risks(splits, **asdict(spec)))
    _open_folder(run)
    return risks


def _open_folder(run: Run) -> None:
    if not run.spec_path.is_file():  # a model of another program; only now, so that bad input leaves no trace
        open_run_folder(run.folder)


def _model(risk: EmpiricalRisk | dict[str, EmpiricalRisk]) -> nn.Module:
    return (next(iter(risk.values())) if isinstance(risk, dict) else risk).model


def trajectory_run(spec: TrajectorySpec, *, on_event: OnEvent | None = None) -> tuple[xr.Dataset, Path]:
    """Project the training path of a run on its principal directions; a result of the same spec is read back."""
    run = open_run(spec.run)
    path = run.trajectory_path
    snapshots = run.snapshots
    if snapshots is None:
        raise InputError("run", "must hold snapshots", spec.run, "train it with --snapshots_every_epochs 1")
    with threads(spec.threads):
        risk = _risk(run, spec.risk)
        found = _stored(path, spec)
        anchored = spec.anchor == "end"
        plane = None
        if found is None or spec.plane:
            plane = landscape.pca_plane(risk.model, snapshots, anchored=anchored)
        if found is None:
            measured = risk if spec.losses else None
            found = landscape.project_trajectory(risk.model, snapshots, plane, anchored=anchored, risk=measured)
            found.attrs["spec"] = to_yaml(spec)
            results.save(found, path)
        if plane is not None:
            surface = run.surface_path("trajectory")
            grid = landscape.grid_around(found, *spec.points)
            landscape.evaluate(risk, plane, grid, store=surface, on_event=on_event)
    return found, path


def curvature_run(spec: CurvatureSpec, *, on_event: OnEvent | None = None) -> tuple[xr.Dataset, Path]:
    """Measure the curvature at the weights of a run; a result of the same spec is read back."""
    run = subject_run(spec)
    path = run.curvature_path(spec.name)
    found = _stored(path, spec)
    if found is not None:
        return found, path
    # the ends rarely need all their products, so that the total is an upper bound
    total = spec.max_products + spec.trace_products + spec.directions
    ticker = _Ticker(on_event, total)
    with threads(spec.threads):
        result = curvature.summarize(
            _risk(run, spec.risk), trace_products=spec.trace_products, directions=spec.directions,
            max_products=spec.max_products, rho=spec.rho, top=spec.top, density_probes=spec.density_probes,
            layer_probes=spec.layer_probes, sharpness=spec.sharpness, seed=spec.seed, on_product=ticker,
        )  # fmt: skip
    result.attrs["spec"] = to_yaml(spec)
    if spec.risk.weights.isdigit():  # a place on the path; reports compare such results at matched loss
        result.attrs["step"] = int(spec.risk.weights)
    results.save(result, path)
    ticker.finish()
    return result, path


class _Ticker:
    """Turns a count of products into events."""

    def __init__(self, on_event: OnEvent | None, total: int) -> None:
        self._receive, self._total, self._done = on_event or (lambda event: None), total, 0
        self._clock = Clock(total)
        self._receive(Event("started", 0, total))

    def __call__(self, done: int) -> None:
        self._done = done
        pace = self._clock.at(done)
        self._receive(Event("rows", done, max(done, self._total), pace.elapsed, pace.remaining, pace.rate))

    def finish(self) -> None:
        self._receive(Event("done", self._done, self._done, self._clock.at(self._done).elapsed))


def _stored(path: Path, spec: Any) -> xr.Dataset | None:
    """Return the result of the same spec; refuse to overwrite one of another."""
    if not path.exists():
        return None
    found = results.open(path)
    try:  # a spec of before some field was added is the same spec
        same = from_text(type(spec), str(found.attrs.get("spec", ""))) == spec
    except InputError:
        same = False
    if not same:
        raise StoreError(
            f"{path} holds a result of another spec; remove it, or choose another --name where there is one"
        )
    return found


@contextmanager
def threads(count: int | None) -> Generator[None, None, None]:
    """Let torch use a number of threads, and restore its own at the end."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
