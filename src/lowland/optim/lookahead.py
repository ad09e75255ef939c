"""Lookahead: slow weights that follow the fast ones every few steps."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from lowland.core.errors import InputError
from lowland.optim.bases import Base
from lowland.optim.moves import copy_all, interpolate
from lowland.optim.wrapper import Wrapper

__all__ = ["Lookahead", "check_period"]


class Lookahead(Wrapper):
    r"""k steps of the base, then one step of the slow weights towards where they led.

    .. math:: \phi \leftarrow \phi + \alpha (\theta - \phi), \qquad \theta \leftarrow \phi \qquad \text{every } k

    Zhang, Lucas, Hinton and Ba, "Lookahead Optimizer: k steps forward, 1 step back", NeurIPS 2019, algorithm 1. The
    base keeps its momentum; evaluation uses the slow weights.

    Args:
        base: An optimizer instance, or several.
        period: k. Default 5 (paper).
        alpha: Step of the slow weights. Default 0.5 (paper; 0.8 in its CIFAR runs).
        slow_weights: ``"initial"``: they start at the initial weights (paper). ``"lazy"``: at the fast weights of the
            first synchronization, which then does nothing (timm).
        model: The model, for ``recalibrate``; None finds it by its parameters.

    Raises:
        InputError: If an argument breaks a rule.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> Lookahead(torch.optim.SGD(layer.parameters(), lr=0.1)).period
        5
    """

    method: ClassVar[str] = "Lookahead"
    evaluation: ClassVar[str] = "slow"
    own: ClassVar[tuple[str, ...]] = ("slow",)

    def __init__(
        self,
        base: Base,
        *,
        period: int = 5,
        alpha: float = 0.5,
        slow_weights: Literal["initial", "lazy"] = "initial",
        model: nn.Module | None = None,
    ) -> None:
        check_period(period, alpha, slow_weights)
        self.period, self.alpha, self.slow_weights = period, alpha, slow_weights
        super().__init__(base, model=model)

    def _after_base(self) -> None:
        done = self.steps + 1
        if done % self.period:
            return
        fast, slow = self._own("slow")
        if done == self.period and self.slow_weights == "lazy":
            copy_all(slow, fast)
        interpolate(slow, fast, self.alpha)
        copy_all(fast, slow)


def check_period(period: int, alpha: float, slow_weights: str) -> None:
    """Refuse options of slow weights that break a rule.

    Args:
        period: Steps between synchronizations.
        alpha: Step of the slow weights.
        slow_weights: Where they start.

    Raises:
        InputError: If one breaks its rule.
    """
    if period < 1:
        raise InputError("period", "must be at least 1", period)
    if not 0 <= alpha <= 1:
        raise InputError("alpha", "must lie in [0, 1]", alpha)
    if slow_weights not in ("initial", "lazy"):
        raise InputError("slow_weights", 'must be "initial" or "lazy"', slow_weights)
