"""Where the ledger's runs are trained: kept under a hash of their spec and of the code that they depend on.

Rows share runs (every row has a plain SGD arm), a changed line of the code that a run depends on makes it a new
one, and a killed run goes on from its last epoch.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import itertools
import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from lowland import data, losses, models, optim
from lowland.core.names import find, import_path
from lowland.core.seeds import generator
from lowland.results.run_folder import RunPaths
from lowland.study.dependencies import Name, names_in_call, own_source
from lowland.study.endpoints import read_endpoint
from lowland.study.plan import apply
from lowland.study.search import WITHOUT_TEST, Trial, best
from lowland.workflows import DataSpec, FitSpec, fit, to_yaml
from lowland.workflows.study import Changes

__all__ = ["Arm", "Bench", "names_in_run", "settings_of"]

LOOP: Final = (
    Name("training", "fit"), Name("training", "Schedule"), Name("workflows.fitting", "fit"),
    *(Name("spec.build", f"build_{part}") for part in ("data", "model", "optimizer", "loss", "schedule")),
    Name("models.registry", "create"), Name("data.registry", "load"),
)  # fmt: skip
"""What every run depends on."""

TRIALS: Final = 6
"""Settings tried for every arm that is tuned; the plain optimizer's learning rate and weight decay are among them."""

GRID: Final[dict[str, list[Any]]] = {
    "optimizer.learning_rate": [0.02, 0.05, 0.1, 0.2],
    "optimizer.weight_decay": [5e-4, 2e-3],
}
SEARCH_SEED: Final = 10_000


@dataclass(frozen=True)
class Arm:
    """One arm of a row."""

    run: FitSpec  # The run, without folder and seed
    changes: Changes = field(default_factory=dict)  # What the method changes in it
    # What is searched for it besides learning rate and weight decay.
    grid: Mapping[str, list[Any]] = field(default_factory=dict)
    tuned: bool = False  # Whether its settings are searched

    @functools.cached_property
    def spec(self) -> FitSpec:
        """The run with the method's changes."""
        return apply(self.run, dict(self.changes), "arm")


class Bench:
    """Trains runs and keeps them."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._settled: dict[str, FitSpec] = {}

    def place(self, spec: FitSpec) -> Path:
        """Return where a run lies: the name is a hash of its spec and code."""
        text = to_yaml(replace(spec, folder="")) + own_source().fingerprint(names_in_run(spec))
        return self.folder / hashlib.sha256(text.encode()).hexdigest()[:16]

    def train(self, spec: FitSpec, seed: int) -> Path:
        """Train a run, or return it where it is trained already."""
        seeded = replace(spec, seed=seed)
        path = self.place(seeded)
        with self.alone(path):
            if not RunPaths(path).finished:
                fit(replace(seeded, folder=str(path)))
        return path

    @contextmanager
    def alone(self, path: Path) -> Generator[None, None, None]:
        """Wait until no other row works on a run: rows share runs, and may run in several processes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{path.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def settled(self, arm: Arm) -> FitSpec:
        """Return the run of an arm with the settings that a small search chose on validation data."""
        if not arm.tuned:
            return arm.spec
        key = f"{arm.spec} {dict(arm.grid)}"
        if key not in self._settled:
            self._settled[key] = self._searched(arm)
        return self._settled[key]

    def _searched(self, arm: Arm) -> FitSpec:
        hidden = DataSpec(name=WITHOUT_TEST, options={"dataset": arm.run.data.name, "settings": arm.run.data.options})
        tried = []
        for number, settings in enumerate(settings_of(arm)):
            path = self.train(replace(apply(arm.spec, settings, "grid"), data=hidden), SEARCH_SEED)
            accuracy, loss = (read_endpoint(path, f"validation_{name}") for name in ("accuracy", "loss"))
            tried.append(Trial(number, settings, accuracy if math.isfinite(accuracy) else -loss))
        return apply(arm.spec, best(tried).settings, "grid")


def settings_of(arm: Arm) -> list[Changes]:
    """Return the settings that are tried for an arm: a fixed random subset of its grid."""
    grid = {**GRID, **arm.grid}
    every = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    order = generator(SEARCH_SEED, "subsample", "grid", len(every)).permutation(len(every))
    return [every[place] for place in sorted(order[:TRIALS])]


def names_in_run(spec: FitSpec) -> set[Name]:
    """Return what a run is made of: the loop, its network, data, optimizer and loss."""
    names = set(LOOP)
    name = spec.data.options["dataset"] if spec.data.name == WITHOUT_TEST else spec.data.name
    made: list[Any] = [find("data.name", name, data.DATASETS), find("model.name", spec.model.name, models.MODELS)]
    made += [import_path("data.name", spec.data.name)] if spec.data.name == WITHOUT_TEST else []
    made += [import_path("loss.name", spec.loss.name)] if ":" in spec.loss.name else []
    if spec.optimizer.method != "none":
        made.append(optim.METHODS[spec.optimizer.method])
    if spec.loss.method != "none":
        made.append(losses.METHODS[spec.loss.method])
    shape = spec.loss.options.get("reshaper")
    if shape is not None:
        made.append(losses.RESHAPERS[shape["name"] if isinstance(shape, dict) else shape])
    for part in made:
        names |= names_in_call(part)[0]
    return names
