"""What others may do while a run trains: the hook protocol, and snapshots of the trajectory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lowland.core.batches import Batch
from lowland.core.errors import InputError, require
from lowland.core.pace import Clock, OnEvent
from lowland.data import DataSplits
from lowland.results import SnapshotWriter
from lowland.results.run import Run
from lowland.training.metrics import Row


@dataclass
class FitState:
    """The state of a run that hooks see; they may read all of it, add to `row`, and set `stop`.

    Args:
        model: The model itself, without wrappers.
        optimizer: The optimizer that was handed to `fit`.
        loss: The loss that was handed to `fit`.
        data: What `fit` trains on, chooses by and tests on.
        folder: The run's folder, or None.
        epochs: Length of the run in epochs.
        steps_per_epoch: Batches of the training part, at this batch size.
        seed: As given to `fit`; hooks derive their own streams from it.
        rank: This process, from 0; hooks that write do so on rank 0 alone.
        epoch: How many are done; 0 in the first.
        step: Optimizer steps done.
        passes: Forward-backward passes of training done.
        evaluation_passes: Forward passes over evaluation batches done.
        seconds: Spent in training steps.
        row: Numbers of the epoch just done; what hooks add becomes a column of metrics.csv.
        rows: Rows of all epochs done.
        stop: Set it to end the run after this epoch.
        batch: What the last step was taken on: this process's part, on its device; None before the first.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Any
    data: DataSplits
    folder: Path | None
    epochs: int
    steps_per_epoch: int
    seed: int
    rank: int = 0
    epoch: int = 0
    step: int = 0
    passes: int = 0
    evaluation_passes: int = 0
    seconds: float = 0.0
    row: Row = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    stop: bool = False
    batch: Batch | None = None


class Hook:
    """Something that happens beside training; override what is needed.

    Whatever a hook changes in the model it restores. After a resume `on_fit_start` is called with the step reached,
    after `load_state_dict`, and steps that were lost are run again, so that a hook must be able to do its work twice.
    """

    def on_fit_start(self, run: FitState) -> None:
        """Do something before the first step, or after a resume."""

    def on_step_end(self, run: FitState) -> None:
        """Do something after an optimizer step."""

    def on_epoch_end(self, run: FitState) -> None:
        """Do something after an epoch and its evaluation, before its checkpoint."""

    def on_fit_end(self, run: FitState) -> None:
        """Do something after the last epoch; the model holds the chosen weights."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs: tensors, numbers, strings and containers of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


def acts_on_steps(hook: Hook) -> bool:
    """Tell whether a hook does anything at the end of a step."""
    return getattr(hook.on_step_end, "__func__", None) is not Hook.on_step_end


class Announce(Hook):
    """Tells the progress of training: after every step, and again once its epoch has been evaluated."""

    def __init__(self, on_event: OnEvent | None) -> None:
        self._on_event, self._clock, self.heard = on_event, Clock(0), on_event is not None

    def on_fit_start(self, run: FitState) -> None:
        """Start the clock."""
        self._clock = Clock(run.epochs * run.steps_per_epoch, run.step, self._on_event)
        self._clock.tell("started", run.step)

    def on_step_end(self, run: FitState) -> None:
        """Tell how far it is."""
        self._clock.tell("progress", run.step)

    def on_epoch_end(self, run: FitState) -> None:
        """Tell how far it is; the evaluation took time too."""
        self._clock.tell("progress", run.step)

    def on_fit_end(self, run: FitState) -> None:
        """Tell that it is done."""
        self._clock.tell("done", run.step)


class Snapshots(Hook):
    """Writes trainable parameters and running statistics along the trajectory, one file per snapshot, streamed.

    The folder ``snapshots`` of the run is read by `lowland.results.SnapshotReader`. The start (step 0) is the first
    snapshot. After a kill, snapshots of steps that were lost are written again with the same bits.

    Args:
        every_epochs: Epochs between snapshots; None for none at epoch ends. Default 1 (Li et al. 2018, section 7).
        every_steps: Optimizer steps between snapshots; None for none within epochs.
        dtype: ``"float32"``, or ``"float16"`` for half the size with rounding of 2**-11 relative.

    Raises:
        InputError: If a number is not positive or the type is unknown.
    """

    def __init__(
        self,
        *,
        every_epochs: int | None = 1,
        every_steps: int | None = None,
        dtype: Literal["float32", "float16"] = "float32",
    ) -> None:
        for name, value in (("every_epochs", every_epochs), ("every_steps", every_steps)):
            if value is not None and value < 1:
                raise InputError(name, "must be at least 1 or None", value)
        require(dtype in ("float32", "float16"), "dtype", 'must be "float32" or "float16"', dtype)
        self.every_epochs, self.every_steps, self.dtype = every_epochs, every_steps, dtype
        self._writer: SnapshotWriter | None = None

    def on_fit_start(self, run: FitState) -> None:
        """Open the folder, and write the start of the trajectory unless the run goes on."""
        if run.folder is None:
            raise InputError("folder", "must be given for snapshots of the trajectory", None)
        if run.rank != 0:
            return
        folder = Run(run.folder).snapshots_path
        if run.step == 0:  # what an abandoned run left there is not this run's trajectory
            (folder / "index.json").unlink(missing_ok=True)
        self._writer = SnapshotWriter(folder, self.dtype)
        if run.step == 0:
            self._write(run)

    def on_step_end(self, run: FitState) -> None:
        """Write a snapshot if this step is one of `every_steps`."""
        if self.every_steps is not None and run.step % self.every_steps == 0:
            self._write(run)

    def on_epoch_end(self, run: FitState) -> None:
        """Write a snapshot if this epoch is one of `every_epochs`."""
        if self.every_epochs is not None and run.epoch % self.every_epochs == 0:
            self._write(run)

    def _write(self, run: FitState) -> None:
        if self._writer is None:
            return
        # running statistics too: the true loss of a snapshot needs those of its own time
        kept = [*((n, p) for n, p in run.model.named_parameters() if p.requires_grad), *run.model.named_buffers()]
        epoch = run.step / run.steps_per_epoch if run.steps_per_epoch else float(run.epoch)
        weights = {name: value.detach().float().cpu().numpy() for name, value in kept if value.is_floating_point()}
        self._writer.write(run.step, weights, {"epoch": epoch})
