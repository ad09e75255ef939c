"""Data sets that live in memory, and batches of them whose order is a pure function of seed and epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowland.core.errors import InputError, require
from lowland.core.facts import ShowsFacts, form_of
from lowland.core.seeds import generator
from lowland.core.types import Batch
from lowland.data.draws import Draws, draws_for

Augment: TypeAlias = Callable[[Batch, Draws], Batch]
"""Changes a batch with random numbers that belong to its samples."""


@dataclass(repr=False, frozen=True)
class TensorData(ShowsFacts):
    """Samples held as tensors, each with an id that stays its own in every subset.

    Args:
        input: Shape [n, ...].
        target: Shape [n, ...].
        index: Sample ids, int64, shape [n], each once.

    Raises:
        InputError: If the lengths differ or an id is used twice.

    Example:
        >>> data = TensorData(torch.zeros(3, 2), torch.zeros(3), torch.arange(3))
        >>> [batch.size for batch in data.batches(2)]
        [2, 1]
    """

    input: Tensor
    target: Tensor
    index: Tensor

    def _facts(self) -> dict[str, str]:
        return {"n": str(len(self)), "input": form_of(self.input), "target": form_of(self.target)}

    def __post_init__(self) -> None:
        lengths = (len(self.input), len(self.target), len(self.index))
        if len(set(lengths)) != 1 or not lengths[0]:
            raise InputError("input, target, index", "must have one common length of at least 1", lengths)
        if self.index.dtype != torch.int64 or len(torch.unique(self.index)) != lengths[0]:
            raise InputError("index", "must hold int64 ids, each once", f"{self.index.dtype}, {lengths[0]} entries")

    def __len__(self) -> int:
        return len(self.input)

    def take(self, positions: Tensor | NDArray[np.int64]) -> TensorData:
        """Return the samples at positions in [0, n) as a new data set; the ids come along."""
        rows = torch.as_tensor(positions, device=self.input.device)
        return TensorData(self.input[rows], self.target[rows], self.index[rows])

    def to(self, device: torch.device | str) -> TensorData:
        """Return the data set on a device (shared where it is there already)."""
        return TensorData(self.input.to(device), self.target.to(device), self.index.to(device))

    def to_fitting(self, device: torch.device | str, *, free: int | None = None) -> TensorData:
        """Return it on a device, or as it is where it would take over half of the `free` bytes (None asks the GPU)."""
        device = torch.device(device)
        if free is None and device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
        size = sum(tensor.nbytes for tensor in (self.input, self.target, self.index))
        return self if free is not None and size > free / 2 else self.to(device)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        augment: Augment | None = None,
        drop_last: bool = False,
    ) -> TensorBatches:
        """Return the data in batches; the arguments are those of `TensorBatches`."""
        return TensorBatches(self, batch_size, seed=seed, shuffle=shuffle, augment=augment, drop_last=drop_last)

    def fingerprint(self) -> str:
        """Hash all samples, targets and ids into 16 hexadecimal digits."""
        digest = hashlib.sha256()
        for tensor in (self.input, self.target, self.index):
            array = tensor.detach().cpu().contiguous()
            digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def numbered(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[TensorData]:
    """Return parts of inputs and targets whose samples are numbered on from one part to the next."""
    parts: list[TensorData] = []
    first = 0
    for inputs, target in pairs:
        parts.append(TensorData(inputs, target, torch.arange(first, first + len(target))))
        first += len(target)
    return parts


@dataclass(repr=False, frozen=True)
class TensorBatches(ShowsFacts):
    """Batches of a resident data set; going over it gives the batches of epoch 0.

    The order of an epoch is drawn from the stream (seed, "order", epoch) alone, so that a run resumed in the middle
    of an epoch sees the same samples. With several ranks every global batch is shared out, each rank taking every
    `world`-th sample of it, so that the global batches are those of a run on one device; where a batch does not
    divide, it is filled up from its own front, so that all ranks take equally many steps and samples.

    Args:
        data: Where the batches are cut from.
        batch_size: Samples per step over all ranks.
        seed: Seed of order and augmentation.
        shuffle: Whether each epoch has its own order; False keeps the stored order.
        augment: Applied to every batch, with random numbers that belong to (seed, epoch, sample id).
        drop_last: Whether an incomplete last batch is left out.
        rank: This process, from 0.
        world: Number of processes.

    Raises:
        InputError: If a size is not positive, or a batch cannot be shared out.
    """

    data: TensorData
    batch_size: int
    seed: int = 0
    shuffle: bool = False
    augment: Augment | None = None
    drop_last: bool = False
    rank: int = 0
    world: int = 1

    def _facts(self) -> dict[str, str]:
        of = f"{self.batch_size} of {len(self.data)} samples"
        how = ["shuffled"] * self.shuffle + ["augmented"] * (self.augment is not None)
        return {"n": str(len(self)), "batches of": of, "": ", ".join(how), "rank": f"{self.rank} of {self.world}"}

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size < self.world:
            raise InputError(
                "batch_size", f"must be at least 1 and at least one per rank ({self.world})", self.batch_size
            )
        require(0 <= self.rank < self.world, "rank", f"must be in [0, {self.world})", self.rank)
        if self.drop_last and len(self.data) < self.batch_size:
            raise InputError(
                "batch_size", f"must not exceed the {len(self.data)} samples with drop_last", self.batch_size
            )

    def __len__(self) -> int:
        whole, rest = divmod(len(self.data), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(0)

    def shard(self, rank: int, world: int) -> TensorBatches:
        """Return the share of process `rank` (from 0) of the same global batches."""
        return replace(self, rank=rank, world=world)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Go over the batches of an epoch (from 0) from number `start` on; those left out cost nothing."""
        order = None
        if self.shuffle:
            drawn = generator(self.seed, "order", epoch).permutation(len(self.data))
            order = torch.as_tensor(drawn, device=self.data.input.device)
        for number in range(start, len(self)):
            bounds = slice(number * self.batch_size, min((number + 1) * self.batch_size, len(self.data)))
            rows = bounds if order is None and self.world == 1 else self._rows(order, bounds)
            batch = Batch(self.data.input[rows], self.data.target[rows], self.data.index[rows])
            if self.augment is not None:
                assert batch.index is not None
                batch = self.augment(batch, draws_for(batch.index, seed=self.seed, epoch=epoch))
            yield batch

    def ids(self, epoch: int) -> Tensor:
        """Return the sample ids that this process meets in an epoch, int64, in the order in which they come."""
        return torch.cat(
            [batch.index for batch in replace(self, augment=None).batches(epoch) if batch.index is not None]
        )

    def _rows(self, order: Tensor | None, bounds: slice) -> Tensor:
        device = self.data.input.device
        rows = torch.arange(bounds.start, bounds.stop, device=device) if order is None else order[bounds]
        missing = -len(rows) % self.world
        if missing:
            rows = rows.repeat(1 + -(-missing // len(rows)))[: len(rows) + missing]
        return rows[self.rank :: self.world]
