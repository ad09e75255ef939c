"""Exact loss and accuracy of the model in training, at the run's precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from lowland.core.moments import Pair, Tally, estimates
from lowland.core.per_sample import accuracy, chosen_classes, hits_of, per_sample_loss, target_classes
from lowland.core.types import Batch, as_batch, forward
from lowland.data import TensorData
from lowland.losses import TrainingLoss

Terms: TypeAlias = "tuple[Tensor, Tensor | None, Tensor | None, int]"
"""Of a batch: plain loss, hits, counted targets (None where there are no classes, or they stand with a later one),
samples."""

_OPEN: Final = 1 << 18
"""Entries of targets that may wait to be counted, 16 bytes each."""


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


class RunningTerms:
    """Terms of a running epoch, left on the device: no synchronization, and as few operations per step as there can be.

    Args:
        loss: The plain loss, which tells what counts as a class.
        reused: Whether whoever yields targets may write the next ones into the same memory.
    """

    def __init__(self, loss: Any, *, reused: bool) -> None:
        self.loss, self.reused = loss, reused
        self.put([])

    def put(self, terms: Iterable[Terms]) -> None:
        """Begin with the terms of a checkpoint; with none at the beginning of an epoch."""
        self._terms = list(terms)
        self._open: list[tuple[Tensor, Tensor]] = []  # classes chosen by the last outputs, and those of their targets
        self._entries = 0

    def add(self, output: Any, value: Tensor, target: Any, size: int) -> None:
        """Add a batch of `size` samples with its plain loss."""
        self._terms.append((value.detach(), None, None, size))
        classes = target_classes(output, target, self.loss)
        if classes is not None:
            # the output itself cannot wait: graphs of CUDA write the next one into the same memory
            chosen = chosen_classes(output.detach())
            self._open.append((chosen, classes.clone() if self.reused and classes is target else classes))
            self._entries += chosen.numel()
            if self._entries > _OPEN:
                self._count()

    def taken(self) -> list[Terms]:
        """Return all terms, as a checkpoint keeps them; hits of several batches stand with the last of them."""
        self._count()
        return list(self._terms)

    @torch.no_grad()
    def _count(self) -> None:
        # whole numbers, so that it makes no difference how many batches are counted at once
        if self._open:
            chosen, classes = (torch.cat([c.reshape(-1) for c in column]) for column in zip(*self._open, strict=True))
            right, kept = hits_of(chosen, classes, self.loss)
            value, _, _, size = self._terms[-1]
            self._terms[-1] = value, right.sum(), kept.sum(), size
            self._open, self._entries = [], 0


@torch.no_grad()
def totals(terms: list[Terms], device: torch.device) -> Tensor:
    """Return sums over a running epoch: plain loss times samples, hits, counted targets, samples."""
    sizes = torch.tensor([float(size) for *_, size in terms], dtype=torch.float64, device=device)
    losses = torch.stack([value for value, *_ in terms]).double()
    none = sizes.new_zeros(1)
    hits = torch.stack([h.double() for _, h, _, _ in terms if h is not None] or [none])
    counted = torch.stack([c.double() for _, _, c, _ in terms if c is not None] or [none])
    return torch.stack([(losses * sizes).sum(), hits.sum(), counted.sum(), sizes.sum()])
