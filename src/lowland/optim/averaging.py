"""Averages of the weights along training, through torch's own averaging functions.

The average is updated by `torch.optim.swa_utils`, and gives the same bits as its ``AveragedModel``; what is added is
the convention of all wrappers here: ``eval()`` puts the average into the model, ``train()`` the trained weights.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, cast, final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from lowland.core.errors import InputError
from lowland.optim.bases import Base
from lowland.optim.holder import Holder
from lowland.optim.moves import copy_all, shards
from lowland.optim.parts import Part
from lowland.optim.wrapper import Wrapper

__all__ = ["EMA", "SWA"]


_Rule = Callable[[list[Tensor], list[Tensor], int], None]


class _Averaging(Part):
    own: ClassVar[tuple[str, ...]] = ("average",)
    evaluation: ClassVar[str | None] = "average"
    steps_aside: ClassVar[bool] = True

    def __init__(self, start: int, interval: int) -> None:
        if start < 0:
            raise InputError("start", "must not be negative", start)
        if interval < 1:
            raise InputError("interval", "must be at least 1", interval)
        self.start, self.interval = start, interval

    def numbers(self) -> dict[str, int | float | bool]:
        return {"averaged": 0}

    @abstractmethod
    def rule(self) -> _Rule:
        """Return torch's function that moves an average towards the weights."""

    def commit(self, held: Holder) -> None:
        inside = dict(zip(*held.below(self), strict=True))
        parameters, average = held.own("average")
        weights = [inside[parameter] for parameter in parameters]
        done, count = held.steps, int(held.numbers["averaged"])
        if done < self.start:
            copy_all(average, weights)
        elif (done - self.start) % self.interval == 0:
            if count == 0:
                copy_all(average, weights)
            else:
                buckets: dict[tuple[torch.device, torch.dtype], list[int]] = {}
                into, values = shards(average), shards(weights)
                for i, tensor in enumerate(into):
                    buckets.setdefault((tensor.device, tensor.dtype), []).append(i)
                for chosen in buckets.values():
                    self.rule()([into[i] for i in chosen], [values[i] for i in chosen], count)
            held.numbers["averaged"] += 1


class _EMA(_Averaging):
    name: ClassVar[str] = "EMA"

    def __init__(self, decay: float, start: int, interval: int) -> None:
        if not 0 <= decay <= 1:
            raise InputError("decay", "must lie in [0, 1]", decay)
        self.decay = decay
        super().__init__(start, interval)

    def rule(self) -> _Rule:
        return cast(_Rule, get_ema_multi_avg_fn(self.decay))  # type: ignore[no-untyped-call]


class _SWA(_Averaging):
    name: ClassVar[str] = "SWA"

    def rule(self) -> _Rule:
        return cast(_Rule, get_swa_multi_avg_fn())  # type: ignore[no-untyped-call]


class _Averaged(Wrapper):
    @property
    def averaged_steps(self) -> int:
        """Number of weights in the average."""
        return int(self._held.numbers["averaged"])


@final
class EMA(_Averaged):
    r"""Evaluate an exponential moving average of the weights.

    .. math:: \bar w \leftarrow \beta \bar w + (1 - \beta) w

    Args:
        base: An optimizer instance, or several.
        decay: beta. Default 0.999 (torch's ``get_ema_multi_avg_fn``).
        start: Step after which averaging begins; before it the average is the trained weights. Default 0.
        interval: Steps between updates. Default 1.
        model: The model, for ``recalibrate``; None meets it in a perturbed pass or a closure.

    Raises:
        InputError: If an argument breaks a rule.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> EMA(torch.optim.SGD(layer.parameters(), lr=0.1)).decay
        0.999
    """

    def __init__(
        self,
        base: Base,
        *,
        decay: float = 0.999,
        start: int = 0,
        interval: int = 1,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(base, _EMA(decay, start, interval), model=model)


@final
class SWA(_Averaged):
    r"""Evaluate the plain average of the weights since a given step.

    .. math:: \bar w \leftarrow \bar w + (w - \bar w) / (n + 1)

    Izmailov, Podoprikhin, Garipov, Vetrov and Wilson, "Averaging Weights Leads to Wider Optima and Better
    Generalization", UAI 2018, algorithm 1. Call ``recalibrate`` after ``eval()`` for networks with batch norm.

    Args:
        base: An optimizer instance, or several.
        start: Step after which averaging begins, normally three quarters of the run (paper, section 4).
        interval: Steps between updates, normally an epoch (paper, section 3).
        model: The model, for ``recalibrate``; None meets it in a perturbed pass or a closure.

    Raises:
        InputError: If an argument breaks a rule.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> SWA(torch.optim.SGD(layer.parameters(), lr=0.1), start=100, interval=10).averaged_steps
        0
    """

    def __init__(self, base: Base, *, start: int, interval: int, model: nn.Module | None = None) -> None:
        super().__init__(base, _SWA(start, interval), model=model)
