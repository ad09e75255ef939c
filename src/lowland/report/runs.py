"""The runs that a report is about: what a run folder holds, read once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lowland.core.errors import InputError
from lowland.core.schema import check
from lowland.results import open as open_store
from lowland.results.run_folder import RunPaths, read_metrics, read_result
from lowland.viz.caption import axes_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Run", "final_curvature", "path_plane", "read_run", "read_runs"]

_NOT_THE_METHOD = ("seed", "folder", "threads", "snapshots_every_epochs", "snapshot_dtype", "checkpoint_every_steps")
"""Keys of a spec in which seeds of one method may differ."""


@dataclass(frozen=True, slots=True)
class Run:
    """One trained (and perhaps surveyed) network.

    Args:
        name: Name that the report shows, unique among the runs.
        method: Runs of one method with several seeds form a row of the comparison; "" takes the name.
        seed: Seed that pairs runs of different methods; None where unknown.
        metrics: Rows of ``metrics.csv``, numbers where they are numbers.
        result: Outcome of training: test_accuracy, test_loss, train_loss and learning_rate of the chosen epoch, passes,
            seconds, steps, momentum; absent where unknown.
        surfaces: Surfaces and lines by name.
        curvature: Curvature results by name, the one at the end of training last.
        trajectory: The projected path, or None.
        spec: Text of ``spec.yaml``, shown for repetition.
        data: What identifies the data; runs that differ are not compared unasked.
        loss: What identifies the loss; as `data`.
        folder: Where the run lies, shown for repetition.
    """

    name: str
    method: str = ""
    seed: int | None = None
    metrics: tuple[Mapping[str, Any], ...] = ()
    result: Mapping[str, Any] = field(default_factory=dict)
    surfaces: Mapping[str, xr.Dataset] = field(default_factory=dict)
    curvature: Mapping[str, xr.Dataset] = field(default_factory=dict)
    trajectory: xr.Dataset | None = None
    spec: str = ""
    data: str = ""
    loss: str = ""
    folder: str = ""

    @property
    def group(self) -> str:
        """Name of the row it belongs to."""
        return self.method or self.name

    def last(self, column: str) -> float | None:
        """Return the last number of a column of the metrics.

        Args:
            column: Name of the column.

        Returns:
            The number, or None where the column is missing or empty.
        """
        for row in reversed(self.metrics):
            if isinstance(row.get(column), int | float):
                return float(row[column])
        return None


def path_plane(run: Run) -> str | None:
    """Return the name of the surface over the plane of the run's path."""
    planes = {name: surface for name, surface in run.surfaces.items() if "y" in surface.dims}
    if run.trajectory is None:
        return None
    axes = axes_of(run.trajectory)
    for name, surface in planes.items():
        if axes and axes_of(surface) == axes:
            return name
    return next((name for name, s in planes.items() if "trajectory" in name and not (axes and axes_of(s))), None)


def final_curvature(run: Run) -> xr.Dataset | None:
    """Return the curvature at the end of training."""
    whole = [r for r in run.curvature.values() if "lambda_max" in r or ("eigenvalue" in r and "density" not in r)]
    whole = [result for result in whole if result.sizes.get("pair", 0) or "lambda_max" in result]
    return whole[-1] if whole else None


