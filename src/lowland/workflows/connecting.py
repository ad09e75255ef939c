"""The command that finds a curve of low loss between trained networks, and compares the ways between them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from lowland.core.errors import InputError, StoreError, check_positive, require
from lowland.core.names import check_engine
from lowland.core.pace import shown
from lowland.core.settings import RiskSpec
from lowland.workflows import measured
from lowland.workflows.checks import check_name, check_parts
from lowland.workflows.specs import OptimizerSpec, SubjectSpec

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from lowland.core.pace import OnEvent
    from lowland.core.risk import EmpiricalRisk
    from lowland.landscape import Curve, Grid, Plane
    from lowland.landscape.curve import Batches
    from lowland.results import Run
    from lowland.workflows.events import Ticker

_RENEWED: Final = RiskSpec(batch_norm="recalibrated")
"""No running statistics belong to a point of a curve; they are made anew at every one."""

_ON_THE_CURVE: Final = OptimizerSpec(learning_rate=0.03, weight_decay=0.0)
"""Garipov et al.'s rate for ResNets; the decay is of the weights on the curve, an option of its own."""

_log = logging.getLogger(__name__)


def connect(
    subject: SubjectSpec | str | PathLike[str],
    *,
    others: list[str | PathLike[str]] | None = None,
    kind: Literal["bezier", "polychain"] = "bezier",
    bends: int = 1,
    epochs: int | None = None,
    batch_size: int | None = None,
    optimizer: OptimizerSpec = _ON_THE_CURVE,
    weight_decay: float = 5e-4,
    match: bool = True,
    points: int = 21,
    plane: bool = False,
    plane_points: tuple[int, int] = (21, 21),
    name: str = "connect",
    risk: RiskSpec = _RENEWED,
    splits: list[str] | None = None,
    seed: int = 0,
    engine: str = "serial",
    verify: bool = True,
    threads: int | None = None,
    on_event: OnEvent | None = None,
    progress: bool = False,
) -> tuple[xr.Dataset, Path]:
    """Train a curve of low loss to one or more other networks, and measure it beside the straight line, also matched.

    The curve is kept as FOLDER/curves/NAME.safetensors; an interrupted call trains it anew, or goes on measuring.

    Args:
        subject: Whose weights the curve begins at; a run, or its folder.
        others: Folders of the runs that it leads to, in order, or other checkpoints of the model.
        kind: bezier or polychain (straight pieces).
        bends: Trained points between two networks (points).
        epochs: Length of its training (epochs); none takes the run's.
        batch_size: Samples per step (samples); none takes the run's, or 64.
        optimizer: What trains the points.
        weight_decay: Of the weights on the curve (per step, times the learning rate).
        match: Also measure the line to the other networks with their hidden units in the order of the first one's.
        points: Points along each way; the networks are added where they are none.
        plane: Also survey the plane through the networks and the bend, with the curve on it.
        plane_points: Points along x and along y of that plane, such as 21 or 21x15.
        name: Name of the result; it is written to FOLDER/surfaces/NAME.zarr, the plane's to NAME-plane.zarr.
        risk: What is measured; running statistics of a network belong to no curve.
        splits: Parts of the data that are measured; none takes the risk's.
        seed: Seed of the training batches and places.
        engine: Who measures: serial, processes:N, ray or ray://HOST:PORT.
        verify: Measure two points of a stored survey again before it goes on or is read back.
        threads: Threads of torch (threads); none leaves torch's own number.
        on_event: Receives the progress.
        progress: Show a bar, in a terminal or a notebook.

    Returns:
        The ways, and where they are stored; see `lowland.landscape.ways`.

    Raises:
        InputError: If an argument breaks a rule; nothing is written.

    Example:
        >>> connect("runs/none", others=["runs/sam"])
        Traceback (most recent call last):
        lowland.core.errors.InputError: `run` must be the folder of a run (got 'runs/none'); make one with `lowland fit`
    """
    check_positive(bends=bends, epochs=epochs, batch_size=batch_size, points=points, threads=threads)
    check_positive(plane_points=min(plane_points))
    require(weight_decay >= 0, "weight_decay", "must not be negative", weight_decay)
    check_engine(engine)
    check_name(name)
    if splits is not None:
        check_parts(splits)
    paths = [fspath(other) for other in others or []]
    place = _opened(subject, paths, risk, epochs)
    training = _Training(kind, bends, *_lengths(place, epochs, batch_size), weight_decay, seed, optimizer)
    with measured.threads_of_torch(threads), shown(progress, "curve", on_event) as told:
        options: dict[str, Any] = {"engine": engine, "verify": verify, "on_event": told}
        risks = measured.risks_of(place, risk, splits or [risk.split])
        first = next(iter(risks.values()))
        target, networks = risks if splits else first, [place.source.other(path, risk.weights) for path in paths]
        way = training.curve(place, first.model, networks, risk, name, told)
        planes = _planes(way, first, networks, kind, seed if match else None)
        made = _stored(place, name, risk, target, planes, _grid(points, len(networks)), options)
        if plane:
            flat = way.plane(first.model)
            _stored(place, f"{name}-plane", risk, target, flat, way.grid_around(flat, *plane_points), options)
    return made


def _stored(
    place: Run, name: str, risk: RiskSpec, target: Any, planes: Any, grid: Grid, options: Mapping[str, Any]
) -> tuple[xr.Dataset, Path]:
    """Survey planes through the networks, and say of the result what it is."""
    from lowland import landscape

    path = place.surface_path(name)
    return measured.labeled(landscape.evaluate(target, planes, grid, store=path, **options), place, risk, path), path


