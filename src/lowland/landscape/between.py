"""Lines and planes through several trained models, and along the directions in which a risk curves most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lowland import curvature
from lowland.core.errors import InputError, require
from lowland.core.params import ParameterSpace, differing_shapes, unwrap
from lowland.core.provenance import fingerprint
from lowland.core.risk import EmpiricalRisk
from lowland.core.units import clean_name
from lowland.landscape.batchnorm import buffer_difference
from lowland.landscape.checkpoints import Weights, as_model
from lowland.landscape.directions import given_axis
from lowland.landscape.plane import Plane, at_origin, made, make_plane

Tensors = dict[str, Tensor]


def line_between(
    model: nn.Module, other: Weights, *, move_statistics: bool = True, modules: Sequence[str] | None = None
) -> Plane:
    """Return the line theta(x) = (1 - x) theta + x theta' through two models (Li et al. 2018, Section 3).

    Every parameter moves, biases and norm parameters too. Between independent runs such a line crosses barriers that
    come from the order of the hidden units alone: see `lowland.landscape.match_weights`.

    Args:
        model: The model at 0.
        other: The model at 1: another network of the same architecture, its state dict, or the path of a checkpoint
            (see `lowland.models.read_weights`), which is read without executing code.
        move_statistics: Also interpolate running statistics (default); False keeps those of ``model``, or leaves it to
            a risk with ``batch_norm="recalibrated"`` or ``"batch"``.
        modules: Move only parameters of these submodules; None (default) moves all trainable ones.

    Raises:
        InputError: If the architectures differ or the models are equal.
        CheckpointError: If a file cannot be read, or names or shapes are not the model's; says which.

    Example:
        >>> line_between(nn.Linear(3, 2), nn.Linear(3, 2)).markers
        {'other': (1.0,)}
    """
    model, other = unwrap(model), as_model(model, other, "other")
    with at_origin(model, modules, other) as space:
        axes, units = [given_axis(difference(space, other), 0)], "fraction of the way to the other model"
        buffers = [moved] if move_statistics and (moved := buffer_difference(model, other)) else []
        recipe = made("between", other=_identity(other), move_statistics=bool(buffers))
        return make_plane(space, axes, recipe, units, markers={"other": (1.0,)}, buffers=buffers)


def plane_through(
    model: nn.Module,
    second: Weights,
    third: Weights,
    *,
    orthogonal: bool = True,
    move_statistics: bool = True,
    modules: Sequence[str] | None = None,
) -> Plane:
    """Return the plane through three models.

    The first axis is u = theta_2 - theta_1. With ``orthogonal`` the second is the part of theta_3 - theta_1 orthogonal
    to u, scaled to the length of u, so that angles and distances on the picture are true (as in Garipov et al. 2018,
    Appendix A.1); otherwise it is theta_3 - theta_1 itself and the models lie at (0, 0), (1, 0) and (0, 1).

    Args:
        model: The model at (0, 0).
        second: The model at (1, 0); a network, a state dict or a path, as for `line_between`.
        third: The third model; where it lies is among the plane's ``markers``.
        orthogonal: Whether the axes are made orthogonal and equally long. Default True.
        move_statistics: As for `line_between`.
        modules: As for `line_between`.

    Raises:
        InputError: If the architectures differ or the three models lie on a line.
        CheckpointError: As in `line_between`.
    """
    model = unwrap(model)
    second, third = as_model(model, second, "second"), as_model(model, third, "third")
    with at_origin(model, modules, second, third) as space:
        u, v = difference(space, second), difference(space, third)
        along, scale = frame(u, v) if orthogonal else (0.0, 1.0)

        def spanned(u: Tensors, v: Tensors) -> list[Tensors]:
            return [u, {name: (v[name] - along * u[name]) * scale for name in u}]

        moved = [buffer_difference(model, other) for other in (second, third)] if move_statistics else [{}]
        buffers = spanned(*moved) if moved[0] else []
        named = {"second": _identity(second), "third": _identity(third)}
        return make_plane(
            space,
            [given_axis(axis, number) for number, axis in enumerate(spanned(u, v))],
            made("through", **named, orthogonal=orthogonal, move_statistics=bool(buffers)),
            "distance between the first two models" if orthogonal else "fraction of the way to the other model",
            markers={"second": (1.0, 0.0), "third": (along, 1.0 / scale)},
            buffers=buffers,
        )


def eigenvector_plane(risk: EmpiricalRisk, *, axes: int = 2, seed: int = 0, max_products: int = 200) -> Plane:
    """Return a plane of the eigenvectors of the largest eigenvalues of the risk's Hessian at the present weights.

    Eigenvectors are kept as they are (normalized by filters they would be none), and coordinates Euclidean distances.

    Args:
        risk: What the Hessian is of, with the model at the weights that shall lie at the origin.
        axes: 2 (default), or 1 for a line along the sharpest direction.
        seed: Seed of the Krylov run.
        max_products: Most Hessian products.
    """
    require(axes in (1, 2), "axes", "must be 1 or 2", axes)
    top = curvature.top_eigenvalues(risk, axes, max_products=max_products, seed=seed)
    with at_origin(risk.model) as space:
        found = []
        for number in range(axes):
            vector = top.vectors[:, number]
            parts = space.unflatten(vector.to(space.tensors[0]) / torch.linalg.vector_norm(vector.double()))
            found.append(given_axis(space.named([part.contiguous() for part in parts]), number))
        values, residuals = ([float(value) for value in listed] for listed in (top.values, top.residuals))
        recipe = made(
            "eigenvectors",
            eigenvalues=values,
            residuals=residuals,
            products=int(top.products),
            seed=seed,
            risk=risk.describe(),
        )
        return make_plane(space, found, recipe, "Euclidean distance")


def _identity(model: nn.Module) -> str:
    return fingerprint({clean_name(name): p for name, p in model.named_parameters()})


def placed(space: ParameterSpace, other: nn.Module) -> Tensors:
    """Return the other model's parameters by name, of the types and devices of the space."""
    everything = {clean_name(name): p.detach() for name, p in other.named_parameters()}
    theirs = {name: p for name, p in everything.items() if name in space.names}  # others do not move
    still = {} if space.modules else {name: p.detach() for name, p in space.frozen.items()}
    apart = [name for name, p in still.items() if name not in everything or not p.equal(everything[name].to(p))]
    rule = f"must have the same frozen weights, which do not move (at {', '.join(apart[:3])})"
    require(not apart, "other", rule, f"{len(apart)} others", "unfreeze them, or name in `modules` what shall move")
    if table := differing_shapes(space.named(space.tensors), theirs):
        raise InputError("other", "must have the architecture of the first model", advice=f"it differs at\n{table}")
    return {name: theirs[name].to(parameter) for name, parameter, _ in space}


def difference(space: ParameterSpace, other: nn.Module) -> Tensors:
    """Return the other model's parameters minus those of the space, by name."""
    theirs = placed(space, other)
    return {name: theirs[name] - parameter.detach() for name, parameter, _ in space}


def frame(u: Tensors, v: Tensors) -> tuple[float, float]:
    """Return how much of v lies along u (in units of u), and what scales the rest to the length of u."""
    uu = sum(float(part.double().square().sum()) for part in u.values())
    uv = sum(float((u[name].double() * v[name].double()).sum()) for name in u)
    along = uv / uu if uu > 0 else 0.0
    rest = sum(float((v[name].double() - along * u[name].double()).square().sum()) for name in u)
    if uu == 0 or rest <= 1e-12 * uu:
        raise InputError("third", "must not lie on the line through the first two models")
    return along, (uu / rest) ** 0.5
