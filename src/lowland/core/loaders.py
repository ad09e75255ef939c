"""From a loader to fixed batches: the samples its sampler gives, in the same order each time they are read.

loader                                          what is measured
----------------------------------------------  -----------------------------------------------------------------
shuffling, or a sampler over a subset           the samples the sampler names, in the order of the data set
sampler or batch sampler in a fixed order       its samples in its order; a batch sampler keeps its grouping
`DistributedSampler`                            this rank's own part, with a warning that says so
weighted, or with replacement                   one draw, frozen by ``seed``, with a warning that says so
``batch_size=None``                             the batches that the data set yields
``drop_last=True``                              the rest is left out of a fixed order, measured where it shuffles
iterable data set, list, any iterable           as it comes; an iterator is read once and kept
"""

from __future__ import annotations

import copy
import hashlib
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Final, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils import data

from lowland.core.batches import Batch, as_batch, batch_bytes, batch_tensors, resized, take
from lowland.core.contexts import forked_rng
from lowland.core.errors import InputError, LowlandWarning, require
from lowland.core.provenance import fingerprint
from lowland.core.seeds import generator

RESIDENT_BYTES: Final = 1 << 30
"""Data up to this size are kept on the device when ``resident="auto"``."""


class ResidentBatches:
    """Fixed batches on a device, the same ones in the same order each time; small data stay there."""

    def __init__(
        self,
        source: Iterable[Any],
        device: torch.device,
        resident: bool | Literal["auto"],
        *,
        adapt: Callable[[Any], Any] | None,
        samples_of: Callable[[Batch], int] | None,
    ) -> None:
        self.source, self.device, self.adapt, self.samples_of = source, device, adapt, samples_of
        self.resident, self._kept, self._fingerprint = resident, cast("list[Batch] | None", None), ""

    def __iter__(self) -> Iterator[Batch]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Batch] | None = [] if self.resident else None
        size, count = 0, 0
        for raw in self.source:
            batch = self._read(raw, count)
            if batch.known_size == 0:
                continue
            count += 1
            if kept is not None:
                size += batch_bytes(batch)
                kept.append(batch)
                if self.resident == "auto" and size > RESIDENT_BYTES:
                    kept = None
            yield batch
        require(count != 0, "batches", "must hold at least one batch", 0)
        self._kept = kept

    def _read(self, raw: Any, number: int) -> Batch:
        batch = as_batch(raw, self.adapt).to(self.device)
        count = batch.count
        if self.samples_of is not None and count is None:
            found = self.samples_of(batch)
            whole = isinstance(found, int | np.integer | Tensor) and int(found) == found
            require(whole and found >= 1, "samples_of", "must give a whole number of at least 1", found)
            count = int(found)
        return replace(batch, count=count, number=number) if (count, number) != (batch.count, batch.number) else batch

    @property
    def known_size(self) -> int | None:
        """The number of samples, None where a loader or stream would have to be read for it."""
        source = self.source if self._kept is None else self._kept
        groups = getattr(source, "batch_sampler", None)
        if isinstance(groups, list):
            return sum(map(len, groups))
        sizes = [as_batch(raw, self.adapt).known_size for raw in source] if isinstance(source, list | tuple) else [None]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def first_twice(self) -> tuple[Batch, Batch]:
        """Read the first batch from the source twice."""
        # a loader draws a seed each time it is read
        with nullcontext() if type(self.source) in (list, tuple) else forked_rng():
            found = [next(iter(self.source), None) for _ in range(2)]
        if found[0] is None or found[1] is None:
            raise InputError("batches", "must hold at least one batch", 0)
        return self._read(found[0], 0), self._read(found[1], 0)

    def fingerprint(self) -> str:
        """Return sixteen hexadecimal digits of all data in their order, from one pass over them."""
        if not self._fingerprint:
            digest = hashlib.sha256()
            with forked_rng():
                for batch in self:
                    digest.update(fingerprint(batch_tensors(batch)).encode())
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint


def fixed_batches(
    batches: Iterable[Any], samples: int | None, seed: int, *, whole: bool = False, adapt: Any = None
) -> Iterable[Any]:
    """Return an iterable of the same batches each time; `whole` reads a loader's data set past its sampler."""
    whole_number = isinstance(samples, int | np.integer) and not isinstance(samples, bool)
    require(samples is None or whole_number, "samples", "must be a whole number", samples)
    require(samples is None or samples >= 1, "samples", "must be at least 1", samples)
    _check_source(batches)
    batches = getattr(batches, "base_dataloader", batches)  # of Accelerate, which moves batches and shares seeds
    if isinstance(batches, data.DataLoader) and isinstance(batches.dataset, data.IterableDataset):
        batches = _reader(batches)
    elif isinstance(batches, data.DataLoader):
        batches, samples = _fixed_loader(batches, samples, seed, whole)
    elif iter(batches) is batches:
        batches = list(batches)  # an iterator can be read only once
    if type(batches) in (list, tuple):  # a class of the user's may hold its batches elsewhere
        require(batches, "batches", "must hold at least one batch", batches)
    if samples is None:
        return batches
    if not isinstance(batches, list | tuple):
        rule = "needs a DataLoader over a map-style data set or a list of batches"
        raise InputError("samples", rule, samples, "read a stream into list(batches) first")
    return _subset([as_batch(raw, adapt) for raw in batches], samples, seed)


