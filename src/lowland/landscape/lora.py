"""Directions for low-rank adapters (LoRA), in the space of weight changes.

A factor pair (B, A) has no scale of its own: (s B, A / s) is the same network. So nothing is normalized, and nothing
moves, in factor space; the picture is drawn around W = W0 + scaling * B A with filters normalized by the rows of W.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lowland.core.errors import require
from lowland.core.params import ParameterSpace, unwrap
from lowland.core.provenance import fingerprint
from lowland.core.units import clean_name
from lowland.landscape.directions import random_axes
from lowland.landscape.normalize import Normalization
from lowland.landscape.plane import FILTER_UNITS, Plane, made, make_plane


def adapted_weights(model: nn.Module, *, adapter: str = "default") -> dict[str, Tensor]:
    """Return the effective weights of all adapted layers by the name of their frozen weight."""
    found = {}
    for name, module in unwrap(model).named_modules():
        if callable(getattr(module, "get_delta_weight", None)) and isinstance(
            getattr(module, "base_layer", None), nn.Module
        ):
            weight = module.base_layer.weight
            found[clean_name(f"{name}.base_layer.weight")] = weight.detach() + module.get_delta_weight(adapter).detach()
    return found


@torch.no_grad()
def lora_plane(
    model: nn.Module,
    seed: int = 0,
    *,
    effective: Mapping[str, Tensor] | None = None,
    adapter: str = "default",
    normalization: Normalization = "filter",
    stored: bool = True,
    axes: int = 2,
) -> Plane:
    """Return a random plane around the adapted weights of a model.

    The frozen weights W0 carry the move: W0 + x d_1 + y d_2 together with the unchanged B A is W + x d_1 + y d_2.

    Args:
        model: The model with its adapters active, not merged.
        seed: Seed of the directions. Default 0.
        effective: Effective weights by the name of the frozen parameter that carries the move; None asks the layers,
            see `adapted_weights`.
        adapter: Name of the adapter.
        normalization: As for `lowland.landscape.random_plane`; by the effective weights.
        stored: As for `lowland.landscape.random_plane`.
        axes: 2, or 1 for a line.

    Raises:
        InputError: If there are no adapted layers or a name is unknown.
    """
    model = unwrap(model)
    weights = dict(adapted_weights(model, adapter=adapter) if effective is None else effective)
    require(weights, "model", "must have adapted layers", type(model).__name__, "give `effective` weights by name")
    modules = sorted({name.rpartition(".")[0] for name in weights})
    space = ParameterSpace(model, trainable=False, modules=modules)
    unknown = set(weights) - set(space.names)
    require(not unknown, "effective", "must name parameters of the model", sorted(unknown))
    own = space.named(space.tensors)
    norms = {name: value.detach().to(own[name]) for name, value in weights.items()}
    recipe = made(
        "lora", seed=seed, normalization=normalization, adapter=adapter, axes=axes, effective=fingerprint(norms)
    )
    found = random_axes(space, axes, seed, normalization, False, norms, stored=stored)
    return make_plane(space, found, recipe, f"{FILTER_UNITS}, of the adapted weights")
