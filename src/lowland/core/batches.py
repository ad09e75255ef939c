"""Fixed batches from whatever the user has: the same samples in the same order each time they are read.

A DataLoader over a map-style data set is read in index order (its sampler is replaced, so that shuffling does no harm);
a fixed subset is chosen by the seed stream "subsample".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lowland.core.errors import InputError
from lowland.core.seeds import generator
from lowland.core.types import Batch, as_batch

__all__ = ["batch_bytes", "batch_tensors", "fixed_batches"]


def fixed_batches(batches: Iterable[Any], samples: int | None, seed: int) -> Iterable[Any]:
    """Return an iterable that yields the same batches each time, of a fixed subset if asked for.

    Args:
        batches: A DataLoader, a list of batches, or any iterable; an iterator is read into a list.
        samples: Size of the subset; None takes all.
        seed: Seed of the subset.

    Returns:
        Something to iterate over again and again; its entries are for `lowland.core.types.as_batch`.

    Raises:
        InputError: If ``samples`` is below 1, above what there is, or cannot be taken from this kind of data.
    """
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
    return result


def _take(batch: Batch, index: Tensor) -> Batch:
    def take(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[index.to(value.device)]
        if isinstance(value, Mapping):
            return {key: take(entry) for key, entry in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(take(entry) for entry in value)
        return value

    return Batch(take(batch.input), take(batch.target), take(batch.index), take(batch.partner), take(batch.share))


def batch_tensors(value: Any) -> list[Tensor]:
    """Return all tensors in a nested structure, in order.

    Args:
        value: A batch, tensor, mapping or sequence; anything else has none.

    Returns:
        The tensors.
    """
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
    """Return the memory that a batch takes.

    Args:
        batch: The batch.

    Returns:
        Bytes.
    """
    return sum(tensor.numel() * tensor.element_size() for tensor in batch_tensors(batch))