def _check_source(batches: Any) -> None:
    """Refuse what would be read as batches though it is one batch, or a data set of single samples."""
    one = isinstance(batches, Tensor | Batch | Mapping | np.ndarray)
    arrays = [isinstance(part, Tensor | np.ndarray) for part in batches] if isinstance(batches, tuple) else []
    pair = len(arrays) in (2, 3) and any(arrays)  # where a target is of another kind, too
    require(not one and not pair, "batches", "must hold batches, not be one", type(batches).__name__, "pass [batch]")
    if not isinstance(batches, Iterable | data.Dataset):
        advice = "pass its batches(500)" if hasattr(batches, "batches") else ""
        rule = "must be a DataLoader, a list of batches or an iterable"
        raise InputError("batches", rule, type(batches).__name__, advice)
    if isinstance(batches, data.Dataset) and not isinstance(batches, data.IterableDataset):
        advice = "pass DataLoader(dataset, batch_size=...), or batch_size=None if its items are batches"
        raise InputError("batches", "must be read through a DataLoader", type(batches).__name__, advice)


def _fixed_loader(
    loader: data.DataLoader[Any], samples: int | None, seed: int, whole: bool
) -> tuple[Iterable[Any], int | None]:
    """Return a loader in fixed order, and how many samples are still to be chosen from what it yields."""
    if whole:
        chosen = list(range(len(loader.dataset)))  # type: ignore[arg-type]
    elif loader.batch_sampler is not None and type(loader.batch_sampler) is not data.BatchSampler:
        groups, _ = _frozen(loader.batch_sampler, loader, seed, grouped=True)
        if samples is not None:
            flat = [place for group in groups for place in group]
            kept = set(_chosen(len(flat), samples, seed).tolist())
            numbered = iter(range(len(flat)))
            groups = [[place for place in group if next(numbered) in kept] for group in groups]
        return _reader(loader, batch_sampler=[group for group in groups if group]), None
    else:
        chosen, fixed = _frozen(getattr(loader.batch_sampler, "sampler", loader.sampler), loader, seed)
        if fixed and loader.drop_last and loader.batch_size:
            chosen = chosen[: len(chosen) // loader.batch_size * loader.batch_size]
    if loader.batch_sampler is None:
        held = _reader(loader, sampler=chosen)
        return (held, None) if samples is None else (list(held), samples)
    picked = [chosen[place] for place in _chosen(len(chosen), samples, seed).tolist()] if samples else chosen
    step = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 128
    groups = [picked[start : start + step] for start in range(0, len(picked), step)]
    advice = "its data set is empty, or drop_last drops the only batch"
    require(groups, "batches", "must hold at least one batch", type(loader).__name__, advice)
    return _reader(loader, batch_sampler=groups), None


def _reader(loader: data.DataLoader[Any], **order: Any) -> data.DataLoader[Any]:
    """Return a copy of a loader with a fixed order, workers of its own, and no generator that reading would move."""
    made = copy.copy(loader)  # of the user's own class, which may do something to every batch
    vars(made).update(order, generator=None, persistent_workers=False, _iterator=None)
    return made


def _frozen(sampler: Any, loader: data.DataLoader[Any], seed: int, *, grouped: bool = False) -> tuple[list[Any], bool]:
    """Return what a sampler gives, and whether in an order of its own: else in that of the data, if it shuffles."""
    # Told by what it does, not by its name: it is read twice under different random states, which are put back.
    size = len(loader.dataset)  # type: ignore[arg-type]
    plain = isinstance(sampler, data.RandomSampler) and not sampler.replacement and sampler.num_samples == size
    if isinstance(sampler, data.SequentialSampler) or plain:
        return list(range(size)), not plain
    first, second = (_read(sampler, seed + k, grouped) for k in range(2))
    if isinstance(sampler, data.DistributedSampler):
        _say(f"only rank {sampler.rank}'s part of the data is measured: {len(first)} of {size} samples")
    if first == second:
        return first, True
    flat = [[place for group in part for place in group] if grouped else part for part in (first, second)]
    if not all(isinstance(place, int) for place in flat[0]) or sorted(flat[0]) != sorted(flat[1]):
        _say(f"the loader's sampler gives other samples each time: one draw is measured, frozen by seed={seed}")
        return first, False
    return (first if grouped else sorted(first)), False


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
    require(samples <= size, "samples", f"must not exceed the {size} samples there are", samples)
    return np.sort(generator(seed, "subsample").choice(size, samples, replace=False))


def _subset(parts: list[Batch], samples: int, seed: int) -> list[Batch]:
    chosen = _chosen(sum(part.size for part in parts), samples, seed)
    result, start = [], 0
    for part in parts:
        inside = chosen[(chosen >= start) & (chosen < start + part.size)] - start
        start += part.size
        if len(inside):
            result.append(take(part, torch.as_tensor(inside, device="cpu")))
    try:
        return list(resized(result, max(part.size for part in parts)))
    except InputError:  # samples of different shapes: the pieces stay apart
        return result
