"""A run: everything that its folder holds, read when it is first asked for, and its weights through a source."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from lowland.core.errors import DAMAGED, InputError, LowlandError, refused, require
from lowland.core.facts import line_of, table_of
from lowland.core.names import SPEC
from lowland.core.settings import RiskSpec
from lowland.results.frames import frame_of_rows
from lowland.results.snapshots import SnapshotReader
from lowland.results.source import Source
from lowland.results.spec import Spec
from lowland.results.stores import StoreFolder, open_kind

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

_FOLDERS: Final = ("checkpoints", "snapshots", "surfaces", "curvature", "robustness")
PARTS: Final = (SPEC, "metrics.csv", "result.json", "trajectory.zarr", *_FOLDERS)
"""What a run writes, and what tells its folder from another."""


FORWARD: Final = 1 / 3
"""Cost of a forward pass over that of forward and backward; backward takes twice the products of forward."""

PASSES: Final = (
    "Passes: one is forward and backward over a batch; a forward pass alone (evaluation, recalibration, a teacher) "
    "counts a third, in every table alike."
)
"""What the word means wherever a cost is shown."""

COUNTED: Final = "passes, all counted"
"""Head of a column of them."""


def passes_by_epoch(rows: Sequence[Mapping[str, Any]], *, evaluation: bool = True) -> list[float]:
    """Return the passes up to each epoch by its metrics; without evaluation, what the steps themselves cost."""
    # a forward pass alone is a teacher's, or one of evaluation and of recalibration between epochs
    before, teacher, found = 0.0, 0.0, []
    for row in rows:
        teacher += row["step"] - before if "loss_mesa_kl" in row else 0.0
        before = row["step"]
        forward = teacher + (row.get("evaluation_passes", 0.0) if evaluation else 0.0)
        found.append(row["passes"] + FORWARD * forward)
    return found


class _Place:
    """Where a part lies in the folder of a run."""

    def __init__(self, name: str, about: str) -> None:
        self.name, self.__doc__ = name, about

    def __get__(self, run: Run, kind: type[Run]) -> Path:
        return run.folder / self.name


class Run:
    """One trained (and perhaps surveyed) network, and everything that is known of it.

    What its folder holds is read when it is first asked for and kept; open the run anew to see what has been added.
    Nothing needs torch until weights or data are asked for. Parts that are given here are not looked for in the folder,
    so that a run of another program can be shown and reported too.

    Args:
        folder: ``runs/NAME`` with any of spec.yaml, metrics.csv, result.json, surfaces, curvature, trajectory.zarr;
            None for a run that lies nowhere.
        name: Name to show; None takes the folder's.
        method: What the seeds of one method share; None reads it from the spec.
        seed: Seed that pairs runs of different methods; None reads it from the spec.
        spec: Text of a spec.
        metrics: One row of numbers per epoch.
        result: Outcome of training, as in result.json.
        surfaces: Surfaces and lines by name.
        curvature: Curvature results by name, the one at the end of training last.
        trajectory: The projected path.
        source: What makes model, data and loss, or a function that makes it from the run. `lowland.open` gives the runs
            of Lowland theirs; for other models see `lowland.workflows.ExternalModel`.
        reporter: What writes a report of some runs to a path. `lowland.open` gives it.

    Example:
        >>> run = Run(name="mine", method="SAM", metrics=[{"train_loss": 0.5}], result={"test_accuracy": 0.9})
        >>> run
        Run('mine', SAM): epochs 1, test accuracy 90.00 %, train loss 0.5
        >>> run.last("train_loss"), dict(run.surfaces)
        (0.5, {})
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        name: str | None = None,
        method: str | None = None,
        seed: int | None = None,
        spec: str | None = None,
        metrics: Sequence[Mapping[str, Any]] | None = None,
        result: Mapping[str, Any] | None = None,
        surfaces: Mapping[str, xr.Dataset] | None = None,
        curvature: Mapping[str, xr.Dataset] | None = None,
        trajectory: xr.Dataset | None = None,
        source: Source | Callable[[Run], Source] | None = None,
        reporter: Callable[[Sequence[Run], Path | None], Any] | None = None,
    ) -> None:
        self._folder = None if folder is None else Path(folder)
        self._source, self._reporter = source, reporter
        given = {
            "name": name,
            "method": method,
            "seed": seed,
            "spec": None if spec is None else Spec(spec),
            "metrics": None if metrics is None else tuple(metrics),
            "result": result,
            "surfaces": surfaces,
            "curvature": curvature,
            "trajectory": trajectory,
        }
        # where a cached property keeps what it has read
        vars(self).update({key: value for key, value in given.items() if value is not None})

    # where things lie: nothing is read, and nothing needs to exist

    @property
    def folder(self) -> Path:
        """The folder; an InputError where the run has none."""
        if self._folder is None:
            raise InputError("run", "must have a folder for this", self.name)
        return self._folder

    spec_path = _Place(SPEC, "The spec that makes the run again.")
    metrics_path = _Place("metrics.csv", "One row of numbers per epoch.")
    result_path = _Place("result.json", "The outcome of training; it is there once training has ended.")
    snapshots_path = _Place("snapshots", "The folder of the weights along the path.")
    checkpoints_path = _Place("checkpoints", "The folder of the last and the best checkpoint.")
    trajectory_path = _Place("trajectory.zarr", "The projected path.")

    def surface_path(self, name: str) -> Path:
        """Return where a surface or line of a name lies."""
        return self.folder / "surfaces" / f"{name}.zarr"

    def curvature_path(self, name: str) -> Path:
        """Return where a curvature result of a name lies."""
        return self.folder / "curvature" / f"{name}.zarr"

    def card_path(self, name: str) -> Path:
        """Return where a robustness card of a name lies."""
        return self.folder / "robustness" / f"{name}.zarr"

    @classmethod
    def of_store(cls, store: str | Path) -> Run:
        """Return the run that a surface, a curvature result or a trajectory belongs to, by where it lies."""
        folder = Path(store).absolute().parent
        return cls(folder.parent if folder.name in ("surfaces", "curvature", "robustness") else folder)

    def labeled(self, name: str | None = None, *, method: str | None = None, seed: int | None = None) -> Run:
        """Return the same run under another name, method or seed; what has been read is shared."""
        made = copy.copy(self)
        given = {"name": name, "method": method, "seed": seed}
        vars(made).update({key: value for key, value in given.items() if value is not None})
        return made

    # what it holds

    @cached_property
    def name(self) -> str:
        """Name to show."""
        return "" if self._folder is None else self._folder.resolve().name

    @cached_property
    def spec(self) -> Spec:
        """What the run's spec says; ``spec.text`` is the file itself, empty where there is none."""
        if self._folder is None or not self.spec_path.is_file():
            return Spec()
        with refused(DAMAGED, "run", "holds a damaged file", str(self.spec_path)):
            return Spec(self.spec_path.read_text(encoding="utf-8"))

    @cached_property
    def method(self) -> str:
        """What the seeds of one method share, such as ``"SAM + LLR"``; "" where it is not known."""
        return self.spec.method

    @cached_property
    def seed(self) -> int | None:
        """Seed that pairs runs of different methods; None where it is not known."""
        return self.spec.seed

    @property
    def group(self) -> str:
        """Name of the row it belongs to in a comparison: its method's, or its own."""
        return self.method or self.name

    @cached_property
    def metrics(self) -> tuple[Mapping[str, Any], ...]:
        """Rows of metrics.csv, one per epoch; empty where there are none."""
        if self._folder is None or not self.metrics_path.is_file():
            return ()
        with refused((*DAMAGED, csv.Error), "folder", "must hold a readable metrics.csv", str(self.folder)):
            lines = self.metrics_path.read_text(encoding="utf-8").splitlines(keepends=True)
            return tuple({name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines))

    @property
    def finished(self) -> bool:
        """Whether training has ended."""
        return "result" in vars(self) or (self._folder is not None and self.result_path.is_file())

    @cached_property
    def result(self) -> Mapping[str, Any]:
        """Outcome of training as result.json holds it; an InputError where training has not ended."""
        require(self.finished, "run", "must be finished", self.place, "go on with `lowland fit`")
        with refused(DAMAGED, "run", "holds a damaged result.json", self.place):
            content: dict[str, Any] = json.loads(self.result_path.read_text(encoding="utf-8"))
        require(isinstance(content, dict), "run", "holds a damaged result.json (no object)", self.place)
        return content

    @cached_property
    def surfaces(self) -> Mapping[str, xr.Dataset]:
        """Surfaces and lines by name."""
        return StoreFolder(None if self._folder is None else self.folder / "surfaces", "surface")

    @cached_property
    def curvature(self) -> Mapping[str, xr.Dataset]:
        """Curvature results by name in the order of training, the one at its end last."""
        return StoreFolder(None if self._folder is None else self.folder / "curvature", "curvature")

    @cached_property
    def cards(self) -> Mapping[str, xr.Dataset]:
        """Robustness cards by name in the order of training, those of its end last."""
        return StoreFolder(None if self._folder is None else self.folder / "robustness", "robustness")

    @cached_property
    def trajectory(self) -> xr.Dataset | None:
        """The projected path, or None."""
        exists = self._folder is not None and self.trajectory_path.exists()
        return open_kind(self.trajectory_path, "trajectory") if exists else None

    @cached_property
    def snapshots(self) -> SnapshotReader | None:
        """The weights along the path, or None where none were kept."""
        exists = self._folder is not None and (self.snapshots_path / "index.json").is_file()
        return SnapshotReader(self.snapshots_path) if exists else None

    @property
    def final_curvature(self) -> xr.Dataset | None:
        """The curvature at the end of training, or None."""
        whole = [r for r in self.curvature.values() if "lambda_max" in r or ("eigenvalue" in r and "density" not in r)]
        whole = [result for result in whole if result.sizes.get("pair", 0) or "lambda_max" in result]
        return whole[-1] if whole else None

    @property
    def place(self) -> str:
        """Folder or name, for messages and pages."""
        return self.name if self._folder is None else str(self._folder)

    def last(self, column: str) -> float | None:
        """Return the last number of a column of the metrics, or None where it is missing or empty."""
        found = (row[column] for row in reversed(self.metrics) if isinstance(row.get(column), int | float))
        return next((float(value) for value in found), None)

    def number(self, name: str) -> float | None:
        """Return a number of the outcome, or None.

        Args:
            name: ``test_accuracy``, ``passes`` (every one, see `passes_by_epoch`), ``seconds`` ..., a column of the
                chosen epoch such as ``train_loss``, or ``momentum``, a setting of the optimizer.

        Returns:
            The number; None where the run has not ended, or does not know it.
        """
        result = self.result if self.finished else {}
        first = next(iter(self.optimizer_groups), {})
        test = _part(result, "test").get(name.removeprefix("test_")) if name.startswith("test_") else None
        chosen = _part(result, "chosen").get(name)
        known = (
            v for v in (result.get(name), test, chosen, first.get(name)) if isinstance(v, int | float) and v is not True
        )
        found = next((float(value) for value in known if value is not False), None)
        rows = self.metrics
        if name != "passes" or found is None or not all("passes" in row and "step" in row for row in rows):
            return found
        return found + (passes_by_epoch(rows)[-1] - float(rows[-1]["passes"]) if rows else 0.0)

    @property
    def optimizer_groups(self) -> tuple[Mapping[str, Any], ...]:
        """Numbers, flags and names that the optimizer's parameter groups held at the start; empty where not stored."""
        stored = _part(self.result if self.finished else {}, "recipe").get("optimizer settings")
        found = stored if isinstance(stored, list) else []
        return tuple(group for group in found if isinstance(group, Mapping) and "lr" in group)

    # what needs torch

    @cached_property
    def source(self) -> Source:
        """What makes model, data and loss; an InputError where the run was opened without it."""
        if self._source is None:
            raise InputError("run", "must know where its weights come from", self.place, "open it by lowland.open")
        return self._source if isinstance(self._source, Source) else self._source(self)

    def model(self, weights: str | int = "best") -> Any:
        """Return a new network in evaluation mode; weights are best, last, initial, or the step of a snapshot."""
        return self.source.model(str(weights))

    def data(self) -> Any:
        """Return the data, as `lowland.data.DataSplits` or by the names of their parts."""
        return self.source.data()

    def risk(
        self,
        split: Literal["train", "validation", "test"] = "train",
        *,
        weights: str | int = "best",
        samples: int | None = None,
        seed: int = 0,
        batch_size: int = 500,
        batch_norm: Literal["running", "batch", "recalibrated"] = "running",
        metrics: Sequence[str] = (),
        model: Any = None,
    ) -> Any:
        """Return the `lowland.EmpiricalRisk` of a part of the data at the run's weights, or of a network given instead.

        The other arguments are those of `lowland.workflows.RiskSpec`.
        """
        chosen = {"split": split, "weights": str(weights), "samples": samples, "seed": seed, "batch_size": batch_size}
        options = RiskSpec(**chosen, batch_norm=batch_norm, metrics=list(metrics))  # type: ignore[arg-type]
        return self.risks([split], options, model=model)[split]

    def risks(self, splits: Sequence[str], options: RiskSpec = RiskSpec(), *, model: Any = None) -> Mapping[str, Any]:
        """Return the risks of several parts of the data by name, all of one model."""
        # the part of the options: the one on which batch-norm statistics are recalibrated
        return self.source.risks(splits, options, model=model)

    # how it shows itself

    def report(self, path: str | Path | None = None, *, beside: Sequence[Run] = ()) -> Any:
        """Return the report of this run and those beside it; with a path ending in .html it is written there."""
        if self._reporter is None:
            raise InputError("run", "must have been opened by lowland.open", self.place, "or call report.build([run])")
        return self._reporter([self, *beside], None if path is None else Path(path))

    def to_frame(self) -> pd.DataFrame:
        """Return the metrics as a pandas frame, one row per epoch; units stand in ``frame.attrs["units"]``."""
        return frame_of_rows(self.metrics)

    def facts(self) -> dict[str, str]:
        """Return the numbers that matter; what is damaged is said, since a representation must not fail."""
        found = {"run": self.place}
        try:
            found |= {"method": self.method, "seed": "" if self.seed is None else f"seed {self.seed}"}
            count, accuracy, loss = len(self.metrics), self.number("test_accuracy"), self.number("train_loss")
            loss = self.last("train_loss") if loss is None else loss
            found |= {
                "epochs": f"{count}" if count else "",
                "test accuracy": "" if accuracy is None else f"{100 * accuracy:.2f} %",
                "train loss": "" if loss is None else f"{loss:.4g}",
                "surfaces": ", ".join(self.surfaces),
                "curvature": ", ".join(self.curvature),
                "state": "unfinished" if count and not self.finished else "",
            }
        except LowlandError as error:
            found["damaged"] = str(error)
        return {key: text for key, text in found.items() if text}

    def __fspath__(self) -> str:  # a run is taken wherever its folder is
        return str(self.folder)

    def __repr__(self) -> str:
        return line_of(self.facts())

    def _repr_html_(self) -> str:
        return table_of([self.facts()])


def _part(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = content.get(name)
    return found if isinstance(found, Mapping) else {}
