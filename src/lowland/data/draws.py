"""Random numbers per sample: the same for every batching, worker count and device.

A number is a hash of (key, sample id, position), where the key belongs to (seed, epoch). The hash is the
finalizer of SplitMix64 (Steele, Lea and Flood 2014) in wrapping 64-bit integers, so that a batch is drawn in a
few tensor operations on whatever device the data live on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowland.core.seeds import generator

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX2 = 0x94D049BB133111EB - 2**64


@dataclass
class Draws:
    """A stream of random numbers for each sample of a batch; each call moves on.

    Args:
        key: 63-bit key of (seed, epoch).
        index: Sample ids, int64, shape [n].

    Example:
        >>> alone = Draws(7, torch.tensor([5])).uniform()
        >>> together = Draws(7, torch.tensor([2, 5])).uniform()
        >>> bool(alone[0] == together[1])
        True
    """

    key: int
    index: Tensor
    _position: int = field(default=0, init=False)

    def uniform(self, count: int | None = None) -> Tensor:
        """Draw `count` numbers of each sample in [0, 1), multiples of 2**-24; None draws one without a second axis."""
        width = 1 if count is None else count
        offset = torch.arange(self._position, self._position + width, device=self.index.device)
        self._position += width
        state = _mix(_mix(self.index * _GOLDEN + self.key).unsqueeze(1) + (offset + 1) * _GOLDEN)
        numbers = _shift(state, 40).to(torch.float32) * 2.0**-24
        return numbers[:, 0] if count is None else numbers

    def integers(self, high: int) -> Tensor:
        """Draw one integer in [0, high) per sample, int64; `high` is at most 2**24."""
        return (self.uniform().to(torch.float64) * high).long()


def draws_for(index: Tensor, *, seed: int, epoch: int) -> Draws:
    """Start the augmentation stream of an epoch for the samples of a batch."""
    return Draws(int(generator(seed, "augmentation", epoch).integers(2**62)), index)


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # the plain shift of int64 copies the sign


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)
