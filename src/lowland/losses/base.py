"""A loss for training: takes ``(output, batch)``, knows the epoch, has a state, and says what it did.

The life of a loss, in a loop of any kind::

    loss = SAF(nn.CrossEntropyLoss())
    loss.prepare(model=model, epochs=90, samples=len(data), steps_per_epoch=len(loader))   # once, see each method
    for epoch in range(90):
        loss.epoch = epoch
        for batch in loader:
            loss(model(batch.input), batch).backward()
            optimizer.step()
            loss.after_step()
        print(loss.epoch_log())

Losses nest: ``LLR(SAF(nn.CrossEntropyLoss()))`` reshapes the sum of cross entropy and trajectory loss. The outermost
one is what the loop talks to; it hands everything on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lowland.core.contexts import current_pass
from lowland.core.errors import CheckpointError, InputError
from lowland.core.facts import table_of
from lowland.core.types import Batch

Criterion: TypeAlias = Callable[[Any, Any], Tensor]
"""``(output, target) -> scalar``: a torch loss module, a function, or another `TrainingLoss`."""

Plan: TypeAlias = Callable[[int], Tensor]
"""``epoch -> ids``: the sample ids that this process will meet in an epoch, int64, any order."""


class TrainingLoss(ABC):
    """What every loss of this room shares: the epoch, the life cycle, nesting, state and log.

    A call in training (gradients enabled and needed) gives the method's loss; any other call, as in validation, gives
    the plain criterion. Only the clean pass of training is recorded and counted; in the perturbed pass of a two-pass
    optimizer the loss is the same function, and leaves no trace.

    Args:
        criterion: What is made flatter: ``(output, target) -> scalar batch mean``, or another `TrainingLoss`.

    Raises:
        InputError: If the criterion cannot be called.
    """

    def __init__(self, criterion: Criterion | TrainingLoss) -> None:
        if not callable(criterion):
            raise InputError("criterion", "must be a callable (output, target) -> scalar", type(criterion).__name__)
        options = getattr(criterion, "keywords", {})
        if "sum" in (getattr(criterion, "reduction", ""), options.get("reduction")):
            rule = "must return the mean over the batch, by which the method is defined"
            raise InputError("criterion", rule, 'reduction="sum"', 'use reduction="mean"')
        self.criterion = criterion
        self._epoch = 0
        self._plain: Tensor | None = None
        self._totals = Totals()

    def __call__(self, output: Any, batch: Batch | Any) -> Tensor:
        """Return the loss of a batch, a scalar with graph; its target alone will do where the method needs no more."""
        batch = batch if isinstance(batch, Batch) else Batch(None, batch)
        if not _learning(output):
            return self._inner(output, batch)
        return self._training(output, batch)

    def __repr__(self) -> str:
        settings = "".join(f", {name}={value!r}" for name, value in self._settings().items())
        plain = self.criterion if isinstance(self.criterion, nn.Module | TrainingLoss) else None
        kind = type(self.criterion).__qualname__
        named = getattr(self.criterion, "__qualname__", kind) if plain is None else repr(plain)
        return f"{type(self).__name__}({named}{settings})"

    def _repr_html_(self) -> str:
        settings = {name: f"{value!r}" for name, value in self._settings().items()}
        return table_of([{type(self).__name__: "", "criterion": repr(self.criterion), **settings}])

    @property
    def inner(self) -> TrainingLoss | None:
        """The loss inside this one; None where the criterion is a plain one."""
        return self.criterion if isinstance(self.criterion, TrainingLoss) else None

    @property
    def plain_criterion(self) -> Criterion:
        """The innermost criterion, that no loss of this room wraps."""
        return self.criterion if self.inner is None else self.inner.plain_criterion

    @property
    def epoch(self) -> int:
        """The epoch that runs, from 0; set it before each epoch (on every process at the same time)."""
        return self._epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError("epoch", "must be a non-negative integer", value)
        changed = value != self._epoch
        if changed:
            self._end_epoch()
            self._totals = Totals()
        if self.inner is not None:
            self.inner.epoch = value
        self._epoch = value
        self._begin_epoch()

    @property
    def needs_index(self) -> bool:
        """Whether batches must carry sample ids."""
        return self.inner is not None and self.inner.needs_index

    @property
    def needs_input(self) -> bool:
        """Whether the loss must be called with the whole `Batch` (and not with the target alone)."""
        return self.needs_index or (self.inner is not None and self.inner.needs_input)

    @property
    def extra_forward_passes(self) -> int:
        """Forward passes of the run beside the model's own, such as a teacher's; for counting equal compute."""
        return 0 if self.inner is None else self.inner.extra_forward_passes

    @property
    def bound_to_processes(self) -> str | None:
        """Why a run with this loss cannot go on with another number of processes; None where it can."""
        return None if self.inner is None else self.inner.bound_to_processes

    @property
    def plain_value(self) -> Tensor | None:
        """The plain criterion's value in the last clean training pass, detached, on its device; None before it."""
        return self.inner.plain_value if self.inner is not None else self._plain

    def prepare(
        self,
        *,
        model: nn.Module | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        samples: int | Tensor | None = None,
        plan: Plan | None = None,
    ) -> None:
        """Begin a run; call it once before the first step (before a resume too, and then `load_state_dict`).

        What an earlier run left behind is forgotten. Every loss takes what it needs and ignores the rest, so that a
        loop can pass all it knows.

        Args:
            model: The model in training; DDP, Fabric and compile wrappers are looked through.
            epochs: Length of the run; needed where something is given as a fraction of it, or counted from its end.
            steps_per_epoch: Optimizer steps in an epoch; needed where something is given in epochs per step.
            samples: The number of samples N when ids are 0 ... N-1, or all ids that occur, int64.
            plan: The ids that this process will meet in an epoch; lets a shared memory send each process only those.
        """
        if self.inner is not None:
            self.inner.prepare(model=model, epochs=epochs, steps_per_epoch=steps_per_epoch, samples=samples, plan=plan)
        self._epoch, self._plain, self._totals = 0, None, Totals()
        self._prepare(model=model, epochs=epochs, steps_per_epoch=steps_per_epoch, samples=samples, plan=plan)

    def after_step(self) -> None:
        """Tell the loss that the optimizer has stepped; call it once after every optimizer step."""
        if self.inner is not None:
            self.inner.after_step()
        self._after_step()

    def epoch_log(self) -> dict[str, float]:
        """Return what the loss did in this epoch so far, averaged over samples; reads numbers from the device.

        Errors that an accelerator noticed without a synchronization are raised here at the latest.

        Returns:
            Name -> value; ``"criterion"`` is the plain loss.
        """
        log = {} if self.inner is None else self.inner.epoch_log()
        self._check()
        return {**log, **self._totals.means()}

    def state_dict(self) -> dict[str, Any]:
        """Return all that a bit-exact resume needs, nested; the tensors are the loss's own, not copies."""
        inner = None if self.inner is None else self.inner.state_dict()
        return {
            "kind": type(self).__name__,
            "epoch": self._epoch,
            "totals": self._totals.state_dict(),
            "own": self._state(),
            "inner": inner,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state; a CheckpointError where it does not fit, and then nothing is changed."""
        self._check_state(state)
        self._load_state(state)

    def _check_state(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping) or {"kind", "epoch", "totals", "own", "inner"} - set(state):
            raise CheckpointError("the state is not that of a training loss; nothing was loaded")
        if state["kind"] != type(self).__name__ or (state["inner"] is None) != (self.inner is None):
            said = f"the state belongs to the loss {state['kind']}, not to {type(self).__name__} as built here"
            raise CheckpointError(f"{said}; nothing was loaded")
        if self.inner is not None:
            self.inner._check_state(state["inner"])
        self._check_own(state["own"])

    def _load_state(self, state: Mapping[str, Any]) -> None:
        if self.inner is not None:
            self.inner._load_state(state["inner"])
        self._epoch = int(state["epoch"])
        self._totals = Totals.from_state(state["totals"])
        self._load(state["own"])

    def _inner(self, output: Any, batch: Batch) -> Tensor:
        # calls the criterion inside, and keeps its plain value in the clean pass of training
        if self.inner is not None:
            return self.inner(output, batch)
        value = self.criterion(output, batch.target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            rule = "must return the mean over the batch as a scalar"
            raise InputError("criterion", rule, got, 'use reduction="mean"')
        value = value.reshape(())
        if _learning(output) and current_pass() == "clean":
            self._plain = value.detach()
            self._totals.add("criterion", self._plain, rows_of(output))
        return value

    @abstractmethod
    def _training(self, output: Any, batch: Batch) -> Tensor:
        """Return the loss of a training pass."""

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """Return what the loss was built with, by argument name; for its ``repr``, which recipes of runs keep."""

    def _prepare(self, **run: Any) -> None:
        """Forget an earlier run, and take what is needed of this one."""
        del run

    def _begin_epoch(self) -> None:
        """Act on the epoch that was set; set twice, it must do nothing the second time."""
        return None

    def _end_epoch(self) -> None:
        """Act on the end of an epoch, before anything of it is dropped."""
        self._check()

    def _after_step(self) -> None:
        """Act after an optimizer step."""
        return None

    def _check(self) -> None:
        """Raise what was noticed on the device and not reported yet."""
        return None

    def _state(self) -> dict[str, Any]:
        """Return the method's own state."""
        return {}

    def _check_own(self, state: Mapping[str, Any]) -> None:
        """Raise CheckpointError if `_load` could not take the state: it must hold what `_state` returns."""
        if set(self._state()) - set(state):
            raise CheckpointError(f"the state of {type(self).__name__} lacks entries; nothing was loaded")

    def _load(self, state: Mapping[str, Any]) -> None:
        """Take over the method's own state."""
        del state


class Totals:
    """Weighted sums by name, kept on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor | float] = {}

    def add(self, name: str, mean: Tensor, weight: Tensor | float) -> None:
        """Add a mean with its weight, without a synchronization."""
        mean = mean.detach().double() if mean.device.type != "mps" else mean.detach().float()
        term = mean * weight
        if isinstance(weight, Tensor):  # a mean over nothing is NaN and must not spread
            term = torch.where(weight > 0, term, torch.zeros_like(mean))
        if name in self.sums:
            self.sums[name] = self.sums[name] + term
            self.weights[name] = self.weights[name] + weight
        else:
            self.sums[name], self.weights[name] = term, weight

    def means(self) -> dict[str, float]:
        """Return the weighted means."""
        result = {}
        for name, total in self.sums.items():
            weight = float(self.weights[name])
            result[name] = float(total) / weight if weight else math.nan
        return result

    def state_dict(self) -> dict[str, tuple[float, float]]:
        """Return the sums and weights as plain numbers."""
        return {name: (float(total), float(self.weights[name])) for name, total in self.sums.items()}

    @classmethod
    def from_state(cls, state: Mapping[str, tuple[float, float]]) -> Totals:
        """Make totals from what `state_dict` returned."""
        totals = cls()
        for name, (total, weight) in state.items():
            totals.sums[name] = torch.tensor(total, dtype=torch.float64)
            totals.weights[name] = weight
        return totals


def _learning(output: Any) -> bool:
    # a call belongs to training when gradients are enabled and the output carries a graph
    return torch.is_grad_enabled() and isinstance(output, Tensor) and output.requires_grad


def rows_of(output: Tensor) -> int:
    """Return how many samples an output is of."""
    return output.shape[0] if output.ndim else 1
