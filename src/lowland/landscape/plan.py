"""Before the first point: do the arguments fit, what will be measured, and what identifies the survey."""

from __future__ import annotations

import hashlib
import json
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
from lowland.landscape.kernel import Survey
from lowland.landscape.plane import Plane
from lowland.landscape.probes import Probe, check_probes

__all__ = ["Look", "as_splits", "check_survey", "look", "make_recipe", "make_template"]


def as_splits(risk: EmpiricalRisk | Mapping[str, EmpiricalRisk]) -> dict[str, EmpiricalRisk]:
    """Return the risks by split; a single risk has the name ``""``.

    Args:
        risk: A risk or several by name.

    Returns:
        Name -> risk.

    Raises:
        InputError: If there is none.
    """
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
    """Refuse arguments that do not fit together.

    Args:
        risks: Risk of each split.
        planes: The lines or planes.
        grid: The grid.
        probes: The probes.
        batch_size: What was asked for.
        precision: What was asked for.

    Raises:
        InputError: If anything does not fit.
    """
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
class Look:
    """What a first look at a survey tells.

    Args:
        metrics: Names of what the risk measures.
        errors: Those with values per sample, which have standard errors.
        seconds: What one point takes, roughly.
        samples: Samples of the first split.
    """

    metrics: list[str]
    errors: list[str]
    seconds: float
    samples: int


def look(survey: Survey) -> Look:
    """Check that passes agree, and measure the first batch by the clock.

    Args:
        survey: The survey.

    Returns:
        Names, errors, seconds and samples.

    Raises:
        InputError: If splits measure different things, or a probe has the name of a metric.
    """
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
    return Look(list(names), [name for name, known in names.items() if known], seconds, samples)


def make_recipe(survey: Survey, grid: Grid, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must agree for two runs to share a store, and what computes any point again.

    Args:
        survey: The survey.
        grid: The grid.
        request: What was asked of the kernel and the refinement.

    Returns:
        Plain JSON values.
    """
    model = survey.first.model
    return {
        "planes": [plane.describe() for plane in survey.planes],
        "grid": grid.describe(),
        "risks": {split: risk.describe() for split, risk in survey.risks.items()},
        "model": fingerprint({**dict(model.named_parameters()), **dict(model.named_buffers())}),
        "device": survey.first.device.type,
        "probes": [probe.describe() for probe in survey.probes],
        "paired": survey.paired,
        "request": dict(request),
    }


def make_template(survey: Survey, grid: Grid, seen: Look, recipe: Mapping[str, Any]) -> xr.Dataset:
    """Return the empty surface with its recipe.

    Args:
        survey: The survey.
        grid: The grid.
        seen: What the first look told.
        recipe: See `make_recipe`.

    Returns:
        A surface of schema v1 with every point open.
    """
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
