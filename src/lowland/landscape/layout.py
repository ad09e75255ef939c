"""How weights and data lie in memory while a survey runs: batch size, channels last; undone bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core.errors import InputError
from lowland.core.types import Batch

__all__ = ["laid_out", "rebatched"]


@contextmanager
def laid_out(model: nn.Module, memory_format: str) -> Generator[None]:
    """Let convolution weights lie channels last while inside.

    The parameters are given new storage, and get their own, untouched one back at the end.

    Args:
        model: The model.
        memory_format: ``"contiguous"`` changes nothing, ``"channels_last"`` four-dimensional parameters.

    Yields:
        Nothing.
    """
    saved: list[tuple[nn.Parameter, Tensor]] = []
    try:
        if memory_format == "channels_last":
            for parameter in model.parameters():
                if parameter.ndim == 4:
                    saved.append((parameter, parameter.data))
                    parameter.data = parameter.data.clone(memory_format=torch.channels_last)
        yield
    finally:
        for parameter, data in saved:
            parameter.data = data


def rebatched(batches: Iterable[Batch], size: int | None, memory_format: str) -> Iterator[Batch]:
    """Yield the same samples in the same order, in batches of another size and images in another layout.

    Args:
        batches: The batches.
        size: Samples per batch; None keeps the batches as they are.
        memory_format: ``"contiguous"`` leaves images alone, ``"channels_last"`` lays four-dimensional inputs out so.

    Yields:
        Each batch.
    """
    for batch in batches if size is None else _resized(batches, size):
        if memory_format == "channels_last":
            yield replace(batch, input=_map(batch.input, _channels_last))
        else:
            yield batch


def _resized(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    rest: Batch | None = None
    for batch in batches:
        rest = batch if rest is None else _joined([rest, batch])
        count = rest.size
        for start in range(0, count - size + 1, size):
            yield _part(rest, start, start + size)
        rest = _part(rest, count - count % size, count) if count % size else None
    if rest is not None:
        yield rest


_FIELDS = ("input", "target", "index", "partner", "share")


def _joined(batches: list[Batch]) -> Batch:
    return Batch(**{field: _join([getattr(batch, field) for batch in batches]) for field in _FIELDS})


def _join(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        if any(value.shape[1:] != first.shape[1:] for value in values):
            raise InputError(
                "batch_size",
                "must be None where samples of different batches differ in shape",
                [tuple(value.shape) for value in values][:2],
            )
        return torch.cat(values)
    if isinstance(first, Mapping):
        return {key: _join([value[key] for value in values]) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(_join(list(parts)) for parts in zip(*values, strict=True))
    return first


def _part(batch: Batch, start: int, stop: int) -> Batch:
    count = batch.size

    def cut(value: Tensor) -> Tensor:
        if value.ndim == 0 or value.shape[0] != count:
            raise InputError("batch_size", "must be None where a tensor has no entry per sample", tuple(value.shape))
        return value[start:stop]

    return Batch(**{field: _map(getattr(batch, field), cut) for field in _FIELDS})


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map(entry, change) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_map(entry, change) for entry in value)
    return value


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
