"""Pieces of a two-pass step: what is moved, gradients held aside, silent first passes, repeated random numbers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core.errors import InputError

__all__ = [
    "Entry",
    "average_over_ranks",
    "entries_of",
    "noise_state",
    "parts_of",
    "replayed",
    "owned",
    "unsynced",
    "world_size",
]

RandomState = dict[torch.device | None, Tensor]


@dataclass(slots=True)
class Entry:
    """A parameter that an ascent moves, and its gradient in the first pass."""

    parameter: Tensor
    gradient: Tensor
    rho: float  # below 0 in groups that are maximized: there uphill is where the objective falls
    group: int
    decay: float


def entries_of(
    groups: list[dict[str, Any]], radius: Callable[[dict[str, Any]], float], moved: Callable[[Tensor], bool]
) -> list[Entry]:
    """Collect what an ascent moves: parameters with a gradient, in groups with a radius; nothing is changed."""
    found = []
    for index, group in enumerate(groups):
        rho, decay = radius(group), float(group.get("weight_decay", 0.0))
        sign = -1.0 if group.get("maximize") else 1.0
        for parameter in group["params"] if rho > 0 else ():
            gradient = parameter.grad
            if gradient is None or not moved(parameter):
                continue
            if gradient.layout != torch.strided:
                raise InputError(
                    "params",
                    "must have dense gradients for an ascent",
                    str(gradient.layout),
                    "use sparse=False, or rho=0 in that group",
                )
            found.append(Entry(parameter, gradient, sign * rho, index, sign * decay))
    return found


def parts_of(entries: list[Entry], norm: str) -> Iterator[list[Entry]]:
    """Part entries into sets that share one norm; none is empty."""
    parts: dict[int, list[Entry]] = {}
    for position, entry in enumerate(entries):
        key = {"global": 0, "group": entry.group, "tensor": position}[norm]
        parts.setdefault(key, []).append(entry)
    yield from parts.values()


def owned(gradient: Tensor) -> Tensor:
    """Return a gradient that nobody else writes to: itself, or a copy where it may lie in DDP's buckets."""
    local = getattr(gradient, "_local_tensor", gradient)
    alone = local.untyped_storage().nbytes() == local.numel() * local.element_size()
    # a bucket may hold a single gradient, so that among several ranks the size alone says nothing
    sharded = local is not gradient
    return gradient if alone and (sharded or world_size() == 1) else gradient.clone()


def world_size() -> int:
    """Return the number of processes that train together."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 1
    return torch.distributed.get_world_size()


@torch.no_grad()
def average_over_ranks(tensors: list[Tensor], group: Any = None) -> None:
    """Replace tensors by their mean over the ranks, with one collective per type; sharded ones are left alone."""
    if world_size() == 1:
        return
    types: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if not hasattr(tensor, "device_mesh"):
            types.setdefault(tensor.dtype, []).append(tensor)
    for members in types.values():
        flat = torch.cat([member.reshape(-1) for member in members])
        torch.distributed.all_reduce(flat, group=group)
        flat /= torch.distributed.get_world_size(group)
        parts = torch.split(flat, [member.numel() for member in members])
        torch._foreach_copy_(members, [part.view_as(member) for part, member in zip(parts, members, strict=True)])


def unsynced(model: nn.Module | None) -> AbstractContextManager[None]:
    """Return a context in which a distributed model keeps its gradients to itself."""
    silent = getattr(model, "no_sync", None)
    if silent is None:
        raise InputError(
            "distributed", '"local" needs a model with no_sync(), such as DistributedDataParallel',
            type(model).__name__, "use `with optimizer.first_pass(ddp_model):`",
        )  # fmt: skip
    context: AbstractContextManager[None] = silent()
    return context


def noise_state(parameters: Iterable[Tensor]) -> RandomState:
    """Return the random state of the host and of the parameters' devices."""
    states: RandomState = {None: torch.get_rng_state()}
    for device in dict.fromkeys(p.device for p in parameters):
        if device.type == "cuda":
            states[device] = torch.cuda.get_rng_state(device)
    return states


def _set(states: RandomState) -> None:
    for device, state in states.items():
        if device is None:
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)


@contextmanager
def replayed(states: RandomState) -> Generator[None, None, None]:
    """Repeat random numbers from a saved state, and go on afterwards as if nothing had been drawn."""
    now: RandomState = {d: torch.get_rng_state() if d is None else torch.cuda.get_rng_state(d) for d in states}
    _set(states)
    try:
        yield
    finally:
        _set(now)
