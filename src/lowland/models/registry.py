"""From a model's name to the model: known names, import paths, one seed for the initial weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from lowland.core.errors import InputError
from lowland.core.names import check_options, find
from lowland.core.seeds import torch_seed
from lowland.models.conv1d import resnet1d
from lowland.models.densenet import densenet121, densenet_bc100
from lowland.models.huggingface import huggingface
from lowland.models.imagenet_resnet import imagenet_resnet
from lowland.models.pyramidnet import pyramidnet
from lowland.models.resnet import resnet
from lowland.models.transformer import text_transformer, transformer
from lowland.models.vgg import vgg
from lowland.models.vit import vit
from lowland.models.wide_resnet import wide_resnet

__all__ = ["MODELS", "create"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet": resnet,
    **{f"resnet{depth}": partial(resnet, depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}": partial(imagenet_resnet, depth) for depth in (18, 34, 50, 101)},
    "wide_resnet": wide_resnet,
    "wrn28_10": partial(wide_resnet, 28, factor=10),
    "wrn16_4": partial(wide_resnet, 16, factor=4),
    "vgg9": partial(vgg, 9),
    "vgg16": partial(vgg, 16),
    "densenet_bc100": densenet_bc100,
    "densenet121": densenet121,
    "pyramidnet110": partial(pyramidnet, 110),
    "resnet1d": resnet1d,
    "vit": vit,
    "transformer": transformer,
    "text_transformer": text_transformer,
    "huggingface": huggingface,
}
"""Every model by name; a new one joins by a line here and one in the contract suite."""


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
