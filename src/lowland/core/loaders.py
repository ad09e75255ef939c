"""From a loader to fixed batches: the samples its sampler gives, in the same order each time they are read.

loader                                          what is measured
----------------------------------------------  -----------------------------------------------------------------
shuffling, or a sampler over a subset           the samples the sampler names, in the order of the data set
sampler or batch sampler in a fixed order       its samples in its order; a batch sampler keeps its grouping
`DistributedSampler`                            this rank's own part, with a warning that says so
weighted, or with replacement                   one draw, frozen by ``seed``, with a warning that says so
``batch_size=None``                             the batches that the data set yields
iterable data set, list, any iterable           as it comes; an iterator is read once and kept
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from lowland.core.batches import Batch, as_batch, resized, take
from lowland.core.contexts import forked_rng
from lowland.core.errors import InputError, LowlandWarning
from lowland.core.seeds import generator

__all__ = ["fixed_batches"]


def fixed_batches(
    batches: Iterable[Any], samples: int | None, seed: int, *, whole: bool = False, adapt: Any = None
) -> Iterable[Any]:
    """Return an iterable that yields the same batches each time, of a fixed subset if asked for.

    ``whole`` passes by the sampler of a loader and reads its data set from end to end.
    """
    if samples is not None and samples < 1:
        raise InputError("samples", "must be at least 1", samples)
    _check_source(batches)
    if isinstance(batches, DataLoader) and not isinstance(batches.dataset, IterableDataset):
        batches, samples = _fixed_loader(batches, samples, seed, whole)
    elif iter(batches) is batches:
        batches = list(batches)  # an iterator can be read only once
    if samples is None:
        return batches
    if not isinstance(batches, list | tuple):
        raise InputError(
            "samples", "needs a DataLoader over a map-style data set or a list of batches", samples,
            "read a stream into list(batches) first",
        )  # fmt: skip
    return _subset([as_batch(raw, adapt) for raw in batches], samples, seed)


def _check_source(batches: Any) -> None:
    """Refuse what would be read as batches though it is one batch, or a data set of single samples."""
    one = isinstance(batches, Tensor | Batch | Mapping | np.ndarray)
    pair = isinstance(batches, tuple) and len(batches) in (2, 3) and all(isinstance(part, Tensor) for part in batches)
    if one or pair:
        raise InputError("batches", "must hold batches, not be one", type(batches).__name__, "pass [batch]")
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        advice = "pass DataLoader(dataset, batch_size=...), or batch_size=None if its items are batches"
        raise InputError("batches", "must be read through a DataLoader", type(batches).__name__, advice)


def _fixed_loader(
    loader: DataLoader[Any], samples: int | None, seed: int, whole: bool
) -> tuple[Iterable[Any], int | None]:
    """Return a loader in fixed order, and how many samples are still to be chosen from what it yields."""
    if whole:
        chosen = list(range(len(loader.dataset)))  # type: ignore[arg-type]
    elif loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        groups = _frozen(loader.batch_sampler, loader, seed, grouped=True)
        if samples is not None:
            flat = [place for group in groups for place in group]
            kept = set(_chosen(len(flat), samples, seed).tolist())
            numbered = iter(range(len(flat)))
            groups = [[place for place in group if next(numbered) in kept] for group in groups]
        return _reader(loader, [group for group in groups if group]), None
    else:
        chosen = _frozen(getattr(loader.batch_sampler, "sampler", loader.sampler), loader, seed)
    if loader.batch_sampler is None:
        held = DataLoader(
            loader.dataset, batch_size=None, sampler=chosen, collate_fn=loader.collate_fn,
            num_workers=loader.num_workers, pin_memory=loader.pin_memory, worker_init_fn=loader.worker_init_fn,
        )  # fmt: skip
        return (held, None) if samples is None else (list(held), samples)
    picked = [chosen[place] for place in _chosen(len(chosen), samples, seed).tolist()] if samples else chosen
    step = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 128
    return _reader(loader, [picked[start : start + step] for start in range(0, len(picked), step)]), None


def _reader(loader: DataLoader[Any], groups: list[list[Any]]) -> DataLoader[Any]:
    return DataLoader(
        loader.dataset, batch_sampler=groups, collate_fn=loader.collate_fn, num_workers=loader.num_workers,
        pin_memory=loader.pin_memory, worker_init_fn=loader.worker_init_fn,
    )  # fmt: skip


def _frozen(sampler: Any, loader: DataLoader[Any], seed: int, *, grouped: bool = False) -> list[Any]:
    """Return what a sampler gives: its own order if that is fixed, the order of the data if it only shuffles."""
    # Told by what it does, not by its name: it is read twice under different random states, which are put back.
    size = len(loader.dataset)  # type: ignore[arg-type]
    plain = isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == size
    if isinstance(sampler, SequentialSampler) or plain:
        return list(range(size))
    first, second = (_read(sampler, seed + k, grouped) for k in range(2))
    if isinstance(sampler, DistributedSampler):
        _say(f"only rank {sampler.rank}'s part of the data is measured: {len(first)} of {size} samples")
    if first == second:
        return first
    flat = [[place for group in part for place in group] if grouped else part for part in (first, second)]
    if not all(isinstance(place, int) for place in flat[0]) or sorted(flat[0]) != sorted(flat[1]):
        _say(f"the loader's sampler gives other samples each time: one draw is measured, frozen by seed={seed}")
        return first
    return first if grouped else sorted(first)


def _read(sampler: Any, seed: int, grouped: bool) -> list[Any]:
    inner = [sampler, *(value for value in getattr(sampler, "__dict__", {}).values() if hasattr(value, "__dict__"))]
    found = [getattr(part, "generator", None) for part in inner]
    generators = [(each, each.get_state()) for each in found if isinstance(each, torch.Generator)]
    with forked_rng(seed):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        for each, _ in generators:
            each.manual_seed(seed)
        try:
            return [[_plain(place) for place in group] if grouped else _plain(group) for group in sampler]
        finally:
            for each, state in generators:
                each.set_state(state)


def _plain(place: Any) -> Any:
    return int(place) if isinstance(place, int | np.integer | Tensor) else place


def _say(text: str) -> None:
    warnings.warn(text, LowlandWarning, stacklevel=6)


def _chosen(size: int, samples: int | None, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    if samples is None:
        return np.arange(size)
    if samples > size:
        raise InputError("samples", f"must not exceed the {size} samples there are", samples)
    return np.sort(generator(seed, "subsample").choice(size, samples, replace=False))


def _subset(parts: list[Batch], samples: int, seed: int) -> list[Batch]:
    chosen = _chosen(sum(part.size for part in parts), samples, seed)
    result, start = [], 0
    for part in parts:
        inside = chosen[(chosen >= start) & (chosen < start + part.size)] - start
        start += part.size
        if len(inside):
            result.append(take(part, torch.as_tensor(inside)))
    try:
        return list(resized(result, max(part.size for part in parts)))
    except InputError:  # samples of different shapes: the pieces stay apart
        return result
