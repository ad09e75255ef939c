"""What a file holds: plain dataclasses whose fields are the flags of the commands and the keys of the YAML files.

The docstrings are what ``--help`` shows: each field says its unit; type and default are added. A spec holds only plain
values, so that it can be written to ``spec.yaml`` and read back to the same run. ``version`` is 1; a file of a newer
version is refused. Options of a command that no run keeps are the keyword arguments of its function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike, fspath
from typing import Any, Final, Literal

from lowland.core import names
from lowland.core.errors import InputError, check_positive, require
from lowland.core.names import Registry, check_engine, check_keywords, check_known, unknown
from lowland.core.settings import RiskSpec
from lowland.workflows.checks import VERSION, check_name, check_parts, check_version

Options = dict[str, Any]


@dataclass(kw_only=True)
class ModelSpec:
    """The network.

    Args:
        name: A known name (resnet8, resnet20 ...) or an import path module:callable.
        options: Keyword arguments of the network (width, skip ...); classes and channels follow from the data.
    """

    name: str = "resnet8"
    options: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_known("model.name", self.name, names.MODELS)
        check_keywords("model.options", self.name, self.options, names.MODELS)


@dataclass(kw_only=True)
class DataSpec:
    """The data set with its fixed training, validation and test parts.

    Args:
        name: A known name (digits ...) or an import path module:callable that returns DataSplits.
        options: Keyword arguments of the data set (train_size in samples, label_noise as a fraction ...).
    """

    name: str = "digits"
    options: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_known("data.name", self.name, names.DATASETS)
        check_keywords("data.options", self.name, self.options, names.DATASETS)


_UNFIT: Final = {"lbfgs": "asks for a closure in every step", "sparseadam": "takes sparse gradients alone"}
"""Optimizers of torch that the loop cannot drive, and why."""


def _check_method(part: str, spec: OptimizerSpec | LossSpec, known: Registry) -> None:
    check_known(f"{part}.method", spec.method, ["none", *known])
    if spec.method == "none" and spec.options:
        raise InputError(f"{part}.options", 'must be empty while the method is "none"', spec.options)
    check_keywords(f"{part}.options", spec.method, spec.options, known)


@dataclass(kw_only=True)
class OptimizerSpec:
    """The optimizer, and the method wrapped around it.

    Args:
        name: Any class of torch.optim in any case (sgd, adamw, rmsprop ...), or module:callable of parameters.
        learning_rate: Peak learning rate (weight units per gradient unit).
        momentum: Momentum of sgd (fraction kept per step); the others have arguments.
        nesterov: Nesterov's form of the momentum of sgd.
        weight_decay: Weight decay (per step, times the learning rate), where the optimizer has one.
        arguments: Further keyword arguments of that class (betas, eps ...).
        method: none, or the wrapper around it (sam ...).
        options: Keyword arguments of the wrapper (rho in weight units ...).
    """

    name: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    arguments: Options = field(default_factory=dict)
    method: str = "none"
    options: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_positive(learning_rate=self.learning_rate)
        require(0 <= self.momentum < 1, "optimizer.momentum", "must be in [0, 1)", self.momentum)
        require(self.weight_decay >= 0, "optimizer.weight_decay", "must not be negative", self.weight_decay)
        name = self.name if ":" in self.name else self.name.lower()
        if name in _UNFIT:
            rule = f"must fit the training loop, and this one {_UNFIT[name]}"
            raise InputError("optimizer.name", rule, name)
        if known := set(names.torch_optimizers()):  # none are known where torch is not installed
            check_known("optimizer.name", name, known - set(_UNFIT))
        _check_method("optimizer", self, names.OPTIMIZERS)


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

    def __post_init__(self) -> None:
        check_known("loss.name", self.name, names.CRITERIA)
        require(0 <= self.label_smoothing < 1, "loss.label_smoothing", "must be in [0, 1)", self.label_smoothing)
        _check_method("loss", self, names.LOSSES)
        reshaper = self.options.get("reshaper", "sech")
        name = reshaper.get("name") if isinstance(reshaper, Mapping) else reshaper
        if name not in names.RESHAPERS:
            raise unknown("loss.options.reshaper", name, names.RESHAPERS)


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


@dataclass(kw_only=True, frozen=True)
class SurveyOptions:
    """How a surface or a line is surveyed.

    Args:
        name: Name of the result; it is written to FOLDER/surfaces/NAME.zarr, and an interrupted survey goes on;
            none calls a surface plane and a line line, and adds which weights where they are others.
        risk: What is measured.
        splits: Parts of the data that are measured; none takes the risk's.
        seed: Seed of the directions; of several on a line that of the first, and the others follow.
        normalization: filter, layer, weight or none.
        engine: Who computes: serial, processes:N, ray or ray://HOST:PORT.
        verify: Measure two points of a stored survey again before it goes on or is read back; false skips it, and the
            result says so.
        threads: Threads of torch (threads); none leaves torch's own number.
    """

    name: str | None = None
    risk: RiskSpec = RiskSpec()
    splits: list[str] | None = None
    seed: int = 0
    normalization: Literal["filter", "layer", "weight", "none"] = "filter"
    engine: str = "serial"
    verify: bool = True
    threads: int | None = None

    def __post_init__(self) -> None:
        check_positive(threads=self.threads)
        check_engine(self.engine)
        if self.name is not None:
            check_name(self.name)
        if self.splits is not None:
            check_parts(self.splits)


@dataclass(kw_only=True)
class SubjectSpec:
    """Whose weights are measured: those of a run, or of any model.

    Files are only read, never executed; module:callable is your own code, which is imported and called.

    Args:
        run: Folder of a run.
        model: Instead of a run: a known name, or module:callable that returns a torch.nn.Module. A Hugging Face folder
            as checkpoint needs none.
        model_options: Keyword arguments of that callable.
        checkpoint: Weights of the model: a state dict (.pt, .pth, .bin, .t7), safetensors, a Lightning checkpoint
            (.ckpt), a Hugging Face folder, or a run's folder; none takes the weights that the callable returns.
        prefix: Where the model stands in the checkpoint (such as net. in a LightningModule); none finds it out.
        data: Instead of a run's: a known name, or module:callable that returns a data set, a loader, DataSplits, or
            these by part.
        data_options: Keyword arguments of that callable.
        loss: Instead of a run's: cross_entropy, mse, or module:callable.
        folder: Where results go that belong to no run.
    """

    run: str | None = None
    model: str | None = None
    model_options: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    prefix: str | None = None
    data: str | None = None
    data_options: dict[str, Any] = field(default_factory=dict)
    loss: str = "cross_entropy"
    folder: str = "runs/survey"

    def __post_init__(self) -> None:
        given = [name for name in ("model", "checkpoint", "data") if getattr(self, name) is not None]
        require(self.run is None or not given, "run", f"must not be given together with {', '.join(given)}", self.run)
        if self.run is None and self.model is None and self.checkpoint is None:
            advice = "or --model, --checkpoint and --data for a model of your own"
            raise InputError("run", "must be given", advice=advice)
        if self.run is None and self.data is None:
            raise InputError("data", "must be given", advice="a known name, or module:callable that returns a data set")
        for name, known in {"model": names.MODELS, "data": names.DATASETS, "loss": names.CRITERIA}.items():
            if getattr(self, name) is not None:
                check_known(name, getattr(self, name), known)

    @classmethod
    def of(cls, subject: SubjectSpec | str | PathLike[str]) -> SubjectSpec:
        """Return a subject as it is, and a run or its folder as the subject of that run."""
        return subject if isinstance(subject, SubjectSpec) else cls(run=fspath(subject))


@dataclass(kw_only=True)
class FitSpec:
    """Train one network, and write a run folder that every other command reads.

    Args:
        folder: The run's folder; an interrupted run in it goes on, a finished one with more epochs too.
        model: The network.
        data: The data set.
        optimizer: The method, its base and their numbers.
        loss: What is trained on; the plain criterion is logged beside it.
        schedule: The learning rate over the run.
        augment: What is done to training images, in order: names (crop, flip, cutout, mixup, cutmix, kornia) or
            mappings such as {name: cutout, size: 8}; see lowland list augmentations.
        epochs: Length of the run (epochs).
        batch_size: Samples per step (samples).
        seed: Seed of initial weights, order, augmentation and dropout; label noise and subsets have the data's seed.
        micro_batches: Parts that each batch is cut into, to save memory (parts).
        clip: Largest global gradient norm (gradient units); none clips nothing.
        select: Which epoch counts: best validation accuracy, or last.
        precision: Numbers of the forward pass, in Fabric's words: 32-true, bf16-mixed, 16-mixed, 64-true.
        accelerator: cpu, cuda or auto.
        devices: Processes, one device each; above 1 start them with torchrun.
        checkpoint_every_steps: Steps between checkpoints within an epoch (steps); none checkpoints epoch ends only.
        snapshots_every_epochs: Epochs between snapshots of the trajectory (epochs); none writes no snapshots.
        snapshot_dtype: Numbers of the snapshots: float32 or float16.
        curvature_share: Share of the run's cost spent on a curve of the Hessian's ends, such as 0.03 (fraction); a run
            too short to pay for two measurements is refused; none measures none.
        critical_every_steps: Steps between measurements of the critical sharpness along the optimizer's own steps
            (steps), such as 100, which add a quarter of a per cent to the passes; none measures none.
        threads: Threads of torch (threads); none leaves torch's own number.
        version: Version of this spec.
    """

    folder: str = "runs/fit"
    model: ModelSpec = field(default_factory=ModelSpec)
    data: DataSpec = field(default_factory=DataSpec)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    loss: LossSpec = field(default_factory=LossSpec)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    augment: list[str | Options] = field(default_factory=list)
    epochs: int = 30
    batch_size: int = 64
    seed: int = 0
    micro_batches: int = 1
    clip: float | None = None
    select: Literal["best", "last"] = "best"
    precision: str = "32-true"
    accelerator: str = "cpu"
    devices: int = 1
    checkpoint_every_steps: int | None = None
    snapshots_every_epochs: int | None = 1
    snapshot_dtype: Literal["float32", "float16"] = "float32"
    curvature_share: float | None = None
    critical_every_steps: int | None = None
    threads: int | None = None
    version: int = VERSION

    def __post_init__(self) -> None:
        check_version(self.version)
        positive = ("curvature_share", "micro_batches", "epochs", "batch_size", "clip", "devices", "threads")
        often = ("snapshots_every_epochs", "checkpoint_every_steps", "critical_every_steps")
        check_positive(**{name: getattr(self, name) for name in (*positive, *often)})
        for part in self.augment:
            name = part.get("name") if isinstance(part, Mapping) else part
            require(isinstance(name, str), "augment", "must hold names, or mappings with a name", part)
            check_known("augment", name, names.AUGMENTATIONS)


@dataclass(kw_only=True)
class DemoSpec:
    """Train methods from the same initial weights on digits, survey them, and write a report.

    Args:
        folder: Where everything goes; an interrupted demo goes on.
        methods: Which methods, the baseline first: sgd, sam, sala, llr, saf, mesa.
        seeds: Seeds of each method (runs).
        epochs: Length of each run (epochs); at least 2, for a path that spans a plane.
        train_size: Training images (samples); few, so that a plain run errs.
        label_noise: Share of training and validation labels drawn anew (fraction).
        points: Points along each axis of the surfaces.
        extent: Half width of the surfaces (units of the normalized directions).
        engine: Who trains and surveys: serial, processes:N, or auto (two processes where there are two cores).
    """

    folder: str = "runs/demo"
    methods: list[str] = field(default_factory=lambda: ["sgd", "sam", "sala", "llr", "saf", "mesa"])
    seeds: int = 5
    epochs: int = 40
    train_size: int = 300
    label_noise: float = 0.2
    points: int = 31
    extent: float = 1.0
    engine: str = "auto"

    def __post_init__(self) -> None:
        check_positive(epochs=self.epochs, train_size=self.train_size, points=self.points, extent=self.extent)
        if self.engine != "auto":
            check_engine(self.engine)
        require(self.epochs >= 2, "epochs", "must be at least 2, for a path that spans a plane", self.epochs)
        require(self.seeds >= 2, "seeds", "must be at least 2, for an interval", self.seeds)
        known = ("sgd", "sam", "sala", "llr", "saf", "mesa")
        if not self.methods or len(set(self.methods)) < len(self.methods) or not set(self.methods) <= set(known):
            raise InputError("methods", f"must name some of {', '.join(known)}, each once", self.methods)
