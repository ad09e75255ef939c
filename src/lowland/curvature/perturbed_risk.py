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

__all__ = ["PerturbedRisk", "perturbed_risk"]


class PerturbedRisk:
    """A risk whose weights may be moved; made by `perturbed_risk`."""

    def __init__(self, risk: EmpiricalRisk, space: ParameterSpace, base: list[Tensor]) -> None:
        self.risk, self.space, self.base = risk, space, base

    def move(self, step: Sequence[Tensor] | None) -> None:
        """Set the weights to the center plus a step, and renew statistics if the risk's mode asks for it."""
        self.space.move(self.base, [] if step is None else [step], [] if step is None else [1.0])
        self.risk.recalibrate()

    @torch.no_grad()
    def loss(self, step: Sequence[Tensor] | None = None, batches: Sequence[Batch] | None = None) -> float:
        """Return the loss at the center plus a step."""
        self.move(step)
        total, weight = 0.0, 0.0
        for batch in self.risk.batches() if batches is None else batches:
            part, share = self.risk.loss_terms(batch)
            total, weight = total + float(part.double()), weight + float(share.double())
        return total / weight

    def gradient(
        self, step: Sequence[Tensor] | None = None, batches: Sequence[Batch] | None = None
    ) -> tuple[float, list[Tensor]]:
        """Return the loss and its gradient at the center plus a step."""
        self.move(step)
        total, weight = 0.0, 0.0
        sums = self.space.zeros()
        for batch in self.risk.batches() if batches is None else batches:
            loss, share = self.risk.loss_terms(batch)
            if not loss.requires_grad:
                raise InputError("risk", "must depend on the parameters by differentiable operations")
            parts = torch.autograd.grad(loss, self.space.tensors, allow_unused=True, materialize_grads=True)
            torch._foreach_add_(sums, [part.to_dense() if part.is_sparse else part for part in parts])
            total, weight = total + float(loss.detach().double()), weight + float(share.double())
        torch._foreach_div_(sums, weight)
        return total / weight, sums


@contextmanager
def perturbed_risk(
    risk: EmpiricalRisk, *, modules: Sequence[str] | None = None
) -> Generator[PerturbedRisk, None, None]:
    """Prepare a risk for walking around its present weights; everything is restored bit for bit at the end."""
    risk.check_deterministic(once=True)
    with risk.prepared():
        space = ParameterSpace(risk.model, modules=modules)
        with weights_restored(space) as base:
            yield PerturbedRisk(risk, space, base)
