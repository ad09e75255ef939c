"""Processes that hold a shard of the data each, and measure one risk together.

What a rank computes by itself stands in `together`, so that an error on one of them is an error on all, and nobody
waits for somebody who has left. What is exchanged are sums and rows of moments: every rank gets the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lowland.core.errors import InputError, LowlandError

ValueT = TypeVar("ValueT")


class Ranks:
    """The ranks of a process group of torch.distributed; without one, this process alone."""

    def __init__(self, group: Any | None = None) -> None:
        if group is not None:
            begun = dist.is_available() and dist.is_initialized()
            if not begun or not isinstance(group, dist.ProcessGroup):
                advice = "torch.distributed.group.WORLD after torch.distributed.init_process_group(...)"
                rule = "must be a process group that has begun"
                raise InputError("process_group", rule, type(group).__name__, advice)
        self.group = group
        self.count = 1 if group is None else dist.get_world_size(group)
        self.number = 0 if group is None else dist.get_rank(group)

    @property
    def alone(self) -> bool:
        """Whether this process measures by itself."""
        return self.group is None

    def gather(self, value: ValueT) -> list[ValueT]:
        """Return what every rank gives, in order."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self.group)
        return found

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over the ranks, one collective per type."""
        if self.alone:
            return
        for kind in sorted({tensor.dtype for tensor in tensors}, key=str):
            members = [tensor for tensor in tensors if tensor.dtype == kind]
            flat = torch.cat([member.reshape(-1) for member in members])
            dist.all_reduce(flat, group=self.group)
            for member, part in zip(members, torch.split(flat, [m.numel() for m in members]), strict=True):
                member.copy_(part.view_as(member))

    @contextmanager
    def together(self) -> Generator[None]:
        """Let every rank work by itself; an error on one is raised on all. Nothing is exchanged inside."""
        if self.alone:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        told = self.gather(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for number, words in enumerate(told):
            if words is not None:
                raise LowlandError(f"rank {number} of {self.count} failed: {words}")

    def by_first(self, function: Callable[[], ValueT]) -> ValueT:
        """Return to all what the first rank's function gives."""
        found: list[ValueT] = []
        with self.together():
            if self.number == 0:
                found.append(function())
        if self.alone:
            return found[0]
        value: list[Any] = found if self.number == 0 else [None]
        dist.broadcast_object_list(value, group=self.group, group_src=0)
        answer: ValueT = value[0]
        return answer
