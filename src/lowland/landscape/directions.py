"""Axes of lines and planes: directions that are stored, and random ones that are made again whenever needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lowland.core.errors import InputError, require
from lowland.core.params import ParameterSpace
from lowland.core.provenance import fingerprint
from lowland.core.seeds import normal
from lowland.landscape.normalize import Normalization, normalize


class PlaneAxis(ABC):
    """One direction in the space of the parameters."""

    @abstractmethod
    def entry(self, space: ParameterSpace, place: int, base: Tensor) -> Tensor:
        """Return the direction of one parameter from its value at the origin, of its type and memory layout."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return how the axis was made, as plain JSON values."""

    def tensors(self, space: ParameterSpace, base: Sequence[Tensor]) -> list[Tensor]:
        """Return the whole direction, one tensor per parameter."""
        return [self.entry(space, place, value) for place, value in enumerate(base)]


@dataclass(frozen=True, eq=False)
class StoredAxis(PlaneAxis):
    """A direction kept as tensors."""

    values: Mapping[str, Tensor] = field(repr=False)  # Tensors by parameter name
    # How it was made, as plain JSON values; where it cannot be made again from them, with a fingerprint.
    recipe: Mapping[str, Any]

    @override
    def entry(self, space: ParameterSpace, place: int, base: Tensor) -> Tensor:
        value = self.values[space.names[place]]
        if value.shape != base.shape:
            raise InputError("plane", f"must fit the model at {space.names[place]!r}", tuple(value.shape))
        same = value.dtype == base.dtype and value.device == base.device and value.stride() == base.stride()
        return value if same else torch.empty_like(base).copy_(value)

    @override
    def describe(self) -> dict[str, Any]:
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

    @override
    def entry(self, space: ParameterSpace, place: int, base: Tensor) -> Tensor:
        name, rule = space.names[place], space.rules[place]
        if rule.kind == "fixed" and not self.move_fixed:
            return torch.zeros_like(base)
        weight = base if self.norms_from is None else self.norms_from.get(name, base)
        drawn = normal(base, self.seed, "direction", self.number, name)
        scaled = normalize(drawn, weight, rule, self.normalization, move_fixed=self.move_fixed)
        return scaled if weight is base else torch.empty_like(base).copy_(scaled)

    @override
    def describe(self) -> dict[str, Any]:
        return {"kind": "random", "seed": self.seed, "axis": self.number, "normalization": self.normalization}


def given_axis(values: Mapping[str, Tensor], number: int, kind: str = "given") -> StoredAxis:
    """Return an axis of given tensors."""
    return StoredAxis(values, {"kind": kind, "axis": number, "fingerprint": fingerprint(values)})


def random_axes(space: ParameterSpace, axes: int, seed: int, *settings: Any, stored: bool) -> list[PlaneAxis]:
    """Return random axes, kept or drawn again for every point; further settings are those of `SeededAxis`."""
    require(axes in (1, 2), "axes", "must be 1 or 2", axes)
    seeded = [SeededAxis(seed, number, *settings) for number in range(axes)]
    base = [p.detach() for p in space.tensors]
    return [StoredAxis(space.named(a.tensors(space, base)), a.describe()) if stored else a for a in seeded]


def products(space: ParameterSpace, axes: Sequence[PlaneAxis]) -> Tensor:
    """Return the inner products of axes, tensor by tensor in float64."""
    found = torch.zeros(len(axes), len(axes), dtype=torch.float64, device="cpu")
    for place, value in enumerate(space.tensors):
        parts = [axis.entry(space, place, value.detach()).double().reshape(-1).cpu() for axis in axes]
        for i, a in enumerate(parts):
            for j, b in enumerate(parts):
                found[i, j] += a @ b
    return found


def geometry(products: Tensor) -> tuple[tuple[float, ...], float | None]:
    """Return the norms of axes and the cosine between two from their inner products."""
    norms = products.diagonal().sqrt()
    if not bool((torch.isfinite(norms) & (norms > 0)).all()):
        raise InputError("directions", "must have finite norms above 0", norms.tolist())
    cosine = float(products[0, 1] / (norms[0] * norms[1])) if len(norms) == 2 else None
    return tuple(norms.tolist()), cosine
