"""Averages of the weights along training, through torch's own averaging functions.

The average is updated by `torch.optim.swa_utils`, and gives the same bits as its ``AveragedModel``; what is added is
the convention of all wrappers here: ``eval()`` puts the average into the model, ``train()`` the trained weights.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, cast, final

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from lowland.core.errors import InputError
from lowland.optim.moves import copy_all, matched
from lowland.optim.options import Base, check_count, check_share
from lowland.optim.parts import Held, Part, set_rates
from lowland.optim.wrapper import Wrapper

_Rule = Callable[[list[Tensor], list[Tensor], int], None]


class _Averaging(Part):
    own: ClassVar[tuple[str, ...]] = ("average",)
    evaluation: ClassVar[str | None] = "average"

    def __init__(self, start: int, interval: int) -> None:
        check_count("start", start)
        check_count("interval", interval, 1)
        self.start, self.interval = start, interval

    def numbers(self) -> dict[str, int | float | bool]:
        return {"averaged": 0}

    @abstractmethod
    def rule(self) -> _Rule:
        """Return torch's function that moves an average towards the weights."""

    def commit(self, held: Held) -> None:
        if held.steps >= self.start and (held.steps - self.start) % self.interval:
            return
        inside = dict(zip(*held.below(self), strict=True))
        parameters, average = held.own("average")
        weights = [inside[parameter] for parameter in parameters]
        count = int(held.numbers["averaged"])
        for into, values in matched(average, weights) if count else ():
            self.rule()(into, values, count)
        if not count:  # also before it has begun
            copy_all(average, weights)
        held.numbers["averaged"] += held.steps >= self.start


class _EMA(_Averaging):
    name: ClassVar[str] = "EMA"

    def __init__(self, decay: float, start: int, interval: int) -> None:
        check_share("decay", decay)
        self.decay = decay
        super().__init__(start, interval)

    def rule(self) -> _Rule:
        return cast(_Rule, get_ema_multi_avg_fn(self.decay))  # type: ignore[no-untyped-call]


class _SWA(_Averaging):
    name: ClassVar[str] = "SWA"

    def __init__(self, start: int, interval: int, rates: tuple[float, float] | None) -> None:
        if rates is not None and (len(rates) != 2 or min(rates) < 0):
            raise InputError("rates", "must be two multiples, at least 0", rates)
        self.rates = None if rates is None else tuple(rates)
        super().__init__(start, interval)

    @property
    def owns_rate(self) -> bool:  # type: ignore[override]
        return self.rates is not None

    def prepare(self, held: Held) -> None:
        if self.rates is not None and held.steps >= self.start:
            done = ((held.steps - self.start) % self.interval + 1) / self.interval
            set_rates(held, (1 - done) * self.rates[0] + done * self.rates[1])

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

    Memory: 2 sets of weights at the peak of a step, gradients among them; SGD alone takes 1.

    Args:
        decay: beta. Default 0.999 (torch's ``get_ema_multi_avg_fn``).
        start: Step after which averaging begins; before it the average is the trained weights. Default 0.
        interval: Steps between updates. Default 1.

    Example:
        >>> import torch
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
    Generalization", UAI 2018, algorithm 1. With ``rates`` the schedule is the optimizer's own from the start on: in
    each interval the rate falls from the first to the second (section 3.1), and its last weights are averaged. Call
    ``recalibrate`` after ``eval()`` for networks with batch norm.

    Memory: 2 sets of weights at the peak of a step, gradients among them; SGD alone takes 1.

    Args:
        start: Step after which averaging begins, normally three quarters of the run (paper, section 4).
        interval: Steps between updates, normally an epoch (paper, section 3).
        rates: Learning rates at the beginning and at the end of an interval, as multiples of what it is at ``start``;
            equal ones are a constant rate. None: left to the schedulers.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1)
        >>> SWA(torch.optim.SGD(layer.parameters(), lr=0.1), start=100, interval=10).averaged_steps
        0
    """

    def __init__(
        self,
        base: Base,
        *,
        start: int,
        interval: int,
        rates: tuple[float, float] | None = None,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(base, _SWA(start, interval, rates), model=model)
