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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

from lowland.core.errors import require
from lowland.core.facts import ShowsFacts, with_error
from lowland.core.params import global_norm, normalized_scale
from lowland.core.risk import EmpiricalRisk
from lowland.core.types import Batch
from lowland.curvature.eigenvalues import extreme_eigenvalues
from lowland.curvature.hessian import Hessian
from lowland.curvature.operator import ScaledOperator
from lowland.curvature.perturbed_risk import PerturbedRisk, perturbed_risk
from lowland.curvature.protocol import Metric, metric
from lowland.curvature.sharpness import over_samples

Norm = Literal["l2", "linf"]
_MOMENTUM: Final = 0.75
_ENOUGH: Final = 0.75
"""A step size is kept while this share of the steps since the last check-point has raised the loss."""


@dataclass(repr=False, frozen=True, slots=True)
class WorstCase(ShowsFacts):
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
        step: How far each parameter moves to where the loss is highest, by name; None where batches have balls of
            their own.
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
    step: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)

    def _facts(self) -> dict[str, str]:
        value, ball = with_error(self.value, self.standard_error), f"{self.rho:.4g} ({self.norm}, {self.metric})"
        return {"": value, "rho": ball, "found by": self.winner, "balls": str(self.balls), "loss": f"{self.loss:.4g}"}


def worst_case_sharpness(
    risk: EmpiricalRisk,
    *,
    rho: float = 0.05,
    norm: Norm = "l2",
    kind: Metric = "plain",
    steps: int = 20,
    per_batch: bool = True,
    eigenvector: bool | Mapping[str, Tensor] = True,
) -> WorstCase:
    """Return ``max over ||d / c||_p <= rho of L(w + d) - L(w)`` as far as three searches can tell.

    Memory: what `top_eigenvalues` holds, whose vector is one of the starts, and 2 sets of weights more.

    Args:
        risk: The risk; see `protocol_risk` for the usual data.
        rho: Radius in units of c. Default 0.05.
        norm: ``"l2"`` or ``"linf"``.
        kind: The metric c, see `Metric`.
        steps: Steps of auto-PGD. Default 20, the paper's.
        per_batch: Each batch has its own maximum, and their mean is returned (the paper's). Default True.
        eigenvector: Also try the top eigenvector of c H c of all data, both ways. Default True; about 20 products. Or
            that vector by parameter name, where it is known.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(layer.weight)
        >>> risk = EmpiricalRisk(layer, torch.nn.MSELoss(), [(torch.ones(2, 1), torch.zeros(2, 1))])
        >>> round(worst_case_sharpness(risk, rho=0.5).value, 6)  # (1 + 0.5)^2 - 1^2
        1.25
    """
    require(0 <= rho < math.inf, "rho", "must be finite and not negative", rho)
    require(norm in ("l2", "linf"), "norm", 'must be "l2" or "linf"', norm)
    require(steps >= 1, "steps", "must be at least 1", steps)
    top = _eigenvector(risk, kind) if eigenvector is True else None
    with perturbed_risk(risk) as here:
        units = metric(here.base, kind)
        top = here.space.order(eigenvector) if isinstance(eigenvector, Mapping) else top
        searched, step = [], None
        for batches in here.groups(per_batch=per_batch):
            loss, rises, place = _Ball(here, units, batches, rho, norm).search(steps, top)
            searched.append((loss, rises, here.weight))
            step = None if per_batch else here.space.named(_times(units, place))
    losses, found, weights = zip(*([part for part in searched if part[2]] or searched[:1]), strict=True)
    highest = [math.nan if math.isnan(at) else max(0.0, *f.values()) for at, f in zip(losses, found, strict=True)]
    loss, (value, error) = over_samples(losses, weights)[0], over_samples(highest, weights)
    candidates = {name: over_samples([rises[name] for rises in found], weights)[0] for name in found[0]}
    winners = ["center" if max(rises.values()) <= 0 else max(rises, key=lambda k: rises[k]) for rises in found]
    winner = max(set(winners), key=lambda name: (winners.count(name), name))
    keskar = 100 * value / (1 + loss)
    return WorstCase(value, loss, winner, candidates, rho, norm, kind, steps, error, len(found), keskar, step)


