"""Axes of lines and planes: directions that are stored, and random ones that are made again whenever needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lowland.core.errors import InputError
from lowland.core.params import ParameterSpace
from lowland.core.seeds import normal
from lowland.landscape.normalize import Normalization, normalize

__all__ = ["PlaneAxis", "SeededAxis", "StoredAxis", "geometry"]


class PlaneAxis(ABC):
    """One direction in the space of the parameters."""

    @abstractmethod
    def entry(self, space: ParameterSpace, place: int, base: Tensor) -> Tensor:
        """Return the direction of one parameter.

        Args:
            space: The parameter space.
            place: Which parameter.
            base: Its value at the origin.

        Returns:
            A tensor of the parameter's shape, type, device and memory layout.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return how the axis was made, as plain JSON values."""

    def tensors(self, space: ParameterSpace, base: Sequence[Tensor]) -> list[Tensor]:
        """Return the whole direction.

        Args:
            space: The parameter space.
            base: The parameters at the origin.

        Returns:
            One tensor per parameter.
        """
        return [self.entry(space, place, value) for place, value in enumerate(base)]


@dataclass(frozen=True, eq=False)
class StoredAxis(PlaneAxis):
    """A direction kept as tensors."""

    values: Mapping[str, Tensor] = field(repr=False)  # Tensors by parameter name
    # How it was made, as plain JSON values; where it cannot be made again from them, with a fingerprint.
    recipe: Mapping[str, Any]

    def entry(self, space: ParameterSpace, place: int, base: Tensor) -> Tensor:
        """Return the stored tensor, cast if the parameter's type or layout differs."""
        value = self.values[space.names[place]]
        if value.shape != base.shape:
            raise InputError("plane", f"must fit the model at {space.names[place]!r}", tuple(value.shape))
        same = value.dtype == base.dtype and value.device == base.device and value.stride() == base.stride()
        return value if same else torch.empty_like(base).copy_(value)

    def describe(self) -> dict[str, Any]:
        """Return the recipe."""
        return dict(self.recipe)


@dataclass(frozen=True, eq=False)
class SeededAxis(PlaneAxis):
    """A normalized Gaussian direction that is drawn again, tensor by tensor, whenever it is needed."""

    seed: int  # Seed of the plane
    number: int  # Which axis of the plane
    normalization: Normalization = "filter"  # See `lowland.landscape.normalize.normalize`
    move_fixed: bool = False  # Also move biases and norm parameters
    # Weights by name whose unit norms are used in place of the parameter's own (LoRA: W0 + BA).
    norms_from: Mapping[str, Tensor] | None = field(default=None, repr=False)

    def entry(self, space: ParameterSpace, place: int, base: Tensor) -> Tensor:
        """Return freshly drawn numbers, always the same ones."""
        name, rule = space.names[place], space.rules[place]
        if rule.kind == "fixed" and not self.move_fixed:
            return torch.zeros_like(base)
        weight = base if self.norms_from is None else self.norms_from.get(name, base)
        drawn = normal(base, self.seed, "direction", self.number, name)
        scaled = normalize(drawn, weight, rule, self.normalization, move_fixed=self.move_fixed)
        return scaled if weight is base else torch.empty_like(base).copy_(scaled)

    def describe(self) -> dict[str, Any]:
        """Return seed, number and normalization."""
        return {"kind": "random", "seed": self.seed, "axis": self.number, "normalization": self.normalization}


def geometry(
    space: ParameterSpace, base: Sequence[Tensor], axes: Sequence[PlaneAxis]
) -> tuple[list[float], float | None]:
    """Return the norms of axes and the cosine between two, tensor by tensor in float64."""
    products = torch.zeros(len(axes), len(axes), dtype=torch.float64)
    for place, value in enumerate(base):
        parts = [axis.entry(space, place, value).detach().double().reshape(-1).cpu() for axis in axes]
        for i, a in enumerate(parts):
            for j, b in enumerate(parts):
                products[i, j] += a @ b
    norms = products.diagonal().sqrt()
    if not bool((torch.isfinite(norms) & (norms > 0)).all()):
        raise InputError("directions", "must have finite norms above 0", norms.tolist())
    cosine = float(products[0, 1] / (norms[0] * norms[1])) if len(axes) == 2 else None
    return norms.tolist(), cosine
