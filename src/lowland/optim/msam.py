"""Momentum sharpness-aware minimization (MSAM).

Deviations from the official code (MarlonBecker/MSAM):

1. The unshifted weights come back from a saved copy, and they are the weights that are evaluated; the code adds the
   shift again.
2. Any number of groups under one norm; no constant is added to the norm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from lowland.core.errors import InputError
from lowland.optim.bases import Base
from lowland.optim.moves import ascend, copy_all, joint_norm
from lowland.optim.options import check_rho
from lowland.optim.wrapper import Wrapper

__all__ = ["MSAM"]


class MSAM(Wrapper):
    r"""Take each gradient further along the last update: sharpness-aware in a single pass.

    .. math:: g = \nabla L(\tilde w), \quad \tilde w = w - \rho\, v / \lVert v \rVert_2, \quad
        v \leftarrow \mu v + g, \quad w \leftarrow w - \eta v

    Becker, Altrock and Risse, "Momentum-SAM: Sharpness Aware Minimization without Computational Overhead",
    NeurIPS 2025, algorithm 1. The model holds the shifted weights while training; ``eval()`` puts w into it.

    Args:
        base: SGD with momentum, or another optimizer with a ``momentum_buffer``.
        rho: Length of the shift; also per parameter group. Default 3 (paper, CIFAR-100).
        start: First step after which weights are shifted, for a warm-up without it (paper, ViT). Default 0.
        schedule: Factor on every group's ``rho`` as a function of the step; None: 1.
        model: The model, for ``recalibrate``; None finds it by its parameters.

    Raises:
        InputError: If an argument breaks a rule, or the base has no momentum.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> MSAM(torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)).param_groups[0]["rho"]
        3.0
    """

    method: ClassVar[str] = "MSAM"
    evaluation: ClassVar[str] = "weights"
    own: ClassVar[tuple[str, ...]] = ("weights",)

    def __init__(
        self,
        base: Base,
        rho: float = 3.0,
        *,
        start: int = 0,
        schedule: Callable[[int], float] | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.rho = check_rho(rho)
        if start < 0:
            raise InputError("start", "must not be negative", start)
        self.start, self.schedule = start, schedule
        super().__init__(base, model=model)

    def _check_group(self, group: Any) -> None:
        super()._check_group(group)
        check_rho(group.get("rho", 0.0))
        if "momentum" in group and not group["momentum"]:
            raise InputError("base", "must have momentum", group["momentum"], "pass momentum=0.9")
        if "betas" in group:
            raise InputError("base", "must keep a momentum buffer, as SGD does", "betas", "use SGD with momentum")

    def _adopt_group(self, group: dict[str, Any]) -> None:
        super()._adopt_group(group)
        group.setdefault("rho", self.rho)

    def _before_base(self) -> None:
        copy_all(*self._own("weights"))

    def _after_base(self) -> None:
        shifted, weights = self._own("weights")
        copy_all(weights, shifted)
        if self.steps < self.start:
            return
        factor = 1.0 if self.schedule is None else float(self.schedule(self.steps))
        moves: dict[float, list[tuple[Tensor, Tensor]]] = {}
        for base in self._held.bases:
            for group in base.param_groups:
                rho = float(group.get("rho", self.rho)) * factor
                for parameter in group["params"]:
                    velocity = base.state.get(parameter, {}).get("momentum_buffer")
                    if velocity is not None and rho > 0:
                        moves.setdefault(rho, []).append((parameter, velocity))
        norm = joint_norm([velocity for pairs in moves.values() for _, velocity in pairs])
        for rho, pairs in moves.items():
            ascend([p for p, _ in pairs], [v for _, v in pairs], norm, -rho)
