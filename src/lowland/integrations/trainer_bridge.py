"""The life of losses and hooks beside a trainer that knows neither: its events are told here, in its own units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from lowland.core.errors import CheckpointError, InputError
from lowland.data import DataSplits, Indexed
from lowland.losses import MESA, TrainingLoss
from lowland.training import FitState, Hook
from lowland.training.evaluation import plain_loss


class TrainerBridge:
    """What `lowland.training.fit` does for losses and hooks, as events for the loop of another trainer."""

    def __init__(self, losses: Sequence[TrainingLoss] = (), hooks: Sequence[Hook] = ()) -> None:
        for hook in hooks:
            if not isinstance(hook, Hook):
                raise InputError("hooks", "must be instances of lowland.training.Hook", type(hook).__name__)
        self.losses, self.hooks = list(losses), list(hooks)
        self.run: FitState | None = None
        self.saved: dict[str, Any] | None = None
        """What the run goes on from; read by `start`."""

    @property
    def calls_model(self) -> bool:
        """Whether anything here calls the model on the input of a batch."""
        nested: list[TrainingLoss | None] = list(self.losses)
        while any(nested):
            if any(isinstance(loss, MESA) for loss in nested):
                return True
            nested = [loss.inner for loss in nested if loss is not None]
        return bool(self.hooks)

    def start(self, run: FitState) -> None:
        """Begin a run, or go on with it where ``run.step`` is above 0."""
        saved, self.saved = self.saved if run.step else None, None
        if run.step and saved is None:
            saved = self.state_dict() if self.run is not None else None  # the same trainer was told to go on
            if saved is None and (self.losses or any(hook.state_dict() for hook in self.hooks)):
                rule = "but its checkpoint holds no state of Lowland's losses and hooks"
                advice = "start anew, or go on from a checkpoint that was written with them"
                raise CheckpointError(f"the run goes on from step {run.step}, {rule}; {advice}")
        here = len(self.losses), len(self.hooks)
        there = here if saved is None else (len(saved["losses"]), len(saved["hooks"]))
        if there != here:
            counts = "the checkpoint holds {} losses and {} hooks, the run has {} and {}"
            raise CheckpointError(counts.format(*there, *here))
        self.run = run
        dataset = getattr(run.data.train, "dataset", None)
        samples = len(dataset) if isinstance(dataset, Indexed) else None
        for position, loss in enumerate(self.losses):
            criterion = plain_loss(loss)
            if isinstance(criterion, nn.Module):
                criterion.to(next(run.model.parameters()).device)
            loss.prepare(
                model=run.model, epochs=run.epochs or None, steps_per_epoch=run.steps_per_epoch or None, samples=samples
            )
            if saved is not None:
                loss.load_state_dict(saved["losses"][position])
        for hook, held in zip(self.hooks, saved["hooks"] if saved else [], strict=False):
            hook.load_state_dict(held)
        self.begin_epoch(run.epoch)
        for hook in self.hooks:
            hook.on_fit_start(run)

    def begin_epoch(self, epoch: int) -> None:
        """Tell the losses which epoch runs."""
        for loss in self.losses:
            loss.epoch = epoch

    def after_step(self, step: int) -> None:
        """Tell everybody that the optimizer has stepped."""
        assert self.run is not None
        self.run.step = step
        for loss in self.losses:
            loss.after_step()
        for hook in self.hooks:
            hook.on_step_end(self.run)

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Collect the numbers of an epoch; the model holds its evaluation weights."""
        run = self.run
        assert run is not None
        run.epoch, run.row = epoch, {"epoch": epoch, "step": run.step}
        for loss in self.losses:
            log = loss.epoch_log()
            run.row.update({f"loss_{name}": value for name, value in log.items() if name != "criterion"})
        for hook in self.hooks:
            hook.on_epoch_end(run)
        run.rows.append(run.row)
        return {name: float(value) for name, value in run.row.items() if name not in ("epoch", "step")}

    def end(self) -> None:
        """End the run; the model holds its evaluation weights."""
        assert self.run is not None
        for hook in self.hooks:
            hook.on_fit_end(self.run)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs, of this process."""
        return {
            "losses": [loss.state_dict() for loss in self.losses],
            "hooks": [hook.state_dict() for hook in self.hooks],
        }


def steps_in(batches: float, micro_batches: int) -> int:
    """Return the optimizer steps in an epoch."""
    return math.ceil(batches / micro_batches) if math.isfinite(batches) else 0


def foreign_data(name: str, train: Any, validation: Any = None) -> DataSplits:
    """Describe a trainer's loaders as hooks know data."""
    return DataSplits(name, train, [] if validation is None else validation, [], classes=0, shape=())


def made_folder(folder: str | Path | None) -> Path | None:
    """Return the folder of a run, made if it is missing."""
    if folder is None:
        return None
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    return path


def host(value: Any) -> Any:
    """Return a nested state with its tensors on the CPU."""
    return tree_map(lambda leaf: leaf.detach().cpu() if isinstance(leaf, torch.Tensor) else leaf, value)
