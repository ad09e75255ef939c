"""Worst-case sharpness: the largest rise of the loss within a ball, as the best of three searches.

Croce and Hein, "Reliable evaluation of adversarial robustness", 2020, algorithm 1 (auto-PGD), used on weights as by
Andriushchenko et al. 2023: 20 steps, first step size twice the radius, momentum 0.75, halved at check-points where
progress stalls. A local search may miss the maximum, so that its result is compared with the one-step ascent and with
steps along the top eigenvector, at the same radius; the largest is returned with its name.

Deviations from the algorithm:
1. It starts at the center instead of a random point, so that no seed enters; the first step is the one-step ascent's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from lowland.core.errors import InputError
from lowland.core.params import global_norm, normalized_scale
from lowland.core.risk import EmpiricalRisk
from lowland.core.types import Batch
from lowland.curvature.eigenvalues import extreme_eigenvalues
from lowland.curvature.hessian import Hessian
from lowland.curvature.operator import ScaledOperator
from lowland.curvature.perturbed_risk import PerturbedRisk, perturbed_risk
from lowland.curvature.protocol import Metric, metric

__all__ = ["WorstCase", "worst_case_sharpness"]

Norm = Literal["l2", "linf"]
_MOMENTUM: Final = 0.75
_ENOUGH: Final = 0.75
"""A step size is kept while this share of the steps since the last check-point has raised the loss."""


@dataclass(frozen=True, slots=True)
class WorstCase:
    """A worst-case sharpness and who found it.

    Args:
        value: Largest rise of the loss, at least 0; the mean over batches if each has its own ball.
        loss: Loss at the center.
        winner: ``"one step"``, ``"eigenvector"``, ``"apgd"``, or ``"center"`` where nothing rose; of several batches
            the search that won most often.
        candidates: Mean rise found by each search.
        rho: Radius.
        norm: ``"l2"`` or ``"linf"``.
        metric: ``"plain"``, ``"adaptive"`` or ``"keskar"``.
        steps: Steps of auto-PGD.
        standard_error: Over batches; NaN for one ball.
        balls: Number of batches with a ball of their own.
        keskar: ``100 (max - L) / (1 + L)``, the measure of Keskar et al. 2017, equation 4.
    """

    value: float
    loss: float
    winner: str
    candidates: dict[str, float]
    rho: float
    norm: Norm
    metric: Metric
    steps: int
    standard_error: float
    balls: int
    keskar: float


def worst_case_sharpness(
    risk: EmpiricalRisk,
    *,
    rho: float = 0.05,
    norm: Norm = "l2",
    kind: Metric = "plain",
    steps: int = 20,
    per_batch: bool = True,
    eigenvector: bool = True,
) -> WorstCase:
    """Return ``max over ||d / c||_p <= rho of L(w + d) - L(w)`` as far as three searches can tell.

    Args:
        risk: The risk; see `protocol_risk` for the usual data.
        rho: Radius in units of c. Default 0.05.
        norm: ``"l2"`` or ``"linf"``.
        kind: The metric c, see `Metric`.
        steps: Steps of auto-PGD. Default 20, the paper's.
        per_batch: Each batch has its own maximum, and their mean is returned (the paper's). Default True.
        eigenvector: Also try the top eigenvector of c H c of all data, both ways. Default True; about 20 products.

    Returns:
        The largest rise and who found it.

    Raises:
        InputError: If an argument is out of range.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(layer.weight)
        >>> risk = EmpiricalRisk(layer, torch.nn.MSELoss(), [(torch.ones(2, 1), torch.zeros(2, 1))])
        >>> round(worst_case_sharpness(risk, rho=0.5).value, 6)  # (1 + 0.5)^2 - 1^2
        1.25
    """
    if rho < 0:
        raise InputError("rho", "must not be negative", rho)
    if norm not in ("l2", "linf"):
        raise InputError("norm", 'must be "l2" or "linf"', norm)
    if steps < 1:
        raise InputError("steps", "must be at least 1", steps)
    top = _eigenvector(risk, kind) if eigenvector else None
    losses, found, weights = [], [], []
    with perturbed_risk(risk) as here:
        units = metric(here.base, kind)
        groups: list[list[Batch] | None] = [[batch] for batch in risk.batches()] if per_batch else [None]
        for batches in groups:
            loss, rises = _search(here, units, batches, rho, norm, steps, top)
            losses.append(loss)
            found.append(rises)
            weights.append(1.0 if batches is None else float(batches[0].size))
    return _summed(losses, found, weights, rho, norm, kind, steps)


def _summed(
    losses: list[float], found: list[dict[str, float]], weights: list[float], rho: float, norm: Norm, kind: Metric,
    steps: int,
) -> WorstCase:  # fmt: skip
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    best = torch.tensor([max(0.0, *rises.values()) for rises in found], dtype=torch.float64)
    winners = ["center" if max(rises.values()) <= 0 else max(rises, key=lambda k: rises[k]) for rises in found]
    value, count = float(share @ best), len(best)
    spread = ((share * (best - value)) ** 2).sum().sqrt()
    loss = float(share @ torch.tensor(losses, dtype=torch.float64))
    candidates = {
        name: float(share @ torch.tensor([rises[name] for rises in found], dtype=torch.float64)) for name in found[0]
    }
    winner = max(set(winners), key=lambda name: (winners.count(name), name))
    error = float(spread) * math.sqrt(count / (count - 1)) if count > 1 else math.nan
    keskar = 100 * value / (1 + loss)
    return WorstCase(value, loss, winner, candidates, rho, norm, kind, steps, error, count, keskar)


def _eigenvector(risk: EmpiricalRisk, kind: Metric) -> list[Tensor]:
    """Return the top eigenvector u of c H c, one tensor per parameter."""
    operator = Hessian(risk, check=False)
    with operator:
        units = metric([p.detach() for p in operator.space.tensors], kind)
        scaled = ScaledOperator(operator, torch.cat([c.reshape(-1) for c in units]))
        ends = extreme_eigenvalues(scaled, lower_tolerance=0.1, confirm=0.0, max_products=40)
        return [part.clone() for part in operator.split(ends.vectors[:, 0]).values()]


def _search(
    here: PerturbedRisk, units: Sequence[Tensor], batches: list[Batch] | None, rho: float, norm: Norm, steps: int,
    top: list[Tensor] | None,
) -> tuple[float, dict[str, float]]:  # fmt: skip
    """Return the loss at the center and what each search finds on some batches."""

    def rise(place: Sequence[Tensor]) -> float:
        return here.loss(_times(units, place), batches) - loss

    loss, gradient = here.gradient(batches=batches)
    uphill = _times(units, gradient)
    rises = {"one step": rise(_unit(uphill, norm, rho))}
    if top is not None:
        along = _unit(top, norm, rho)
        rises["eigenvector"] = max(rise(along), rise([-part for part in along]))
    rises["apgd"] = _apgd(here, units, batches, rho, norm, steps, loss, uphill) - loss
    return loss, rises


def _apgd(
    here: PerturbedRisk, units: Sequence[Tensor], batches: list[Batch] | None, rho: float, norm: Norm, steps: int,
    loss: float, uphill: list[Tensor],
) -> float:  # fmt: skip
    """Return the largest loss that auto-PGD finds; places are in units of c, gradients by them."""
    place = [torch.zeros_like(part) for part in uphill]
    previous, best_place, best_slope, best = place, place, uphill, loss
    size, kept, slope, risen = 2 * rho, (2 * rho, loss), uphill, 0
    marks = _checkpoints(steps)
    current, since = loss, 0
    for step in range(steps):
        ahead = _projected(_plus(place, _unit(slope, norm, size)), norm, rho)
        weight = 1.0 if step == 0 else _MOMENTUM
        mixed = [p + weight * (a - p) + (1 - weight) * (p - q) for p, a, q in zip(place, ahead, previous, strict=True)]
        previous, place = place, _projected(mixed, norm, rho)
        value, gradient = here.gradient(_times(units, place), batches)
        slope = _times(units, gradient)
        risen += value > current
        current = value
        if value > best:
            best, best_place, best_slope = value, place, slope
        if step + 1 in marks:
            stalled = risen < _ENOUGH * (step + 1 - since) or (kept == (size, best))
            kept = (size, best)
            if stalled:
                size /= 2
                place, previous, slope, current = best_place, best_place, best_slope, best
            risen, since = 0, step + 1
    return best


def _checkpoints(steps: int) -> set[int]:
    """Return the steps after which the step size is reviewed (Croce and Hein 2020, section 3)."""
    places, last, now = set(), 0.0, 0.22
    while now <= 1.0:
        places.add(math.ceil(round(now * steps, 9)))
        last, now = now, now + max(now - last - 0.03, 0.06)
    return places


def _unit(direction: Sequence[Tensor], norm: Norm, radius: float) -> list[Tensor]:
    """Return the step of a given length that follows a direction best; zeros where it has no usable norm."""
    if norm == "linf":
        return [part.sign() * radius for part in direction]
    factor = normalized_scale(global_norm(direction), radius)
    return [part * factor for part in direction]


def _projected(place: Sequence[Tensor], norm: Norm, rho: float) -> list[Tensor]:
    if norm == "linf":
        return [part.clamp(-rho, rho) for part in place]
    length = global_norm(place)
    factor = torch.where(length > rho, normalized_scale(length, rho), torch.ones_like(length))
    return [part * factor for part in place]


def _times(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    return [a * b for a, b in zip(first, second, strict=True)]


def _plus(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    return [a + b for a, b in zip(first, second, strict=True)]
