"""What LLR is compared with: the same multipliers without the reshaped loss.

LLR is a gradient multiplier that depends on the loss. Whether it helps by more than a learning-rate schedule would is
answered by these arms beside the tuned baseline with warm-up: the multipliers of *another* seed, averaged per epoch, on
the gradient (`Replayed`); the same as a learning rate (`learning_rate_factor`); and LLR with weight decay scaled by its
slope (`ScaledDecay`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lowland.core.contexts import current_pass
from lowland.core.errors import InputError, require
from lowland.core.types import Batch
from lowland.losses.base import Criterion, TrainingLoss
from lowland.losses.llr import LLR
from lowland.losses.multipliers import Multipliers


class Replayed(TrainingLoss):
    """The plain loss, with its gradient multiplied by what LLR used in another run.

    Args:
        criterion: A criterion, or another loss of this room.
        recorded: `LLR.multipliers` of the other run.
        per: ``"epoch"`` uses the mean of each epoch (yoked control), ``"pass"`` each clean pass's own.

    Raises:
        InputError: If the record is empty or `per` is unknown.

    Example:
        >>> recorded = Multipliers()
        >>> recorded.append(0, torch.tensor(2.0), torch.tensor(0.5))
        >>> loss, x = Replayed(lambda output, target: output.sum(), recorded), torch.ones(1, requires_grad=True)
        >>> loss(x, None).backward()
        >>> x.grad.item()
        0.5
    """

    def __init__(
        self, criterion: Criterion | TrainingLoss, recorded: Multipliers, *, per: Literal["epoch", "pass"] = "epoch"
    ) -> None:
        super().__init__(criterion)
        if not isinstance(recorded, Multipliers) or not len(recorded):
            raise InputError("recorded", "must hold the multipliers of a run", recorded, "pass LLR.multipliers")
        require(per in ("epoch", "pass"), "per", 'must be "epoch" or "pass"', per)
        self.per = per
        self.recorded = Multipliers.from_state(recorded.state_dict())
        self.multipliers = Multipliers()
        self._means = self.recorded.epoch_means()
        self._passes = 0

    def _training(self, output: Any, batch: Batch) -> Tensor:
        clean = current_pass() == "clean"
        factor = self._factor(self._passes if clean else max(0, self._passes - 1))
        loss = self._inner(output, batch)
        if clean:
            self._passes += 1
            plain = loss.detach()
            self.multipliers.append(self._epoch, plain, torch.full_like(plain, factor))
            self._totals.add("llr_multiplier", torch.full_like(plain, factor), 1)
        scaled = loss * factor
        return scaled + (loss - scaled).detach()

    def _settings(self) -> dict[str, Any]:
        means = {epoch: round(mean, 12) for epoch, mean in self._means.items()}
        return {"recorded": means, "per": self.per}

    def _factor(self, number: int) -> float:
        if self.per == "epoch":
            if self._epoch not in self._means:
                raise InputError("recorded", f"must cover epoch {self._epoch}", f"epochs {sorted(self._means)}")
            return self._means[self._epoch]
        values = self.recorded.values
        require(number < len(values), "recorded", f"must cover pass {number}", f"{len(values)} passes")
        return values[number]

    def _prepare(self, **run: Any) -> None:
        del run
        self._passes, self.multipliers = 0, Multipliers()

    def _state(self) -> dict[str, Any]:
        return {"passes": self._passes, "multipliers": self.multipliers.state_dict()}

    def _load(self, state: Mapping[str, Any]) -> None:
        self._passes = int(state["passes"])
        self.multipliers = Multipliers.from_state(state["multipliers"])


def learning_rate_factor(recorded: Multipliers) -> Callable[[int], float]:
    """Turn recorded multipliers into a learning-rate schedule: the mean of each epoch.

    As a learning rate the multiplier also scales weight decay and what momentum has gathered, which LLR does not.

    Args:
        recorded: `LLR.multipliers` of a run.

    Returns:
        ``epoch -> factor``, for `torch.optim.lr_scheduler.LambdaLR`; beyond the record its last epoch's.

    Raises:
        InputError: If the record is empty.

    Example:
        >>> recorded = Multipliers()
        >>> recorded.append(0, torch.tensor(2.0), torch.tensor(0.5))
        >>> learning_rate_factor(recorded)(0)
        0.5
    """
    means = recorded.epoch_means()
    require(means, "recorded", "must hold the multipliers of a run", recorded, "pass LLR.multipliers")
    last = max(means)

    def factor(epoch: int) -> float:
        return means.get(epoch, means[last])

    return factor


class ScaledDecay:
    """Scale an optimizer's weight decay by the multiplier of the step, for the length of that step.

    Reads the multiplier from the device once a step. With several micro-batches it is their mean. Hand in the optimizer
    that really decays: the base instance, if it is wrapped.

    Args:
        optimizer: Any torch optimizer with ``weight_decay`` in its groups.
        loss: The LLR (or `Replayed`) that is trained with.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> base = torch.optim.SGD([weight], lr=0.1, weight_decay=0.5)
        >>> scaled = ScaledDecay(base, LLR(lambda output, target: output.sum(), initial_loss=1.0))
        >>> scaled.remove()
    """

    def __init__(self, optimizer: torch.optim.Optimizer, loss: LLR | Replayed) -> None:
        if not any(group.get("weight_decay") for group in optimizer.param_groups):
            raise InputError("optimizer", "must have a weight decay to scale", type(optimizer).__name__)
        self.loss = loss
        self._record, self._seen = loss.multipliers, len(loss.multipliers)
        self._original: list[tuple[dict[str, Any], float]] = []
        self._hooks = [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)]

    def remove(self) -> None:
        """Leave the optimizer's weight decay alone from now on."""
        for hook in self._hooks:
            hook.remove()

    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._after()  # a step that failed half-way left the scaled values
        record = self.loss.multipliers
        if record is not self._record:  # a state was loaded since, or a run began
            self._record, self._seen = record, record.restored
        values = record.values[self._seen :]
        self._seen = len(record)
        if not values:
            return
        groups = [group for group in optimizer.param_groups if "weight_decay" in group]
        self._original = [(group, group["weight_decay"]) for group in groups]
        for group in groups:
            group["weight_decay"] *= sum(values) / len(values)

    def _after(self, *_: Any) -> None:
        for group, value in self._original:
            group["weight_decay"] = value
        self._original = []
