"""The largest eigenvalue against the step size: how near training runs to the edge of stability.

Cohen et al., "Gradient descent on neural networks typically occurs at the edge of stability", 2021: a step of size eta
with momentum beta is stable along an eigenvector as long as ``lambda < 2 (1 + beta) / eta`` (for Nesterov's momentum
``2 (1 + beta) / ((1 + 2 beta) eta)``). Cohen et al., "Adaptive gradient methods at the edge of stability", 2022: for
Adam the same holds for the eigenvalues of ``P^-1/2 H P^-1/2`` with ``P = sqrt(v) + eps``, and with ``eta (1 - beta_1)``
for eta, since its momentum is an average. Weight decay and the correction of the first moment are left out. Other
optimizers: `lowland.curvature.step_sizes`.

Every case is brought to one form, D H D with ``D_i = sqrt(eta_i c / P_i)``, so that groups may differ in step size: the
ratio is its largest eigenvalue over the limit, and one is the edge.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.core.errors import InputError, check_positive, require
from lowland.core.facts import ShowsFacts
from lowland.core.risk import EmpiricalRisk
from lowland.curvature.eigenvalues import SpectrumEnds, extreme_eigenvalues
from lowland.curvature.hessian import Hessian
from lowland.curvature.operator import ScaledOperator
from lowland.curvature.risk_operator import AbstractRiskOperator
from lowland.curvature.step_sizes import step_size_of

_STEP_COST: Final = 3.0
"""Forward passes that a training step takes per sample: one forward, and a backward of about two."""
_GRAPH_COST: Final = 4.0
"""Forward passes that the graph of a measurement takes per sample: a step's, recorded."""
_PRODUCT_COST: Final = 8.0
"""Forward passes that a product takes per sample once the graph exists: a second backward through twice the graph."""


@dataclass(repr=False, frozen=True, slots=True)
class Stability(ShowsFacts):
    """How near the edge of stability an optimizer runs.

    Args:
        ratio: ``lambda / limit``; 1 is the edge, above it the largest direction oscillates and grows.
        preconditioned: Largest eigenvalue of D H D (for SGD: eta times the largest eigenvalue of H).
        limit: ``2 (1 + beta)`` and its kin, see `lowland.curvature.stability` and `lowland.curvature.step_sizes`.
        ends: The run on D H D with residuals.
        method: What the optimizer was taken for.
    """

    ratio: float
    preconditioned: float
    limit: float
    ends: SpectrumEnds
    method: str

    def _facts(self) -> dict[str, str]:
        eigenvalue = f"{self.preconditioned:.4g} of {self.limit:.4g}"
        return {"": f"{self.ratio:.4g}", "eigenvalue": eigenvalue, "of": self.method}


def stability(
    source: EmpiricalRisk | AbstractRiskOperator,
    optimizer: Optimizer,
    *,
    seed: int = 0,
    max_products: int = 80,
    min_products: int = 6,
    start: Tensor | None = None,
    ends: SpectrumEnds | None = None,
) -> Stability:
    """Return ``eta lambda_max / (2 (1 + beta))``, in the metric of the optimizer's own state for Adam and its kin.

    Args:
        source: The risk that is trained on, or an operator of it.
        optimizer: SGD, RMSprop, Adam, AdamW, Adafactor with a rate, or Schedule-Free (wrapped or not): what counts is
            the state it keeps.
        seed: Seed of the Krylov run.
        max_products: Most products. Default 80.
        min_products: Fewest products. Default 6.
        start: Warm start: approximate eigenvectors of D H D, shape [n] or [n, k].
        ends: Both ends of H itself where they are known; they save the run where every weight has the same step size.

    Raises:
        InputError: If the optimizer keeps another kind of state, groups differ in momentum, or a parameter of the risk
            is not among the optimizer's.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> risk = EmpiricalRisk(layer, torch.nn.MSELoss(), [(torch.ones(1, 1), torch.ones(1, 1))])
        >>> round(stability(risk, torch.optim.SGD(layer.parameters(), lr=0.5)).ratio, 6)
        0.5
    """
    operator = source if isinstance(source, AbstractRiskOperator) else Hessian(source)
    groups = [(group, parameter) for group in optimizer.param_groups for parameter in group["params"]]
    settings = {id(p): step_size_of(group, optimizer.state.get(p, {}), p) for group, p in groups}
    limits = {limit for limit, _, _ in settings.values()}
    require(len(limits) == 1, "optimizer", "must have the same momentum in all groups", sorted(limits))
    limit, method = limits.pop(), next(iter(settings.values()))[2]
    with operator:
        missing = [name for name, parameter, _ in operator.space if id(parameter) not in settings]
        if missing:
            raise InputError("optimizer", f"must hold every parameter of the risk ({missing[0]!r} is missing)")
        steps = [settings[id(parameter)][1] for parameter in operator.space.tensors]
        if ends is not None and all(step.ndim == 0 for step in steps) and len({float(step) for step in steps}) == 1:
            largest = float(steps[0]) * ends.lambda_max
            return Stability(largest / limit, largest, limit, ends, method)
        pairs = zip(steps, operator.space.tensors, strict=True)
        scale = torch.cat([step.sqrt().to(operator.dtype).expand(weight.shape).reshape(-1) for step, weight in pairs])
        scaled, least = ScaledOperator(operator, scale), min(min_products, max_products)
        ends = extreme_eigenvalues(scaled, seed=seed, start=start, max_products=max_products, min_products=least)
    return Stability(ends.lambda_max / limit, ends.lambda_max, limit, ends, method)


