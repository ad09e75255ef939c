"""Accelerate: one call in the place of ``accelerator.backward`` runs the passes that the optimizer wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lowland.core.errors import InputError, optional_import
from lowland.integrations.passes import Passes, check_strategy

_accelerate: Any = optional_import("accelerate", extra="hf", needed_for="the integration with Accelerate")

_WRITE = "write passes.backward(lambda x=x, y=y: criterion(model(x), y))"


class AcceleratePasses:
    """Backward passes for a loop written with Accelerate.

    With accumulation, ``with accelerator.accumulate(model)`` says which micro-batch is a step's last; clipping, the
    optimizer's ``step()`` and ``zero_grad()`` stay as they are. The loss is a function here, since a second pass has to
    run it again. One `AcceleratePasses` serves a whole run.

    Args:
        accelerator: The one that has prepared model and optimizer.
        model: The model that it prepared.
        optimizer: The optimizer that it prepared; any will do, of one pass or two.

    Raises:
        InputError: If model or optimizer is another's, or the strategy cannot give what the optimizer wants.

    Example:
        >>> import torch
        >>> from accelerate import Accelerator
        >>> from lowland.optim import SAM
        >>> net = nn.Linear(2, 1)
        >>> accelerator = Accelerator(cpu=True)
        >>> model, optimizer = accelerator.prepare(net, SAM(torch.optim.SGD(net.parameters(), lr=0.1), rho=0.05))
        >>> passes = AcceleratePasses(accelerator, model, optimizer)
        >>> loss = passes.backward(lambda: model(torch.ones(4, 2)).square().mean())
        >>> optimizer.step()
        >>> loss.requires_grad
        False
    """

    def __init__(self, accelerator: Any, model: nn.Module, optimizer: Any) -> None:
        if not isinstance(accelerator, _accelerate.Accelerator):
            raise InputError("accelerator", "must be an accelerate.Accelerator", type(accelerator).__name__)
        if not isinstance(optimizer, _accelerate.optimizer.AcceleratedOptimizer):
            rule = "must be what accelerator.prepare() returned"
            raise InputError("optimizer", rule, type(optimizer).__name__, "prepare model and optimizer first")
        self.accelerator, self.model = accelerator, model
        self._passes = Passes(optimizer, accelerator.scaler)
        check_strategy(self._passes.optimizer, accelerator)

    def backward(self, loss: Callable[[], Tensor]) -> Tensor:
        """Run forward and backward as often as the optimizer wants.

        Args:
            loss: Runs the forward pass under whatever autocast it wants and returns the loss, a scalar.

        Returns:
            The loss of the first pass, detached.

        Raises:
            InputError: If `loss` is no function, or the setting cannot give what the optimizer's options promise.
        """
        if not callable(loss):
            raise InputError("loss", "must be a function that runs the forward pass", type(loss).__name__, _WRITE)
        meant = _names(loss)

        def work() -> Tensor:
            changed = sorted(name for name, value in _names(loss).items() if value is not meant[name])
            if changed:
                later = "it runs again after later micro-batches, and these names then stand for other things"
                raise InputError("loss", f"must keep its own batch: {later}", changed, _WRITE)
            value = loss()
            self.accelerator.backward(value)
            return value.detach()

        return self._passes.run(work, last=self.accelerator.sync_gradients, model=self.model)


def _names(function: Any) -> dict[str, Any]:
    """Return what a function's free names stand for now: those of its loop, which may have gone on since."""
    code = getattr(function, "__code__", None)
    if code is None:
        return {}
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    found = {name: cell.cell_contents for name, cell in cells}
    return found | {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
