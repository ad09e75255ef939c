"""Sharpness-aware Lookahead (SALA).

Deviations from the official code (cltan023/sala2023):

1. The slow weights start at the initial weights, as Lookahead defines them; so the first period is in the stage that
   its distance says. With ``slow_weights="lazy"`` they start at the first synchronization; the first period ascends.
2. One norm over all groups; ``norm="group"`` is the official one, whose ascent is longer by the root of their number.
3. The phase and the distance are part of the checkpoint.
"""

from __future__ import annotations

from typing import Any, ClassVar, Unpack, final

import torch
from torch import Tensor

from lowland.optim.lookahead import SlowWeights, Start
from lowland.optim.moves import add_scaled, copy_all, joint_norm, scale_all, shards
from lowland.optim.options import AscentKeywords, Base
from lowland.optim.parts import Held, Method
from lowland.optim.phases import Phase
from lowland.optim.wrapper import Wrapper


class _Ascent(Method):
    name: ClassVar[str] = "SALA"

    def __init__(self, rho: float, period: int) -> None:
        super().__init__(rho)
        self._period = period

    def numbers(self) -> dict[str, int | float | bool]:
        # d = 0 before the first synchronization, as in the official code; with k > 1 it is never looked at
        return {"near": True, "periods": 0, "ascents": 0}

    def wants(self, held: Held) -> bool:
        if (held.steps + 1) % self._period:
            return False
        self.settle(held)
        return bool(held.numbers["near"])

    def settle(self, held: Held) -> None:
        """Read whether d < rho: at most one number per period from the device."""
        if held.scratch.pending is not None:
            number, arrived = held.scratch.pending
            if arrived is not None:
                arrived.synchronize()
            held.numbers["near"], held.scratch.pending = bool(number), None


class _Slow(SlowWeights):
    name: ClassVar[str] = "SALA"

    def prepare(self, held: Held) -> None:
        if (held.steps + 1) % self.period == 0:
            copy_all(*held.own("slow"))

    def commit(self, held: Held) -> None:
        if held.steps % self.period == 0:
            held.numbers["periods"] += 1
            held.numbers["ascents"] += held.scratch.phase is Phase.READY
        if held.steps % self.period != self.period - 1:
            return
        fast, slow = self.follow(held, lazy=held.steps < self.period or held.steps == self.period == 1)
        differences = [held.backup(parameter) for parameter in fast]
        copy_all(differences, fast)
        torch._foreach_sub_(shards(differences), shards(slow))
        method, step = held.method, held.steps - 1
        assert method is not None
        near = joint_norm(differences) < max(method.radius(group, step) for group in held.groups())
        scale_all(fast, (~near).float())  # fast weights are the slow ones where near; the host need not know for that
        add_scaled(fast, slow, near.float())
        held.scratch.pending = _to_host(near)


@final
class SALA(Wrapper):
    r"""Lookahead whose last step of a period starts at the slow weights with a gradient from ahead or from uphill.

    With fast weights theta, slow weights phi and the step s counted from 1: when s = k - 1 (mod k),
    phi <- phi + alpha (theta - phi), d = ||theta - phi||, and theta <- phi if d < rho. When s = 0 (mod k), the base
    steps from phi: with the gradient at theta, which costs no second pass (d >= rho, stage one), else with SAM's
    gradient at phi (stage two).

    Tan, Zhang, Liu and Gong, "Sharpness-Aware Lookahead for Accelerating Convergence and Improving Generalization",
    IEEE TPAMI 2024, and its code. Cost: 1 + (share of stage two) / k passes per step, see `stage_two_share`.

    Memory: 3 sets of weights at the peak of a step, gradients among them; SGD alone takes 1.

    Args:
        rho: Length of the ascent, and the distance below which stage two begins. Default 0.2 (official run script; the
            class there has 0.05).
        period: k. Default 2 (official run script; 5 in the class).
        alpha: Step of the slow weights. Default 0.5 (official run script; 0.8 in the class).
        slow_weights: ``"initial"`` or ``"lazy"`` (official).

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> SALA(torch.optim.SGD(layer.parameters(), lr=0.1)).needs_perturbation()
        False
    """

    def __init__(
        self,
        base: Base,
        rho: float = 0.2,
        *,
        period: int = 2,
        alpha: float = 0.5,
        slow_weights: Start = "initial",
        **options: Unpack[AscentKeywords],
    ) -> None:
        slow = _Slow(period, alpha, slow_weights)
        super().__init__(base, _Ascent(rho, period), slow, **options)

    @property
    def stage_two_share(self) -> float:
        """Share of the periods so far that ended in stage two; 0 before the first."""
        periods = self._held.numbers["periods"]
        return self._held.numbers["ascents"] / periods if periods else 0.0


def _to_host(flag: Tensor) -> tuple[Tensor, Any]:
    """Send a flag to the host without waiting for it; it is valid after the event (None: at once)."""
    if flag.device.type != "cuda":
        return flag, None
    there = torch.empty((), dtype=torch.bool, pin_memory=True)
    there.copy_(flag, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return there, arrived
