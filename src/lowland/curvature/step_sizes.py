"""What an optimizer's own state says of its step on a quadratic: the step size of every weight, and the limit it has.

Sources and reasons: `lowland.curvature.stability`. Adafactor is RMSprop (or Adam) with a factored ``P`` and a scale of
its own; clipping only makes a step shorter. Schedule-Free takes gradients at ``y = (1 - beta) z + beta x`` while x
moves by a share c of the way to z. Both stay bounded as long as
``eta lambda < 2 (2 - c) / ((2 - c) (1 - beta) + c beta)``, where an eigenvalue of the step passes -1; that is
``2 / (1 - beta)`` late in training. Muon's edge is known without momentum alone (arXiv 2603.05002): it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from lowland.core.errors import InputError


class StepSize(NamedTuple):
    """Step size of a parameter (a number, or one per weight), the limit of step size times curvature, the method."""

    limit: float
    step: Tensor
    method: str


def step_size_of(group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor) -> StepSize:
    """Return how a parameter steps by the options of its group and what the optimizer keeps of it, or refuse."""
    kind = next((kind for option, kind in _KINDS.items() if option in group), _sgd)
    return kind(group, state, parameter, torch.as_tensor(float(group["lr"] or 0.0), dtype=torch.float64, device="cpu"))


def _kept(state: Mapping[str, Any], *names: str) -> list[Tensor]:
    if any(name not in state for name in names):
        raise InputError("optimizer", "must have taken a step before its metric is known", "an empty state")
    return [state[name].double() for name in names]


def _sgd(group: Mapping[str, Any], state: Mapping[str, Any], _: Tensor, rate: Tensor) -> StepSize:
    beta = float(group.get("momentum", 0.0))
    if "square_avg" in state:
        square = state["square_avg"].double()
        if "grad_avg" in state:  # centered
            square = (square - state["grad_avg"].double().square()).clamp(min=0)
        return StepSize(2 * (1 + beta), rate / (square.sqrt() + float(group["eps"])), "RMSprop: P^-1/2 H P^-1/2")
    if "momentum" not in group or "dampening" not in group:
        raise InputError("optimizer", "must keep the state of SGD, RMSprop or Adam", sorted(group))
    if group.get("nesterov", False):
        return StepSize(2 * (1 + beta) / (1 + 2 * beta), rate, "SGD with Nesterov's momentum")
    return StepSize(2 * (1 + beta), rate * (1 - float(group["dampening"])), "SGD")


def _adam(group: Mapping[str, Any], state: Mapping[str, Any], _: Tensor, rate: Tensor) -> StepSize:
    if "amsgrad" not in group or "momentum_decay" in group:  # NAdam, RAdam and others step in another metric
        raise InputError("optimizer", "must be SGD, RMSprop, Adam or AdamW", sorted(group))
    (square,) = _kept(state, "max_exp_avg_sq" if "max_exp_avg_sq" in state else "exp_avg_sq")
    beta, correction = float(group["betas"][0]), 1.0 - float(group["betas"][1]) ** float(state["step"])
    step = rate * (1 - beta) / ((square / correction).sqrt() + float(group["eps"]))
    return StepSize(2 * (1 + beta), step, "Adam: eigenvalues of P^-1/2 H P^-1/2")


def _schedule_free(group: Mapping[str, Any], state: Mapping[str, Any], _: Tensor, rate: Tensor) -> StepSize:
    done, warmup = int(group["k"]), int(group["warmup_steps"])
    rate = rate * ((done + 1) / warmup if done < warmup else 1.0)
    weight = (done + 1) ** float(group["r"]) * max(float(rate), group["lr_max"]) ** float(group["weight_lr_power"])
    share = weight / (float(group["weight_sum"]) + weight) if weight else 0.0
    beta = float(group["betas"][0] if "betas" in group else group["momentum"])
    if "betas" in group:
        (square,) = _kept(state, "exp_avg_sq")
        rate = rate / ((square / (1 - float(group["betas"][1]) ** max(done, 1))).sqrt() + float(group["eps"]))
    return StepSize(2 * (2 - share) / ((2 - share) * (1 - beta) + share * beta), rate, "Schedule-Free")


def _adafactor(group: Mapping[str, Any], state: Mapping[str, Any], parameter: Tensor, rate: Tensor) -> StepSize:
    of_torch = "beta2_decay" in group  # else that of fairseq and transformers
    if group.get("relative_step"):
        raise InputError("optimizer", "must have a rate, without which its edge moves", "relative_step", "pass lr")
    if parameter.ndim > 1:
        rows, columns = _kept(state, *(("row_var", "col_var") if of_torch else ("exp_avg_sq_row", "exp_avg_sq_col")))
        if not of_torch:
            rows, columns = rows.unsqueeze(-1), columns.unsqueeze(-2)
        square = rows * columns / rows.mean(dim=-2, keepdim=True)
    else:
        (square,) = _kept(state, "variance" if of_torch else "exp_avg_sq")
    if of_torch:
        rate = rate.clamp(max=float(state["step"]) ** -0.5)
    if of_torch or group["scale_parameter"]:
        rate = rate * max(float(group["eps"][1]), float(parameter.detach().double().square().mean().sqrt()))
    beta = float(group.get("beta1") or 0.0)
    return StepSize(2 * (1 + beta), rate * (1 - beta) / square.sqrt(), "Adafactor: P^-1/2 H P^-1/2, without clipping")


def _muon(*_: Any) -> StepSize:
    rule = "must not be Muon, whose edge is known for full batches without momentum alone"
    raise InputError("optimizer", rule, "Muon", "measure curvature.extreme_eigenvalues")


_KINDS: Final[Mapping[str, Callable[..., StepSize]]] = {
    "ns_steps": _muon,
    "weight_lr_power": _schedule_free,
    "beta2_decay": _adafactor,
    "clip_threshold": _adafactor,
    "betas": _adam,
}
"""Option by which a group tells its optimizer -> its step size; the rest is SGD, RMSprop or refused."""
