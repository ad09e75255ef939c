"""One-step sharpness: how much the loss rises when the weights move uphill by a given length.

Foret et al., "Sharpness-Aware Minimization", 2021, equation 2: ``L(w + rho g / ||g||) - L(w)``, the first-order
solution of ``max over ||e|| <= rho of L(w + e) - L(w)``. Over all data at once it is n-sharpness; over batches of m
samples, each with its own ascent, m-sharpness. Where the gradient is zero the step is zero: no constant is added to the
norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowland.core.errors import require
from lowland.core.facts import ShowsFacts, with_error
from lowland.core.params import global_norm, normalized_scale
from lowland.core.risk import EmpiricalRisk
from lowland.curvature.perturbed_risk import perturbed_risk


@dataclass(repr=False, frozen=True, slots=True)
class Sharpness(ShowsFacts):
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

    def _facts(self) -> dict[str, str]:
        value = with_error(self.value, self.standard_error)
        return {"": value, "rho": f"{self.rho:.4g}", "n": str(self.samples), "loss": f"{self.loss:.4g}"}


def sam_sharpness(
    risk: EmpiricalRisk, *, rho: float = 0.05, adaptive: bool = False, per_batch: bool = False
) -> Sharpness:
    """Return the one-step sharpness of SAM.

    Memory: 4 sets of weights.

    Args:
        risk: The loss over its data; the ascent starts at its model's present weights.
        rho: Radius. Default 0.05, the paper's for CIFAR.
        adaptive: Measure the radius in units of c = ``|w|`` (ASAM, Kwon et al. 2021): ``e = rho c^2 g / ||c g||``.
        per_batch: m-sharpness: ascend on each batch of the risk by itself and average over samples.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(layer.weight)
        >>> risk = EmpiricalRisk(layer, torch.nn.MSELoss(), [(torch.ones(2, 1), torch.zeros(2, 1))])
        >>> round(sam_sharpness(risk, rho=0.5).value, 6)  # (1 + 0.5)^2 - 1^2
        1.25
    """
    require(0 <= rho < math.inf, "rho", "must be finite and not negative", rho)
    kind = f"SAM, {'m' if per_batch else 'n'}-sharpness, {'adaptive' if adaptive else 'plain'}, l2"
    with perturbed_risk(risk) as here:
        losses, rises, weights = [], [], []
        for batches in here.groups(per_batch=per_batch):
            loss, gradient = here.gradient(batches=batches)
            losses.append(loss)
            rises.append(here.loss(_ascent(gradient, here.base, rho, adaptive=adaptive), batches) - loss)
            weights.append(here.weight)
    mean, error = over_samples(rises, weights)
    count = sum(map(bool, weights))
    return Sharpness(max(mean, 0.0), mean, over_samples(losses, weights)[0], rho, error, count, kind)  # NaN stays


def over_samples(values: Sequence[float], weights: Sequence[float]) -> tuple[float, float]:
    """Return the mean of batches' values, each as it counts in the loss, with its standard error, NaN for one."""
    counted = [(value, weight) for value, weight in zip(values, weights, strict=True) if weight]
    if not counted:
        return math.nan, math.nan
    each, sizes = torch.tensor(counted, dtype=torch.float64, device="cpu").T
    share, count = sizes / sizes.sum(), len(counted)
    mean = float(share @ each)
    spread = float(((share * (each - mean)) ** 2).sum().sqrt())
    return mean, spread * math.sqrt(count / (count - 1)) if count > 1 else math.nan


def _ascent(gradient: Sequence[Tensor], base: Sequence[Tensor], rho: float, *, adaptive: bool) -> list[Tensor]:
    """Return the first-order worst step of length rho."""
    scaled = [w.abs() * g for w, g in zip(base, gradient, strict=True)] if adaptive else list(gradient)
    factor = normalized_scale(global_norm(scaled), rho)
    if adaptive:
        return [w.abs() * s * factor for w, s in zip(base, scaled, strict=True)]
    return [g * factor for g in scaled]
