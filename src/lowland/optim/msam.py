"""Momentum sharpness-aware minimization (MSAM).

Deviations from the official code (MarlonBecker/MSAM):

1. The unshifted weights come back from a saved copy, and they are the weights that are evaluated; the code adds the
   shift again.
2. Any number of groups under one norm; no constant is added to the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from lowland.core.errors import InputError, require
from lowland.optim.moves import ascend, copy_all, joint_norm
from lowland.optim.options import Base, check_count, check_rho
from lowland.optim.parts import Held, Part
from lowland.optim.wrapper import Wrapper


class _MSAM(Part):
    name: ClassVar[str] = "MSAM"
    rank: ClassVar[int] = 1
    own: ClassVar[tuple[str, ...]] = ("weights",)
    evaluation: ClassVar[str | None] = "weights"
    reads_state: ClassVar[bool] = True

    def __init__(self, rho: float, start: int, schedule: Callable[[int], float] | None) -> None:
        self.rho = check_rho(rho)
        check_count("start", start)
        self.start, self.schedule = start, schedule

    def check_group(self, group: Mapping[str, Any]) -> None:
        for key in ("rho", "shift"):
            check_rho(group.get(key, 0.0))
        momentum, rule = group.get("momentum", True), "must keep a momentum buffer, as SGD does"
        require(momentum, "base", "must have momentum", momentum, "pass momentum=0.9")
        require("betas" not in group, "base", rule, "betas", "use SGD with momentum")

    def adopt_group(self, group: dict[str, Any]) -> None:
        group.setdefault("rho", self.rho)

    def prepare(self, held: Held) -> None:
        copy_all(*held.own("weights"))

    def commit(self, held: Held) -> None:
        shifted, weights = held.own("weights")
        copy_all(weights, shifted)
        step = held.steps - 1
        if step < self.start:
            return
        factor = 1.0 if self.schedule is None else float(self.schedule(step))
        key = "rho" if held.method is None else "shift"  # a method inside has a `rho` of its own in the groups
        moves: dict[float, list[tuple[Tensor, Tensor]]] = {}
        for base in held.bases:
            for group in base.param_groups:
                rho = float(group.get(key, self.rho)) * factor
                for parameter in group["params"]:
                    velocity = base.state.get(parameter, {}).get("momentum_buffer")
                    if velocity is not None and velocity.layout != torch.strided:
                        rule = "must have dense gradients, whose momentum it follows"
                        raise InputError("params", rule, str(velocity.layout), "use sparse=False")
                    if velocity is not None and rho > 0:
                        moves.setdefault(rho, []).append((parameter, velocity))
        norm = joint_norm([velocity for pairs in moves.values() for _, velocity in pairs])
        for rho, pairs in moves.items():
            ascend([p for p, _ in pairs], [v for _, v in pairs], norm, -rho)


@final
class MSAM(Wrapper):
    r"""Take each gradient further along the last update: sharpness-aware in a single pass.

    .. math:: g = \nabla L(\tilde w), \quad \tilde w = w - \rho\, v / \lVert v \rVert_2, \quad
        v \leftarrow \mu v + g, \quad w \leftarrow w - \eta v

    Becker, Altrock and Risse, "Momentum-SAM: Sharpness Aware Minimization without Computational Overhead",
    NeurIPS 2025, algorithm 1. The model holds the shifted weights while training; ``eval()`` puts w into it.

    Memory: 3 sets of weights at the peak of a step, gradients and the base's momentum among them; SGD alone takes 1.

    Args:
        base: SGD with momentum, or another optimizer with a ``momentum_buffer``.
        rho: Length of the shift; also per parameter group (``shift`` around a method with a ``rho`` there). Default 3
            (paper, CIFAR-100).
        start: First step after which weights are shifted, for a warm-up without it (paper, ViT). Default 0.
        schedule: Factor on every group's ``rho`` as a function of the step; None: 1.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> MSAM(torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)).param_groups[0]["rho"]
        3.0
    """

    def __init__(
        self,
        base: Base,
        rho: float = 3.0,
        *,
        start: int = 0,
        schedule: Callable[[int], float] | None = None,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(base, _MSAM(rho, start, schedule), model=model)
