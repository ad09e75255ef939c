"""The specs: plain dataclasses whose fields are the flags of the commands and the keys of the YAML files.

The docstrings are what ``--help`` shows: each field says its unit; type and default are added. A spec holds only plain
values, so that it can be written to ``spec.yaml`` and read back to the same run. ``version`` is 1; a file of a newer
version is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from lowland.core.errors import InputError

__all__ = [
    "VERSION",
    "CurvatureSpec",
    "DataSpec",
    "DemoSpec",
    "FitSpec",
    "LossSpec",
    "ModelSpec",
    "OptimizerSpec",
    "ReportSpec",
    "RiskSpec",
    "ScheduleSpec",
    "SurfaceSpec",
    "TrajectorySpec",
]

VERSION: Final = 1

Options = dict[str, Any]


def _positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise InputError(name, "must be positive", value)


def _version(version: int) -> None:
    if version != VERSION:
        raise InputError("version", f"must be {VERSION}, the version of specs that this Lowland reads", version)


@dataclass(kw_only=True)
class ModelSpec:
    """The network.

    Args:
        name: A known name (resnet8, resnet20 ...) or an import path module:callable.
        options: Keyword arguments of the network (width, skip ...); classes and channels follow from the data.
    """

    name: str = "resnet8"
    options: Options = field(default_factory=dict)


@dataclass(kw_only=True)
class DataSpec:
    """The data set with its fixed training, validation and test parts.

    Args:
        name: A known name (digits ...) or an import path module:callable that returns DataSplits.
        options: Keyword arguments of the data set (train_size in samples, label_noise as a fraction ...).
    """

    name: str = "digits"
    options: Options = field(default_factory=dict)


@dataclass(kw_only=True)
class OptimizerSpec:
    """The optimizer, and the method wrapped around it.

    Args:
        name: sgd, adam or adamw.
        learning_rate: Peak learning rate (weight units per gradient unit).
        momentum: Momentum of sgd (fraction kept per step); without meaning for adam and adamw.
        nesterov: Nesterov's form of the momentum of sgd.
        weight_decay: Weight decay (per step, times the learning rate).
        method: none, or the wrapper around it (sam ...).
        options: Keyword arguments of the wrapper (rho in weight units ...).
    """

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    method: str = "none"
    options: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        _positive(learning_rate=self.learning_rate)
        if not 0 <= self.momentum < 1:
            raise InputError("optimizer.momentum", "must be in [0, 1)", self.momentum)
        if self.weight_decay < 0:
            raise InputError("optimizer.weight_decay", "must not be negative", self.weight_decay)


@dataclass(kw_only=True)
class LossSpec:
    """The loss, and the method wrapped around it.

    Args:
        name: cross_entropy, mse, or an import path module:callable.
        label_smoothing: Share of the target spread over all classes (fraction), for cross_entropy.
        method: none, or the wrapper around it (llr ...).
        options: Keyword arguments of the wrapper.
    """

    name: str = "cross_entropy"
    label_smoothing: float = 0.0
    method: str = "none"
    options: Options = field(default_factory=dict)


@dataclass(kw_only=True)
class ScheduleSpec:
    """The learning rate over the run, as a multiple of the optimizer's own.

    Args:
        kind: cosine, constant or step.
        warmup: Linear warm-up (epochs).
        milestones: When the rate drops (epochs), for step.
        factor: What the rate is multiplied by at each milestone (fraction).
        floor: Where the cosine ends (fraction of the peak).
    """

    kind: Literal["cosine", "constant", "step"] = "cosine"
    warmup: float = 0.0
    milestones: list[float] = field(default_factory=list)
    factor: float = 0.1
    floor: float = 0.0


@dataclass(kw_only=True)
class FitSpec:
    """Train one network, and write a run folder that every other command reads.

    Args:
        folder: The run's folder; an interrupted run in it goes on.
        model: The network.
        data: The data set.
        optimizer: The optimizer.
        loss: The loss.
        schedule: The learning rate over the run.
        epochs: Length of the run (epochs).
        batch_size: Samples per step (samples).
        seed: Seed of initial weights, order, augmentation and dropout; label noise and subsets have the data's seed.
        clip: Largest global gradient norm (gradient units); none clips nothing.
        select: Which epoch counts: best validation accuracy, or last.
        precision: Numbers of the forward pass, in Fabric's words: 32-true, bf16-mixed, 16-mixed, 64-true.
        accelerator: cpu, cuda or auto.
        devices: Processes, one device each; above 1 start them with torchrun.
        checkpoint_every_steps: Steps between checkpoints within an epoch (steps); none checkpoints epoch ends only.
        snapshots_every_epochs: Epochs between snapshots of the trajectory (epochs); none writes no snapshots.
        snapshot_dtype: Numbers of the snapshots: float32 or float16.
        threads: Threads of torch (threads); none leaves torch's own number.
        version: Version of this spec.
    """

    folder: str = "runs/fit"
    model: ModelSpec = field(default_factory=ModelSpec)
    data: DataSpec = field(default_factory=DataSpec)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    loss: LossSpec = field(default_factory=LossSpec)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    epochs: int = 30
    batch_size: int = 64
    seed: int = 0
    clip: float | None = None
    select: Literal["best", "last"] = "best"
    precision: str = "32-true"
    accelerator: str = "cpu"
    devices: int = 1
    checkpoint_every_steps: int | None = None
    snapshots_every_epochs: int | None = 1
    snapshot_dtype: Literal["float32", "float16"] = "float32"
    threads: int | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        _version(self.version)
        _positive(epochs=self.epochs, batch_size=self.batch_size, clip=self.clip, devices=self.devices)
        _positive(
            threads=self.threads,
            snapshots_every_epochs=self.snapshots_every_epochs,
            checkpoint_every_steps=self.checkpoint_every_steps,
        )


@dataclass(kw_only=True)
class RiskSpec:
    """What is measured on the weights of a run, and on which data.

    Args:
        weights: Which weights of the run: best (chosen on validation), last, initial, or the step of a snapshot.
        split: Which part of the data: train, validation or test.
        samples: Size of a fixed random subset (samples); none takes all.
        seed: Seed of the subset.
        batch_size: Samples per forward pass (samples).
        batch_norm: Statistics that normalise: running, batch (of the fixed partition) or recalibrated.
    """

    weights: str = "best"
    split: Literal["train", "validation", "test"] = "train"
    samples: int | None = None
    seed: int = 0
    batch_size: int = 500
    batch_norm: Literal["running", "batch", "recalibrated"] = "running"

    def __post_init__(self) -> None:
        _positive(samples=self.samples, batch_size=self.batch_size)
        if self.weights not in ("best", "last", "initial") and not self.weights.isdigit():
            raise InputError("risk.weights", "must be best, last, initial or the step of a snapshot", self.weights)


@dataclass(kw_only=True)
class SurfaceSpec:
    """Survey the loss on a random filter-normalised plane around the weights of a run.

    Args:
        run: Folder of the run.
        name: Name of the surface; it is written to RUN/surfaces/NAME.zarr, and an interrupted survey goes on.
        risk: What is measured.
        points: Points along x and along y.
        extent: Half width of the plane (units of the normalised directions).
        seed: Seed of the directions.
        normalization: filter, layer, weight or none.
        engine: Who computes: serial.
        threads: Threads of torch (threads); none leaves torch's own number.
        version: Version of this spec.
    """

    run: str
    name: str = "plane"
    risk: RiskSpec = field(default_factory=RiskSpec)
    points: tuple[int, int] = (51, 51)
    extent: float = 1.0
    seed: int = 0
    normalization: Literal["filter", "layer", "weight", "none"] = "filter"
    engine: str = "serial"
    threads: int | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        _version(self.version)
        _positive(points=min(self.points), extent=self.extent, threads=self.threads)
        check_name(self.name)


@dataclass(kw_only=True)
class TrajectorySpec:
    """Project the training path of a run on its principal directions, beside a random walk's.

    Args:
        run: Folder of the run; it must hold snapshots.
        name: Name of the result; it is written to RUN/NAME.zarr.
        risk: What is measured at every snapshot and at its projection.
        anchor: Where the directions start: end (as in the paper) or mean.
        losses: Measure the true loss of every snapshot and the loss of its projection beside it.
        plane: Also survey the loss on the plane of the path.
        points: Points along x and along y of that plane.
        threads: Threads of torch (threads); none leaves torch's own number.
        version: Version of this spec.
    """

    run: str
    name: str = "trajectory"
    # the path ends at the last weights; snapshots keep no batch-norm statistics, so they are made anew at every point
    risk: RiskSpec = field(default_factory=lambda: RiskSpec(weights="last", batch_norm="recalibrated"))
    anchor: Literal["end", "mean"] = "end"
    losses: bool = True
    plane: bool = True
    points: tuple[int, int] = (25, 25)
    threads: int | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        _version(self.version)
        _positive(points=min(self.points), threads=self.threads)
        check_name(self.name)


@dataclass(kw_only=True)
class CurvatureSpec:
    """Measure both ends of the Hessian's spectrum, traces and sharpness at the weights of a run.

    Args:
        run: Folder of the run.
        name: Name of the result; it is written to RUN/curvature/NAME.zarr.
        risk: What is measured.
        max_products: Most Hessian-vector products of the Krylov run (products).
        trace_products: Products of the trace (products).
        directions: Random filter-normalised directions of the filter-weighted trace (directions).
        rho: Radius of the SAM sharpness (weight units).
        seed: Seed of start vector and probes.
        threads: Threads of torch (threads); none leaves torch's own number.
        version: Version of this spec.
    """

    run: str
    name: str = "hessian"
    risk: RiskSpec = field(default_factory=RiskSpec)
    max_products: int = 80
    trace_products: int = 30
    directions: int = 32
    rho: float = 0.05
    seed: int = 0
    threads: int | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        _version(self.version)
        _positive(max_products=self.max_products, trace_products=self.trace_products, directions=self.directions)
        _positive(rho=self.rho, threads=self.threads)
        check_name(self.name)


@dataclass(kw_only=True)
class ReportSpec:
    """Write one self-contained page about finished runs.

    Args:
        runs: Folders of the runs.
        output: File to write.
        title: Heading of the page.
    """

    runs: list[str]
    output: str = "report.html"
    title: str = "Lowland report"


@dataclass(kw_only=True)
class DemoSpec:
    """Train methods from the same initial weights on digits, survey them, and write a report.

    Args:
        folder: Where everything goes; an interrupted demo goes on.
        methods: Which methods, the baseline first: sgd, sam, sala, llr, saf, mesa.
        seeds: Seeds of each method (runs).
        epochs: Length of each run (epochs).
        train_size: Training images (samples); few, so that a plain run errs.
        label_noise: Share of training and validation labels drawn anew (fraction).
        points: Points along each axis of the surfaces.
        extent: Half width of the surfaces (units of the normalised directions).
        engine: Who trains and surveys: serial or processes:N.
    """

    folder: str = "runs/demo"
    methods: list[str] = field(default_factory=lambda: ["sgd", "sam", "sala", "llr", "saf", "mesa"])
    seeds: int = 5
    epochs: int = 40
    train_size: int = 300
    label_noise: float = 0.2
    points: int = 31
    extent: float = 1.0
    engine: str = "serial"

    def __post_init__(self) -> None:
        _positive(epochs=self.epochs, train_size=self.train_size, points=self.points, extent=self.extent)
        if self.seeds < 2:
            raise InputError("seeds", "must be at least 2, for an interval", self.seeds)
        known = ("sgd", "sam", "sala", "llr", "saf", "mesa")
        if not self.methods or len(set(self.methods)) < len(self.methods) or not set(self.methods) <= set(known):
            raise InputError("methods", f"must name some of {', '.join(known)}, each once", self.methods)


def check_name(name: str) -> None:
    """Check that a name is usable as a file's name in a run folder.

    Args:
        name: The name.

    Raises:
        InputError: If it is empty, starts with a dot or holds a separator.
    """
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise InputError("name", "must be a plain file name", name)
