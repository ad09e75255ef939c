"""`lowland.open`: whatever Lowland has written, from its path."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowland import results
from lowland.core.errors import InputError
from lowland.results.folders import find_runs, is_run
from lowland.results.hdf5 import LI_ENDINGS
from lowland.results.run import Run
from lowland.results.runs import Runs

if TYPE_CHECKING:
    import xarray as xr

    from lowland.results.source import Source


def open(path: str | Path) -> Run | Runs | xr.Dataset:
    r"""Open a run, a folder of runs, or a single result, whichever the path is.

    Nothing needs torch until a run is asked for its weights or data.

    Args:
        path: A run's folder; a folder with runs in it (or in its folders); the folder or URL of a surface, trajectory
            or curvature result; or a surface file of Li et al.'s tool (.h5).

    Returns:
        A `lowland.Run`, a sequence of runs, or a Dataset.

    Raises:
        InputError: If it is none of these.
        StoreError: If a single result is damaged, foreign or of a newer schema.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "sam"
        >>> folder.mkdir()
        >>> _ = Run(folder).metrics_path.write_text("epoch,step,train_loss\n1,10,0.5\n")
        >>> run = open(folder)
        >>> run.name, run.last("train_loss"), run.finished
        ('sam', 0.5, False)
    """
    if isinstance(path, str) and "://" in path:
        return results.open(path)
    place = Path(path)
    if place.suffix in LI_ENDINGS and place.is_file():
        return results.read_li_hdf5(place)
    if place.is_dir():
        if (place / "zarr.json").exists() or place.suffix == ".zarr":
            return results.open(place)
        if is_run(place):
            return open_run(place)
        found = list(find_runs(place))
        if found:
            return open_runs(found)
    rule = "must hold a run, runs, or a result of Lowland" if place.exists() else "must exist"
    advice = "a folder that `lowland fit` wrote, a folder of such, or a .zarr; a checkpoint needs data beside it: "
    raise InputError("path", rule, str(path), f"{advice}lowland.workflows.sources.ExternalModel")


def open_runs(folders: Sequence[str | Path]) -> Runs:
    """Open run folders, named apart and by method."""
    return Runs.read(folders, open_run)


def open_run(folder: Path) -> Run:
    """Open a run folder."""
    if not is_run(folder):
        below = "; its own page is report.html" if (folder / "study.yaml").is_file() else ""
        advice = f"it holds no results{below}; name the runs below it" if folder.is_dir() else "it does not exist"
        raise InputError("run", "must be a folder that a run has written", str(folder), advice)
    return Run(folder, source=_trained, reporter=_report)


def _trained(run: Run) -> Source:
    source: Source = importlib.import_module("lowland.workflows.sources").TrainedSource(run)
    return source


def _report(runs: Sequence[Run], path: Path | None) -> Any:
    report = importlib.import_module("lowland.report")
    page = report.build(runs)
    return page if path is None else report.write(page, path)