@dataclass(frozen=True)
class _Training:
    """How a curve is trained."""

    kind: Literal["bezier", "polychain"]
    bends: int
    epochs: int
    batch_size: int
    weight_decay: float
    seed: int
    optimizer: OptimizerSpec

    def curve(
        self,
        place: Run,
        model: nn.Module,
        networks: Sequence[nn.Module],
        risk: RiskSpec,
        name: str,
        told: OnEvent | None,
    ) -> Curve:
        """Return the curve of an earlier call of the same options between the same networks, or train it."""
        from lowland.core.contexts import has_running_statistics
        from lowland.landscape import Curve

        if has_running_statistics(model) and risk.batch_norm == "running":
            rule = "must be recalibrated or batch on a curve, where no running statistics are known"
            raise InputError("risk.batch_norm", rule, risk.batch_norm)
        start = Curve.through(model, networks, kind=self.kind, bends=self.bends)  # or says how the networks differ
        file = place.folder / "curves" / f"{name}.safetensors"
        asked = asdict(self) | {"weights": risk.weights}
        if not file.is_file():
            found = self.trained(place, model, networks, told)
            found = replace(found, settings={**found.settings, **asked})
            found.save(file)
            return found
        found = Curve.load(file)
        told_then = {key: found.settings.get(key) for key in asked}
        if told_then != json.loads(json.dumps(asked)) or not found.joins_same(start):
            raise StoreError(f"{file} holds another curve; remove it, or choose another --name")
        return found

    def trained(self, place: Run, model: nn.Module, networks: Sequence[nn.Module], told: OnEvent | None) -> Curve:
        """Train it."""
        from torch import nn

        from lowland import landscape
        from lowland.workflows.build import build_optimizer

        batches, ticker = _batches(place, self.batch_size, self.seed, self.epochs, told)
        found = landscape.curve(
            model,
            networks,
            place.source.criterion(),
            batches,
            epochs=self.epochs,
            kind=self.kind,
            bends=self.bends,
            optimizer=lambda trained: build_optimizer(self.optimizer, nn.ParameterList(trained)),
            weight_decay=self.weight_decay,
            seed=self.seed,
            on_step=ticker,
        )
        ticker.finish()
        return found


def _lengths(place: Run, epochs: int | None, batch_size: int | None) -> tuple[int, int]:
    """Return epochs and samples per step: those given, or those of the run."""
    said = place.spec if place.spec_path.is_file() else {}
    return int(epochs or said["epochs"]), int(batch_size or said.get("batch_size", 64))


def _planes(
    way: Curve, risk: EmpiricalRisk, networks: Sequence[nn.Module], kind: str, seed: int | None
) -> dict[str, Plane]:
    """Return the ways between the networks by name; no seed leaves the matched line out."""
    from lowland.landscape import Curve

    model, planes = risk.model, {}
    planes["line"] = Curve.through(model, networks, bends=0).line(model)
    if seed is not None and (matched := _matched(model, networks, next(iter(risk.batches())), seed)):
        planes["matched line"] = Curve.through(model, matched, bends=0).line(model)
    return planes | {f"{kind} curve": way.line(model)}


def _opened(
    subject: SubjectSpec | str | PathLike[str], others: Sequence[str], risk: RiskSpec, epochs: int | None
) -> Run:
    """Return whose weights the curve begins at, once all networks are seen to be there."""
    spec = SubjectSpec.of(subject)
    for other in others if spec.run is None else ():  # before torch is imported
        require(Path(other).exists(), "others", "must be other checkpoints of the model", other)
        require(epochs, "epochs", "must be given for a model of your own", epochs)
    place = measured.opened(spec, risk.weights)
    require(others, "others", "must be given", advice="the folders of one or more other runs, or checkpoints")
    for other in others if spec.run is not None else ():
        measured.check_other("others", other, risk.weights)
    return place


def _batches(place: Run, size: int, seed: int, epochs: int, on_event: OnEvent | None) -> tuple[Batches, Ticker]:
    """Return training batches as `lowland fit` makes them, and what tells how many are done."""
    from torch.utils.data import DataLoader

    from lowland.data import DataSplits, TensorData
    from lowland.workflows.build import build_augment
    from lowland.workflows.events import Ticker

    data = place.source.data()
    train: Any = data.train if isinstance(data, DataSplits) else data.get("train", data.get("data"))
    require(
        train is not None, "data", "must have a part to train on", sorted(data) if isinstance(data, Mapping) else ""
    )
    spec: Any = getattr(place.source, "spec", None)
    if isinstance(train, TensorData):
        augment = build_augment(spec.augment, data, spec.loss) if spec and isinstance(data, DataSplits) else None
        batches = train.batches(size, seed=seed, shuffle=True, augment=augment)
        return batches.batches, Ticker(on_event, len(batches) * epochs)
    if hasattr(train, "__getitem__") and not isinstance(train, DataLoader | list | tuple):
        train = DataLoader(train, batch_size=size, shuffle=True)
    return train, Ticker(on_event, len(train) * epochs if hasattr(train, "__len__") else epochs)


def _matched(model: nn.Module, networks: Sequence[nn.Module], example: Any, seed: int) -> list[nn.Module]:
    """Return the networks in the first one's order of units; none where units cannot be traced."""
    from lowland.landscape import match_weights

    try:
        return [match_weights(model, network, example, seed=seed).model for network in networks]
    except InputError as error:
        _log.warning("no matched line: %s", error)
        return []


def _grid(points: int, pieces: int) -> Grid:
    import numpy as np

    from lowland.landscape import Grid

    return Grid(np.union1d(np.linspace(0, 1, points), np.arange(pieces + 1) / pieces))
