"""Augmentations of kornia, under random numbers that belong to the samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lowland.core.errors import optional_import, refused
from lowland.core.names import unknown
from lowland.core.types import Batch
from lowland.data.augment import images_of
from lowland.data.draws import Draws


@dataclass(frozen=True)
class Kornia:
    """Apply any augmentation of kornia, one sample at a time under a seed of its own.

    Args:
        build: Makes the augmentation, such as ``lambda K: K.ColorJiggle(0.1, 0.1, 0.1, 0.1)``; it is handed the module
            ``kornia.augmentation``.

    Raises:
        MissingExtra: If kornia is not installed.
    """

    build: Callable[[Any], Callable[[Tensor], Tensor]]

    def __post_init__(self) -> None:
        module = optional_import("kornia.augmentation", extra="augment", needed_for="augmentations of kornia")
        object.__setattr__(self, "_apply", self.build(module))

    def __call__(self, batch: Batch, draws: Draws, /) -> Batch:
        """Return the augmented batch."""
        x = images_of(batch)
        seeds = draws.integers(2**24).tolist()
        rows = []
        with torch.random.fork_rng():
            for row, seed in zip(x, seeds, strict=True):
                torch.manual_seed(seed)
                rows.append(self._apply(row.unsqueeze(0)))  # type: ignore[attr-defined]
        return replace(batch, input=torch.cat(rows))


@dataclass(frozen=True)
class _ByName:
    # its repr is the same in every process, so that a run knows its own augmentation again
    kind: str
    options: dict[str, Any]

    def __call__(self, module: Any) -> Callable[[Tensor], Tensor]:
        if not isinstance(getattr(module, self.kind, None), type):
            raise unknown("augment", self.kind, [name for name in module.__all__ if name[0].isupper()])
        made: Callable[[Tensor], Tensor] = getattr(module, self.kind)(**self.options)
        return made


def kornia_by_name(kind: str, **options: Any) -> Kornia:
    """Apply an augmentation of kornia by the name of its class."""
    with refused((TypeError, ValueError, RuntimeError), "augment", f"must fit kornia's {kind}", options):
        return Kornia(_ByName(kind, options))
