"""One optimizer step of `fit`, and what lives as long as the call does.

What need not be done per step is not: what Fabric would only hand on is called directly, and hits are counted once per
epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core.errors import InputError
from lowland.core.types import Batch, forward
from lowland.data import LoaderBatches, TensorBatches
from lowland.losses import TrainingLoss
from lowland.optim import Ascent, Wrapper
from lowland.training import checkpoint, setup
from lowland.training.evaluation import Evaluation, RunningTerms, plain_loss
from lowland.training.hooks import Announce, FitState, Hook


@dataclass
class Loop:
    """Everything that lives as long as one call of `fit`."""

    fabric: Any
    run: FitState
    batches: TensorBatches | LoaderBatches
    schedule: Callable[[float, float, int], float]
    hooks: Sequence[Hook]
    announce: Announce
    clip: float | None
    micro_batches: int
    checkpoint_every_steps: int | None
    recipe: dict[str, Any]
    best: tuple[int, dict[str, Tensor]] | None = None

    def __post_init__(self) -> None:
        run, self.device = self.run, self.fabric.device
        # wrapped by Fabric: the model for precision and device, the optimizer's step for the gradient scaler
        self.wrapped = self.fabric.setup(run.model, run.optimizer)
        self.ddp = self.wrapped[0]._forward_module  # under several processes it can keep gradients to itself
        direct = setup.hands_on(self.fabric)
        self.model: nn.Module
        self.stepper: torch.optim.Optimizer
        self.model, self.stepper = (run.model, run.optimizer) if direct else self.wrapped
        self.backward = Tensor.backward if direct else self.fabric.backward
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if isinstance(run.optimizer, Wrapper) and scaler is not None:
            run.optimizer.use_scaler(scaler)
        self.ascent = run.optimizer if isinstance(run.optimizer, Ascent) else None
        self.method = run.loss if isinstance(run.loss, TrainingLoss) else None
        plain = plain_loss(run.loss)
        self.terms = RunningTerms(plain, reused=not isinstance(self.batches, TensorBatches))
        self.evaluation = Evaluation(self.fabric, self.model, plain, self.recipe["batch_size"])
        self.rates = [float(group["lr"]) for group in run.optimizer.param_groups]
        self.checkpoints = None if run.folder is None else checkpoint.CheckpointFolder(run.folder)
        self.every = [*self.hooks, *[self.announce] * self.announce.heard]  # the last one is in no checkpoint

    def known(self, batch: Batch) -> int | None:
        """Return the size of a batch of three tensors of one length on the run's device; None of any other."""
        parts = (batch.input, batch.target, batch.index)
        plain = all(p.__class__ is Tensor and p.device == self.device and not p.is_inference() for p in parts)
        if not plain or batch.partner is not None or batch.share is not None or batch.count is not None:
            return None
        sizes = {tuple(part.shape[:1]) for part in parts if isinstance(part, Tensor)}
        return next(iter(sizes))[0] if len(sizes) == 1 and () not in sizes else None


def take_step(loop: Loop, batch: Batch) -> None:
    """Take one optimizer step: one or two passes, as the optimizer asks."""
    run, optimizer = loop.run, loop.run.optimizer
    size = loop.known(batch)
    if size is None:
        batch = batch.to(loop.device, non_blocking=True)
        size = batch.size
    run.batch = batch
    progress = run.step / run.steps_per_epoch
    multiple = loop.schedule(progress, 1 / run.steps_per_epoch, run.epochs)
    for group, rate in zip(optimizer.param_groups, loop.rates, strict=True):
        group["lr"] = rate * multiple
    optimizer.zero_grad()
    ascent = loop.ascent if loop.ascent is not None and loop.ascent.needs_perturbation() else None
    if ascent is None and loop.micro_batches == 1:
        _pass(loop, batch, size, size)
    else:
        _passes(loop, batch, size, ascent)
    run.passes += 1 if ascent is None else 2
    if loop.clip is not None:
        loop.fabric.clip_gradients(*loop.wrapped, max_norm=loop.clip, error_if_nonfinite=False)
    loop.stepper.step()
    if loop.method is not None:
        loop.method.after_step()


def _passes(loop: Loop, batch: Batch, size: int, ascent: Ascent | None) -> None:
    parts = setup.split_batch(batch, loop.micro_batches)
    each = ascent is not None and ascent.options.ascent == "micro-batch"
    for together in [[part] for part in parts] if each else [parts]:
        for part in together:
            with nullcontext() if ascent is None else ascent.first_pass(loop.ddp):
                _pass(loop, part, part.size, size)
        if ascent is not None:
            with ascent.perturb():
                for part in together:
                    _pass(loop, part, part.size, size, counted=False)


def _pass(loop: Loop, batch: Batch, samples: int, size: int, *, counted: bool = True) -> None:
    # forward and backward over a part of a batch of `size` samples; gradients of parts add up to that of their mean
    output = forward(loop.model, batch)
    value: Tensor = loop.run.loss(output, batch.target if loop.method is None else batch)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise InputError("loss", "must return the mean over the batch as a scalar tensor", got, 'use reduction="mean"')
    loop.backward(value if samples == size else value * (samples / size))
    if counted:
        plain = None if loop.method is None else loop.method.plain_value
        loop.terms.add(output, value if plain is None else plain, batch.target, samples)


def set_mode(loop: Loop, *, training: bool) -> int:
    """Put model and optimizer into training or evaluation mode, and return the batches that this took."""
    # averaging optimizers swap the weights that are evaluated in and out, and renew their batch-norm statistics on the
    # training data
    loop.model.train(training)
    optimizer = loop.run.optimizer
    switch = getattr(optimizer, "train" if training else "eval", None)
    if callable(switch):
        switch()
    if training or not isinstance(optimizer, Wrapper) or optimizer.evaluation is None:
        return 0
    batches = loop.batches
    whole = batches.data.batches(batches.batch_size) if isinstance(batches, TensorBatches) else batches
    return optimizer.recalibrate(whole, loop.run.model)
