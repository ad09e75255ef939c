"""One-step sharpness: how much the loss rises when the weights move uphill by a given length.

Foret et al., "Sharpness-Aware Minimization", 2021, equation 2: ``L(w + rho g / ||g||) - L(w)``, the first-order
solution of ``max over ||e|| <= rho of L(w + e) - L(w)``. Over all data at once it is n-sharpness; over batches of m
samples, each with its own ascent, m-sharpness. Where the gradient is zero the step is zero: no constant is added to the
norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowland.core.errors import InputError
from lowland.core.params import global_norm, normalized_scale
from lowland.core.risk import EmpiricalRisk
from lowland.core.types import Batch
from lowland.curvature.perturbed_risk import PerturbedRisk, perturbed_risk

__all__ = ["Sharpness", "sam_sharpness"]


@dataclass(frozen=True, slots=True)
class Sharpness:
    """A sharpness with the loss it stands on.

    Args:
        value: Rise of the loss, at least 0.
        raw: Rise before clamping; below 0 where the step overshoots.
        loss: Loss at the center on the same data.
        rho: Radius, in units of weight (in units of ``|w|`` per weight for adaptive measures).
        standard_error: Over samples or batches; NaN where there is only one.
        samples: Number of random perturbations or of batches.
        settings: Everything else that is needed to repeat it, as one line.
    """

    value: float
    raw: float
    loss: float
    rho: float
    standard_error: float
    samples: int
    settings: str


def sam_sharpness(
    risk: EmpiricalRisk, *, rho: float = 0.05, adaptive: bool = False, per_batch: bool = False
) -> Sharpness:
    """Return the one-step sharpness of SAM.

    Args:
        risk: The risk.
        rho: Radius. Default 0.05, the paper's for CIFAR.
        adaptive: Measure the radius in units of c = ``|w|`` (ASAM, Kwon et al. 2021): ``e = rho c^2 g / ||c g||``.
        per_batch: m-sharpness: ascend on each batch of the risk by itself and average over samples.

    Returns:
        The sharpness; for ``per_batch`` with its standard error over batches.

    Raises:
        InputError: If `rho` is negative.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(layer.weight)
        >>> risk = EmpiricalRisk(layer, torch.nn.MSELoss(), [(torch.ones(2, 1), torch.zeros(2, 1))])
        >>> round(sam_sharpness(risk, rho=0.5).value, 6)  # (1 + 0.5)^2 - 1^2
        1.25
    """
    if rho < 0:
        raise InputError("rho", "must not be negative", rho)
    kind = f"SAM, {'m' if per_batch else 'n'}-sharpness, {'adaptive' if adaptive else 'plain'}, l2"
    with perturbed_risk(risk) as here:
        groups: list[list[Batch] | None] = [[batch] for batch in risk.batches()] if per_batch else [None]
        rises, losses, weights = [], [], []
        for batches in groups:
            before, rise = _rise(here, rho, adaptive=adaptive, batches=batches)
            rises.append(rise)
            losses.append(before)
            weights.append(1.0 if batches is None else float(batches[0].size))
    share = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    all_rises = torch.tensor(rises, dtype=torch.float64)
    mean = float(share @ all_rises)
    count = len(rises)
    error = (
        float(((share * (all_rises - mean)) ** 2).sum().sqrt()) * (count / (count - 1)) ** 0.5
        if count > 1
        else float("nan")
    )
    loss = float(share @ torch.tensor(losses, dtype=torch.float64))
    return Sharpness(max(0.0, mean), mean, loss, rho, error, count, kind)


def _rise(here: PerturbedRisk, rho: float, *, adaptive: bool, batches: list[Batch] | None) -> tuple[float, float]:
    loss, gradient = here.gradient(batches=batches)
    step = ascent(gradient, here.base, rho, adaptive=adaptive)
    return loss, here.loss(step, batches) - loss


def ascent(gradient: Sequence[Tensor], base: Sequence[Tensor], rho: float, *, adaptive: bool) -> list[Tensor]:
    """Return the first-order worst step of length rho."""
    scaled = [w.abs() * g for w, g in zip(base, gradient, strict=True)] if adaptive else list(gradient)
    factor = normalized_scale(global_norm(scaled), rho)
    if adaptive:
        return [w.abs() * s * factor for w, s in zip(base, scaled, strict=True)]
    return [g * factor for g in scaled]
