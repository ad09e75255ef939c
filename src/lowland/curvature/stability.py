"""The largest eigenvalue against the step size: how near training runs to the edge of stability.

Cohen et al., "Gradient descent on neural networks typically occurs at the edge of stability", 2021: a step of size eta
with momentum beta is stable along an eigenvector as long as ``lambda < 2 (1 + beta) / eta`` (for Nesterov's momentum
``2 (1 + beta) / ((1 + 2 beta) eta)``). Cohen et al., "Adaptive gradient methods at the edge of stability", 2022: for
Adam the same holds for the eigenvalues of ``P^-1/2 H P^-1/2`` with ``P = sqrt(v) + eps``, and with ``eta (1 - beta_1)``
for eta, since its momentum is an average. Weight decay and the correction of the first moment are left out.

Every case is brought to one form, D H D with ``D_i = sqrt(eta_i c / P_i)``, so that groups may differ in step size: the
ratio is its largest eigenvalue over the limit, and one is the edge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.curvature.eigenvalues import SpectrumEnds, extreme_eigenvalues
from lowland.curvature.hessian import Hessian
from lowland.curvature.operator import ScaledOperator
from lowland.curvature.risk_operator import AbstractRiskOperator

__all__ = ["Stability", "measurement_interval", "stability", "warm_started_extremes"]

_STEP_COST: Final = 3.0
"""Forward passes that a training step takes per sample: one forward, and a backward of about two."""
_GRAPH_COST: Final = 4.0
"""Forward passes that the graph of a measurement takes per sample: a step's, recorded."""
_PRODUCT_COST: Final = 8.0
"""Forward passes that a product takes per sample once the graph exists: a second backward through twice the graph."""


@dataclass(frozen=True, slots=True)
class Stability:
    """How near the edge of stability an optimizer runs.

    Args:
        ratio: ``lambda / limit``; 1 is the edge, above it the largest direction oscillates and grows.
        preconditioned: Largest eigenvalue of D H D (for SGD: eta times the largest eigenvalue of H).
        limit: ``2 (1 + beta)``, or ``2 (1 + beta) / (1 + 2 beta)`` for Nesterov's momentum.
        ends: The run on D H D with residuals.
        method: What the optimizer was taken for.
    """

    ratio: float
    preconditioned: float
    limit: float
    ends: SpectrumEnds
    method: str


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
        optimizer: SGD, RMSprop, Adam or AdamW (wrapped or not): what counts is the state it keeps.
        seed: Seed of the Krylov run.
        max_products: Most products. Default 80.
        min_products: Fewest products. Default 6.
        start: Warm start: approximate eigenvectors of D H D, shape [n] or [n, k].
        ends: Both ends of H itself where they are known; they save the run where every weight has the same step size.

    Returns:
        The ratio and what it was made of.

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
    settings = _settings(optimizer)
    limits = {limit for limit, _, _ in settings.values()}
    if len(limits) != 1:
        raise InputError("optimizer", "must have the same momentum in all groups", sorted(limits))
    limit, method = limits.pop(), next(iter(settings.values()))[2]
    with operator:
        steps = _steps(operator, settings)
        if ends is not None and all(step.ndim == 0 for step in steps) and len({float(step) for step in steps}) == 1:
            largest = float(steps[0]) * ends.lambda_max
            return Stability(largest / limit, largest, limit, ends, method)
        scale = [
            step.sqrt().to(operator.dtype).expand(parameter.shape).reshape(-1)
            for step, (_, parameter, _) in zip(steps, operator.space, strict=True)
        ]
        ends = extreme_eigenvalues(
            ScaledOperator(operator, torch.cat(scale)), seed=seed, start=start,
            max_products=max_products, min_products=min(min_products, max_products),
        )  # fmt: skip
    return Stability(ends.lambda_max / limit, ends.lambda_max, limit, ends, method)


def _steps(operator: AbstractRiskOperator, settings: Mapping[int, tuple[float, Tensor, str]]) -> list[Tensor]:
    """Return the effective step size of every parameter of the risk: a number, or one per weight."""
    steps = []
    for name, parameter, _ in operator.space:
        if id(parameter) not in settings:
            raise InputError("optimizer", f"must hold every parameter of the risk ({name!r} is missing)")
        steps.append(settings[id(parameter)][1])
    return steps


def _settings(optimizer: Optimizer) -> dict[int, tuple[float, Tensor, str]]:
    """Return by parameter id the limit, the effective step size per weight, and the method."""
    found: dict[int, tuple[float, Tensor, str]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found[id(parameter)] = _setting(group, optimizer.state.get(parameter, {}))
    return found


def _setting(group: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[float, Tensor, str]:
    rate = torch.as_tensor(float(group["lr"]), dtype=torch.float64)
    square = next((state[key] for key in ("max_exp_avg_sq", "exp_avg_sq", "square_avg") if key in state), None)
    if "grad_avg" in state and square is not None:  # centered RMSprop
        square = (square - state["grad_avg"].square()).clamp(min=0)
    if "betas" in group:
        if "amsgrad" not in group or "momentum_decay" in group:  # NAdam, RAdam and others step in another metric
            raise InputError("optimizer", "must be SGD, RMSprop, Adam or AdamW", sorted(group))
        if square is None:
            raise InputError("optimizer", "must have taken a step before its metric is known", "an empty state")
        beta = float(group["betas"][0])
        correction = 1.0 - float(group["betas"][1]) ** float(state["step"])
        step = rate * (1 - beta) / ((square.double() / correction).sqrt() + float(group["eps"]))
        return 2 * (1 + beta), step, "Adam: eigenvalues of P^-1/2 H P^-1/2"
    beta = float(group.get("momentum", 0.0))
    if square is not None:
        return 2 * (1 + beta), rate / (square.double().sqrt() + float(group["eps"])), "RMSprop: P^-1/2 H P^-1/2"
    if "momentum" not in group or "dampening" not in group:  # Muon has momentum too, and another metric
        raise InputError("optimizer", "must keep the state of SGD, RMSprop or Adam", sorted(group))
    if group.get("nesterov", False):
        return 2 * (1 + beta) / (1 + 2 * beta), rate, "SGD with Nesterov's momentum"
    return 2 * (1 + beta), rate * (1 - float(group.get("dampening", 0.0))), "SGD"


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


def measurement_interval(*, steps: int, batch_size: int, samples: int, products: int = 6, first: int = 30,
             share: float = 0.03) -> int:  # fmt: skip
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

    Returns:
        Steps, at least 1.

    Raises:
        InputError: If an argument is not positive, or the run is too short to pay for two measurements.

    Example:
        >>> measurement_interval(steps=10_000, batch_size=128, samples=256)
        2501
    """
    given = {"steps": steps, "batch_size": batch_size, "samples": samples, "products": products, "share": share}
    for name, value in given.items():
        if not value > 0:
            raise InputError(name, "must be positive", value)
    budget = share * _STEP_COST * steps * batch_size
    cold = samples * (1 + _GRAPH_COST + _PRODUCT_COST * first)
    warm = samples * (_GRAPH_COST + _PRODUCT_COST * products)
    more = math.floor((budget - cold) / warm)
    if more < 1:
        enough = math.ceil((cold + warm) / (share * _STEP_COST * batch_size))
        raise InputError(
            "share", f"must pay for two measurements, which {share:g} of this run does not", f"{steps} steps",
            f"train for {enough} steps or more, measure on fewer samples, or give the interval yourself",
        )  # fmt: skip
    return steps // (more + 1) + 1  # the shortest with no more than so many measurements
