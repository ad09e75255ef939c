"""Named seed streams: one seed gives independent, host-made random numbers for every purpose.

A stream is NumPy's counter-based Philox generator, keyed by the SHA-256 of ``[seed, purpose, *names]``. Numbers
depend on nothing else: not on the device, the engine, the batching, or on what was drawn before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lowland.core.errors import InputError, require

PURPOSES: Final[Mapping[str, str]] = {
    "weights": "initial weights of a model",
    "order": "order of the samples, per epoch",
    "augmentation": "augmentation, per epoch and sample id",
    "label_noise": "which labels are replaced, and by what",
    "split": "train, validation and test parts",
    "subsample": "fixed subsets of a data set",
    "direction": "random directions, per axis and parameter name",
    "probe": "random vectors of trace and density estimates",
    "krylov": "start vectors of a Krylov run",
    "training": "torch's own generators during training (dropout)",
    "bootstrap": "resampling in statistics",
}
"""Every purpose a stream may have; a typo would silently give another stream, so others are refused."""


def generator(seed: int, purpose: str, *names: str | int) -> np.random.Generator:
    """Return the random stream of a seed, a purpose and further names."""
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose, names)))


def torch_seed(seed: int, purpose: str, *names: str | int) -> int:
    """Return a seed for torch's own generators that belongs to a named stream."""
    return _key(seed, purpose, names) % 2**63


def normal(like: Tensor, seed: int, purpose: str, *names: str | int) -> Tensor:
    """Return standard normal numbers of a tensor's shape, device and type."""
    # They are drawn in float64 on the host in the order of a contiguous tensor and then cast, so that they are
    # the same up to rounding for every device, type and memory layout.
    numbers = generator(seed, purpose, *names).standard_normal(tuple(like.shape))
    return torch.as_tensor(numbers, device="cpu").to(device=like.device, dtype=like.dtype)


def rademacher(like: Tensor, seed: int, purpose: str, *names: str | int) -> Tensor:
    """Return independent signs (-1 or +1) of a tensor's shape, device and type."""
    signs = generator(seed, purpose, *names).integers(0, 2, size=tuple(like.shape), dtype=np.int8) * 2 - 1
    return torch.as_tensor(signs, device="cpu").to(device=like.device, dtype=like.dtype)


def _key(seed: int, purpose: str, names: tuple[str | int, ...]) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise InputError("seed", "must be a non-negative integer", seed)
    require(purpose in PURPOSES, "purpose", f"must be one of {', '.join(PURPOSES)}", purpose)
    text = json.dumps([int(seed), purpose, *(name if isinstance(name, str) else int(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
