"""Lines and planes through the weights of a model: where the axes come from, and what is known about them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from lowland.core.effective import effective_weights
from lowland.core.errors import InputError, require
from lowland.core.params import ParameterSpace, unwrap
from lowland.core.provenance import fingerprint
from lowland.core.units import clean_name
from lowland.landscape.batchnorm import buffer_mover
from lowland.landscape.directions import PlaneAxis, StoredAxis, geometry, given_axis, products, random_axes
from lowland.landscape.normalize import Normalization, normalize
from lowland.results.hdf5 import read_directions
from lowland.results.ways import CurveShape

FILTER_UNITS: Final = "norm of the weights, per filter"


@dataclass(frozen=True, eq=False)
class Plane:
    """A line (one axis) or a plane (two axes) through the weights of a model.

    Args:
        axes: One or two axes.
        origin: Fingerprint of the weights at (0, 0); a survey of a model with other weights is refused.
        recipe: How it was made, as plain JSON values.
        units: What a coordinate of 1 means.
        norms: Euclidean norm of each axis.
        cosine: Cosine between the axes after normalization; None for a line.
        rules: Unit rule of every parameter by name, as text.
        modules: Submodules whose parameters move; None for all.
        trainable: Whether only trainable parameters move.
        markers: Points worth marking by label, such as a second model's place.
        buffers: Per axis, directions of the buffers (batch-norm statistics) by name; empty if buffers stay.
        curve: Shape of the curve through the origin and the places that the axes lead to, whose t is the one
            coordinate; None for a straight line or a plane.
        along: Place in a series of planes that resemble each other, such as the frames of a film; None where it is in
            none.
    """

    axes: tuple[PlaneAxis, ...] = field(repr=False)
    origin: str
    recipe: Mapping[str, Any]
    units: str
    norms: tuple[float, ...]
    cosine: float | None
    rules: Mapping[str, str] = field(repr=False)
    modules: tuple[str, ...] | None = None
    trainable: bool = True
    markers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    buffers: tuple[Mapping[str, Tensor], ...] = field(default=(), repr=False)
    curve: CurveShape | None = None
    along: int | None = None

    @property
    def dimensions(self) -> int:
        """Number of coordinates: two for a plane, one for a line or a curve."""
        return 1 if self.curve is not None else len(self.axes)

    def space(self, model: nn.Module) -> ParameterSpace:
        """Return the parameters of the model that move; only inside a context that shows effective weights."""
        return ParameterSpace(model, trainable=self.trainable, modules=self.modules)

    def check_origin(self, space: ParameterSpace) -> None:
        """Refuse parameters whose names or values differ from those that the plane was made at."""
        if set(space.names) != set(self.rules):
            raise InputError("plane", "must have been made for a model of this architecture", sorted(self.rules)[:3])
        if fingerprint(space.named(space.tensors)) != self.origin:
            rule = "must have been made at the weights that are surveyed"
            advice = "make it after loading the weights, or load the weights it was made at"
            raise InputError("plane", rule, self.origin, advice)

    def mover(
        self, model: nn.Module, space: ParameterSpace, base: Sequence[Tensor]
    ) -> Callable[[Sequence[float]], None]:
        """Return what writes the weights and the buffers of a place, from those at the origin."""
        move_buffers = buffer_mover(model, self.buffers)
        kept = all(isinstance(axis, StoredAxis) for axis in self.axes)
        stored = [axis.tensors(space, base) for axis in self.axes if kept]

        def move(coordinates: Sequence[float]) -> None:
            if self.curve is not None:
                coordinates = self.curve.weights(coordinates[0])[1:].tolist()
            if kept:
                space.move(base, stored, coordinates)
            else:  # directions that are drawn again: one tensor of one of them at a time
                for place, (parameter, value) in enumerate(zip(space.tensors, base, strict=True)):
                    parameter.copy_(value)
                    for axis, coordinate in zip(self.axes, coordinates, strict=True):
                        if coordinate != 0.0:
                            parameter.add_(axis.entry(space, place, value), alpha=float(coordinate))
            move_buffers(coordinates)

        return move

    def describe(self) -> dict[str, Any]:
        """Return everything that identifies the plane, as plain JSON values."""
        return {
            **self.recipe,
            "axes": [axis.describe() for axis in self.axes],
            "origin": self.origin,
            "units": self.units,
            "norms": list(self.norms),
            "cosine": self.cosine,
            "rules": dict(self.rules),
            "modules": None if self.modules is None else list(self.modules),
            "trainable": self.trainable,
            "markers": {name: list(place) for name, place in self.markers.items()},
            "buffers": [fingerprint(part) for part in self.buffers],
        }


@contextmanager
def at_origin(model: nn.Module, modules: Sequence[str] | None = None, *others: nn.Module) -> Generator[ParameterSpace]:
    """Show the weights that are used, without gradients, and give those that move."""
    with ExitStack() as stack:
        for one in (unwrap(model), *others):
            stack.enter_context(effective_weights(one))
        stack.enter_context(torch.no_grad())
        yield ParameterSpace(model, modules=modules)


def make_plane(
    space: ParameterSpace,
    axes: Sequence[PlaneAxis],
    recipe: Mapping[str, Any],
    units: str,
    *,
    markers: Mapping[str, tuple[float, ...]] | None = None,
    buffers: Sequence[Mapping[str, Tensor]] = (),
    curve: CurveShape | None = None,
) -> Plane:
    """Measure axes and join them to a plane or a curve; only inside `at_origin`."""
    require(curve or len(axes) in (1, 2), "directions", "must be one (a line) or two (a plane)", len(axes))
    gram = products(space, axes)
    norms, cosine = geometry(gram)
    if curve is not None:
        cosine, recipe = None, {**recipe, "curve": {**asdict(curve), "gram": gram.tolist()}}
    origin, rules = fingerprint(space.named(space.tensors)), {name: rule.describe() for name, _, rule in space}
    moved = space.modules, space.trainable, dict(markers or {}), tuple(buffers)
    return Plane(tuple(axes), origin, dict(recipe), units, norms, cosine, rules, *moved, curve)


def made(kind: str, **arguments: Any) -> dict[str, Any]:
    """Return a recipe."""
    return {"kind": kind, "arguments": arguments}


def random_plane(
    model: nn.Module,
    seed: int = 0,
    *,
    normalization: Normalization = "filter",
    modules: Sequence[str] | None = None,
    move_fixed: bool = False,
    stored: bool = True,
    axes: int = 2,
) -> Plane:
    """Return a plane of two random Gaussian directions through the weights (Li et al. 2018, Section 4).

    The numbers depend on the seed, the axis and the parameter names alone. The directions are not made orthogonal: in
    so many dimensions they nearly are, and the cosine that is left is measured and stored.

    Args:
        model: The model, at the weights that shall lie at (0, 0).
        seed: Seed of the directions. Default 0.
        normalization: ``"filter"`` (default, as in the paper), ``"layer"``, ``"weight"`` or ``"none"``.
        modules: Move only parameters of these submodules; None (default) moves all trainable ones.
        move_fixed: Also move biases and norm parameters. Default False, as in the paper's pictures.
        stored: Keep the directions in memory (default), or draw them again for every point: two copies of the
            parameters less, but slower.
        axes: 2, or 1 for a line.

    Example:
        >>> random_plane(nn.Linear(3, 2), seed=1).rules["weight"]
        'filter axis 0'
    """
    named = None if modules is None else list(modules)
    recipe = made("random", seed=seed, normalization=normalization, modules=named, move_fixed=move_fixed, axes=axes)
    with at_origin(model, modules) as space:
        found = random_axes(space, axes, seed, normalization, move_fixed, stored=stored)
        return make_plane(space, found, recipe, _units(normalization, "length of the Gaussian direction"))


def _units(normalization: Normalization, plain: str) -> str:
    """Return what a coordinate of 1 means."""
    if normalization == "filter":
        return FILTER_UNITS
    return plain if normalization == "none" else f"norm of the weights, per {normalization}"


def random_line(
    model: nn.Module,
    seed: int = 0,
    *,
    normalization: Normalization = "filter",
    modules: Sequence[str] | None = None,
    move_fixed: bool = False,
    stored: bool = True,
) -> Plane:
    """Make a line along one random direction: the first axis of `random_plane` of the same seed; arguments as there."""
    return random_plane(
        model, seed, normalization=normalization, modules=modules, move_fixed=move_fixed, stored=stored, axes=1
    )


def user_plane(
    model: nn.Module,
    directions: Sequence[Mapping[str, Tensor] | Sequence[Tensor] | Tensor],
    *,
    normalization: Normalization = "none",
    modules: Sequence[str] | None = None,
    move_fixed: bool = True,
    recipe: Mapping[str, Any] | None = None,
    units: str | None = None,
    markers: Mapping[str, tuple[float, ...]] | None = None,
) -> Plane:
    """Return a line or plane of given directions.

    Args:
        model: The model, at the weights that shall lie at the origin.
        directions: One or two directions: tensors by parameter name, one per parameter, or a flat vector.
        normalization: Default ``"none"``: as given.
        modules: The parameters belong to these submodules; None for all trainable ones.
        move_fixed: Keep the directions' biases and norm parameters. Default True: as given.
        recipe: How they were made, as plain JSON values.
        units: What a coordinate of 1 means. Default: length of the direction given.
        markers: Points worth marking by label.

    Raises:
        InputError: If shapes or names do not match, or a direction has norm 0 or is not finite.

    Example:
        >>> user_plane(nn.Linear(2, 1), [torch.ones(3)]).norms[0] ** 2
        2.9999999999999996
    """
    with at_origin(model, modules) as space:
        found = []
        for number, direction in enumerate(directions):
            parts = space.unflatten(direction) if isinstance(direction, Tensor) else space.order(direction)
            scaled = [
                normalize(part.to(p.device), p, rule, normalization, move_fixed=move_fixed)
                for part, (_, p, rule) in zip(parts, space, strict=True)
            ]
            found.append(given_axis(space.named(scaled), number))
        if recipe is None:
            recipe = made("given", normalization=normalization, move_fixed=move_fixed)
        unit = _units(normalization, "length of the direction given") if units is None else units
        return make_plane(space, found, recipe, unit, markers=markers)


def hdf5_plane(model: nn.Module, path: str | Path, *, directions: Literal["weights", "states"] = "weights") -> Plane:
    """Return the line or plane of a direction file of the tool of Li et al. 2018, as it is in the file.

    Args:
        model: The model, at the weights that shall lie at the origin.
        path: The file.
        directions: Whether the file holds one array per parameter (``"weights"``, default) or one per entry of the
            state dict (``"states"``, of which the parameters are used).

    Raises:
        InputError: If the arrays do not fit the model.
    """
    model = unwrap(model)
    names = [name for name, _ in model.named_parameters()]
    listed = names if directions == "weights" else list(model.state_dict())
    found = []
    for arrays in read_directions(path):
        if len(arrays) != len(listed):
            raise InputError("path", f"must hold {len(listed)} arrays per direction for this model", len(arrays))
        values = {name: torch.as_tensor(array, device="cpu") for name, array in zip(listed, arrays, strict=True)}
        found.append({clean_name(name): values[name] for name in names})
    recipe = made("file", file=Path(path).name, directions=directions)
    return user_plane(model, found, recipe=recipe, units="length of the direction in the file")
