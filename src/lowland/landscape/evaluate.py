"""Surveys: plan, run on an engine, resume, report progress."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import nn

from lowland.core.errors import InputError
from lowland.core.provenance import fingerprint, provenance
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import STATUS_FAILED, STATUS_OPEN, new_surface
from lowland.engine.base import Engine, OnEvent, Point, Row
from lowland.engine.select import select
from lowland.landscape.grid import Grid, ordered
from lowland.landscape.kernel import Kernel, Survey
from lowland.landscape.plane import Plane
from lowland.landscape.probes import Probe, check_probes
from lowland.store.dataset import SurfaceWriter, writer

__all__ = ["evaluate"]


def evaluate(
    risk: EmpiricalRisk | Mapping[str, EmpiricalRisk],
    plane: Plane | Sequence[Plane],
    grid: Grid,
    *,
    engine: str | Engine = "serial",
    store: str | Path | None = None,
    probes: Sequence[Probe] = (),
    paired: bool = True,
    batch_size: int | None = None,
    chunk: int = 1,
    on_event: OnEvent | None = None,
) -> xr.Dataset:
    """Measure a risk at every point of a grid on a line or plane.

    The value at the origin is that of ``risk.evaluate()`` to the last bit. The model is restored bit for bit, also
    after an exception or Ctrl-C. A point that fails is marked and leaves the others alone; the next run tries it again.

    Args:
        risk: What is measured, or several splits by name (``{"train": ..., "test": ...}``) of the same model.
        plane: The line or plane, made at the model's present weights; or several of them, compared in one result.
        grid: Where on it.
        engine: Where points are computed. Default ``"serial"``: in this process.
        store: Folder of a Zarr store; a second run on it goes on where the first stopped. None keeps the result in
            memory alone.
        probes: What is measured beyond the risk's own metrics, such as `GradientNorm`.
        paired: Also store ``loss_difference_se``, the standard error of the difference to the loss at the origin: much
            smaller than that of the loss, since most of the error is common. Default True; costs one pass.
        batch_size: Samples per forward pass; None (default) keeps the risk's batches.
        chunk: Points handed out together; with data that stream from a loader, one pass serves a chunk. Default 1.
        on_event: Receives progress, see `lowland.engine.Event`; the first event has an estimate of the total time.

    Returns:
        A surface of schema v1; every metric has ``NAME_se`` (standard error as an estimate of a population) and
        ``NAME_skew`` (skewness: the plain interval is unreliable for n < 25 skew^2).

    Raises:
        InputError: If arguments do not fit together.
        NotDeterministic: If data or outputs differ between two passes.
        StoreError: If the store holds something else, is in use, damaged or not writable; finished points are kept.
    """
    risks = _splits(risk)
    planes = (plane,) if isinstance(plane, Plane) else tuple(plane)
    _check(risks, planes, grid, tuple(probes), batch_size)
    runner = select(engine)
    survey = Survey(risks, planes, tuple(probes), Kernel(chunk=chunk, batch_size=batch_size), paired)
    look = _look(survey)
    recipe = _recipe(survey, grid)
    with writer(store, _template(survey, grid, look, recipe)) as keeper:
        if keeper.resumed:
            survey = replace(survey, kernel=Kernel(**json.loads(keeper.dataset.attrs["kernel"])))
        points, known = _points(survey, grid, keeper)
        run = runner.run(
            survey, points, chunk=survey.kernel.chunk, known=known, seconds_per_point=look.seconds, on_event=on_event
        )
        with closing(run):
            for rows in run:
                for row in rows:
                    keeper.put(row.index, row.values, error=row.error)
    return keeper.dataset


@dataclass(frozen=True, slots=True)
class _Look:
    """What a first look at the survey tells: names of the metrics, which have errors, seconds and samples."""

    metrics: list[str]
    errors: list[str]
    seconds: float
    samples: int


def _splits(risk: EmpiricalRisk | Mapping[str, EmpiricalRisk]) -> dict[str, EmpiricalRisk]:
    risks = {"": risk} if isinstance(risk, EmpiricalRisk) else dict(risk)
    if not risks:
        raise InputError("risk", "must hold at least one split", risks)
    return risks


def _check(
    risks: Mapping[str, EmpiricalRisk], planes: Sequence[Plane], grid: Grid, probes: tuple[Probe, ...], size: int | None
) -> None:
    first = next(iter(risks.values()))
    for name, risk in risks.items():
        if risk.model is not first.model:
            raise InputError("risk", "must measure one model on every split", name)
        if risk.batch_norm != first.batch_norm:
            raise InputError("risk", "must use one batch-norm mode on every split", risk.batch_norm)
    if not planes:
        raise InputError("plane", "must hold at least one plane", planes)
    for plane in planes:
        if len(plane.axes) != len(grid.shape):
            raise InputError("grid", f"must have {len(plane.axes)} axes like the plane", len(grid.shape))
        if (plane.modules, plane.trainable) != (planes[0].modules, planes[0].trainable):
            raise InputError("plane", "must move the same parameters in every plane", plane.modules)
        if plane.buffers and first.batch_norm != "running":
            raise InputError(
                "risk", 'must use batch_norm="running" where the plane moves the statistics', first.batch_norm
            )
    if size is not None and (size < 1 or first.batch_norm == "batch"):
        rule = "must be at least 1" if size < 1 else 'must be None with batch_norm="batch", which fixes the batches'
        raise InputError("batch_size", rule, size)
    check_probes(probes)


def _look(survey: Survey) -> _Look:
    # the first batch is measured twice: by the determinism check, which also warms up, and here by the clock
    for risk in survey.risks.values():
        risk.check_deterministic()
        risk.data_fingerprint()
    seconds, samples = 0.0, 0
    names: dict[str, bool] = {}
    with survey.first.prepared(), torch.no_grad():
        survey.first.recalibrate()
        for number, risk in enumerate(survey.risks.values()):
            batches = iter(risk.batches())
            batch = next(batches)
            start = time.perf_counter()
            measured = risk.measure(batch)
            found = {name: values.ndim > 0 for name, (values, _) in measured.items()}
            if number and found != names:
                raise InputError("risk", "must measure the same metrics on every split", sorted(found))
            names = found
            each = time.perf_counter() - start
            sizes = [batch.size, *(other.size for other in batches)]
            seconds += each * sum(sizes) / batch.size
            samples = sum(sizes) if number == 0 else samples
    return _Look(list(names), [name for name, known in names.items() if known], seconds, samples)


def _recipe(survey: Survey, grid: Grid) -> dict[str, Any]:
    """Return what must agree for two runs to share a store, and what computes any point again."""
    model = survey.first.model
    return {
        "planes": [plane.describe() for plane in survey.planes],
        "grid": grid.describe(),
        "risks": {split: risk.describe() for split, risk in survey.risks.items()},
        "model": _model_fingerprint(model),
        "device": survey.first.device.type,
        "probes": [probe.describe() for probe in survey.probes],
        "paired": survey.paired,
        "batch_size": survey.kernel.batch_size,
        "precision": survey.kernel.precision,
    }


def _model_fingerprint(model: nn.Module) -> str:
    return fingerprint({**dict(model.named_parameters()), **dict(model.named_buffers())})


def _template(survey: Survey, grid: Grid, look: _Look, recipe: Mapping[str, Any]) -> xr.Dataset:
    """Return the empty surface with its recipe."""
    text = json.dumps(recipe, sort_keys=True)
    moved = any(plane.buffers for plane in survey.planes)
    extra = [f"{name}_skew" for name in look.errors]
    if survey.paired and "loss" in look.errors:
        extra.append("loss_difference_se")
    attrs = {
        "recipe": recipe,
        "recipe_fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16],
        "batch_norm": "interpolated" if moved else survey.first.batch_norm,
        "precision": survey.kernel.precision,
        "kernel": survey.kernel.describe(),
        "threads": torch.get_num_threads(),
        "samples": look.samples,
        "lowland": provenance()["versions"]["lowland"],
        **provenance(),
    }
    surface = new_surface(
        grid.x,
        grid.y,
        metrics=[*look.metrics, *extra, *(name for probe in survey.probes for name in probe.names)],
        errors=look.errors,
        splits=list(survey.risks) if len(survey.risks) > 1 else (),
        directions=[str(number) for number in range(len(survey.planes))] if len(survey.planes) > 1 else (),
        attrs=attrs,
    )
    for axis in ("x", "y")[: len(grid.shape)]:
        surface[axis].attrs["units"] = survey.planes[0].units
    return surface


def _points(survey: Survey, grid: Grid, keeper: SurfaceWriter) -> tuple[list[Point], dict[int, Row]]:
    """Return the points still to be measured, coarse to fine, and those already known."""
    warm = any(probe.warm_start for probe in survey.probes)
    status = keeper.status
    points = []
    for group in range(len(survey.planes)):
        start = group * grid.size
        for index, parent in ordered(grid, parents=warm):
            if status[start + index] in (STATUS_OPEN, STATUS_FAILED):
                above = None if parent is None else start + parent
                points.append(Point(start + index, grid.coordinates(index), group, above))
    todo = {point.index for point in points}
    return points, {int(i): Row(int(i), {}) for i in np.arange(status.size) if int(i) not in todo}
