"""Pieces of a two-pass step: what is moved, gradients of our own, repeated random numbers."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import cache
from operator import gt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lowland.core.errors import InputError
from lowland.optim.moves import is_dense
from lowland.optim.parts import Held, Method

RandomState = dict[torch.device | None, Tensor]


class Entry(NamedTuple):
    """A parameter that an ascent moves, and its gradient in the first pass."""

    parameter: Tensor
    gradient: Tensor
    rho: float  # below 0 in groups that are maximized: there uphill is where the objective falls
    decay: float


def entries_of(held: Held, method: Method) -> list[list[Entry]]:
    """Collect what an ascent moves, in sets that share a norm; nothing is changed, and no set is empty."""
    sets: dict[int, list[Entry]] = {}
    options = held.options
    for index, group in enumerate(held.groups()):
        rho, decay = method.radius(group, held.steps), float(group.get("weight_decay", 0.0))
        sign = -1.0 if group.get("maximize") else 1.0
        for parameter in group["params"] if rho > 0 else ():
            gradient = parameter.grad
            if gradient is None or not options.moves(parameter):
                continue
            if not is_dense(gradient):
                advice = "use sparse=False, or rho=0 in that group"
                raise InputError("params", "must have dense gradients for an ascent", str(gradient.layout), advice)
            shared = 0 if options.norm == "global" else index if options.norm == "group" else id(parameter)
            sets.setdefault(shared, []).append(Entry(parameter, gradient, sign * rho, sign * decay))
    return list(sets.values())


def both_gradients(held: Held, first: dict[Tensor, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return gradients of the first pass and the present ones, parameter by parameter; what is absent becomes 0."""
    # sparse ones are left out: nothing combines them, and the step takes those of the second pass as they are
    parameters = [p for p in held.parameters() if (p in first if p.grad is None else is_dense(p.grad))]
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter not in first:
            first[parameter] = torch.zeros_like(parameter)
    return [first[p] for p in parameters], [p.grad for p in parameters if p.grad is not None]


def own_gradients(held: Held, parameters: Iterable[Tensor]) -> None:
    """Give a copy to every parameter whose gradient somebody else holds too: a user, DDP's buckets, FSDP2's buffers."""
    held.scratch.watched = {}  # or they would count as held
    alone, compiling = _holders_of_none(), torch.compiler.is_compiling()
    for parameter in parameters:
        if parameter.grad is None or not is_dense(parameter.grad):
            continue
        # counts say nothing in a compiled function; a shard is a part of a buffer for several parameters
        shared = compiling or (type(parameter.grad) is not Tensor and hasattr(parameter.grad, "_local_tensor"))
        counts = alone if shared else _holders(parameter)
        if shared or (counts != alone and any(map(gt, counts, alone))):
            parameter.grad = parameter.grad.clone()


def _holders(parameter: Tensor) -> tuple[int, int, int, int]:
    """Count who holds a parameter's gradient: as an object, as a tensor, and its memory likewise."""
    # Two of the counts have no public name. Without them every gradient would have to be copied before an ascent
    # scales it where it lies: one more pass over memory, and one more set of gradients at the peak of every step.
    gradient = parameter.grad
    assert gradient is not None
    storage = gradient.untyped_storage()
    memory: int = torch._C._storage_Use_Count(storage._cdata)
    return sys.getrefcount(gradient), gradient._use_count(), sys.getrefcount(storage), memory  # type: ignore[attr-defined]


@cache
def _holders_of_none() -> tuple[int, int, int, int]:
    """Count the same of a gradient that only its parameter holds."""
    probe = nn.Parameter(torch.zeros(1, device="cpu"))
    probe.grad = torch.zeros(1, device="cpu")
    return _holders(probe)


def noise_state(parameters: Iterable[Tensor]) -> RandomState:
    """Return the random state of the host and of the parameters' devices."""
    devices = dict.fromkeys(p.device for p in parameters if p.device.type == "cuda")
    return {None: torch.get_rng_state(), **{device: torch.cuda.get_rng_state(device) for device in devices}}


@contextmanager
def replayed(states: RandomState) -> Generator[None, None, None]:
    """Repeat random numbers from a saved state, and go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng([device for device in states if device is not None]):
        for device, state in states.items():
            torch.set_rng_state(state) if device is None else torch.cuda.set_rng_state(state, device)
        yield
