"""When memory has run out, and how to cut a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from lowland.core.types import Batch

__all__ = ["halves", "out_of_memory"]

_FIELDS: Final = ("input", "target", "index", "partner", "share")


def out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory has run out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory")
    )


def halves(batch: Batch, splits: int) -> Iterator[Batch]:
    """Cut a batch into 2**splits parts along its first axis."""
    if splits == 0:
        yield batch
        return
    size = batch.size
    step = -(-size // 2**splits)
    for start in range(0, size, step):
        part = slice(start, start + step)
        yield replace(
            batch,
            **{
                name: _take(getattr(batch, name), part, size)
                for name in ("input", "target", "index", "partner", "share")
            },
        )


def _take(value: Any, part: slice, size: int) -> Any:
    if isinstance(value, Tensor):
        return value[part] if value.ndim > 0 and value.shape[0] == size else value
    if isinstance(value, Mapping):
        return {key: _take(entry, part, size) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_take(entry, part, size) for entry in value)
    return value
