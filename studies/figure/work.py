"""Train what is not trained, survey what is not surveyed, and store it: a surface file and a JSON file each."""

from __future__ import annotations

import copy
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import xarray as xr
from torch import nn

from lowland import EmpiricalRisk, landscape
from lowland.core.provenance import provenance
from lowland.engine import Event
from lowland.results import Run, write_li_hdf5
from lowland.workflows import fit
from studies.claims.files import write_whole
from studies.figure.measure import float_error, numbers_of, promise_of
from studies.figure.plan import LEARNED, Size, Survey
from studies.figure.procedure import by_procedure

__all__ = ["SCHEMA", "Places", "TimeIsUp", "run_survey", "stored"]

SCHEMA: Final = "lowland.figure/1"
ROOT: Final = Path(__file__).resolve().parents[2]


class TimeIsUp(Exception):
    """The time that was given has passed; what is stored is kept."""


@dataclass(frozen=True)
class Places:
    """Where everything is kept."""

    folder: Path = ROOT / "runs" / "figure"  # Runs
    store: Path = ROOT / "studies" / "figure" / "results"  # Surfaces and their numbers
    page: Path = ROOT / "docs" / "figure.md"
    images: Path = ROOT / "docs" / "images" / "figure"


def stored(survey: Survey, size: Size, places: Places) -> dict[str, Any] | None:
    """Return what is stored of a survey; None where it is not measured, or was measured at other settings."""
    path = places.store / f"{survey.name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if found.get("schema") == SCHEMA and found["asked"] == survey.asked(size) else None


def run_survey(survey: Survey, size: Size, places: Places, *, until: float | None, tell: Callable[[str], None]) -> None:
    """Train the network unless it is trained, survey the plane, and store the surface and the numbers.

    Raises:
        TimeIsUp: If the time is over; both training and survey go on from there the next time.
    """
    _check(until)

    def watch(event: Event) -> None:
        _check(until)

    tell(f"{survey.name}: training")
    run: Run = fit(survey.net.spec(size, str(places.folder / survey.net.name)), on_event=watch)
    trained, asked = _training(run), survey.asked(size)
    content: dict[str, Any] = {"schema": SCHEMA, "asked": asked, "part": survey.part, "training": trained}
    if (run.last("train_loss") or 0.0) <= LEARNED:
        tell(f"{survey.name}: surveying")
        content |= _surveyed(run, survey, size, places, watch)
    else:
        content["numbers"] = {"center": trained["train_loss"]}
    write_whole(places.store / f"{survey.name}.json", json.dumps(content | made_by(), indent=1, sort_keys=True) + "\n")


def _surveyed(run: Run, survey: Survey, size: Size, places: Places, watch: Callable[[Event], None]) -> dict[str, Any]:
    """Survey the plane, store the surface, and return its numbers."""
    started, cpu = time.monotonic(), time.process_time()
    risk = _risk(run, survey, size)
    surface = landscape.evaluate(
        risk,
        landscape.random_plane(risk.model, survey.direction),
        landscape.grid(survey.side, survey.side, extent=1.0),
        refined=size.tolerance,
        paired=False,
        store=run.surface_path(survey.name),
        on_event=watch,
    )
    error = float_error(surface, _exact(risk, survey, surface))
    seconds = {"seconds": round(time.monotonic() - started, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    write_li_hdf5(_small(surface, places, survey), places.store / f"{survey.name}.h5")
    found = {"numbers": numbers_of(surface, size.tolerance), "promise": promise_of(surface), "float_error": error}
    if survey.part == "fine":
        found["procedure"] = by_procedure(risk, surface, survey.direction, size.tolerance)
    return found | seconds


def _check(until: float | None) -> None:
    if until is not None and time.monotonic() > until:
        raise TimeIsUp


def _risk(run: Run, survey: Survey, size: Size) -> EmpiricalRisk:
    weights: str | int = "last"
    if survey.weights == "third":
        steps = run.snapshots.steps if run.snapshots is not None else []
        weights = min(steps, key=lambda step: abs(step - size.steps / 3))
    risk: EmpiricalRisk = run.risk(
        weights=weights, samples=size.samples, batch_size=size.samples, batch_norm=survey.batch_norm
    )
    return risk


def _exact(risk: EmpiricalRisk, survey: Survey, surface: xr.Dataset) -> xr.Dataset:
    """Measure the corners, the middles of the edges and the center in double precision."""
    model = copy.deepcopy(risk.model).double()
    batches = [(batch.input.double(), batch.target) for batch in risk.batches()]
    double = EmpiricalRisk(model, nn.CrossEntropyLoss(), batches, batch_norm=survey.batch_norm)
    ends = [surface[axis].values[[0, survey.side // 2, -1]] for axis in ("x", "y")]
    plane = landscape.random_plane(model, survey.direction)
    return landscape.evaluate(double, plane, landscape.Grid(*ends), paired=False)


def _small(surface: xr.Dataset, places: Places, survey: Survey) -> xr.Dataset:
    """Return the surface as it is stored: accuracy is left out of large ones."""
    places.store.mkdir(parents=True, exist_ok=True)
    return surface.drop_vars("accuracy") if survey.side > 60 and "accuracy" in surface else surface


def _training(run: Run) -> dict[str, Any]:
    """Return what the run came to, measured on all training and test images in evaluation mode."""
    found: dict[str, Any] = {"steps": run.result["steps"], "seconds": run.result["seconds"]}
    for split in ("train", "test"):
        values = run.risk(split, weights="last").evaluate()
        found |= {f"{split}_{name}": values[name].value for name in ("loss", "accuracy")}
    return found | {"train_loss_in_training": run.last("train_loss")}


def made_by() -> dict[str, Any]:
    made = provenance()
    machine = f"{made['machine']}, {os.cpu_count()} cores, {platform.processor() or 'CPU'}"
    return {"machine": machine, **{name: made[name] for name in ("created", "versions", "revision")}}
