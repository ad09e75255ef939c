"""Weights wherever another model is taken: a module, a state dict, or a file, read without executing code from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor, nn

from lowland.core.effective import effective_weights
from lowland.core.errors import InputError
from lowland.core.params import copied, unwrap
from lowland.core.units import clean_name
from lowland.models.weights import load_weights

Weights: TypeAlias = "nn.Module | Mapping[str, Tensor] | str | Path"
"""Weights of a network of the same architecture: the network, its state dict, or a checkpoint of either
(`lowland.models.read_weights` says which files)."""


def as_model(model: nn.Module, weights: Any, argument: str) -> nn.Module:
    """Return weights as a network: a module as it is, anything else in a copy of the model."""
    return unwrap(weights) if isinstance(weights, nn.Module) else _put(copied(model), weights, argument)


def _put(model: nn.Module, weights: Any, argument: str) -> nn.Module:
    if not isinstance(weights, Mapping | str | Path):
        rule = "must be a module, a state dict, or the path of a checkpoint"
        raise InputError(argument, rule, type(weights).__name__)
    load_weights(model, weights)
    return model


def checkpoint_reader(model: nn.Module, weights: Sequence[Weights]) -> Callable[[int], dict[str, Tensor]]:
    """Return what reads weights by their place, one at a time into a copy of the model."""
    twin = copied(model)

    def read(place: int) -> dict[str, Tensor]:
        # parameters, as the layers use them, and buffers by name
        given = weights[place]
        used = unwrap(given) if isinstance(given, nn.Module) else _put(twin, given, f"snapshots[{place}]")
        with effective_weights(used):
            named = (*used.named_parameters(), *used.named_buffers())
            return {clean_name(name): tensor.detach().clone() for name, tensor in named}

    return read
