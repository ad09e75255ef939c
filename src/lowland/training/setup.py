"""What a run is made of, and what must agree before it may go on."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from lowland.core.batches import take
from lowland.core.errors import InputError, require
from lowland.core.params import check_made
from lowland.core.provenance import fingerprint
from lowland.core.types import Batch
from lowland.data import Augment, DataSplits, LoaderBatches, TensorBatches, TensorData
from lowland.losses import LLR, ActiveEpochs, TrainingLoss
from lowland.optim import AscentOptions, Wrapper
from lowland.training.checkpoint import split_state
from lowland.training.evaluation import plain_loss
from lowland.training.hooks import FitState
from lowland.training.schedule import ScheduleLike


def make_fabric(accelerator: str, devices: int, precision: str) -> Any:
    """Start Fabric."""
    try:
        fabric = _fabric()(accelerator=accelerator, devices=devices, precision=precision)
    except (ValueError, RuntimeError, TypeError) as error:
        rule = f"must be what Lightning Fabric knows and this machine has ({str(error).splitlines()[0]})"
        raise InputError("accelerator, devices, precision", rule, (accelerator, devices, precision)) from error
    fabric.launch()
    return fabric


def _fabric() -> Any:
    # imported by what trains: a survey of a stored run starts without it
    imports: Any = import_module("lightning_utilities.core.imports")
    compare = imports.compare_version

    def by_name(package: str, operation: Any, version: str, use_base_version: bool = False) -> bool:
        if package == "torchmetrics" and operation is operator.ge:
            return bool(imports.RequirementCache(f"{package}>={version}"))
        return bool(compare(package, operation, version, use_base_version))

    # Fabric asks which torchmetrics is installed by importing it, and that imports matplotlib, transformers and SciPy's
    # statistics: it takes longer than torch
    imports.compare_version = by_name
    try:
        from lightning_fabric import Fabric
    finally:
        imports.compare_version = compare
    return Fabric


def hands_on(fabric: Any) -> bool:
    """Tell whether Fabric's wrappers hand every call on as it is: on one device, at the precision that things have."""
    from lightning_fabric.plugins import Precision
    from lightning_fabric.strategies import SingleDeviceStrategy

    strategy = fabric.strategy
    return type(strategy) is SingleDeviceStrategy and type(strategy.precision) is Precision


