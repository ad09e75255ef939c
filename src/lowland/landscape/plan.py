"""Before the first point: do the arguments fit, what will be measured, and what identifies the survey."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from lowland.core.errors import InputError, require
from lowland.core.params import model_fingerprint
from lowland.core.provenance import provenance
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import new_surface
from lowland.landscape.grid import Grid
from lowland.landscape.plane import Plane
from lowland.landscape.probes import Probe, check_probes
from lowland.landscape.surface_task import Request, SurfaceTask

if TYPE_CHECKING:
    import xarray as xr


def as_splits(risk: EmpiricalRisk | Mapping[str, EmpiricalRisk]) -> dict[str, EmpiricalRisk]:
    """Return the risks by split; a single risk has the name ``""``."""
    if not isinstance(risk, EmpiricalRisk | Mapping):
        raise InputError("risk", "must be an EmpiricalRisk, or several by name", type(risk).__name__)
    risks = {"": risk} if isinstance(risk, EmpiricalRisk) else dict(risk)
    require(risks, "risk", "must hold at least one split", risks)
    return risks


def check_survey(
    risks: Mapping[str, EmpiricalRisk], planes: Sequence[Plane], grid: Grid, probes: tuple[Probe, ...], request: Request
) -> None:
    """Refuse arguments that do not fit together."""
    first = next(iter(risks.values()))
    for name, risk in risks.items():
        require(risk.model is first.model, "risk", "must measure one model on every split", name)
        if risk.batch_norm != first.batch_norm:
            raise InputError("risk", "must use one batch-norm mode on every split", risk.batch_norm)
    require(planes, "plane", "must hold at least one plane", planes)
    for plane in planes:
        if plane.dimensions != len(grid.shape):
            raise InputError("grid", f"must have {plane.dimensions} axes like the plane", len(grid.shape))
        if (plane.modules, plane.trainable) != (planes[0].modules, planes[0].trainable):
            raise InputError("plane", "must move the same parameters in every plane", plane.modules)
        if plane.buffers and first.batch_norm != "running":
            rule = 'must use batch_norm="running" where the plane moves the statistics'
            raise InputError("risk", rule, first.batch_norm, "or make the plane with move_statistics=False")
    batch_size, precision = request.batch_size, request.precision
    whole = isinstance(batch_size, int) and not isinstance(batch_size, bool) and batch_size >= 1
    require(whole or batch_size in (None, "auto"), "batch_size", 'must be at least 1, None or "auto"', batch_size)
    if whole and first.batch_norm == "batch":
        raise InputError("batch_size", 'must be None with batch_norm="batch", which fixes the batches', batch_size)
    if precision not in ("float32", "bfloat16", "auto"):
        raise InputError("precision", 'must be "float32", "bfloat16" or "auto"', precision)
    check_probes(probes)


def check_ranks(survey: SurfaceTask, request: Request, engine: str, store: Any) -> None:
    """Refuse what ranks that share the data could not do in step."""
    for risk in survey.risks.values():
        same = risk.ranks.group is survey.first.ranks.group
        require(same, "risk", "must have one process group on every split", risk.ranks.group)
    advice = "the ranks are the workers"
    require(engine == "serial", "engine", 'must be "serial" where ranks share the data', engine, advice)
    for name, value in (("batch_size", request.batch_size), ("precision", request.precision)):
        require(value != "auto", name, "must be given where ranks share the data: each would choose by itself", value)
    warm = any(probe.warm_start for probe in survey.probes)
    rule = "must be None for probes that start warm where ranks share the data"
    require(store is None or not warm, "store", rule, store)


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a first look at a survey tells."""

    metrics: list[str]  # Names of what the risk measures
    errors: list[str]  # Those with values per sample, which have standard errors
    seconds: float  # What one point takes, roughly
    samples: int  # Samples of the first split


def preflight(survey: SurfaceTask) -> Preflight:
    """Check that passes agree, and what the first batch of each split tells."""
    seconds, counts = 0.0, []
    names: dict[str, bool] = {}
    probed = {name for probe in survey.probes for name in probe.names}
    for number, risk in enumerate(survey.risks.values()):
        seen = risk.check_deterministic()
        assert seen is not None
        if number and seen.names != names:
            raise InputError("risk", "must measure the same metrics on every split", sorted(seen.names))
        names = seen.names
        if twice := sorted(probed & set(names)):
            raise InputError("probes", "must not have names of the risk's own metrics", twice)
        risk.data_fingerprint()
        counts.append(sum(risk.ranks.gather(sum(batch.size for batch in risk.batches()))))
        seconds += seen.seconds * counts[-1] / (seen.samples or 1)
    return Preflight(list(names), [name for name, known in names.items() if known], seconds, counts[0])


def make_recipe(survey: SurfaceTask, grid: Grid, request: Request) -> dict[str, Any]:
    """Return what must agree for two runs to share a store, and what computes any point again."""
    recipe = {
        "planes": [plane.describe() for plane in survey.planes],
        "grid": grid.describe(),
        "risks": {split: risk.describe() for split, risk in survey.risks.items()},
        "model": model_fingerprint(survey.first.model),
        "device": survey.first.device.type,
        "probes": [probe.describe() for probe in survey.probes],
        "paired": survey.paired,
        "request": asdict(request),
    }
    # where a function lay in memory tells nothing, and would be another place at the next start
    kept: dict[str, Any] = json.loads(re.sub(r" at 0x[0-9a-fA-F]+", "", json.dumps(recipe)))
    return kept


def make_template(
    survey: SurfaceTask, grid: Grid, seen: Preflight, recipe: Mapping[str, Any], names: Sequence[str]
) -> xr.Dataset:
    """Return the empty surface with its recipe; the planes go by names where there are several."""
    text = json.dumps(recipe, sort_keys=True)
    moved = any(plane.buffers for plane in survey.planes)
    extra = [f"{name}_skew" for name in seen.errors]
    extra += [f"{name}_difference_se" for name in survey.differing if name in seen.errors]
    origin = provenance()
    surface = new_surface(
        grid.x,
        grid.y,
        metrics=[*seen.metrics, *extra, *(name for probe in survey.probes for name in probe.names)],
        errors=seen.errors,
        splits=list(survey.risks) if len(survey.risks) > 1 else (),
        directions=names if len(survey.planes) > 1 else (),
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