def _eigenvector(risk: EmpiricalRisk, kind: Metric) -> list[Tensor]:
    """Return the top eigenvector u of c H c, one tensor per parameter."""
    operator = Hessian(risk, check=False)
    with operator:
        units = metric([p.detach() for p in operator.space.tensors], kind)
        scaled = ScaledOperator(operator, torch.cat([c.reshape(-1) for c in units]))
        ends = extreme_eigenvalues(scaled, lower_tolerance=0.1, missed=math.inf, max_products=40)
        return [part.clone() for part in operator.split(ends.vectors[:, 0]).values()]


_Place: TypeAlias = tuple[float, list[Tensor]]
"""A loss, and where it is."""


@dataclass(frozen=True, slots=True)
class _Ball:
    """A ball around the present weights, and what its loss is measured on; places are in units of c, slopes by them."""

    here: PerturbedRisk
    units: Sequence[Tensor]
    batches: list[Batch] | None
    rho: float
    norm: Norm

    def loss(self, place: Sequence[Tensor]) -> float:
        return self.here.loss(_times(self.units, place), self.batches)

    def slope(self, place: Sequence[Tensor] | None = None) -> tuple[float, list[Tensor]]:
        loss, gradient = self.here.gradient(None if place is None else _times(self.units, place), self.batches)
        return loss, _times(self.units, gradient)

    def step(self, direction: Sequence[Tensor], length: float) -> list[Tensor]:
        """Return the step of a given length that follows a direction best; zeros where it has no usable norm."""
        if self.norm == "linf":
            return [part.sign() * length for part in direction]
        factor = normalized_scale(global_norm(direction), length)
        return [part * factor for part in direction]

    def projected(self, place: Sequence[Tensor]) -> list[Tensor]:
        if self.norm == "linf":
            return [part.clamp(-self.rho, self.rho) for part in place]
        length = global_norm(place)
        factor = torch.where(length > self.rho, normalized_scale(length, self.rho), torch.ones_like(length))
        return [part * factor for part in place]

    def search(self, steps: int, top: list[Tensor] | None) -> tuple[float, dict[str, float], list[Tensor]]:
        """Return the loss at the center, the rise that each search finds, and the place of the largest."""
        loss, uphill = self.slope()
        ahead = self.step(uphill, self.rho)
        found = {"one step": (self.loss(ahead), ahead)}
        if top is not None:
            along = self.step(top, self.rho)
            ways = [(self.loss(way), way) for way in (along, [-part for part in along])]
            found["eigenvector"] = max(ways, key=lambda place: place[0])
        found["apgd"] = self.apgd(steps, loss, uphill)
        center = loss, [torch.zeros_like(part) for part in uphill]
        best = max((center, *found.values()), key=lambda place: place[0])
        return loss, {name: place[0] - loss for name, place in found.items()}, best[1]

    def apgd(self, steps: int, loss: float, uphill: list[Tensor]) -> _Place:
        """Return the largest loss that auto-PGD finds, and where."""
        place = [torch.zeros_like(part) for part in uphill]
        previous, best_place, best_slope, best = place, place, uphill, loss
        size, kept, slope, risen = 2 * self.rho, (2 * self.rho, loss), uphill, 0
        marks = _checkpoints(steps)
        current, since = loss, 0
        for step in range(steps):
            ahead = self.projected([p + s for p, s in zip(place, self.step(slope, size), strict=True)])
            weight, three = 1.0 if step == 0 else _MOMENTUM, zip(place, ahead, previous, strict=True)
            mixed = [p + weight * (a - p) + (1 - weight) * (p - q) for p, a, q in three]
            previous, place = place, self.projected(mixed)
            value, slope = self.slope(place)
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
        return best, best_place


def _checkpoints(steps: int) -> set[int]:
    """Return the steps after which the step size is reviewed (Croce and Hein 2020, section 3)."""
    places, last, now = set(), 0.0, 0.22
    while now <= 1.0:
        places.add(math.ceil(round(now * steps, 9)))
        last, now = now, now + max(now - last - 0.03, 0.06)
    return places


def _times(first: Sequence[Tensor], second: Sequence[Tensor]) -> list[Tensor]:
    return [a * b for a, b in zip(first, second, strict=True)]
