"""Exact loss and accuracy of the model in training, at the run's precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lowland.core.moments import Pair, Tally, estimates
from lowland.core.per_sample import accuracy, per_sample_loss
from lowland.core.types import Batch, as_batch, forward
from lowland.data import TensorData
from lowland.losses import TrainingLoss

Terms: TypeAlias = "tuple[Tensor, Tensor | None, Tensor | None, int]"
"""Of a batch: plain loss, hits, counted targets (None where there are no classes), samples."""


def plain_loss(loss: Any) -> Callable[[Any, Any], Tensor]:
    """Return the loss that is measured: a method's base criterion, or the loss itself."""
    while isinstance(loss, TrainingLoss):
        loss = loss.criterion
    found: Callable[[Any, Any], Tensor] = loss
    return found


class Evaluation:
    """Measures a part of the data with the weights and statistics the model has, in evaluation mode."""

    def __init__(self, fabric: Any, model: nn.Module, loss: Callable[[Any, Any], Tensor], batch_size: int) -> None:
        self.fabric, self.model, self.loss, self.batch_size = fabric, model, loss, batch_size
        self.resident: dict[int, TensorData] = {}

    @torch.no_grad()
    def __call__(self, part: TensorData | Iterable[Any]) -> tuple[dict[str, float], int]:
        """Measure one part."""
        tally, count = Tally(), 0
        if isinstance(part, TensorData):  # moved to the device once
            if id(part) not in self.resident:
                self.resident[id(part)] = part.to_fitting(self.fabric.device)
            part = self.resident[id(part)].batches(self.batch_size)
        for raw in part:
            tally.add(self._measured(as_batch(raw).to(self.fabric.device)))
            count += 1
        result: dict[str, float] = {}
        for name, estimate in estimates([tally])[0].items():
            result[name], result[f"{name}_se"] = estimate.value, estimate.standard_error
        return result, count

    def _measured(self, batch: Batch) -> dict[str, Pair]:
        output = forward(self.model, batch)
        measured: dict[str, Pair] = {"loss": per_sample_loss(self.loss, output, batch.target, batch=batch)}
        hits = accuracy(output, batch.target, self.loss)
        if hits is not None:
            measured["accuracy"] = hits
        return measured


@torch.no_grad()
def terms_of(output: Any, value: Tensor, batch: Batch, loss: Any) -> Terms:
    """Return what an epoch's sums need of a batch, left on the device: no synchronization, few operations."""
    hits = accuracy(output, batch.target, loss)
    if hits is None:
        return value.detach(), None, None, batch.size
    return value.detach(), hits[0].sum(), hits[1].sum(), batch.size


def totals(terms: list[Terms], device: torch.device) -> Tensor:
    """Return sums over a running epoch: plain loss times samples, hits, counted targets, samples."""
    sizes = torch.tensor([float(size) for *_, size in terms], dtype=torch.float64, device=device)
    losses = torch.stack([value for value, *_ in terms]).double()
    none = sizes.new_zeros(1)
    hits = torch.stack([h for _, h, _, _ in terms if h is not None] or [none]).double()
    counted = torch.stack([c for _, _, c, _ in terms if c is not None] or [none]).double()
    return torch.stack([(losses * sizes).sum(), hits.sum(), counted.sum(), sizes.sum()])