def warm_started_extremes(
    source: EmpiricalRisk | AbstractRiskOperator,
    start: Tensor | None = None,
    *,
    products: int = 6,
    first: int = 30,
    seed: int = 0,
) -> SpectrumEnds:
    """Return both ends at the present weights for a curve over training: a few products from the last eigenvectors.

    The weights move little between two measurements, so that the last eigenvectors are nearly right. The residuals say
    how nearly; they go with every point of the curve.

    Args:
        source: What is measured: a fixed subset of the training data, or an operator of it.
        start: The ``vectors`` of what the last call returned, or None for a cold start.
        products: Products of a warm call. Default 6.
        first: Most products of a cold call. Default 30.
        seed: Seed of the random vectors.

    Returns:
        The ends; hand their vectors to the next call.
    """
    operator = source if isinstance(source, AbstractRiskOperator) else Hessian(source, check=start is None)
    if start is None:
        return extreme_eigenvalues(operator, max_products=first, min_products=min(6, first), seed=seed)
    warm = start.to(operator.device, operator.dtype)
    return extreme_eigenvalues(operator, start=warm, min_products=min(3, products), max_products=products, seed=seed)


def measurement_interval(
    *, steps: int, batch_size: int, samples: int, products: int = 6, first: int = 30, share: float = 0.03
) -> int:
    """Return how many training steps must lie between two measurements so that they take at most a share of the run.

    Counted in forward passes per sample: a step takes 3; a measurement 4 for its graph and 8 for each product (5 to 8
    were measured on a residual network and a transformer), and the first one 1 more for the check that the risk is
    deterministic. The first measurement is before the first step.

    Args:
        steps: Optimizer steps of the run.
        batch_size: Samples of a training step.
        samples: Samples of the risk.
        products: Products of a warm measurement. Default 6.
        first: Products of the first measurement. Default 30.
        share: Largest share of the run's cost. Default 0.03.

    Raises:
        InputError: If an argument is not positive, or the run is too short to pay for two measurements.

    Example:
        >>> measurement_interval(steps=10_000, batch_size=128, samples=256)
        2501
    """
    check_positive(steps=steps, batch_size=batch_size, samples=samples, products=products, share=share)
    budget = share * _STEP_COST * steps * batch_size
    cold = samples * (1 + _GRAPH_COST + _PRODUCT_COST * first)
    warm = samples * (_GRAPH_COST + _PRODUCT_COST * products)
    more = math.floor((budget - cold) / warm)
    if more < 1:
        enough = math.ceil((cold + warm) / (share * _STEP_COST * batch_size))
        rule = f"must pay for two measurements, which {share:g} of this run does not"
        advice = f"train for {enough} steps or more, measure on fewer samples, or give the interval yourself"
        raise InputError("share", rule, f"{steps} steps", advice)
    return steps // (more + 1) + 1  # the shortest with no more than so many measurements
