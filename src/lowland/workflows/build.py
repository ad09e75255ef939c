"""Where names become objects: models, data, optimizers, losses, schedules, probes and metrics from plain values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lowland import data, landscape, losses, models, optim
from lowland.core.contexts import evaluation_mode, forked_rng
from lowland.core.errors import InputError, LowlandError, refused
from lowland.core.names import CRITERIA, METRICS, PROBES, find, import_path, torch_optimizers
from lowland.core.types import Metric
from lowland.training import Schedule
from lowland.workflows.specs import DataSpec, LossSpec, ModelSpec, OptimizerSpec, ScheduleSpec


def build_data(spec: DataSpec) -> data.DataSplits:
    """Load the data of a spec in their three parts."""
    return data.load(spec.name, **spec.options)


def build_augment(
    parts: Sequence[str | Mapping[str, Any]], splits: data.DataSplits, loss: LossSpec
) -> data.Augment | None:
    """Build the augmentations of a spec, and try them on a few samples."""
    augment = data.augmentation(parts, classes=splits.classes)
    if augment is None:
        return None
    train = splits.train
    if not isinstance(train, data.TensorData):
        raise InputError("augment", "must be empty for data that come from a loader, which augments by itself", parts)
    names = {part["name"] if isinstance(part, Mapping) else part for part in parts}
    if names & {"mixup", "cutmix"} and loss.method == "saf" and loss.options.get("mixed", "skip") == "skip":
        advice = "compare pairs that come again by loss.options.mixed: match, or take mixup and cutmix out"
        raise InputError("augment", "must leave samples unmixed for SAF, or it would do nothing", parts, advice)
    few = train.take(torch.arange(min(8, len(train))))
    with refused(Exception, "augment", f"must fit the data {splits.name!r}", parts), forked_rng():
        next(iter(few.batches(8, augment=augment)))
    return augment


def build_model(spec: ModelSpec, splits: data.DataSplits, *, seed: int) -> nn.Module:
    """Build a network from its seed; classes, channels and size follow from the data where it takes them."""
    shape = splits.shape
    side = shape[2] if len(shape) == 3 else None
    follows = {"classes": splits.classes, "channels": shape[0] if shape else None, "size": side}
    accepted = find("model.name", spec.name, models.MODELS)
    try:
        known = inspect.signature(accepted).parameters
    except ValueError:
        known = {}  # type: ignore[assignment]
    options = {name: value for name, value in follows.items() if name in known and value is not None}
    return models.create(spec.name, seed=seed, **{**options, **spec.options})


def check_model(model: nn.Module, splits: data.DataSplits, criterion: Any) -> None:
    """Try a network on two training samples."""
    # So that one that does not fit the data is met before anything is written.
    if not isinstance(splits.train, data.TensorData):
        return
    few = splits.train.take(torch.arange(min(2, len(splits.train))))
    try:
        with forked_rng(), evaluation_mode(model), torch.no_grad():
            output = model(few.input)
            criterion(output, few.target)
    except Exception as error:
        rule = f"must fit the data {splits.name!r} of shape {splits.shape} ({' '.join(str(error).split())})"
        raise InputError("model, loss", rule, type(model).__name__) from error
    classes = isinstance(criterion, nn.CrossEntropyLoss) and not few.target.is_floating_point()
    if classes and output.shape[1] < splits.classes:
        raise InputError("model", f"must have an output for each of the {splits.classes} classes", output.shape[1])


def build_optimizer(spec: OptimizerSpec, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a model's trainable parameters, with the spec's method around it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    kind = find("optimizer.name", spec.name if ":" in spec.name else spec.name.lower(), torch_optimizers())
    given: dict[str, Any] = {"lr": spec.learning_rate, "weight_decay": spec.weight_decay}
    if kind is torch.optim.SGD:
        given |= {"momentum": spec.momentum, "nesterov": spec.nesterov}
    given = {name: value for name, value in given.items() if name in inspect.signature(kind).parameters}
    options = given | spec.arguments
    options = {n: tuple(v) if isinstance(v, list) else v for n, v in options.items()}  # YAML has no tuples: betas
    base = _call("optimizer.arguments", kind, parameters, options=options)
    if not isinstance(base, torch.optim.Optimizer):
        raise InputError("optimizer.name", "must make a torch.optim.Optimizer", type(base).__name__)
    if spec.method == "none":
        return base
    method, options = find("optimizer.method", spec.method, optim.METHODS), dict(spec.options)
    if options.get("only") == "norms":  # a file cannot hold parameters
        options["only"] = optim.norm_parameters(model)
    wrapped: torch.optim.Optimizer = _call("optimizer.options", method, base, options=options)
    return wrapped


def build_probes(names: Sequence[str]) -> tuple[landscape.Probe, ...]:
    """Build probes by name; a path names a probe, or what makes one."""
    found = [find("probes", name, PROBES) for name in names]
    return tuple(
        one if isinstance(one, landscape.Probe) and not inspect.isclass(one) else _call("probes", one, options={})
        for one in found
    )


def build_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Find metrics by name; one of the user's goes by the name of its function."""
    own = [name for name in names if name not in METRICS]
    return {name.rpartition(":")[2]: import_path("risk.metrics", name) for name in own}


