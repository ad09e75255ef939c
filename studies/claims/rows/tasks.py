"""The tasks of the ledger, each with headroom, and the measures that most rows share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lowland.core.risk import EmpiricalRisk
from lowland.results import matched_steps
from lowland.study import cost_of, read_endpoint, read_reach
from lowland.workflows import DataSpec, FitSpec, ModelSpec, OptimizerSpec, open_run
from studies.claims.claim import Measure
from studies.claims.runs import Arm, RunCache

__all__ = [
    "ADAMW",
    "ADAPTIVE",
    "FULL",
    "SMALL",
    "Size",
    "arm",
    "beside",
    "digits",
    "endpoint",
    "matched",
    "passes_over",
    "reader",
    "signals",
    "steps_to",
]


@dataclass(frozen=True)
class Size:
    """How large the ledger's runs are."""

    name: str  # ``"small"`` or ``"full"``
    seeds: int  # Seeds of a row whose runs take seconds
    few: int  # Seeds of a row whose runs take longer
    samples: int  # Training samples of the signals
    epochs: int  # Epochs on the signals
    images: int  # Training images of the digits
    survey_epochs: int  # Epochs on the digits
    accelerator: str = "cpu"  # cpu, cuda or auto
    cost: float = 1.0  # Time of a row over the small one's, on one core


SMALL: Final = Size("small", 20, 6, 1000, 60, 150, 40)
FULL: Final = Size("full", 40, 20, 4000, 200, 897, 100, "auto", cost=14.0)


def signals(size: Size, **options: Any) -> FitSpec:
    """Return the task of the accuracy rows: MNIST-1D with 30 % symmetric label noise, ResNet-8, 20,000 test signals."""
    data = DataSpec(name="mnist1d", options={"train_size": size.samples, "label_noise": 0.3})
    settings: dict[str, Any] = {
        "epochs": size.epochs,
        "batch_size": 64,
        "snapshots_every_epochs": None,
        "threads": 1,
        "optimizer": OptimizerSpec(learning_rate=0.05, weight_decay=1e-3),
        "accelerator": size.accelerator,
    }
    return FitSpec(model=ModelSpec(name="resnet1d"), data=data, **{**settings, **options})


def digits(size: Size, *, model: ModelSpec | None = None, **options: Any) -> FitSpec:
    """Return the task of the rows that survey: 150 of scikit-learn's digits with 30 % label noise."""
    # A narrow ResNet-8.
    data = DataSpec(name="digits", options={"train_size": size.images, "label_noise": 0.3})
    settings: dict[str, Any] = {
        "epochs": size.survey_epochs,
        "batch_size": 32,
        "snapshots_every_epochs": 1,
        "threads": 1,
        "optimizer": OptimizerSpec(learning_rate=0.05, weight_decay=5e-4),
        "accelerator": size.accelerator,
    }
    network = model or ModelSpec(name="resnet8", options={"width": 8})
    return FitSpec(model=network, data=data, **{**settings, **options})


ADAMW: Final = {
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 3e-3,
    "optimizer.weight_decay": 0.01,
}
"""Changes that make AdamW the base optimizer."""

ADAPTIVE: Final[dict[str, list[Any]]] = {
    "optimizer__learning_rate": [1e-3, 3e-3, 1e-2, 3e-2],
    "optimizer__weight_decay": [0.01, 0.1],
}
"""What is searched for an adaptive base, in place of SGD's grid."""


def arm(run: FitSpec, changes: Mapping[str, Any] | None = None, *, tuned: bool = False, **grid: list[Any]) -> Arm:
    """Return an arm."""
    return Arm(run, dict(changes or {}), {key.replace("__", "."): values for key, values in grid.items()}, tuned)


def endpoint(name: str) -> Measure:
    """Return the measure of rows that read one endpoint of every arm."""
    return reader(lambda path: read_endpoint(path, name), chosen=name.startswith("test_"))


def reader(read: Callable[[Path], float], *, surveyed: bool = False, chosen: bool = False) -> Measure:
    """Return the measure of rows that read one number of every arm's run, at its end or at the chosen epoch."""

    def measure(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, one in arms.items():
            path = runs.train(runs.settled(one), seed)
            with runs.alone(path):
                found[name] = read(path)
            found |= beside(path, name, None if chosen else math.inf)
            if surveyed:
                found[f"train loss {name}"] = read_endpoint(path, "train_loss")
        return found

    return measure


def beside(path: Path, name: str, step: float | None = math.inf) -> dict[str, float]:
    """Return the passes, and the reach of the method up to a step (None: the chosen epoch's) where the run shows it."""
    reach = read_reach(path, step)
    found = {f"passes {name}": cost_of(path).passes}
    return found if math.isnan(reach) else {**found, f"reach {name}": reach}


def matched(*reads: Callable[[EmpiricalRisk], float | Mapping[str, float]]) -> Measure:
    """Return the measure of rows that compare all arms at a train loss that their paths share."""
    # Each path is looked at where its train loss is nearest, in ratio, to the largest that the arms have at the
    # end; the losses there are stored beside the numbers. A reader that gives several numbers names what stands
    # beside the endpoint: {"": 0.3, "edge": 2.5}.

    def measure(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
        paths = {name: runs.train(runs.settled(one), seed) for name, one in arms.items()}
        opened = [open_run(path) for path in paths.values()]
        steps = matched_steps(opened, lambda run: run.risk(weights="last"))
        found: dict[str, float] = {}
        for (name, path), run, step in zip(paths.items(), opened, steps, strict=True):
            risk = run.risk(weights=step)
            found |= {f"train loss {name}": risk.evaluate()["loss"].value, **beside(path, name, step)}
            for read in reads:
                given = read(risk)
                given = given if isinstance(given, Mapping) else {"": given}
                found |= {f"{kind} {name}".strip(): value for kind, value in given.items()}
        return found

    return measure


def steps_to(loss: float) -> Measure:
    """Return the measure of rows about speed: steps until an epoch's train loss is at most a level."""
    # A run that never gets there is censored: it counts with all its steps, so that the mean is the restricted
    # mean time up to the run's length, and the row shows the share of runs that got there.

    def measure(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, one in arms.items():
            path = runs.train(runs.settled(one), seed)
            found[name] = read_endpoint(path, f"restricted_steps_to_loss:{loss}")
            found[f"reached {name}"] = read_endpoint(path, f"reached_loss:{loss}")
            found |= beside(path, name)
        return found

    return measure


def passes_over(base: str) -> Measure:
    """Return the measure of a step's cost: log2 of an arm's training passes over those of the base, a teacher's too."""

    def measure(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
        paths = {name: runs.train(runs.settled(one), seed) for name, one in arms.items()}
        costs = {name: cost_of(path).training for name, path in paths.items()}
        found = {name: math.log2(passes / costs[base]) for name, passes in costs.items()}
        for name, path in paths.items():
            found |= beside(path, name)
        return found

    return measure