def prepare_loss(run: FitState, batches: TensorBatches | LoaderBatches, device: torch.device) -> None:
    """Tell the loss about the run and put its criterion's tensors on the device."""
    criterion = plain_loss(run.loss)
    if isinstance(criterion, nn.Module):
        criterion.to(device)
    if isinstance(run.loss, TrainingLoss):
        resident = batches if isinstance(batches, TensorBatches) else None
        run.loss.prepare(
            model=run.model,
            epochs=run.epochs,
            steps_per_epoch=run.steps_per_epoch,
            samples=None if resident is None else resident.data.index,
            plan=None if resident is None else resident.ids,
        )


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into parts of nearly equal size."""
    if parts == 1:
        return [batch]
    stops = np.linspace(0, batch.size, min(parts, batch.size) + 1).round().astype(int).tolist()
    return [take(batch, range(*bounds)) for bounds in pairwise(stops)]


def as_splits(data: DataSplits | Mapping[str, Any]) -> DataSplits:
    """Return data in three parts; of a mapping of these nothing is known but the parts."""
    advice = "each part may be a DataLoader"
    if isinstance(data, Mapping):
        parts = ("train", "validation", "test")
        require(set(data) == set(parts), "data", f"must hold {', '.join(parts)}", sorted(map(str, data)), advice)
        return DataSplits("parts", **data, classes=0, shape=())
    rule = "must be lowland.data.DataSplits, or a mapping of train, validation and test"
    require(isinstance(data, DataSplits), "data", rule, type(data).__name__, advice)
    return data


def training_batches(
    data: DataSplits, batch_size: int, seed: int, augment: Augment | None, fabric: Any
) -> TensorBatches | LoaderBatches:
    """Return the training batches of this process."""
    if isinstance(data.train, TensorData):
        part = data.train.to_fitting(fabric.device)
        whole = part.batches(batch_size, seed=seed, shuffle=True, augment=augment)
        return whole.shard(fabric.global_rank, fabric.world_size)
    if augment is not None:
        raise InputError("augment", "must be None for loaders, which augment by themselves")
    if fabric.world_size > 1 and not hasattr(getattr(data.train, "sampler", None), "set_epoch"):
        raise InputError("data", "must have a DistributedSampler in its loader, or be resident, on several devices")
    return LoaderBatches(data.train, seed=seed)


def recipe_of(
    run: FitState,
    batch_size: int,
    schedule: ScheduleLike,
    augment: Augment | None,
    gradients: tuple[float | None, int],
    select: str,
    precision: str,
    world: int,
) -> dict[str, Any]:
    """Return what must agree before a run may go on, one entry per thing a user can change."""
    plain = (int, float, str, bool, type(None))
    groups = [{k: v for k, v in group.items() if isinstance(v, plain)} for group in run.optimizer.param_groups]
    own = {
        name: value if isinstance(value, plain) else repr(value)
        for name, value in (run.optimizer.settings() if isinstance(run.optimizer, Wrapper) else {}).items()
        if isinstance(value, (*plain, AscentOptions))
    }
    return {
        "epochs": run.epochs,
        "batch_size": batch_size,
        "seed": run.seed,
        "schedule": _named(schedule),
        "augment": _named(augment),
        "clip": gradients[0],
        "micro_batches": gradients[1],
        "select": select,
        "precision": precision,
        "devices": world,
        "data": run.data.fingerprint,
        "initial weights": fingerprint(split_state(run.model)[0]),
        "optimizer": type(run.optimizer).__qualname__,
        "optimizer settings": [*groups, own],
        "loss": _named(run.loss),
    }


def history_of(run: FitState) -> dict[str, Any]:
    """Return what a reader of a path must know: when a method that begins late began, and which labels are wrong."""
    begins: dict[str, int] = {}
    loss = run.loss
    while isinstance(loss, TrainingLoss):
        window = getattr(loss, "active", None)
        if isinstance(window, ActiveEpochs):
            begins[type(loss).__name__] = window.first(run.epochs) * run.steps_per_epoch
        loss = loss.criterion
    for name, value in run.optimizer.settings().items() if isinstance(run.optimizer, Wrapper) else ():
        start = value.start if isinstance(value, AscentOptions) else value if name.split(".")[-1] == "start" else 0
        kind = type(run.optimizer).__name__
        begins[kind] = max(begins.get(kind, 0), start)
    found: dict[str, Any] = {"begins": {name: step for name, step in begins.items() if step}}
    if run.data.recipe:  # of other data nothing is known
        found["labels_changed"] = dict(run.data.recipe.get("labels_changed", {}))
    return found


def check_lengths(optimizer: Any, schedule: Callable[[float, float, int], float], steps: int) -> None:
    """Tell an optimizer that plans by it the length of the run, and refuse a schedule beside its own."""
    if isinstance(optimizer, Wrapper) and optimizer.owns_rate and getattr(schedule, "kind", "constant") != "constant":
        advice = 'pass schedule="constant" (in a spec schedule.kind: constant); a warm-up may stay'
        raise InputError(
            "schedule", f"must leave the decay to {optimizer.method}", getattr(schedule, "kind", ""), advice
        )
    plan = getattr(optimizer, "plan", None)
    if plan is not None:
        plan(steps)


def why_fixed(schedule: Callable[[float, float, int], float], loss: Any, before: int, after: int) -> str:
    """Say why a run cannot become longer; "" where nothing that was done depends on the length of the run."""
    parts = 100  # of an epoch
    for part in range(parts * before):
        if schedule(part / parts, 1 / parts, before) != schedule(part / parts, 1 / parts, after):
            return "the schedule lays the learning rate over the whole length of the run"
    plain = type(loss) is LLR and loss.active == ActiveEpochs() and not isinstance(loss.criterion, TrainingLoss)
    return "" if plain or not isinstance(loss, TrainingLoss) else "the loss plans by the length of the run"


def _named(part: Any) -> str:
    # a plain repr may hold an address, which is another one in every process
    text = repr(part)
    return getattr(part, "__qualname__", type(part).__qualname__) if " at 0x" in text else text


def check_arguments(
    epochs: int,
    clip: float | None,
    micro_batches: int,
    select: str,
    every: int | None,
    optimizer: Any,
    model: nn.Module,
) -> None:
    """Check what needs no Fabric."""
    for name, value in (("epochs", epochs), ("micro_batches", micro_batches), ("checkpoint_every_steps", every)):
        if value is not None and value < 1:
            raise InputError(name, f"must be at least 1{' or None' if name.startswith('check') else ''}", value)
    if clip is not None and not clip > 0:
        raise InputError("clip", "must be positive or None", clip)
    require(select in ("best", "last"), "select", 'must be "best" or "last"', select)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InputError("optimizer", "must be an instance of torch.optim.Optimizer", type(optimizer).__name__)
    check_made(model)
    own = {id(parameter) for parameter in model.parameters()}
    if not all(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise InputError("optimizer", "must be built from the parameters of this model")
