"""Hugging Face Trainer: every optimizer, loss and hook of Lowland by a mixin over ``training_step``.

``training_step`` is forward and backward of one micro-batch, under the Trainer's own autocast, scaler and division; the
mixin runs it as often as the optimizer wants. Everything else happens in a callback that the mixin adds.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowland.core.contexts import current_pass, forked_rng, has_running_statistics
from lowland.core.errors import CheckpointError, InputError, optional_import
from lowland.core.types import Batch, as_batch, move
from lowland.integrations.averages import EvaluationWeights, averages, fixed_order, put_statistics, statistics_of
from lowland.integrations.passes import Passes, check_strategy, innermost
from lowland.integrations.trainer_bridge import TrainerBridge, foreign_data, host, made_folder, steps_in
from lowland.integrations.whole_batch import WholeBatch, without_index
from lowland.losses import TrainingLoss
from lowland.optim import Ascent
from lowland.training import FitState, Hook

_transformers: Any = optional_import(
    "transformers", extra="hf", needed_for="the integration with the Hugging Face Trainer"
)


class TrainerMixin:
    """Makes Lowland's optimizers, losses and hooks work in a Trainer: ``class Flat(TrainerMixin, Trainer)``.

    - ``optimizers=(wrapper, schedule)``: the optimizer gets every pass it wants, in any precision, with any number of
      accumulated batches, on one device or under DDP.
    - ``compute_loss_func=loss``: a loss of ours on ``(logits, labels)`` knows the batch, the run, its epochs and steps.
      With accumulation each micro-batch has the mean of its own samples, and the step the mean of these means. Sample
      ids of `lowland.data.Indexed` are taken off the batch before the model sees it (``remove_unused_columns=False``).
    - Hooks of `lowland.training.fit` run; what they say is logged. State travels in the Trainer's checkpoints.

    Args:
        *args: As for the Trainer.
        hooks: Hooks, such as `lowland.training.Snapshots`, `SharpnessLog`, `SurfaceAtEnd`.
        folder: Folder of the run, for hooks that write. Default None: ``args.output_dir``.
        survey_loss: The criterion ``(logits, labels)`` that hooks measure; None takes that of ``compute_loss_func``.
        **kwargs: As for the Trainer.

    Raises:
        InputError: If Trainer or data cannot do what the optimizer or the loss wants.
    """

    def __init__(
        self,
        *args: Any,
        hooks: Sequence[Hook] = (),
        folder: str | Path | None = None,
        survey_loss: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        trainer: Any = self
        loss = trainer.compute_loss_func
        self._model_loss = _ModelLoss(loss) if isinstance(loss, TrainingLoss) else None
        if self._model_loss is not None:
            trainer.compute_loss_func = self._model_loss
        self._passes: Passes | None = None
        losses = [] if self._model_loss is None else [self._model_loss.loss]
        self._beside = _Beside(
            trainer, TrainerBridge(losses, hooks), folder, loss if survey_loss is None else survey_loss
        )
        trainer.add_callback(self._beside)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does."""
        self._passes = None
        self._beside.resume_from = resume_from_checkpoint or None
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the weights that the optimizer wants evaluated, with batch-norm statistics of their own."""
        self._beside.renew_statistics()
        return super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> Tensor:
        """Run forward and backward of a micro-batch as often as the optimizer wants; the loss is the first pass's."""
        trainer: Any = self
        if self._passes is None:
            _check(trainer, self._model_loss)
            self._passes = Passes(trainer.optimizer, trainer.accelerator.scaler)
        given, whole, divisor = inputs, None, 1
        loss = self._model_loss
        if loss is not None:
            divisor = _divisor(trainer, rest[0] if rest else None)
            if loss.loss.needs_input:
                whole = _batch(move(dict(inputs), trainer.args.device))
            if loss.loss.needs_index:
                given = without_index(inputs)

        def work() -> Tensor:
            step: Any = super(TrainerMixin, self).training_step  # type: ignore[misc]
            with ExitStack() as stack:
                if loss is not None:
                    stack.enter_context(loss.of(whole))
                    stack.enter_context(loss.divided(divisor))
                if current_pass() == "perturbed":
                    stack.enter_context(_uncounted(trainer))
                found: Tensor = step(model, given, *rest)
            return found

        return self._passes.run(work, last=trainer.accelerator.sync_gradients, model=model)


class _ModelLoss(WholeBatch):
    """A loss as the Trainer calls it: on the model's output, and divided as the Trainer wants it."""

    def __init__(self, loss: TrainingLoss) -> None:
        super().__init__(loss)
        self._divisor = 1

    def __call__(self, output: Any, target: Any, num_items_in_batch: Any = None) -> Tensor:
        del num_items_in_batch
        logits = output["logits"] if isinstance(output, Mapping) else getattr(output, "logits", output)
        return super().__call__(logits, target) / self._divisor

    @contextmanager
    def divided(self, divisor: int) -> Generator[None, None, None]:
        self._divisor = divisor
        try:
            yield
        finally:
            self._divisor = 1


