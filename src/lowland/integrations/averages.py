"""The weights that averaging optimizers want evaluated, with batch-norm statistics of their own, beside a trainer."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lowland.core.contexts import (
    buffers_restored,
    forked_rng,
    has_running_statistics,
    parameters_kept,
    recalibrate,
    running_buffers,
)
from lowland.core.errors import InputError
from lowland.core.loaders import fixed_batches
from lowland.core.params import unwrap
from lowland.core.types import as_batch
from lowland.optim import Wrapper


def averages(optimizer: Any) -> bool:
    """Tell whether other weights than the trained ones are evaluated."""
    return isinstance(optimizer, Wrapper) and optimizer.evaluation is not None


def statistics_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's running statistics and their counters by name."""
    layers = {name: module for name, module in unwrap(model).named_modules() if running_buffers(module)}
    return {
        f"{name}.{key}".lstrip("."): value
        for name, module in layers.items()
        for key, value in module.named_buffers(recurse=False)
    }


@torch.no_grad()
def put_statistics(model: nn.Module, known: Mapping[str, Tensor]) -> None:
    """Put running statistics into a model."""
    for name, value in statistics_of(model).items():
        value.copy_(known[name])


class EvaluationWeights:
    """Puts evaluation weights into the model for the length of a block; of one step the statistics are renewed once."""

    def __init__(self) -> None:
        self.loader: Any = None  # of the training data; trainers let go of it when they have trained
        self._known: tuple[int, dict[str, Tensor]] | None = None

    def forget(self) -> None:
        """Begin a run."""
        self._known = None

    def known(self, step: int) -> dict[str, Tensor] | None:
        """Return the statistics of the evaluation weights of a step, if they were renewed there."""
        return None if self._known is None or self._known[0] != step else self._known[1]

    @contextmanager
    def held(self, optimizers: Sequence[Any], model: nn.Module, step: int) -> Generator[None, None, None]:
        """Hold the evaluation weights of a step, and bring weights and statistics back bit for bit."""
        with ExitStack() as stack:
            wanted = [optimizer for optimizer in optimizers if averages(optimizer)]
            for optimizer in wanted:
                stack.enter_context(optimizer.averaged())
            if wanted and has_running_statistics(model):
                stack.enter_context(buffers_restored(model, attributes=False))
                self._put(model, self.known(step))
                self._known = step, {name: value.clone() for name, value in statistics_of(model).items()}
            yield

    @contextmanager
    def of_checkpoint(
        self, optimizers: Sequence[Any], states: Sequence[Mapping[str, Any]], statistics: Any, model: nn.Module
    ) -> Generator[None, None, None]:
        """Hold the evaluation weights of a checkpoint whose trained ones are in the model; optimizers keep theirs."""
        with parameters_kept(model), buffers_restored(model, attributes=False):
            before = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
            try:
                for optimizer, state in zip(optimizers, states, strict=True):
                    optimizer.load_state_dict(state)
                with ExitStack() as stack:
                    for optimizer in filter(averages, optimizers):
                        stack.enter_context(optimizer.averaged())
                    if any(map(averages, optimizers)) and has_running_statistics(model):
                        self._put(model, statistics)
                    yield
            finally:
                for optimizer, state in zip(optimizers, before, strict=True):
                    optimizer.load_state_dict(state)

    def _put(self, model: nn.Module, known: Mapping[str, Tensor] | None) -> None:
        if known is not None:
            put_statistics(model, known)
            return
        device = next(model.parameters()).device
        with forked_rng():
            recalibrate(unwrap(model), (as_batch(raw).to(device) for raw in fixed_order(self.loader)))


def fixed_order(loader: Any) -> Iterable[Any]:
    """Return the batches of a loader in a fixed order, without touching its shuffling."""
    if loader is None:
        rule = "must hold the batch-norm statistics of the average, or the training data be known"
        advice = "save it after a validation or at the end of an epoch, or evaluate with the callback that has trained"
        raise InputError("ckpt_path", rule, "neither", advice)
    if not isinstance(loader, DataLoader):
        rule = "must be a DataLoader over a map-style data set, to renew batch-norm statistics"
        raise InputError("train_dataloader", rule, type(loader).__name__, "or train a model without running statistics")
    return fixed_batches(loader, None, 0, whole=True)
