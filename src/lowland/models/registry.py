"""From a model's name to the model: known names, import paths, one seed for the initial weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lowland.core.errors import InputError
from lowland.core.names import MODELS, check_options, find
from lowland.core.seeds import torch_seed


def create(name: str, /, *, seed: int | None = None, **options: Any) -> nn.Module:
    """Build a model by name or by import path.

    Args:
        name: A key of `MODELS`, or ``"module:callable"`` for any callable that returns an `nn.Module`.
        seed: Seed of the initial weights (the stream "weights"); the global generator is left as it was.
            None draws from torch's global generator.
        **options: Keyword arguments of the model's function.

    Returns:
        The model, in training mode, on the CPU.

    Raises:
        InputError: If the name or an option is unknown, or the callable returns no model.

    Example:
        >>> model = create("resnet20", classes=100, seed=0)
        >>> model.linear.out_features
        100
    """
    build = find("model", name, MODELS)
    check_options("model", name, build, options)
    if seed is None:
        model = build(**options)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed, "weights"))
            model = build(**options)
    if not isinstance(model, nn.Module):
        raise InputError("model", "must build a torch.nn.Module", type(model).__name__)
    return model
