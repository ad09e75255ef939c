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
    "unshared",
    "unsynced",
    "world_size",
]

RandomState = dict[torch.device | None, Tensor]


@dataclass(slots=True)
class Entry:
    """A parameter that an ascent moves.

    Args:
        parameter: The parameter.
        gradient: Its gradient in the first pass.
        rho: Radius of its group.
        group: Position of its group.
        decay: Weight decay of its group.
    """

    parameter: Tensor
    gradient: Tensor
    rho: float
    group: int
    decay: float


def entries_of(groups: list[dict[str, Any]], radius: Callable[[dict[str, Any]], float]) -> list[Entry]:
    """Collect what an ascent moves: parameters with a gradient, in groups with a radius above 0.

    Args:
        groups: The parameter groups.
        radius: Radius of a group.

    Returns:
        The entries; nothing is changed.

    Raises:
        InputError: If a gradient is not dense.
    """
    found = []
    for index, group in enumerate(groups):
        rho, decay = radius(group), float(group.get("weight_decay", 0.0))
        for parameter in group["params"] if rho > 0 else ():
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.layout != torch.strided:
                raise InputError(
                    "params", "must have dense gradients for an ascent", str(gradient.layout),
                    "use sparse=False, or rho=0 in that group",
                )  # fmt: skip
            found.append(Entry(parameter, gradient, rho, index, decay))
    return found


def parts_of(entries: list[Entry], norm: str) -> Iterator[list[Entry]]:
    """Part entries into sets that share one norm.

    Args:
        entries: All entries.
        norm: ``"global"``, ``"group"`` or ``"tensor"``.

    Yields:
        Sets of entries; none is empty.
    """
    parts: dict[int, list[Entry]] = {}
    for position, entry in enumerate(entries):
        key = {"global": 0, "group": entry.group, "tensor": position}[norm]
        parts.setdefault(key, []).append(entry)
    yield from parts.values()


def unshared(gradient: Tensor) -> Tensor:
    """Return the gradient itself, or a copy where DDP keeps it as a view of a communication bucket.

    Args:
        gradient: A gradient that will outlive the next backward pass.

    Returns:
        A tensor that nobody else writes to.
    """
    local = getattr(gradient, "_local_tensor", gradient)
    owns = local.untyped_storage().nbytes() == local.numel() * local.element_size()
    return gradient if owns else gradient.clone()


def world_size() -> int:
    """Return the number of processes that train together.

    Returns:
        1 where torch.distributed is not in use.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 1
    return torch.distributed.get_world_size()


@torch.no_grad()
def average_over_ranks(tensors: list[Tensor], group: Any = None) -> None:
    """Replace tensors by their mean over the ranks, with one collective per type; sharded ones are left alone.

    Args:
        tensors: The same on every rank in number and shape; written in place.
        group: The process group; None: all ranks.
    """
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
    """Return a context in which a distributed model keeps its gradients to itself.

    Args:
        model: A model with ``no_sync()``.

    Returns:
        The context; the forward pass has to be inside too.

    Raises:
        InputError: If there is no such model.
    """
    silent = getattr(model, "no_sync", None)
    if silent is None:
        raise InputError(
            "distributed", '"local" needs a model with no_sync(), such as DistributedDataParallel',
            type(model).__name__, "use `with optimizer.first_pass(ddp_model):`",
        )  # fmt: skip
    context: AbstractContextManager[None] = silent()
    return context


def noise_state(parameters: Iterable[Tensor]) -> RandomState:
    """Return the random state of the host and of the parameters' devices.

    Args:
        parameters: The parameters.

    Returns:
        The states by device; None is the host.
    """
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
    """Repeat random numbers from a saved state, and go on afterwards as if nothing had been drawn.

    Args:
        states: What `noise_state` returned.

    Yields:
        Nothing.
    """
    now: RandomState = {d: torch.get_rng_state() if d is None else torch.cuda.get_rng_state(d) for d in states}
    _set(states)
    try:
        yield
    finally:
        _set(now)
