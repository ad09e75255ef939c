"""Where the ledger's runs are trained: kept under a hash of their spec and of the files that training imports.

Rows share runs (every row has a plain SGD arm), changed code makes a run a new one, and a killed run goes on from its
last epoch.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import math
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from lowland.study import Trial, apply_changes, best_trial, grid_settings, read_endpoint, withhold_test
from lowland.workflows import FitSpec, fit, open_run, to_yaml
from studies.claims.imports import fingerprint

__all__ = ["Arm", "RunCache", "settings_of"]

TRIALS: Final = 6
"""Settings tried for every arm that is tuned; the plain optimizer's learning rate and weight decay are among them."""

GRID: Final[dict[str, list[Any]]] = {
    "optimizer.learning_rate": [0.02, 0.05, 0.1, 0.2],
    "optimizer.weight_decay": [5e-4, 2e-3],
}
SEARCH_SEED: Final = 10_000

TRAINING: Final = "lowland.workflows.fitting"
"""The module that trains a run from its spec."""


@dataclass(frozen=True)
class Arm:
    """One arm of a row."""

    run: FitSpec  # The run, without folder and seed
    changes: Mapping[str, Any] = field(default_factory=dict)  # What the method changes in it
    # What is searched for it besides learning rate and weight decay.
    grid: Mapping[str, list[Any]] = field(default_factory=dict)
    tuned: bool = False  # Whether its settings are searched

    @functools.cached_property
    def spec(self) -> FitSpec:
        """The run with the method's changes."""
        return apply_changes(self.run, dict(self.changes), "arm")


class RunCache:
    """Trains runs and keeps them."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._settled: dict[str, FitSpec] = {}

    def place(self, spec: FitSpec) -> Path:
        """Return where a run lies: the name is a hash of its spec and code."""
        text = to_yaml(replace(spec, folder="")) + fingerprint(TRAINING)
        return self.folder / hashlib.sha256(text.encode()).hexdigest()[:16]

    def train(self, spec: FitSpec, seed: int) -> Path:
        """Train a run, or return it where it is trained already."""
        seeded = replace(spec, seed=seed)
        path = self.place(seeded)
        with self.alone(path):
            if not (path.is_dir() and open_run(path).finished):
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
        tried = []
        for number, settings in enumerate(settings_of(arm)):
            path = self.train(withhold_test(apply_changes(arm.spec, settings, "grid")), SEARCH_SEED)
            accuracy, loss = (read_endpoint(path, f"validation_{name}") for name in ("accuracy", "loss"))
            tried.append(Trial(number, settings, accuracy if math.isfinite(accuracy) else -loss))
        return apply_changes(arm.spec, best_trial(tried).settings, "grid")


def settings_of(arm: Arm) -> list[dict[str, Any]]:
    """Return the settings that are tried for an arm: a fixed random subset of its grid."""
    return grid_settings({**GRID, **arm.grid}, TRIALS, seed=SEARCH_SEED)