class _Beside(_transformers.TrainerCallback):  # type: ignore[misc]
    """Tells losses and hooks what the Trainer does."""

    def __init__(self, trainer: Any, life: TrainerBridge, folder: str | Path | None, survey_loss: Any) -> None:
        self.trainer, self.life, self.folder, self.survey_loss = trainer, life, folder, survey_loss
        self.resume_from: str | bool | None = None
        self.per_epoch = 0
        self.average = EvaluationWeights()
        self.trained: tuple[int, dict[str, Tensor]] | None = None  # statistics of a step, while the average's are used

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.resume_from is not None:
            place = self.resume_from
            if place is True:
                place = _transformers.trainer_utils.get_last_checkpoint(args.output_dir)
            self.life.saved = _read(Path(str(place)) / _file(args))
            if self.life.saved is not None and self.life.saved["statistics"] is not None:
                put_statistics(self.trainer.model, self.life.saved["statistics"])
        self.average.forget()
        self.trained = None
        loader = self.average.loader = given["train_dataloader"]
        micro = args.gradient_accumulation_steps
        try:
            self.per_epoch = steps_in(len(loader), micro)
        except TypeError:  # iterable data have no length
            self.per_epoch = 0
        written = self._run_folder() if self.folder is None else self.folder
        folder = made_folder(written) if self.life.hooks else None
        optimizer, data = innermost(self.trainer.optimizer), foreign_data("transformers", loader)
        lengths = math.ceil(state.num_train_epochs), self.per_epoch
        reached = args.process_index, _epoch(state), state.global_step
        run = (self.trainer.model, optimizer, self.survey_loss, data, folder)
        self.life.start(FitState(*run, *lengths, args.seed, *reached))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.life.begin_epoch(_epoch(state))

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.life.after_step(state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        with self._evaluated():
            row = self.life.end_epoch(_epoch(state))
        if row:
            due = control.should_log
            # not the trainer's own log: those of TRL write there what they gathered, and forget it
            _transformers.Trainer.log(self.trainer, row)
            control.should_log = due  # of the Trainer's own row
        if self.life.run is not None and self.life.run.stop:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if best is not None and averages(optimizer := innermost(self.trainer.optimizer)):
            # the model holds the average of the best; trained weights and average of the optimizer go with it
            optimizer.load_state_dict(torch.load(Path(best) / "optimizer.pt", map_location="cpu", weights_only=True))
            optimizer.eval()
            self.average.forget()
        with self._evaluated():
            self.life.end()

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        folder = self._run_folder() / f"checkpoint-{state.global_step}"
        trained = self.trained[1] if self.trained is not None and self.trained[0] == state.global_step else None
        if not (self.life.losses or self.life.hooks or trained):
            return
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(host({**self.life.state_dict(), "statistics": trained}), folder / _file(args))

    def renew_statistics(self) -> None:
        optimizer, model, step = innermost(self.trainer.optimizer), self.trainer.model, self.trainer.state.global_step
        if not averages(optimizer) or self.average.loader is None or not has_running_statistics(model):
            return
        if self.trained is None or self.trained[0] != step:
            self.trained = step, {name: value.clone() for name, value in statistics_of(model).items()}
        optimizer.eval()
        with forked_rng():
            optimizer.recalibrate(fixed_order(self.average.loader), model)

    def _run_folder(self) -> Path:
        # of a hyperparameter search every trial has one of its own
        return Path(self.trainer._get_output_dir(getattr(self.trainer, "_trial", None)))

    def _evaluated(self) -> AbstractContextManager[None]:
        if not self.life.hooks:
            return nullcontext()
        optimizer = innermost(self.trainer.optimizer)
        return self.average.held([optimizer], self.trainer.model, self.trainer.state.global_step)


@contextmanager
def _uncounted(trainer: Any) -> Generator[None, None, None]:
    # trainers of TRL count tokens, and gather metrics until the next row, in every forward pass
    numbers = {name: value for name, value in vars(trainer).items() if type(value) in (int, float)}
    metrics = getattr(trainer, "_metrics", {})
    kept = {mode: {name: list(values) for name, values in found.items()} for mode, found in metrics.items()}
    try:
        yield
    finally:
        vars(trainer).update(numbers)
        for mode, found in kept.items():
            metrics[mode].clear()
            metrics[mode].update(found)


def _file(args: Any) -> str:
    return f"lowland-{args.process_index}.pt"


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"cannot read the state of losses and hooks: {path} ({error})") from error
    return saved


def _epoch(state: Any) -> int:
    return int((state.epoch or 0) + 1e-6)


def _batch(inputs: dict[str, Any]) -> Batch:
    whole = as_batch(inputs)
    return Batch({k: v for k, v in whole.input.items() if not k.startswith("label")}, whole.target, whole.index)


def _divisor(trainer: Any, items: Any) -> int:
    # the Trainer takes what a compute_loss_func returns as divided by the items of the whole step, over all processes
    steps: int = getattr(trainer, "current_gradient_accumulation_steps", trainer.args.gradient_accumulation_steps)
    spread = trainer.args.average_tokens_across_devices and items is not None
    return steps * (trainer.accelerator.num_processes if spread else 1)


def _check(trainer: Any, loss: _ModelLoss | None) -> None:
    optimizer, args = innermost(trainer.optimizer), trainer.args
    if loss is not None and loss.loss.needs_index and args.remove_unused_columns:
        raise InputError(
            "remove_unused_columns", "must be False, or the Trainer drops the sample ids that the loss needs", True
        )
    if loss is not None and args.label_smoothing_factor:
        rule, advice = "must be 0: compute_loss_func stands in its place", "use CrossEntropyLoss(label_smoothing=...)"
        raise InputError("label_smoothing_factor", rule, args.label_smoothing_factor, advice)
    if args.load_best_model_at_end and args.save_only_model and averages(optimizer):
        raise InputError("save_only_model", "must be False, or the best checkpoint lacks the average's trained weights")
    if loss is None and not isinstance(optimizer, Ascent):
        return
    if args.n_gpu > 1:
        raise InputError("n_gpu", "must be 1 per process", args.n_gpu, "start one process per device by torchrun")
    check_strategy(optimizer, trainer.accelerator)
