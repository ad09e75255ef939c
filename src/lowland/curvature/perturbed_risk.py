"""The loss and its gradient around the present weights: what every sharpness measure walks on."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lowland.core.contexts import weights_restored
from lowland.core.errors import InputError
from lowland.core.params import ParameterSpace
from lowland.core.risk import EmpiricalRisk
from lowland.core.types import Batch


class PerturbedRisk:
    """A risk whose weights may be moved; made by `perturbed_risk`."""

    def __init__(self, risk: EmpiricalRisk, space: ParameterSpace, base: list[Tensor]) -> None:
        self.risk, self.space, self.base = risk, space, base
        self.weight = 0.0
        """What the samples measured last count in the loss; 0 where all of their targets are ignored."""

    def move(self, step: Sequence[Tensor] | None) -> None:
        """Set the weights to the center plus a step, and renew statistics if the risk's mode asks for it."""
        self.space.move(self.base, [] if step is None else [step], [] if step is None else [1.0])
        self.risk.recalibrate()

    def groups(self, *, per_batch: bool) -> list[list[Batch] | None]:
        """Return what is measured by itself: each batch, or all of them as None."""
        if per_batch and not self.risk.ranks.alone:
            rule = "must be False where ranks share the data: they have other batches"
            raise InputError("per_batch", rule, per_batch)
        return [[batch] for batch in self.risk.batches()] if per_batch else [None]

    @torch.no_grad()
    def loss(self, step: Sequence[Tensor] | None = None, batches: Sequence[Batch] | None = None) -> float:
        """Return the loss at the center plus a step."""
        self.move(step)
        loss, self.weight = self.risk.loss_alone(batches)
        return loss

    def gradient(
        self, step: Sequence[Tensor] | None = None, batches: Sequence[Batch] | None = None
    ) -> tuple[float, list[Tensor]]:
        """Return the loss and its gradient at the center plus a step."""
        self.move(step)
        loss, slope, self.weight = self.risk.loss_and_gradient(self.space, batches)
        return loss, slope


@contextmanager
def perturbed_risk(
    risk: EmpiricalRisk, *, modules: Sequence[str] | None = None, check: bool = True
) -> Generator[PerturbedRisk, None, None]:
    """Prepare a risk for walking around its present weights; everything is restored bit for bit at the end."""
    if check:
        risk.check_deterministic(once=True)
    with risk.prepared():
        space = ParameterSpace(risk.model, modules=modules)
        with weights_restored(space) as base:
            yield PerturbedRisk(risk, space, base)
