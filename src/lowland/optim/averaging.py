"""Averages of the weights along training, through torch's own averaging functions.

The average is updated by `torch.optim.swa_utils`, and gives the same bits as its ``AveragedModel``; what is added is
the convention of all wrappers here: ``eval()`` puts the average into the model, ``train()`` the trained weights.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from lowland.core.errors import InputError
from lowland.optim.bases import Base
from lowland.optim.moves import copy_all, shards
from lowland.optim.wrapper import Wrapper

__all__ = ["EMA", "SWA"]


class _Averaging(Wrapper):
    evaluation: ClassVar[str] = "average"
    own: ClassVar[tuple[str, ...]] = ("average",)

    def __init__(self, base: Base, *, start: int, interval: int, model: nn.Module | None) -> None:
        if start < 0:
            raise InputError("start", "must not be negative", start)
        if interval < 1:
            raise InputError("interval", "must be at least 1", interval)
        self.start, self.interval = start, interval
        super().__init__(base, model=model)

    @property
    def averaged_steps(self) -> int:
        """Number of weights in the average."""
        return int(self._held.numbers["averaged"])

    def _fresh_numbers(self) -> dict[str, int | float | bool]:
        return {"steps": 0, "averaged": 0}

    @abstractmethod
    def _average(self) -> Callable[[list[Tensor], list[Tensor], int], None]:
        """Return torch's function that moves an average towards the weights."""

    def _after_base(self) -> None:
        trained, average = self._own("average")
        done, numbers = self.steps + 1, self._held.numbers
        if done < self.start:
            copy_all(average, trained)
        elif (done - self.start) % self.interval == 0:
            if numbers["averaged"] == 0:
                copy_all(average, trained)
            else:
                buckets: dict[tuple[torch.device, torch.dtype], list[int]] = {}
                into, values = shards(average), shards(trained)
                for i, part in enumerate(into):
                    buckets.setdefault((part.device, part.dtype), []).append(i)
                for chosen in buckets.values():
                    self._average()([into[i] for i in chosen], [values[i] for i in chosen], int(numbers["averaged"]))
            numbers["averaged"] += 1


class EMA(_Averaging):
    r"""Evaluate an exponential moving average of the weights.

    .. math:: \bar w \leftarrow \beta \bar w + (1 - \beta) w

    Args:
        base: An optimizer instance, or several.
        decay: beta. Default 0.999 (torch's ``get_ema_multi_avg_fn``).
        start: Step after which averaging begins; before it the average is the trained weights. Default 0.
        interval: Steps between updates. Default 1.
        model: The model, for ``recalibrate``; None finds it by its parameters.

    Raises:
        InputError: If an argument breaks a rule.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> EMA(torch.optim.SGD(layer.parameters(), lr=0.1)).decay
        0.999
    """

    method: ClassVar[str] = "EMA"

    def __init__(
        self,
        base: Base,
        *,
        decay: float = 0.999,
        start: int = 0,
        interval: int = 1,
        model: nn.Module | None = None,
    ) -> None:
        if not 0 <= decay <= 1:
            raise InputError("decay", "must lie in [0, 1]", decay)
        self.decay = decay
        super().__init__(base, start=start, interval=interval, model=model)

    def _average(self) -> Callable[[list[Tensor], list[Tensor], int], None]:
        chosen: Callable[[list[Tensor], list[Tensor], int], None] = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]
        return chosen


class SWA(_Averaging):
    r"""Evaluate the plain average of the weights since a given step.

    .. math:: \bar w \leftarrow \bar w + (w - \bar w) / (n + 1)

    Izmailov, Podoprikhin, Garipov, Vetrov and Wilson, "Averaging Weights Leads to Wider Optima and Better
    Generalization", UAI 2018, algorithm 1. Call ``recalibrate`` after ``eval()`` for networks with batch norm.

    Args:
        base: An optimizer instance, or several.
        start: Step after which averaging begins, normally three quarters of the run (paper, section 4).
        interval: Steps between updates, normally an epoch (paper, section 3).
        model: The model, for ``recalibrate``; None finds it by its parameters.

    Raises:
        InputError: If an argument breaks a rule.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> SWA(torch.optim.SGD(layer.parameters(), lr=0.1), start=100, interval=10).averaged_steps
        0
    """

    method: ClassVar[str] = "SWA"

    def __init__(self, base: Base, *, start: int, interval: int, model: nn.Module | None = None) -> None:
        super().__init__(base, start=start, interval=interval, model=model)

    def _average(self) -> Callable[[list[Tensor], list[Tensor], int], None]:
        chosen: Callable[[list[Tensor], list[Tensor], int], None] = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
        return chosen
