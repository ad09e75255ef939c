"""LLR: reshape the loss itself, f(mean loss), so that its height decides how fast training moves.

Chen, Jin and Shang, "Efficient Loss Landscape Reshaping for Convolutional Neural Networks", IEEE TNNLS 36(7), 2025.

The batch-mean loss L becomes ``L0 f(L / L0)``; its gradient is ``f'(L / L0)`` times the plain one. The direction of the
data gradient does not change, so a two-pass optimizer's ascent does not either. Weight decay and momentum are not
scaled: relative to the data, decay is stronger where f' is small.

Deviations:
1. Calm-down epochs are plain; the original multiplies them by a constant that is 1 in all its settings.
2. The initial loss measured in the first epoch is the mean over all its samples on all processes; the original takes
   the few batches that it happens to print.
3. The slope that is logged is the true one; the original logs twice the slope of sech.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowland.core.contexts import current_pass
from lowland.core.errors import InputError, LowlandWarning, require
from lowland.core.risk import EmpiricalRisk
from lowland.core.types import Batch
from lowland.losses.base import Criterion, Totals, TrainingLoss, rows_of
from lowland.losses.divergence import outside_autocast
from lowland.losses.multipliers import Multipliers
from lowland.losses.reshapers import Reshaper, Sech, wide
from lowland.losses.schedule import ActiveEpochs
from lowland.losses.sharing import rank_and_world

_NEAR_ZERO: Final = 0.03
_STILL: Final = 5
"""So many whole epochs with a mean multiplier below that, and a user is told."""


class LLR(TrainingLoss):
    """Reshape the batch-mean of any criterion by a function of its value.

    Two equal ways to apply it: call it in place of the criterion, or keep the criterion and scale its gradient by
    `multiplier`. When gradients are accumulated over micro-batches, each micro-batch is reshaped by its own mean.

    Args:
        criterion: A criterion, or another loss of this room; its value must not be negative.
        reshaper: The function f. Default `Sech` with a=2.5, b=0.15.
        initial_loss: L0 in units of the loss; ``"first_epoch"`` takes the mean of the first epoch, which stays plain.
            None: call `measure_initial_loss` before training.
        start: First reshaped epoch, or a fraction of the run. Default 0.
        stop: First epoch that is plain again, or a fraction of the run. Default None: never.
        calm_down: Plain epochs at the end of the run, or a fraction of it. Default 0; the code's option uses 10 epochs.
        distributed: ``"local"`` reshapes the mean of each process by itself, as the original does; ``"global"`` takes
            the slope at the mean over all processes, so that all have the same multiplier.

    Example:
        >>> loss = LLR(nn.CrossEntropyLoss(), Sech(a=2.5, b=0.15), initial_loss=2.3)
        >>> round(loss.multiplier(torch.tensor(2.3)).item(), 3)
        0.014
    """

    def __init__(
        self,
        criterion: Criterion | TrainingLoss,
        reshaper: Reshaper | None = None,
        *,
        initial_loss: float | Literal["first_epoch"] | None = None,
        start: int | float = 0,
        stop: int | float | None = None,
        calm_down: int | float = 0,
        distributed: Literal["local", "global"] = "local",
    ) -> None:
        super().__init__(criterion)
        advice = "wrap a function in lowland.losses.Custom"
        if reshaper is not None and not isinstance(reshaper, Reshaper):
            raise InputError("reshaper", "must be a Reshaper", type(reshaper).__name__, advice)
        require(distributed in ("local", "global"), "distributed", 'must be "local" or "global"', distributed)
        if isinstance(initial_loss, str) and initial_loss != "first_epoch":
            raise InputError("initial_loss", 'must be a number, "first_epoch" or None', initial_loss)
        self.reshaper = Sech() if reshaper is None else reshaper
        self.active = ActiveEpochs(start, stop, calm_down)
        self.distributed = distributed
        self._given = initial_loss
        self._initial: float | None = None
        if initial_loss is not None and not isinstance(initial_loss, str):
            self.initial_loss = initial_loss
        self._first = Totals()
        self._negative: Tensor | None = None
        self._epochs: int | None = None
        self.multipliers = Multipliers()
        self._still = 0  # epochs on end with a multiplier near 0

    @property
    def initial_loss(self) -> float | None:
        """The normalizing constant L0; None while it is unknown."""
        return self._initial

    @initial_loss.setter
    def initial_loss(self, value: float) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise InputError("initial_loss", "must be a positive, finite number", value)
        self._initial = float(value)

    def measure_initial_loss(self, model: nn.Module, batches: Iterable[Any]) -> float:
        """Keep L0 as `measure_initial_loss` finds it at the present weights, over the same data on all processes."""
        self.initial_loss = measure_initial_loss(self.plain_criterion, model, batches)
        assert self._initial is not None
        return self._initial

    def multiplier(self, loss: Tensor) -> Tensor:
        """Return f'(loss / L0) for plain batch means of any shape, in at least float32; 1 where reshaping is off."""
        self._require_initial()
        loss = loss.detach()
        if not self._reshapes():
            return torch.ones_like(wide(loss))
        assert self._initial is not None
        return self.reshaper.at(self._epoch).multiplier(loss, self._initial)

    def _settings(self) -> dict[str, Any]:
        return {
            "reshaper": self.reshaper,
            "initial_loss": self._given,
            "active": self.active,
            "distributed": self.distributed,
        }

    @property
    def bound_to_processes(self) -> str | None:
        """Why a run cannot go on with another number of processes: a local mean is one process's own."""
        if self.distributed == "local":
            return 'LLR reshapes the mean of each process\'s share of a batch (distributed="global" takes the whole)'
        return super().bound_to_processes

    def _reshapes(self) -> bool:
        return self._initial is not None and self.active.contains(self._epoch, self._epochs)

    def _require_initial(self) -> None:
        if self._initial is None and self._given != "first_epoch":
            advice = 'pass a number, call measure_initial_loss(model, loader), or pass initial_loss="first_epoch"'
            raise InputError("initial_loss", "must be known before the first loss is reshaped", None, advice)

    def _training(self, output: Any, batch: Batch) -> Tensor:
        self._require_initial()
        reshapes = self._reshapes()
        loss = self._inner(output, batch)
        clean = current_pass() == "clean"
        if clean and self._initial is None:
            self._first.add("loss", loss, rows_of(output))
        with outside_autocast(loss.device):
            met = value = loss
            if reshapes:
                assert self._initial is not None
                met = self._met(loss)
                value = self.reshaper.at(self._epoch).value(met / self._initial) * self._initial
            if clean:
                self._record(met, value)
        return value

    def _met(self, loss: Tensor) -> Tensor:
        """Return the loss whose height decides, in at least float32, with the gradient of this process's own."""
        own, world = wide(loss), rank_and_world()[1]
        if self.distributed == "local" or world == 1:
            return own
        mean = own.detach().clone()
        dist.all_reduce(mean)
        return own + (mean / world - own.detach())

    @torch.no_grad()
    def _record(self, met: Tensor, value: Tensor) -> None:
        slope = self.multiplier(met)
        self.multipliers.append(self._epoch, met.detach(), slope)
        self._totals.add("llr_loss", value, 1)
        self._totals.add("llr_multiplier", slope, 1)
        if slope.device.type == "cpu":
            if slope < 0:
                raise self._ascends(float(met), float(slope))
        else:
            bad = slope < 0
            self._negative = bad if self._negative is None else self._negative | bad

    def _ascends(self, loss: float | None = None, slope: float | None = None) -> InputError:
        got = {"reshaper": self.reshaper} if loss is None else {"loss": loss, "slope": slope, "reshaper": self.reshaper}
        rule = "must have a slope of at least 0 at every loss met, or training would climb"
        advice = "use a criterion that is never negative and a function that never falls"
        return InputError("reshaper", rule, got, advice)

    def _check(self) -> None:
        noticed, self._negative = self._negative, None
        if noticed is not None and bool(noticed):
            raise self._ascends()

    def _prepare(self, **run: Any) -> None:
        self._epochs = run["epochs"]
        self._first, self._negative, self.multipliers, self._still = Totals(), None, Multipliers(), 0
        if self._given == "first_epoch":
            self._initial = None

    def _end_epoch(self) -> None:
        super()._end_epoch()
        self._notice_standstill()
        self.multipliers.settle()
        if self._initial is None and self._first.sums:
            self.initial_loss = _over_processes(self._first, "loss")
            self._first = Totals()

    def _notice_standstill(self) -> None:
        """Warn once of a multiplier that stays near 0: whole runs have trained nothing under it."""
        mean = self._totals.means().get("llr_multiplier")
        if mean is None or not self._reshapes():
            return
        self._still = self._still + 1 if mean < _NEAR_ZERO else 0
        if self._still == _STILL:
            warnings.warn(
                f"LLR multiplied gradients by {mean:.2g} on average for {_STILL} epochs on end, so that little is "
                "trained; begin later (start=5 of plain training), give the reshaper a base slope "
                "(Sech(base=0.5)) or a larger b, or a larger learning rate",
                LowlandWarning,
                stacklevel=4,
            )

    def _state(self) -> dict[str, Any]:
        return {
            "initial_loss": self._initial,
            "first": self._first.state_dict(),
            "multipliers": self.multipliers.state_dict(),
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        self._initial = state["initial_loss"]
        self._first = Totals.from_state(state["first"])
        self.multipliers = Multipliers.from_state(state["multipliers"])


def measure_initial_loss(criterion: Criterion, model: nn.Module, batches: Iterable[Any]) -> float:
    """Return the mean of a criterion over data in evaluation mode, as the paper's code takes L0 on CIFAR.

    Args:
        criterion: A torch loss or a callable ``(output, target)``.
        model: The model at its initial weights; it is restored bit for bit.
        batches: A loader or a list of batches.

    Returns:
        The exact mean over all samples, whatever the batching.

    Raises:
        InputError: If the mean is not a positive, finite number.

    Example:
        >>> batches = [(torch.zeros(2, 3), torch.tensor([0, 1]))]
        >>> round(measure_initial_loss(nn.CrossEntropyLoss(), nn.Linear(3, 4, bias=False), batches), 4)
        1.3863
    """
    value = EmpiricalRisk(model, criterion, batches, resident=False).evaluate()["loss"].value
    require(0 < value < float("inf"), "criterion", "must have a positive, finite mean at the initial weights", value)
    return value


def _over_processes(totals: Totals, name: str) -> float:
    """Return a weighted mean over all processes."""
    pair = torch.stack([totals.sums[name], torch.as_tensor(totals.weights[name]).to(totals.sums[name])])
    if rank_and_world()[1] > 1:
        dist.all_reduce(pair)
    return float(pair[0] / pair[1])
