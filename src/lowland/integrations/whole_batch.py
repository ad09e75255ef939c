"""Whole batches for losses, where a trainer hands over the target alone and models know nothing of sample ids."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lowland.core.errors import InputError
from lowland.core.types import Batch, as_batch
from lowland.losses import TrainingLoss


class WholeBatch:
    """A loss that a trainer calls with the target alone, completed with the input and the sample ids of the batch."""

    def __init__(self, loss: TrainingLoss) -> None:
        self.loss = loss
        self.batch: Batch | None = None
        self.rehearsing = False  # a tuner's steps are no run: the plain criterion, and nothing is kept

    def __call__(self, output: Any, target: Any) -> Tensor:
        """Return the loss."""
        if self.rehearsing:
            return self.loss.plain_criterion(output, target.target if isinstance(target, Batch) else target)
        if self.batch is None or isinstance(target, Batch):
            return self.loss(output, target)
        return self.loss(output, replace(self.batch, target=target))

    @contextmanager
    def of(self, batch: Batch | None, *, rehearsing: bool = False) -> Generator[None, None, None]:
        """Use a batch inside the block."""
        before = self.batch, self.rehearsing
        self.batch, self.rehearsing = batch, rehearsing
        try:
            yield
        finally:
            self.batch, self.rehearsing = before


def without_index(batch: Any) -> Any:
    """Return a batch as it is without sample ids, for code that does not know of them."""
    if isinstance(batch, Batch):
        return batch
    whole = as_batch(batch)
    if whole.index is None:
        advice = "wrap the data set in lowland.data.Indexed, and let a collator of your own hand `index` through"
        raise InputError("batch", "must carry sample ids", None, advice)
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if value is not whole.index}
    return type(batch)(batch[:2])


def losses_of(module: nn.Module) -> list[tuple[nn.Module, str, TrainingLoss]]:
    """Find the losses that a module and its submodules keep as attributes."""
    found: dict[int, tuple[nn.Module, str, TrainingLoss]] = {}
    for owner in module.modules():
        for name, value in vars(owner).items():
            loss = value.loss if isinstance(value, WholeBatch) else value
            if isinstance(loss, TrainingLoss):
                found.setdefault(id(loss), (owner, name, loss))
    return list(found.values())
