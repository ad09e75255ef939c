"""The command that trains: one network into a run folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from lowland.core.errors import InputError
from lowland.workflows.specs import FitSpec

if TYPE_CHECKING:
    from lowland.engine import Event
    from lowland.training import Hook
    from lowland.workflows.folder import RunFolder

__all__ = ["fit", "leave_processes"]


def fit(spec: FitSpec, *, on_event: Callable[[Event], None] | None = None) -> RunFolder:
    """Train one network, and write a run folder that every other command reads.

    An interrupted run goes on, a finished one is left as it is. A finished one goes on when `epochs` has grown and
    nothing that was done depends on the length of the run: with a constant or stepped learning rate, to the same bits
    as if it had been as long from the beginning. A cosine is laid over the whole length, so that it is refused.

    Args:
        spec: The run.
        on_event: Receives the progress.

    Returns:
        The run's folder.

    Raises:
        InputError: If something does not fit, or the folder holds another run; nothing is written.

    Example:
        >>> from lowland.workflows import DataSpec
        >>> fit(FitSpec(folder="runs/none", data=DataSpec(name="digit")))
        Traceback (most recent call last):
        lowland.core.errors.InputError: `data` must be a known name (got 'digit'); did you mean 'digits'? Known: ...
    """
    from lowland.workflows.folder import RunFolder

    grown = RunFolder.check(spec)
    from lowland import training
    from lowland.workflows import build
    from lowland.workflows.events import Announce
    from lowland.workflows.surveys import threads_of_torch

    splits = build.build_data(spec.data)  # everything is built before anything is written: bad input leaves no trace
    augment = build.build_augment(spec.augment, splits, spec.loss)
    model = build.build_model(spec.model, splits, seed=spec.seed)
    build.check_model(model, splits, build.build_criterion(spec.loss))
    optimizer = build.build_optimizer(spec.optimizer, model)
    loss, schedule = build.build_loss(spec.loss, model, splits), build.build_schedule(spec.schedule)
    if grown is not None:
        _check_grown(spec, grown, training.why_fixed(schedule, loss, grown, spec.epochs))
    hooks: list[Hook] = []
    if spec.snapshots_every_epochs is not None:
        hooks.append(training.Snapshots(every_epochs=spec.snapshots_every_epochs, dtype=spec.snapshot_dtype))
    if spec.curvature_share is not None:
        curve = training.CurvatureCurve(share=spec.curvature_share)
        count: int = len(getattr(splits.train, "dataset", splits.train))
        curve.interval(optimizer, count, math.ceil(count / spec.batch_size), spec.epochs)  # or say why not
        hooks.append(curve)
    hooks.append(Announce(on_event))  # always there, since a run goes on only with the hooks it began with
    folder = RunFolder.create(spec)
    with threads_of_torch(spec.threads):
        training.fit(
            model, optimizer, loss, splits, epochs=spec.epochs, batch_size=spec.batch_size, seed=spec.seed,
            schedule=schedule, augment=augment, clip=spec.clip, select=spec.select, folder=folder.path, hooks=hooks,
            checkpoint_every_steps=spec.checkpoint_every_steps, precision=spec.precision,
            micro_batches=spec.micro_batches, accelerator=spec.accelerator, devices=spec.devices,
        )  # fmt: skip
    return folder


def _check_grown(spec: FitSpec, before: int, why: str) -> None:
    if spec.curvature_share is not None:
        why = "the curve of the curvature is laid over the whole length of the run"
    if why:
        advice = "choose another --folder; runs with --schedule.kind constant or step and a plain loss can grow"
        raise InputError("epochs", f"must stay {before} in this folder, since {why}", spec.epochs, advice)


def leave_processes() -> None:
    """End the communication between the processes of a run; else gloo's threads can abort Python when it exits."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
