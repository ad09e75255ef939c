"""The closure that Lightning calls for a micro-batch, with every pass the optimizer wants in it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from lowland.core.contexts import current_pass
from lowland.core.errors import InputError
from lowland.core.types import Batch, as_batch
from lowland.integrations.passes import Passes
from lowland.integrations.whole_batch import WholeBatch, without_index
from lowland.losses import TrainingLoss
from lowland.optim import Ascent


class _Closure:
    """A closure of Lightning's that runs every pass and tells of the first."""

    def __init__(
        self, closure: Any, passes: Passes, losses: Sequence[WholeBatch], batch: Batch | None, last: bool, trainer: Any
    ) -> None:
        self._closure, self._passes, self._losses, self._batch, self._last = closure, passes, losses, batch, last
        self._trainer, self._result = trainer, None

    def __call__(self, *_: Any, **__: Any) -> Tensor | None:
        if getattr(self._trainer.fit_loop, "_skip_backward", False) and isinstance(self._passes.optimizer, Ascent):
            self._passes.optimizer.zero_grad()  # Lightning's SWA runs an epoch for batch-norm statistics, without steps
            return self._pass()
        value: Tensor | None = self._passes.run(self._pass, last=self._last, model=self._trainer.strategy.model)
        return value

    def consume_result(self) -> Any:
        result, self._result = self._result, None
        return result

    def _pass(self) -> Tensor | None:
        perturbed = current_pass() == "perturbed"
        with ExitStack() as stack:
            for loss in self._losses:
                stack.enter_context(loss.of(self._batch, rehearsing=self._batch is None))
            stack.enter_context(_silent(self._trainer.lightning_module) if perturbed else nullcontext())
            value: Tensor | None = self._closure()
        result = self._closure.consume_result()
        if not perturbed:
            self._result = result
        return value


class InItsPlace:
    """Stands in the place of a module's method for a while; copies and pickles of the module have the method itself."""

    def __init__(self, module: nn.Module, name: str, call: Callable[..., None]) -> None:
        self._module, self._name, self._call = module, name, call

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Call what stands here."""
        self._call(*args, **kwargs)

    def __reduce__(self) -> Any:
        return getattr, (self._module, self._name)


class Completed(WholeBatch):
    """A loss among a module's attributes, completed; copies and pickles of the module have the loss itself."""

    def __reduce__(self) -> Any:
        return _itself, (self.loss,)


def _itself(loss: TrainingLoss) -> TrainingLoss:
    return loss


def take_over(
    trainer: Any, passes: Callable[[Any], Passes], losses: Sequence[WholeBatch], training: Callable[[], bool]
) -> None:
    """Let the trainer's closures run every pass; the one place of Lightning's that is not public."""
    loop = trainer.fit_loop.epoch_loop.automatic_optimization
    make = getattr(loop, _MAKE, None)
    if make is None:
        raise InputError("lightning", "must be a version whose training loop is known", advice="use 2.6")
    needs_index = any(entry.loss.needs_index for entry in losses)

    def make_ours(kwargs: Any, optimizer: Any, batch_idx: int) -> _Closure:
        name, batch = next(iter(kwargs.items()))
        if needs_index:
            kwargs = type(kwargs)(kwargs)
            kwargs[name] = without_index(batch)
        reached = batch_idx + 1
        last = (
            reached % trainer.accumulate_grad_batches == 0
            or reached >= trainer.num_training_batches
            or trainer.is_last_batch
        )
        whole = as_batch(batch) if losses and training() else None
        return _Closure(make(kwargs, optimizer, batch_idx), passes(trainer), losses, whole, last, trainer)

    setattr(loop, _MAKE, make_ours)


def give_back(trainer: Any) -> None:
    """Let the trainer's closures be its own again."""
    vars(trainer.fit_loop.epoch_loop.automatic_optimization).pop(_MAKE, None)


_MAKE = "_make_closure"


@contextmanager
def _silent(module: Any) -> Generator[None, None, None]:
    # logged values and torchmetrics belong to the clean pass
    kept: list[tuple[nn.Module, dict[str, Any]]] = []
    for child in module.modules():
        if hasattr(child, "_defaults") and callable(getattr(child, "compute", None)):
            kept.append((child, {name: _copied(value) for name, value in vars(child).items()}))
    object.__setattr__(module, "log", InItsPlace(module, "log", lambda *_, **__: None))
    try:
        yield
    finally:
        object.__delattr__(module, "log")
        for child, state in kept:
            vars(child).update(state)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return list(value) if type(value) is list else value
