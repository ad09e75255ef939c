"""Lookahead: slow weights that follow the fast ones every few steps."""

from __future__ import annotations

from typing import ClassVar, Literal, final

from torch import Tensor, nn

from lowland.optim.moves import copy_all, interpolate
from lowland.optim.options import Base, check_choice, check_count, check_share
from lowland.optim.parts import Held, Part
from lowland.optim.wrapper import Wrapper

Start = Literal["initial", "lazy"]


class SlowWeights(Part):
    """Weights that follow the fast ones every few steps; one mechanism for Lookahead and SALA."""

    name: ClassVar[str] = "Lookahead"
    rank: ClassVar[int] = 1
    own: ClassVar[tuple[str, ...]] = ("slow",)
    evaluation: ClassVar[str | None] = "slow"

    def __init__(self, period: int, alpha: float, slow_weights: Start) -> None:
        check_count("period", period, 1)
        check_share("alpha", alpha)
        check_choice("slow_weights", slow_weights, Start)
        self.period, self.alpha, self.slow_weights = period, alpha, slow_weights

    def commit(self, held: Held) -> None:
        """Let both meet at the end of a period."""
        if held.steps % self.period == 0:
            fast, slow = self.follow(held, lazy=held.steps == self.period)
            copy_all(fast, slow)

    def follow(self, held: Held, *, lazy: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Move the slow weights towards the fast ones; lazy ones begin there if this is the first time."""
        fast, slow = held.own("slow")
        if lazy and self.slow_weights == "lazy":
            copy_all(slow, fast)
        interpolate(slow, fast, self.alpha)
        return fast, slow


@final
class Lookahead(Wrapper):
    r"""k steps of the base, then one step of the slow weights towards where they led.

    .. math:: \phi \leftarrow \phi + \alpha (\theta - \phi), \qquad \theta \leftarrow \phi \qquad \text{every } k

    Zhang, Lucas, Hinton and Ba, "Lookahead Optimizer: k steps forward, 1 step back", NeurIPS 2019, algorithm 1. The
    base keeps its momentum; evaluation uses the slow weights.

    Memory: 2 sets of weights at the peak of a step, gradients among them; SGD alone takes 1.

    Args:
        period: k. Default 5 (paper).
        alpha: Step of the slow weights. Default 0.5 (paper; 0.8 in its CIFAR runs).
        slow_weights: ``"initial"``: they start at the initial weights (paper). ``"lazy"``: at the fast weights of the
            first synchronization, which then does nothing (timm).

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> Lookahead(torch.optim.SGD(layer.parameters(), lr=0.1)).period
        5
    """

    def __init__(
        self,
        base: Base,
        *,
        period: int = 5,
        alpha: float = 0.5,
        slow_weights: Start = "initial",
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(base, SlowWeights(period, alpha, slow_weights), model=model)
