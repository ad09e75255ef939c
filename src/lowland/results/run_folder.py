"""The folder of a run: where everything in it lies, which folders are fit for one, and its plain files; no torch."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lowland.core.errors import InputError

__all__ = ["RunPaths", "open_run_folder", "read_metrics", "read_result"]

_OURS: Final = (
    ".checkpoints.lock",
    "spec.yaml",
    "metrics.csv",
    "checkpoints",
    "snapshots",
    "surfaces",
    "curvature",
    "figures",
    "report.html",
)
"""What tells a run's folder from somebody else's."""


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Where the parts of a run lie in its folder; nothing is read, and nothing needs to exist."""

    root: Path  # The folder

    @property
    def spec(self) -> Path:
        """The spec that makes the run again."""
        return self.root / "spec.yaml"

    @property
    def metrics(self) -> Path:
        """One row of numbers per epoch."""
        return self.root / "metrics.csv"

    @property
    def result(self) -> Path:
        """The outcome of training; it is there once training has ended."""
        return self.root / "result.json"

    @property
    def snapshots(self) -> Path:
        """The folder of the weights along the path."""
        return self.root / "snapshots"

    @property
    def checkpoints(self) -> Path:
        """The folder of the last and the best checkpoint."""
        return self.root / "checkpoints"

    @property
    def trajectory(self) -> Path:
        """The projected path."""
        return self.root / "trajectory.zarr"

    @property
    def surfaces(self) -> Path:
        """The folder of surfaces and lines."""
        return self.root / "surfaces"

    @property
    def curvatures(self) -> Path:
        """The folder of curvature results."""
        return self.root / "curvature"

    @property
    def finished(self) -> bool:
        """Whether training has ended."""
        return self.result.is_file()

    def surface(self, name: str) -> Path:
        """Return where a surface or line lies."""
        return self.surfaces / f"{name}.zarr"

    def curvature(self, name: str) -> Path:
        """Return where a curvature result lies."""
        return self.curvatures / f"{name}.zarr"

    @classmethod
    def of_store(cls, store: str | Path) -> RunPaths:
        """Return the run that a surface, a curvature result or a trajectory belongs to, by where it lies."""
        folder = Path(store).absolute().parent
        inside = folder.name in (cls(folder.parent).surfaces.name, cls(folder.parent).curvatures.name)
        return cls(folder.parent if inside else folder)


def open_run_folder(folder: Path, *, new: bool = False) -> Path:
    """Check that a folder can hold a run, and make it."""
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError("folder", "must be a folder", str(folder), "choose another place")
        names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
        if new and any("spec.yaml" not in name for name in names):
            raise InputError("folder", "must be new, empty or the folder of this run", str(folder))
        if names and not new and not names & set(_OURS):
            raise InputError("folder", "must be empty or a run of Lowland", str(folder), "choose another place")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("folder", f"must be writable ({error.strerror or error})", str(folder)) from error
    if not os.access(folder, os.W_OK):
        raise InputError("folder", "must be writable", str(folder))
    return folder


def read_result(folder: str | Path) -> dict[str, Any]:
    """Read the outcome of training."""
    path = RunPaths(Path(folder)).result
    if not path.is_file():
        raise InputError("run", "must be finished", str(folder), "go on with `lowland fit`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("run", f"holds a damaged result.json ({error})", str(folder)) from error
    if not isinstance(content, dict):
        raise InputError("run", "holds a damaged result.json (no object)", str(folder))
    return content


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the rows of a run."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return [{name: float(value) for name, value in row.items() if value} for row in rows]
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise InputError("folder", f"must hold a readable metrics.csv ({error})", str(path.parent)) from error
