"""Average-case sharpness: how much the loss rises on average under random changes of the weights.

Andriushchenko et al. 2023, section 3: ``E L(w + d) - L(w)`` with ``d ~ N(0, rho^2 diag(c^2))``: every weight moves with
standard deviation rho c, so that the whole step has length about ``rho ||c||``; in l-inf d is uniform in the box.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lowland.core.errors import require
from lowland.core.risk import EmpiricalRisk
from lowland.core.seeds import generator, normal
from lowland.curvature.perturbed_risk import perturbed_risk
from lowland.curvature.protocol import Metric, metric
from lowland.curvature.sharpness import Sharpness
from lowland.curvature.trace import estimate
from lowland.curvature.worst_case import Norm


def average_case_sharpness(
    risk: EmpiricalRisk, *, rho: float = 0.1, norm: Norm = "l2", kind: Metric = "plain", draws: int = 20, seed: int = 0
) -> Sharpness:
    """Return the mean rise of the loss under random perturbations, with its standard error.

    Memory: 5 sets of weights, whatever the number of draws.

    Args:
        risk: The risk; see `protocol_risk` for the usual data.
        rho: Standard deviation per weight (l2) or half width of the box (l-inf), in units of c. Default 0.1.
        norm: ``"l2"``: normal, or ``"linf"``: uniform in the box.
        kind: The metric c, see `Metric`.
        draws: Number of perturbations, one pass each; at least 2. Default 20.
        seed: Seed of the perturbations.

    Returns:
        The sharpness; the mean may be negative, ``raw`` keeps it and ``value`` is at least 0.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> risk = EmpiricalRisk(layer, torch.nn.MSELoss(), [(torch.ones(2, 1), torch.zeros(2, 1))])
        >>> average_case_sharpness(risk, rho=0.0).value
        0.0
    """
    require(0 <= rho < math.inf, "rho", "must be finite and not negative", rho)
    require(norm in ("l2", "linf"), "norm", 'must be "l2" or "linf"', norm)
    require(draws >= 2, "draws", "must be at least 2", draws)
    with perturbed_risk(risk) as here:
        units = metric(here.base, kind)
        loss = here.loss()
        named = list(zip(here.space.names, units, strict=True))
        steps = ([rho * unit * _drawn(norm, unit, seed, k, name) for name, unit in named] for k in range(draws))
        rises = np.array([here.loss(step) - loss for step in steps])
    law = "normal, rho per weight" if norm == "l2" else "uniform in the box"
    found = estimate(rises, 0, f"average case, {norm}, {kind}, {law}, seed {seed}", seed)
    return Sharpness(max(found.value, 0.0), found.value, loss, rho, found.standard_error, draws, found.method)


def _drawn(norm: Norm, unit: Tensor, seed: int, index: int, name: str) -> Tensor:
    key = ("probe", "average case", index, name)
    if norm == "l2":
        return normal(unit, seed, *key)
    return torch.as_tensor(generator(seed, *key).uniform(-1.0, 1.0, tuple(unit.shape)), device="cpu").to(unit)
