"""Batch-norm statistics along a line or plane: moved together with the weights where a plane says so.

The other modes belong to the risk: running statistics that stay as they are, statistics of a fixed partition into
batches, or recalibrated at every point (``EmpiricalRisk(batch_norm=...)``). They are never mixed in one survey.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lowland.core.contexts import running_buffers
from lowland.core.errors import InputError
from lowland.core.units import clean_name


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the floating-point running statistics of all normalization layers by name."""
    return {
        clean_name(f"{prefix}.{name}" if prefix else name): buffer
        for prefix, module in model.named_modules()
        for name, buffer in running_buffers(module).items()
    }


def buffer_difference(first: nn.Module, second: nn.Module) -> dict[str, Tensor]:
    """Return how the running statistics of two models differ."""
    ours, theirs = running_statistics(first), running_statistics(second)
    if {n: b.shape for n, b in ours.items()} != {n: b.shape for n, b in theirs.items()}:
        raise InputError("other", "must keep the same batch-norm statistics", sorted(set(ours) ^ set(theirs))[:3])
    return {name: theirs[name].detach().to(buffer) - buffer.detach() for name, buffer in ours.items()}


def buffer_mover(model: nn.Module, directions: Sequence[Mapping[str, Tensor]]) -> Callable[[Sequence[float]], None]:
    """Return what writes the buffers of a place, from those of now along given directions."""
    found = running_statistics(model)
    buffers = {name: (found[name], found[name].clone()) for part in directions for name in part}

    @torch.no_grad()
    def move(coordinates: Sequence[float]) -> None:
        for name, (buffer, base) in buffers.items():
            buffer.copy_(base)
            for part, coordinate in zip(directions, coordinates, strict=True):
                if coordinate != 0.0 and name in part:
                    buffer.add_(part[name].to(buffer), alpha=float(coordinate))
            if name.endswith("var"):
                buffer.clamp_(min=0)  # coordinates outside [0, 1] could make a variance negative

    return move
