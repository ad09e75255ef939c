"""How weights and data lie in memory while a survey runs: batch size, channels last; undone bit for bit."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from lowland.core.batches import mapped, resized
from lowland.core.interrupts import held_interrupts
from lowland.core.types import Batch


@contextmanager
def laid_out(model: nn.Module, memory_format: str) -> Generator[None]:
    """Let convolution weights lie channels last while inside."""
    # The parameters are given new storage, and get their own, untouched one back at the end.
    saved: list[tuple[nn.Parameter, Tensor]] = []
    try:
        if memory_format == "channels_last":
            for parameter in model.parameters():
                if parameter.ndim == 4:
                    saved.append((parameter, parameter.data))
                    parameter.data = parameter.data.clone(memory_format=torch.channels_last)
        yield
    finally:
        with held_interrupts():
            for parameter, data in saved:
                parameter.data = data


def rebatched(batches: Iterable[Batch], size: int | None, memory_format: str) -> Iterator[Batch]:
    """Yield the same samples in the same order, in batches of another size and images in another layout."""
    for batch in batches if size is None else resized(batches, size):
        if memory_format == "channels_last":
            yield replace(batch, input=mapped(batch.input, _channels_last))
        else:
            yield batch


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
