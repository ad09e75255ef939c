"""Fixed batches from whatever the user has: the same samples in the same order each time they are read.

A DataLoader over a map-style data set is read in index order (its sampler is replaced, so that shuffling does no harm);
a fixed subset is chosen by the seed stream "subsample".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lowland.core.errors import InputError
from lowland.core.seeds import generator
from lowland.core.types import Batch, as_batch

__all__ = ["batch_bytes", "batch_tensors", "fixed_batches", "mapped", "resized"]

_FIELDS = ("input", "target", "index", "partner", "share")


def fixed_batches(batches: Iterable[Any], samples: int | None, seed: int) -> Iterable[Any]:
    """Return an iterable that yields the same batches each time, of a fixed subset if asked for."""
    if samples is not None and samples < 1:
        raise InputError("samples", "must be at least 1", samples)
    if isinstance(batches, DataLoader) and not isinstance(batches.dataset, IterableDataset):
        return _ordered_loader(batches, samples, seed)
    if iter(batches) is batches:
        batches = list(batches)  # an iterator can be read only once
    if samples is None:
        return batches
    if not isinstance(batches, list | tuple):
        raise InputError("samples", "needs a DataLoader over a map-style data set or a list of batches", samples)
    return _subset(list(batches), samples, seed)


def _ordered_loader(loader: DataLoader[Any], samples: int | None, seed: int) -> Iterable[Any]:
    dataset, size = loader.dataset, len(loader.dataset)  # type: ignore[arg-type]
    chosen = _chosen(size, samples, seed)
    step = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 128
    parts = [chosen[start : start + step].tolist() for start in range(0, len(chosen), step)]
    return DataLoader(
        dataset, batch_sampler=parts, collate_fn=loader.collate_fn, num_workers=loader.num_workers,
        pin_memory=loader.pin_memory, worker_init_fn=loader.worker_init_fn,
    )  # fmt: skip


def _chosen(size: int, samples: int | None, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    if samples is None:
        return np.arange(size)
    if samples > size:
        raise InputError("samples", f"must not exceed the {size} samples there are", samples)
    return np.sort(generator(seed, "subsample").choice(size, samples, replace=False))


def _subset(batches: list[Any], samples: int, seed: int) -> list[Batch]:
    parts = [as_batch(raw) for raw in batches]
    chosen = _chosen(sum(part.size for part in parts), samples, seed)
    result, start = [], 0
    for part in parts:
        inside = chosen[(chosen >= start) & (chosen < start + part.size)] - start
        start += part.size
        if len(inside):
            result.append(_take(part, torch.as_tensor(inside)))
    try:
        return list(resized(result, max(part.size for part in parts)))
    except InputError:  # samples of different shapes: the pieces stay apart
        return result


def _take(batch: Batch, index: Tensor) -> Batch:
    return _each(batch, lambda value: value[index.to(value.device)])


def _each(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    return Batch(**{field: mapped(getattr(batch, field), change) for field in _FIELDS})


def resized(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Yield the same samples in the same order in batches of another size; the last may be smaller."""
    rest: Batch | None = None
    for batch in batches:
        rest = batch if rest is None else _joined([rest, batch])
        count = rest.size
        for start in range(0, count - size + 1, size):
            yield _part(rest, start, start + size)
        rest = _part(rest, count - count % size, count) if count % size else None
    if rest is not None:
        yield rest


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

    return _each(batch, cut)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a nested structure with all of its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: mapped(entry, change) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(mapped(entry, change) for entry in value)
    return value


def batch_tensors(value: Any) -> list[Tensor]:
    """Return all tensors in a nested structure, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Batch):
        return batch_tensors([value.input, value.target, value.index, value.partner, value.share])
    if isinstance(value, Mapping):
        return [tensor for key in value for tensor in batch_tensors(value[key])]
    if isinstance(value, tuple | list):
        return [tensor for entry in value for tensor in batch_tensors(entry)]
    return []


def batch_bytes(batch: Batch) -> int:
    """Return the memory that a batch takes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in batch_tensors(batch))
