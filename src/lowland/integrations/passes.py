"""Both passes of a micro-batch in a loop that somebody else wrote: the trainer hands over its forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from torch import nn

from lowland.core.errors import InputError
from lowland.optim import Ascent, Wrapper
from lowland.optim.ranks import average_over_ranks, world_size

T = TypeVar("T")


def innermost(optimizer: Any) -> Any:
    """Return the optimizer that the user built, without what a trainer put around it."""
    while not isinstance(optimizer, Wrapper):
        inside = getattr(optimizer, "optimizer", None) or getattr(optimizer, "_optimizer", None)
        if inside is None:
            break
        optimizer = inside
    return optimizer


def name_scaler(optimizer: Any, scaler: Any) -> Any:
    """Tell the optimizer that the user built which scaler a trainer has, if it has one; return that optimizer."""
    built = innermost(optimizer)
    if isinstance(built, Wrapper) and scaler is not None:
        built.use_scaler(scaler)
    return built


class Passes:
    """Runs the forward and backward of every micro-batch as often as the optimizer wants, at the weights it wants."""

    # With ``ascent="micro-batch"`` each micro-batch has its second pass at once. With ``ascent="step"`` the
    # work of a step's micro-batches is kept, and all of it runs again after the last one's first pass; this
    # keeps their inputs alive for as long.

    def __init__(self, optimizer: Any, scaler: Any = None) -> None:
        self.optimizer = name_scaler(optimizer, scaler)
        self._kept: list[Callable[[], Any]] = []
        self._due: int | None = None  # steps that must have been taken before the next pass

    def drive(self, whole: bool) -> None:
        """Say whether closures given to the optimizer's step run every pass by themselves."""
        if isinstance(self.optimizer, Ascent):
            self.optimizer.drive(whole)

    def run(self, work: Callable[[], T], *, last: bool, model: nn.Module | None = None) -> T:
        """Run a micro-batch."""
        ascent = self.optimizer
        if self._due is not None and isinstance(ascent, Ascent) and ascent.steps < self._due:
            ascent.zero_grad()  # a scaler skipped the step; what is left of it must not look like a micro-batch
            self._kept = []
        self._due = None
        if not isinstance(ascent, Ascent) or not ascent.needs_perturbation():
            return work()
        _check(ascent, last=last)
        result = self._both(ascent, work, last, model)
        self._due = ascent.steps + 1 if last else None
        return result

    def _both(self, ascent: Ascent, work: Callable[[], T], last: bool, model: nn.Module | None) -> T:
        with ascent.first_pass(model):
            result = work()
        again: list[Callable[[], Any]] = [work]
        if ascent.options.ascent == "step":
            self._kept.append(work)
            if not last:
                return result
            again, self._kept = self._kept, []
        else:
            _synchronize(ascent, model)
        if not ascent.accumulated:  # the trainer left the batch out
            return result
        with ascent.perturb():
            for early in again[:-1]:
                with _unsynced(model):
                    early()
            again[-1]()
        return result


def check_strategy(optimizer: Any, accelerator: Any) -> None:
    """Refuse what Accelerate spreads work by where a second pass would not be one."""
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    sharded = kind == "FSDP" and getattr(accelerator.state.fsdp_plugin, "fsdp_version", 1) != 2
    if isinstance(optimizer, Ascent) and (kind not in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP") or sharded):
        raise InputError("distributed_type", "must be one device, DDP or FSDP2 for a two-pass optimizer", kind)


def _check(ascent: Ascent, *, last: bool) -> None:
    if last:
        return
    if ascent.options.ascent == "step" and ascent.options.rng == "replay":
        rule = '"replay" cannot hold over several micro-batches under ascent="step": loaders draw between them'
        raise InputError("rng", rule, "replay", 'use ascent="micro-batch"')
    if any(hasattr(p, "device_mesh") for group in ascent.param_groups for p in group["params"]):
        rule = "must be off for sharded parameters: their gradients exist only after the last micro-batch"
        raise InputError("accumulation", rule, advice="use larger batches, or DDP")


def _synchronize(ascent: Ascent, model: nn.Module | None) -> None:
    # trainers keep the gradients of all but the last micro-batch unsynced; a synced ascent needs their mean
    if world_size() == 1 or ascent.options.distributed == "local" or getattr(model, "require_backward_grad_sync", True):
        return
    gradients = [p.grad for group in ascent.param_groups for p in group["params"] if p.grad is not None]
    average_over_ranks(gradients, getattr(model, "process_group", None))


def _unsynced(model: nn.Module | None) -> AbstractContextManager[Any]:
    silent = getattr(model, "no_sync", None) if world_size() > 1 else None
    return nullcontext() if silent is None else silent()
