"""Lines and planes through several trained models, and along the directions in which a risk curves most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowland import curvature
from lowland.core.contexts import effective_weights
from lowland.core.errors import InputError
from lowland.core.params import ParameterSpace, unwrap
from lowland.core.provenance import fingerprint
from lowland.core.risk import EmpiricalRisk
from lowland.core.units import clean_name
from lowland.landscape.batchnorm import buffer_difference
from lowland.landscape.directions import StoredAxis
from lowland.landscape.plane import Plane, make_plane

__all__ = ["eigenvector_plane", "line_between", "plane_through"]

Tensors = dict[str, Tensor]


def line_between(
    model: nn.Module, other: nn.Module, *, move_statistics: bool = True, modules: Sequence[str] | None = None
) -> Plane:
    """Make the line theta(x) = (1 - x) theta + x theta' through two models (Li et al. 2018, Section 3).

    Every parameter moves, biases and norm parameters too. Between independent runs such a line crosses barriers that
    come from the order of the hidden units alone: see `lowland.landscape.match_weights`.

    Args:
        model: The model at 0.
        other: The model at 1, of the same architecture.
        move_statistics: Also interpolate running statistics (default); False keeps those of ``model``, or leaves it to
            a risk with ``batch_norm="recalibrated"`` or ``"batch"``.
        modules: Move only parameters of these submodules; None (default) moves all trainable ones.

    Returns:
        The line; its coordinate is the fraction of the way.

    Raises:
        InputError: If the architectures differ or the models are equal.

    Example:
        >>> line_between(nn.Linear(3, 2), nn.Linear(3, 2)).markers
        {'other': (1.0,)}
    """
    model, other = unwrap(model), unwrap(other)
    with effective_weights(model), effective_weights(other), torch.no_grad():
        space = ParameterSpace(model, modules=modules)
        difference = _difference(space, other)
        buffers = [buffer_difference(model, other)] if move_statistics else []
        arguments = {"other": _identity(other), "move_statistics": bool(move_statistics and buffers[0])}
        return make_plane(
            space,
            [_stored(difference, 0)],
            recipe={"kind": "between", "arguments": arguments},
            units="fraction of the way to the other model",
            modules=modules,
            markers={"other": (1.0,)},
            buffers=[part for part in buffers if part],
        )


def plane_through(
    model: nn.Module,
    second: nn.Module,
    third: nn.Module,
    *,
    orthogonal: bool = True,
    move_statistics: bool = True,
    modules: Sequence[str] | None = None,
) -> Plane:
    """Make the plane through three models.

    The first axis is u = theta_2 - theta_1. With ``orthogonal`` the second is the part of theta_3 - theta_1 orthogonal
    to u, scaled to the length of u, so that angles and distances on the picture are true (as in Garipov et al. 2018,
    Appendix A.1); otherwise it is theta_3 - theta_1 itself and the models lie at (0, 0), (1, 0) and (0, 1).

    Args:
        model: The model at (0, 0).
        second: The model at (1, 0).
        third: The third model; where it lies is among the plane's ``markers``.
        orthogonal: Whether the axes are made orthogonal and equally long. Default True.
        move_statistics: As for `line_between`.
        modules: As for `line_between`.

    Returns:
        The plane.

    Raises:
        InputError: If the architectures differ or the three models lie on a line.
    """
    model, second, third = unwrap(model), unwrap(second), unwrap(third)
    with effective_weights(model), effective_weights(second), effective_weights(third), torch.no_grad():
        space = ParameterSpace(model, modules=modules)
        u, v = _difference(space, second), _difference(space, third)
        along, scale = _frame(u, v) if orthogonal else (0.0, 1.0)
        axes = [u, {name: (v[name] - along * u[name]) * scale for name in u}]
        buffers: list[Tensors] = []
        if move_statistics:
            bu, bv = buffer_difference(model, second), buffer_difference(model, third)
            buffers = [bu, {name: (bv[name] - along * bu[name]) * scale for name in bu}] if bu else []
        arguments = {
            "second": _identity(second),
            "third": _identity(third),
            "orthogonal": orthogonal,
            "move_statistics": bool(buffers),
        }
        return make_plane(
            space,
            [_stored(axis, number) for number, axis in enumerate(axes)],
            recipe={"kind": "through", "arguments": arguments},
            units="distance between the first two models" if orthogonal else "fraction of the way to the other model",
            modules=modules,
            markers={"second": (1.0, 0.0), "third": (along, 1.0 / scale)},
            buffers=buffers,
        )


def eigenvector_plane(risk: EmpiricalRisk, *, axes: int = 2, seed: int = 0, max_products: int = 200) -> Plane:
    """Make a plane of the eigenvectors of the largest eigenvalues of the risk's Hessian at the present weights.

    Eigenvectors are kept as they are: normalized by filters they would be eigenvectors no more.

    Args:
        risk: The risk.
        axes: 2 (default), or 1 for a line along the sharpest direction.
        seed: Seed of the Krylov run.
        max_products: Most Hessian products.

    Returns:
        The plane; coordinates are Euclidean distances.

    Raises:
        InputError: If ``axes`` is neither 1 nor 2.
    """
    if axes not in (1, 2):
        raise InputError("axes", "must be 1 or 2", axes)
    top = curvature.top_eigenvalues(risk, axes, max_products=max_products, seed=seed)
    model = risk.model
    with effective_weights(model), torch.no_grad():
        space = ParameterSpace(model)
        found = []
        for number in range(axes):
            vector = top.vectors[:, number]
            parts = space.unflatten(vector.to(space.tensors[0]) / torch.linalg.vector_norm(vector.double()))
            found.append(_stored(space.named([part.contiguous() for part in parts]), number))
        arguments = {
            "eigenvalues": [float(value) for value in top.values],
            "residuals": [float(value) for value in top.residuals],
            "products": int(top.products),
            "seed": seed,
            "risk": risk.describe(),
        }
        recipe = {"kind": "eigenvectors", "arguments": arguments}
        return make_plane(space, found, recipe=recipe, units="Euclidean distance")


def _stored(values: Tensors, number: int) -> StoredAxis:
    return StoredAxis(values, {"kind": "given", "axis": number, "fingerprint": fingerprint(values)})


def _identity(model: nn.Module) -> str:
    return fingerprint({clean_name(name): p for name, p in model.named_parameters()})


def _difference(space: ParameterSpace, other: nn.Module) -> Tensors:
    """Return the other model's parameters minus those of the space, by name."""
    theirs: Mapping[str, Any] = {clean_name(name): p.detach() for name, p in other.named_parameters()}
    result = {}
    for name, parameter, _ in space:
        if name not in theirs or theirs[name].shape != parameter.shape:
            found = tuple(theirs[name].shape) if name in theirs else "nothing"
            raise InputError("other", f"must have the architecture of the first model, at {name!r}", found)
        result[name] = theirs[name].to(parameter) - parameter.detach()
    return result


def _frame(u: Tensors, v: Tensors) -> tuple[float, float]:
    """Return how much of v lies along u (in units of u), and what scales the rest to the length of u."""
    uu = sum(float(part.double().square().sum()) for part in u.values())
    uv = sum(float((u[name].double() * v[name].double()).sum()) for name in u)
    along = uv / uu if uu > 0 else 0.0
    rest = sum(float((v[name].double() - along * u[name].double()).square().sum()) for name in u)
    if uu == 0 or rest <= 1e-12 * uu:
        raise InputError("third", "must not lie on the line through the first two models")
    return along, (uu / rest) ** 0.5
