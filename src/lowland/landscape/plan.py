"""Before the first point: do the arguments fit, what will be measured, and what identifies the survey."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr

from lowland.core.errors import InputError
from lowland.core.provenance import fingerprint, provenance
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import new_surface
from lowland.landscape.grid import Grid
from lowland.landscape.plane import Plane
from lowland.landscape.probes import Probe, check_probes
from lowland.landscape.surface_task import SurfaceTask

__all__ = ["Preflight", "as_splits", "check_survey", "preflight", "make_recipe", "make_template"]


def as_splits(risk: EmpiricalRisk | Mapping[str, EmpiricalRisk]) -> dict[str, EmpiricalRisk]:
    """Return the risks by split; a single risk has the name ``""``."""
    risks = {"": risk} if isinstance(risk, EmpiricalRisk) else dict(risk)
    if not risks:
        raise InputError("risk", "must hold at least one split", risks)
    return risks


def check_survey(
    risks: Mapping[str, EmpiricalRisk],
    planes: Sequence[Plane],
    grid: Grid,
    probes: tuple[Probe, ...],
    batch_size: object,
    precision: object,
) -> None:
    """Refuse arguments that do not fit together."""
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
            rule = 'must use batch_norm="running" where the plane moves the statistics'
            raise InputError("risk", rule, first.batch_norm, "or make the plane with move_statistics=False")
    whole = isinstance(batch_size, int) and not isinstance(batch_size, bool) and batch_size >= 1
    if not (whole or batch_size in (None, "auto")):
        raise InputError("batch_size", 'must be at least 1, None or "auto"', batch_size)
    if whole and first.batch_norm == "batch":
        raise InputError("batch_size", 'must be None with batch_norm="batch", which fixes the batches', batch_size)
    if precision not in ("float32", "bfloat16", "auto"):
        raise InputError("precision", 'must be "float32", "bfloat16" or "auto"', precision)
    check_probes(probes)


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a first look at a survey tells."""

    metrics: list[str]  # Names of what the risk measures
    errors: list[str]  # Those with values per sample, which have standard errors
    seconds: float  # What one point takes, roughly
    samples: int  # Samples of the first split


def preflight(survey: SurfaceTask) -> Preflight:
    """Check that passes agree, and measure the first batch by the clock."""
    for risk in survey.risks.values():
        risk.check_deterministic()  # measures the first batch too, so that the clock below meets warm caches
        risk.data_fingerprint()
    seconds, samples = 0.0, 0
    names: dict[str, bool] = {}
    with survey.first.prepared(), torch.no_grad():
        survey.first.recalibrate()
        for number, risk in enumerate(survey.risks.values()):
            batches = iter(risk.batches())
            batch = next(batches)
            start = time.perf_counter()
            found = {name: values.ndim > 0 for name, (values, _) in risk.measure(batch).items()}
            each = time.perf_counter() - start
            if number and found != names:
                raise InputError("risk", "must measure the same metrics on every split", sorted(found))
            names = found
            twice = sorted({name for probe in survey.probes for name in probe.names} & set(names))
            if twice:
                raise InputError("probes", "must not have names of the risk's own metrics", twice)
            count = batch.size + sum(other.size for other in batches)
            seconds += each * count / batch.size
            samples = count if number == 0 else samples
    return Preflight(list(names), [name for name, known in names.items() if known], seconds, samples)


def make_recipe(survey: SurfaceTask, grid: Grid, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must agree for two runs to share a store, and what computes any point again."""
    model = survey.first.model
    recipe = {
        "planes": [plane.describe() for plane in survey.planes],
        "grid": grid.describe(),
        "risks": {split: risk.describe() for split, risk in survey.risks.items()},
        "model": fingerprint({**dict(model.named_parameters()), **dict(model.named_buffers())}),
        "device": survey.first.device.type,
        "probes": [probe.describe() for probe in survey.probes],
        "paired": survey.paired,
        "request": dict(request),
    }
    # where a function lay in memory tells nothing, and would be another place at the next start
    kept: dict[str, Any] = json.loads(re.sub(r" at 0x[0-9a-fA-F]+", "", json.dumps(recipe)))
    return kept


def make_template(survey: SurfaceTask, grid: Grid, seen: Preflight, recipe: Mapping[str, Any]) -> xr.Dataset:
    """Return the empty surface with its recipe."""
    text = json.dumps(recipe, sort_keys=True)
    moved = any(plane.buffers for plane in survey.planes)
    extra = [f"{name}_skew" for name in seen.errors]
    if survey.paired and "loss" in seen.errors:
        extra.append("loss_difference_se")
    origin = provenance()
    surface = new_surface(
        grid.x,
        grid.y,
        metrics=[*seen.metrics, *extra, *(name for probe in survey.probes for name in probe.names)],
        errors=seen.errors,
        splits=list(survey.risks) if len(survey.risks) > 1 else (),
        directions=[str(number) for number in range(len(survey.planes))] if len(survey.planes) > 1 else (),
        attrs={
            "recipe": recipe,
            "recipe_fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16],
            "batch_norm": "interpolated" if moved else survey.first.batch_norm,
            "samples": seen.samples,
            "threads": torch.get_num_threads(),
            "lowland": origin["versions"]["lowland"],
            **origin,
        },
    )
    for axis in ("x", "y")[: len(grid.shape)]:
        surface[axis].attrs["units"] = survey.planes[0].units
    return surface
