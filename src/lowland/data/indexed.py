"""Sample ids for any data set, and exact resume for any loader."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from lowland.core.contexts import forked_rng
from lowland.core.errors import InputError, reworded
from lowland.core.facts import ShowsFacts
from lowland.core.seeds import torch_seed
from lowland.core.types import Batch, RawBatch, as_batch


def stable_id(key: object) -> int:
    """Turn a key that names a sample (a path, a URL) into its id in [0, 2**62), the same in every process and run."""
    return int.from_bytes(hashlib.blake2b(str(key).encode(), digest_size=8).digest(), "little") % 2**62


class Indexed(Dataset[Any]):
    """A map-style data set whose items carry their sample id.

    A tuple ``(input, target)`` becomes ``(input, target, index)``, a dict gets the entry ``"index"``, and anything else
    becomes ``{"input": item, "index": index}``; every loader collates these as usual.
    For an iterable data set use `Indexed.stream` with a key that names each sample.

    Args:
        dataset: Has ``__getitem__`` and ``__len__``.

    Raises:
        InputError: If the data set is iterable only.

    Example:
        >>> Indexed([("a", 0), ("b", 1)])[1]
        ('b', 1, 1)
    """

    def __init__(self, dataset: Any) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            advice = "use Indexed.stream(dataset, key=...) for a stream"
            raise InputError("dataset", "must be map-style", type(dataset).__name__, advice)
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> Any:
        return _with_id(self.dataset[position], int(position))

    @staticmethod
    def stream(dataset: Iterable[Any], *, key: Callable[[Any], object]) -> IterableDataset[Any]:
        """Give the items of an iterable ids made from a key that names each item, the same in every run and worker."""
        return _Stream(dataset, key)


class _Stream(IterableDataset[Any]):
    def __init__(self, dataset: Iterable[Any], key: Callable[[Any], object]) -> None:
        self.dataset, self.key = dataset, key

    def __iter__(self) -> Iterator[Any]:
        for item in self.dataset:
            yield _with_id(item, stable_id(self.key(item)))


def _with_id(item: Any, index: int) -> Any:
    if isinstance(item, Mapping):
        return {**item, "index": index}
    if isinstance(item, tuple | list) and len(item) == 2:
        return (*item, index)
    return {"input": item, "index": index}


class LoaderBatches(ShowsFacts):
    """Batches of a foreign loader with an order that depends on (seed, epoch) alone.

    The loader draws from random generators of its own (those of Python, NumPy and torch, seeded per epoch and swapped
    in while it works), so that neither the model's dropout nor a resume in the middle of an epoch changes its batches.
    A resume in mid-epoch goes through the skipped batches again.

    Args:
        loader: A DataLoader or any iterable of raw batches that can be gone over again and again.
        seed: Decides the order of every epoch.

    Raises:
        InputError: If the loader is a one-way iterator.
    """

    def __init__(self, loader: Iterable[RawBatch], *, seed: int = 0) -> None:
        if isinstance(loader, Iterator):
            rule = "must be an iterable that starts anew each epoch"
            raise InputError("loader", rule, type(loader).__name__, "pass a DataLoader or a list")
        self.loader, self.seed = loader, seed

    def _facts(self) -> dict[str, str]:
        count = len(self.loader) if isinstance(self.loader, Sized) else "unknown"
        return {"n": str(count), "of": type(self.loader).__name__, "seed": str(self.seed)}

    def __len__(self) -> int:
        kind, advice = type(self.loader).__name__, "give it a __len__"
        with reworded(TypeError, lambda _: InputError("loader", "must know its length", kind, advice)):
            return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(0)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Go over the batches of an epoch (from 0) from number `start` on; earlier ones are loaded and dropped."""
        sampler = getattr(self.loader, "sampler", None)
        set_epoch = getattr(sampler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        own = getattr(self.loader, "generator", None)
        if isinstance(own, torch.Generator):
            own.manual_seed(torch_seed(self.seed, "order", epoch))
        own_random = _OwnRandom(torch_seed(self.seed, "order", epoch))
        iterator = own_random.call(lambda: iter(self.loader))
        end = object()
        number = 0
        while (raw := own_random.call(lambda: next(iterator, end))) is not end:
            if number >= start:
                yield as_batch(raw)
            number += 1


class _OwnRandom:
    """Runs calls with random generators that belong to nobody else."""

    def __init__(self, seed: int) -> None:
        self.seed: int | None = seed
        self.state: tuple[Any, Any, Any] | None = None

    def call(self, function: Callable[[], Any]) -> Any:
        with forked_rng():
            if self.state is None:
                torch.manual_seed(self.seed or 0)
                random.seed(self.seed)
                np.random.seed((self.seed or 0) % 2**32)
            else:
                torch.set_rng_state(self.state[0])
                random.setstate(self.state[1])
                np.random.set_state(self.state[2])
            result = function()
            self.state = (torch.get_rng_state(), random.getstate(), np.random.get_state())
        return result
