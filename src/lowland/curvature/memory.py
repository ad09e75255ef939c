"""When memory has run out, and how to cut a batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lowland.core.batches import Batch, take


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
        yield take(batch, range(start, min(start + step, size)))