def build_criterion(spec: LossSpec) -> Any:
    """Build the plain loss of a spec, without the method around it."""
    if spec.name == "cross_entropy":
        return nn.CrossEntropyLoss(label_smoothing=spec.label_smoothing)
    criterion = find("loss.name", spec.name, CRITERIA)
    return criterion() if inspect.isclass(criterion) else criterion


def build_loss(spec: LossSpec, model: nn.Module, splits: data.DataSplits) -> Any:
    """Build the loss of a spec around a network with its initial weights, with the spec's method around it."""
    # LLR needs an initial loss: ``initial_loss: measured`` (the default here, as in the paper's CIFAR experiments) is
    # the mean loss of the training part at the initial weights
    criterion = build_criterion(spec)
    if spec.method == "none":
        return criterion
    method = find("loss.method", spec.method, losses.METHODS)
    options = dict(spec.options)
    if "reshaper" in options:
        options["reshaper"] = _reshaper(options["reshaper"])
    measure = spec.method == "llr" and options.setdefault("initial_loss", "measured") == "measured"
    if measure:
        options["initial_loss"] = None
    loss = _call("loss.options", method, criterion, options=options)
    if measure:
        part = splits.train
        loss.measure_initial_loss(model, part.batches(500) if hasattr(part, "batches") else part)
    return loss


def _reshaper(given: Any) -> Any:
    """Return the reshaper of ``{name: sech, a: 2.5, ...}``."""
    name = given.get("name") if isinstance(given, dict) else given
    options = {key: value for key, value in given.items() if key != "name"} if isinstance(given, dict) else {}
    return _call("loss.options.reshaper", losses.RESHAPERS[str(name)], options=options)


def build_schedule(spec: ScheduleSpec) -> Schedule:
    """Build the learning-rate schedule of a spec."""
    return Schedule(
        spec.kind, warmup=spec.warmup, milestones=tuple(spec.milestones), factor=spec.factor, floor=spec.floor
    )


def _call(argument: str, kind: Callable[..., Any], *first: Any, options: dict[str, Any]) -> Any:
    name = getattr(kind, "__name__", repr(kind))
    signature = inspect.signature(kind)
    try:
        signature.bind(*first, **options)
        return kind(*first, **options)
    except LowlandError:
        raise
    except (TypeError, ValueError) as error:  # torch's own optimizers complain with ValueError
        known = ", ".join(list(signature.parameters)[len(first) :])
        raise InputError(argument, f"must fit {name} ({error})", options, f"known: {known}") from error
