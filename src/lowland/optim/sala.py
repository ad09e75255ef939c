"""Sharpness-aware Lookahead (SALA).

Deviations from the official code (cltan023/sala2023):

1. The slow weights start at the initial weights, as Lookahead defines them; so the first period is in the stage that
   its distance says. With ``slow_weights="lazy"`` they start at the first synchronization; the first period ascends.
2. One norm over all groups; ``norm="group"`` is the official one, whose ascent is longer by the root of their number.
3. The phase and the distance are part of the checkpoint.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Unpack

import torch
from torch import Tensor, nn

from lowland.optim.ascent import Ascent
from lowland.optim.bases import Base
from lowland.optim.lookahead import check_period
from lowland.optim.moves import copy_all, copy_where, interpolate, joint_norm, shards
from lowland.optim.options import AscentKeywords

__all__ = ["SALA"]


class SALA(Ascent):
    r"""Lookahead whose last step of a period starts at the slow weights with a gradient from ahead or from uphill.

    With fast weights theta, slow weights phi and the step s counted from 1: when s = k - 1 (mod k),
    phi <- phi + alpha (theta - phi), d = ||theta - phi||, and theta <- phi if d < rho. When s = 0 (mod k), the base
    steps from phi: with the gradient at theta, which costs no second pass (d >= rho, stage one), else with SAM's
    gradient at phi (stage two).

    Tan, Zhang, Liu and Gong, "Sharpness-Aware Lookahead for Accelerating Convergence and Improving Generalization",
    IEEE TPAMI 2024, and its code. Cost: 1 + (share of stage two) / k passes per step, see `stage_two_share`.

    Args:
        base: An optimizer instance, or several under one norm.
        rho: Length of the ascent, and the distance below which stage two begins. Default 0.2 (official run script; the
            class there has 0.05).
        period: k. Default 2 (official run script; 5 in the class).
        alpha: Step of the slow weights. Default 0.5 (official run script; 0.8 in the class).
        slow_weights: ``"initial"`` or ``"lazy"`` (official).
        model: The model whose buffers are protected; None finds it by its parameters.
        **options: How the step behaves, see `AscentOptions`.

    Raises:
        InputError: If an argument breaks a rule.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> SALA(torch.optim.SGD(layer.parameters(), lr=0.1)).needs_perturbation()
        False
    """

    method: ClassVar[str] = "SALA"
    evaluation: ClassVar[str] = "slow"
    own: ClassVar[tuple[str, ...]] = ("slow",)

    def __init__(
        self,
        base: Base,
        rho: float = 0.2,
        *,
        period: int = 2,
        alpha: float = 0.5,
        slow_weights: Literal["initial", "lazy"] = "initial",
        model: nn.Module | None = None,
        **options: Unpack[AscentKeywords],
    ) -> None:
        check_period(period, alpha, slow_weights)
        self.period, self.alpha, self.slow_weights = period, alpha, slow_weights
        super().__init__(base, rho, model=model, **options)

    @property
    def stage_two_share(self) -> float:
        """Share of the periods so far that ended in stage two; 0 before the first."""
        periods = self._held.numbers["periods"]
        return self._held.numbers["ascents"] / periods if periods else 0.0

    def _fresh_numbers(self) -> dict[str, int | float | bool]:
        # d = 0 before the first synchronization, as in the official code; with k > 1 it is never looked at
        return {"steps": 0, "near": True, "periods": 0, "ascents": 0}

    def _last(self) -> bool:
        return (self.steps + 1) % self.period == 0

    def _wants_pass(self) -> bool:
        return self._last() and self._near()

    def _near(self) -> bool:
        """Tell whether the distance is below rho; reads at most one number per period from the device.

        Returns:
            True for stage two.
        """
        pending = self._held.scratch.pending
        if pending is not None:
            number, arrived = pending
            if arrived is not None:
                arrived.synchronize()
            self._held.numbers["near"] = bool(number)
            self._held.scratch.pending = None
        return bool(self._held.numbers["near"])

    def __getstate__(self) -> dict[str, Any]:
        self._near()
        return super().__getstate__()

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state with ours added; the same in training and evaluation mode.

        Returns:
            ``state`` and ``param_groups`` as torch's, which a bare base loads, and ``"lowland"``.
        """
        self._near()
        return super().state_dict()

    def _before_base(self) -> None:
        if self._last():
            copy_all(*self._own("slow"))

    def _after_base(self) -> None:
        done, numbers = self.steps + 1, self._held.numbers
        if self._last():
            numbers["periods"] += 1
            numbers["ascents"] += self._held.scratch.ready
        if done % self.period == self.period - 1:
            self._synchronize(lazy=self.slow_weights == "lazy" and done < self.period)

    def _synchronize(self, *, lazy: bool) -> None:
        fast, slow = self._own("slow")
        if lazy or (self.period == 1 and self.slow_weights == "lazy" and self.steps == 0):
            copy_all(slow, fast)
        interpolate(slow, fast, self.alpha)
        differences = [self._backup(parameter) for parameter in fast]
        copy_all(differences, fast)
        torch._foreach_sub_(shards(differences), shards(slow))
        near = joint_norm(differences) < max(self._radius(group) for group in self.param_groups)
        copy_where(near, fast, slow)
        self._held.scratch.pending = _to_host(near)


def _to_host(flag: Tensor) -> tuple[Tensor, Any]:
    """Send a flag to the host without waiting for it.

    Returns:
        The flag there, and the event after which it is valid (None: at once).
    """
    if flag.device.type != "cuda":
        return flag, None
    there = torch.empty((), dtype=torch.bool, pin_memory=True)
    there.copy_(flag, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return there, arrived
