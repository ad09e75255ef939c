"""Lightning, automatic optimization: every optimizer, loss and hook of Lowland in a LightningModule as it stands.

Lightning runs a micro-batch by calling a closure (forward, `zero_grad`, backward), from the optimizer's step or, while
it accumulates, by itself; gradient scaling, the division by the number of micro-batches and DDP's synchronization are
inside or around it. So the callback wraps that closure, and both passes of a micro-batch are what one pass was. The
module's own hooks run in both passes, except that `self.log` and torchmetrics take note of the clean pass alone.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowland.core.contexts import has_running_statistics
from lowland.core.errors import InputError, optional_import
from lowland.integrations.averages import EvaluationWeights, averages
from lowland.integrations.lightning_closure import Completed, InItsPlace, give_back, take_over
from lowland.integrations.passes import Passes, innermost, name_scaler
from lowland.integrations.trainer_bridge import TrainerBridge, foreign_data, host, made_folder, steps_in
from lowland.integrations.whole_batch import losses_of
from lowland.optim import Ascent
from lowland.training import FitState, Hook

_lightning: Any = optional_import("lightning.pytorch", extra="lightning", needed_for="the integration with Lightning")

_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy")


class LightningCallback(_lightning.Callback):  # type: ignore[misc]
    """Makes Lowland's optimizers, losses and hooks work in a LightningModule with automatic optimization.

    - The optimizer that ``configure_optimizers`` returns gets every pass it wants, in any precision, with any number of
      accumulated batches, on one device or under DDP.
    - Losses found among the attributes of the module (or of its submodules) know the run, its epochs and steps; where
      they need sample ids, the ids of `lowland.data.Indexed` are taken off the batch before ``training_step`` sees it.
    - Validation, tests and hooks see the weights that an averaging optimizer wants evaluated, with batch-norm
      statistics of their own.
    - Hooks of `lowland.training.fit` run; what they say is logged. State travels in Lightning's checkpoints.

    Args:
        model: Name of the attribute that holds the network, if the module itself has no ``forward`` on a batch's input:
            surveys, MESA's teacher and batch-norm statistics call it. Default None: the module.
        loss: The criterion ``(output, target)`` that hooks measure; None takes that of the module's first loss of ours.
        hooks: Hooks, such as `lowland.training.Snapshots`, `SharpnessLog`, `SurfaceAtEnd`.
        folder: Folder of the run, for hooks that write.

    Raises:
        InputError: If an argument is of another kind; at the start of training, if module or trainer cannot do what the
            optimizer or a loss wants.

    Example:
        >>> callback = LightningCallback()
        >>> callback.state_key
        'LightningCallback'
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        loss: Any = None,
        hooks: Sequence[Hook] = (),
        folder: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.model_name, self.loss, self.folder = model, loss, folder
        self._life = TrainerBridge((), hooks)
        self._completed: list[tuple[nn.Module, str, Completed]] = []
        self._passes: Passes | None = None
        self._steps = 0
        self._weights = ExitStack()
        self._average = EvaluationWeights()
        self._loaded: dict[str, Any] | None = None  # what a checkpoint that is evaluated holds of the average

    # Events of Lightning, in their order.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check the arguments, take over the closures, and complete the calls of losses."""
        self._loaded = None
        self._give_back(trainer)
        self._follow_checkpoints(trainer, pl_module)
        if stage != "fit":
            return
        self._model(pl_module)
        found = losses_of(pl_module)
        self._life.losses = [loss for *_, loss in found]
        for owner, name, loss in found:
            if loss.needs_input:
                self._completed.append((owner, name, Completed(loss)))
                setattr(owner, name, self._completed[-1][2])
        if pl_module.automatic_optimization:
            # tuners run the loop with other callbacks in the place of all: then nothing may be left in a memory
            take_over(trainer, self._drive, [each for *_, each in self._completed], lambda: self in trainer.callbacks)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check trainer and module; InputError if they cannot do what the optimizer or a loss wants."""
        self._check(trainer, pl_module)
        if not pl_module.automatic_optimization:
            for optimizer in (name_scaler(each, _scaler_of(trainer)) for each in trainer.optimizers):
                if isinstance(optimizer, Ascent):  # the other networks of the module run in its second passes too
                    optimizer.protect(pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the life of losses and hooks."""
        self._steps = trainer.global_step
        self._average.forget()
        self._average.loader = trainer.train_dataloader
        self._life.start(self._run(trainer, pl_module))

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Tell losses the epoch."""
        self._life.begin_epoch(trainer.current_epoch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Tell everybody of an optimizer step, if there was one."""
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self._life.after_step(trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log what losses and hooks have to say."""
        with self._evaluated(trainer, pl_module):
            row = self._life.end_epoch(trainer.current_epoch + 1)
        if row and not trainer.barebones:
            values = {name: torch.tensor(value, device=pl_module.device) for name, value in row.items()}
            pl_module.log_dict(values, rank_zero_only=True)
        if self._life.run is not None and self._life.run.stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End the life of hooks."""
        with self._evaluated(trainer, pl_module):
            self._life.end()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give closures and losses back, also after a tuner's run."""
        self._give_back(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give closures, losses and trained weights back."""
        self._weights.close()
        self._give_back(trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Put the evaluation weights into the model."""
        self._weights.close()
        if not trainer.sanity_checking:
            self._weights.enter_context(self._evaluated(trainer, pl_module))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Put the trained weights back."""
        self._weights.close()

    on_test_start, on_predict_start = on_validation_start, on_validation_start
    on_test_end, on_predict_end = on_validation_end, on_validation_end

    def state_dict(self) -> dict[str, Any]:
        """Return the state of losses and hooks, one entry per process, with tensors on the host."""
        mine = host(self._life.saved or self._life.state_dict())  # tuners save before the run has taken over
        every = [mine]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            every = [mine] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(every, mine)
        return {"every": every}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep a state for the start of training; InputError if it was written by another number of processes."""
        every, rank, world = state_dict["every"], 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if len(every) != world and self._life.losses:
            raise InputError("devices", f"must be those of the checkpoint ({len(every)} processes)", world)
        self._life.saved = every[min(rank, len(every) - 1)]

    # What the events do.

    def _model(self, module: Any) -> nn.Module:
        found = module if self.model_name is None else getattr(module, self.model_name, None)
        if not isinstance(found, nn.Module):
            raise InputError("model", "must name an attribute of the module that holds a network", self.model_name)
        return found

    def _check(self, trainer: Any, module: Any) -> None:
        optimizers = [innermost(optimizer) for optimizer in trainer.optimizers]
        network = self._model(module)
        averaging = any(map(averages, optimizers))
        called = self._life.calls_model or (averaging and has_running_statistics(network))
        if called and type(network).forward in (nn.Module.forward, _lightning.LightningModule.forward):
            callers = "hooks, MESA and batch-norm statistics call it on a batch's input"
            rule = f"must name the network: {callers}, and the LightningModule has no forward"
            raise InputError("model", rule, self.model_name, 'pass LightningCallback(model="net")')
        if not any(isinstance(optimizer, Ascent) for optimizer in optimizers):
            return
        strategy = type(trainer.strategy).__name__
        if strategy not in _STRATEGIES:
            raise InputError("strategy", "must be one device, DDP or FSDP2 for a two-pass optimizer", strategy)
        if not module.automatic_optimization:
            return  # the module's own loop enters perturb(); a step without it raises
        if "dataloader_iter" in inspect.signature(module.training_step).parameters:
            rule = "must take a batch for a two-pass optimizer: the second pass cannot draw from an iterator again"
            raise InputError("training_step", rule, "dataloader_iter")

    def _run(self, trainer: Any, module: Any) -> FitState:
        per_epoch = steps_in(trainer.num_training_batches, trainer.accumulate_grad_batches)
        total = trainer.estimated_stepping_batches
        epochs = math.ceil(total / per_epoch) if math.isfinite(total) and per_epoch else 0
        loss = next(iter(self._life.losses), None) if self.loss is None else self.loss
        optimizer: Any = innermost(trainer.optimizers[0]) if trainer.optimizers else None
        data = foreign_data("lightning", trainer.train_dataloader, trainer.val_dataloaders)
        reached = trainer.global_rank, trainer.current_epoch, trainer.global_step
        run = (self._model(module), optimizer, loss, data, made_folder(self.folder))
        return FitState(*run, epochs, per_epoch, 0, *reached)

    def _evaluated(self, trainer: Any, module: Any) -> AbstractContextManager[None]:
        model, fitting = self._model(module), trainer.state.fn == "fit"
        optimizers = [innermost(optimizer) for optimizer in trainer.optimizers]
        if fitting or trainer.ckpt_path is None or self._loaded is None:
            return self._average.held(optimizers, model, trainer.global_step)
        states = self._loaded["states"]
        if states is None:
            if self._loaded.get("averages") or any(map(averages, optimizers)):
                rule = "must hold the state of the optimizer: the average that is evaluated is part of it"
                raise InputError("ckpt_path", rule, "weights alone", "pass save_weights_only=False to ModelCheckpoint")
            return nullcontext()
        if not any("lowland" in state for state in states):
            return nullcontext()
        if not optimizers:
            trainer.strategy.setup_optimizers(trainer)
            optimizers = [innermost(optimizer) for optimizer in trainer.optimizers]
        return self._average.of_checkpoint(optimizers, states, self._loaded.get("statistics"), model)

    def _follow_checkpoints(self, trainer: Any, module: Any) -> None:
        # of weights alone Lightning tells no callback, neither when it saves nor when it loads, but always the module
        save, load = module.on_save_checkpoint, module.on_load_checkpoint

        def saved(checkpoint: dict[str, Any]) -> None:
            if any(averages(innermost(optimizer)) for optimizer in trainer.optimizers):
                known = self._average.known(trainer.global_step)
                checkpoint["lowland"] = {"averages": True, "statistics": None if known is None else host(known)}
            save(checkpoint)

        def loaded(checkpoint: dict[str, Any]) -> None:
            self._loaded = {"states": checkpoint.get("optimizer_states"), **checkpoint.get("lowland", {})}
            load(checkpoint)

        for name, call in (("on_save_checkpoint", saved), ("on_load_checkpoint", loaded)):
            setattr(module, name, InItsPlace(module, name, call))

    def _drive(self, trainer: Any) -> Passes:
        if self._passes is None:
            self._passes = Passes(trainer.optimizers[0], _scaler_of(trainer))
            self._passes.drive(True)
        return self._passes

    def _give_back(self, trainer: Any) -> None:
        for owner, name, completed in self._completed:
            setattr(owner, name, completed.loss)
        self._completed = []
        if self._passes is not None:
            self._passes.drive(False)
            self._passes = None
        give_back(trainer)
        for name in ("on_save_checkpoint", "on_load_checkpoint"):
            vars(trainer.lightning_module).pop(name, None)


class LightningMixin:
    """Brings a `LightningCallback` along: ``class Flat(LightningMixin, Net)`` needs nothing in the Trainer.

    A `LightningCallback` given to the Trainer goes before it.

    Example:
        >>> class Net(_lightning.LightningModule):
        ...     pass
        >>> class Flat(LightningMixin, Net):
        ...     lowland = {"model": "net"}
    """

    lowland: Mapping[str, Any] = {}
    """Arguments of the callback."""

    def configure_callbacks(self) -> list[Any]:
        """Return the callbacks of the module with ours in front."""
        own: Any = super().configure_callbacks()  # type: ignore[misc]
        own = list(own) if isinstance(own, Sequence) else [own]
        trainer: Any = self.trainer  # type: ignore[attr-defined]
        known = any(isinstance(callback, LightningCallback) for callback in [*own, *trainer.callbacks])
        return own if known else [LightningCallback(**self.lowland), *own]


def _scaler_of(trainer: Any) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)
