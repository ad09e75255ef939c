"""Going on with another number of processes: where the method is the same one there, and the reason where it is not."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from lowland.core.errors import CheckpointError
from lowland.data import LoaderBatches, TensorBatches
from lowland.losses import TrainingLoss
from lowland.optim import Ascent
from lowland.training.hooks import FitState

_NORMS: Final = nn.modules.batchnorm._BatchNorm


def check_processes(run: FitState, batches: TensorBatches | LoaderBatches, then: int, now: int) -> None:
    """Refuse to go on with another number of processes where that would make another method of it."""
    # The batch over all processes stays the same, so that a step is the same function of it as long as no part
    # of the method looks at one process's share alone. Random masks (dropout) are other ones of the same kind.
    if then == now or (reason := _reason(run, batches)) is None:
        return
    raise CheckpointError(
        f"`devices` of the run in {run.folder} is {then} and here {now}, and {reason}; go on with {then}"
    )


def _reason(run: FitState, batches: TensorBatches | LoaderBatches) -> str | None:
    if isinstance(batches, LoaderBatches):
        return "a loader's batch belongs to each process, so that a step would take another number of samples"
    if run.step % run.steps_per_epoch:
        return "its last checkpoint lies within an epoch that is dealt out already"
    if any(isinstance(m, _NORMS) and not isinstance(m, nn.SyncBatchNorm) for m in run.model.modules()):
        return "batch norm takes its statistics over each process's share of a batch (convert it to SyncBatchNorm)"
    if isinstance(run.optimizer, Ascent) and run.optimizer.options.distributed == "local":
        return "a local ascent goes by each process's share of a batch"
    return run.loss.bound_to_processes if isinstance(run.loss, TrainingLoss) else None


def own_part(own: list[Any], rank: int, now: int) -> tuple[Any, Any, list[Any]]:
    """Return what a checkpoint holds for one process: state of its random numbers, of its loss, terms of its epoch."""
    if len(own) == now:
        numbers, loss, terms = own[rank]
        return numbers, loss, terms
    return own[rank][0] if rank < len(own) else None, own[0][1], []