def read_run(
    folder: str | Path,
    *,
    name: str | None = None,
    method: str = "",
    seed: int | None = None,
    data: str = "",
    loss: str = "",
) -> Run:
    """Read a run folder; what is missing in it is left out of the report.

    Args:
        folder: ``runs/NAME`` with any of spec.yaml, metrics.csv, result.json, surfaces, curvature, trajectory.zarr.
        name: Name to show; None takes the folder's.
        method: As in `Run`.
        seed: As in `Run`.
        data: As in `Run`; "" reads it from the spec.
        loss: As in `Run`; "" reads the plain loss from the spec, without the method around it.

    Returns:
        The run.

    Raises:
        InputError: If the folder does not exist or holds nothing that a run writes.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError("run", "must be a folder that a run has written", str(folder))
    paths = RunPaths(root)
    metrics = read_metrics(paths.metrics) if paths.metrics.is_file() else []
    result = read_result(root) if paths.finished else {}
    surfaces, curvature = _open_all(paths.surfaces, "surface"), _open_all(paths.curvatures, "curvature")
    trajectory = _open(paths.trajectory, "trajectory") if paths.trajectory.exists() else None
    spec = _read_text(paths.spec) if paths.spec.is_file() else ""
    known_data, known_loss = _identity(spec)
    if not (metrics or result or spec or trajectory is not None or surfaces or curvature):
        raise InputError("run", "must be a folder that a run has written", str(folder), "it holds no results")
    return Run(
        name=name or root.resolve().name,
        method=method,
        seed=seed,
        metrics=tuple(metrics),
        result=_outcome(result),
        surfaces=surfaces,
        curvature=curvature,
        trajectory=trajectory,
        spec=spec,
        data=data or known_data,
        loss=loss or known_loss,
        folder=str(folder),
    )


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read several run folders, and find out from their specs which are seeds of one method.

    Runs whose specs differ in nothing but seed, folder and threads are seeds of one method. Methods are named after
    optimizer and loss, with the folder's name where that is not enough to tell them apart.

    Args:
        folders: Run folders.

    Returns:
        The runs, in the order given, with different names.

    Raises:
        InputError: If a folder is named twice or is not one of a run.
    """
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("runs", "must name each folder once", [str(path) for path in paths])
    runs = [read_run(path, name=name) for path, name in zip(paths, _distinct_names(paths), strict=True)]
    specs = [_parsed(run.spec) for run in runs]
    keys = [_without_seed(spec) or run.name for spec, run in zip(specs, runs, strict=True)]
    first = {key: place for place, key in reversed(list(enumerate(keys)))}
    plain = {key: _method_label(specs[place]) or runs[place].name for key, place in first.items()}
    twice = {label for label in plain.values() if list(plain.values()).count(label) > 1}
    labels = {key: f"{label} ({runs[first[key]].name})" if label in twice else label for key, label in plain.items()}
    seeds = [spec.get("seed") for spec in specs]
    return [
        replace(run, method=labels[key], seed=seed if isinstance(seed, int) else None)
        for run, key, seed in zip(runs, keys, seeds, strict=True)
    ]


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that are all different."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(len(part) for part in parts) + 1 if parts else 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _parsed(spec: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(spec)
    except yaml.YAMLError:
        return {}
    return content if isinstance(content, dict) else {}


def _without_seed(spec: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in spec.items() if key not in _NOT_THE_METHOD}
    return json.dumps(kept, sort_keys=True, default=str) if kept else ""


def _method_label(spec: Mapping[str, Any]) -> str:
    """Return for instance ``"SAM + LLR"``; plain methods are named after their optimizer."""
    optimizer, loss = (dict(spec.get(part) or {}) for part in ("optimizer", "loss"))
    wrapped = [str(part["method"]) for part in (optimizer, loss) if part.get("method") not in (None, "none")]
    names = wrapped or [str(optimizer["name"])] if wrapped or "name" in optimizer else []
    return " + ".join(name.upper() for name in names)


def _open(path: Path, kind: str) -> xr.Dataset:
    dataset: xr.Dataset = open_store(path)
    check(dataset, kind)
    return dataset


def _open_all(folder: Path, kind: str) -> dict[str, xr.Dataset]:
    found = {path.stem: _open(path, kind) for path in sorted(folder.glob("*.zarr"))}
    if kind == "curvature":  # the end of training last; a result without a step is the end
        return dict(sorted(found.items(), key=lambda item: float(item[1].attrs.get("step", float("inf")))))
    return found


def _outcome(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``result.json`` holds as one flat dictionary: the test part, the chosen epoch, costs, momentum."""
    flat = {key: value for key, value in content.items() if isinstance(value, int | float | str)}
    for key, value in dict(content.get("test") or {}).items():
        flat[f"test_{key}"] = value
    for key, value in dict(content.get("chosen") or {}).items():
        flat.setdefault(key, value)
    groups = dict(content.get("recipe") or {}).get("optimizer settings") or [{}]
    if "momentum" in groups[0]:
        flat.setdefault("momentum", groups[0]["momentum"])
    return flat


def _identity(spec: str) -> tuple[str, str]:
    """Return what identifies data and plain loss in a spec; "" where it does not say."""
    content = _parsed(spec)
    data, loss = content.get("data") or {}, content.get("loss") or {}
    plain = {key: value for key, value in loss.items() if key not in ("method", "options")}
    return json.dumps(data, sort_keys=True) if data else "", json.dumps(plain, sort_keys=True) if plain else ""


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("run", f"holds a damaged file ({error})", str(path)) from error
