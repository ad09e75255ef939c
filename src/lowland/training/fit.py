"""The training loop, top to bottom, on Lightning Fabric.

Every random number depends on the seed alone: the order of an epoch and the augmentation of a sample are pure functions
of (seed, epoch, sample id), and the state of torch's generators (dropout) is in the checkpoint. Together with the
states of model, optimizer and loss this makes a resumed run end with the same bits as one that was never stopped.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lowland.core.contexts import forked_rng
from lowland.core.errors import CheckpointError
from lowland.core.pace import OnEvent, shown
from lowland.core.provenance import provenance
from lowland.core.seeds import torch_seed
from lowland.core.types import move
from lowland.data import Augment, DataSplits
from lowland.losses import TrainingLoss
from lowland.results.files import only_writer
from lowland.results.folders import has_result, open_run_folder
from lowland.results.run import Run
from lowland.training import checkpoint, setup
from lowland.training.evaluation import totals
from lowland.training.hooks import Announce, FitState, Hook, acts_on_steps
from lowland.training.metrics import better, chosen_row, write_metrics, write_result
from lowland.training.processes import check_processes, own_part
from lowland.training.result import FitResult
from lowland.training.schedule import ScheduleLike, as_schedule
from lowland.training.steps import Loop, set_mode, take_step

_PROGRESS: Final = ("epoch", "step", "passes", "evaluation_passes", "seconds")
"""What a run counts; it stands in every row and in every checkpoint."""


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Any, Any], Tensor] | TrainingLoss,
    data: DataSplits | Mapping[str, Any],
    /,
    *,
    epochs: int,
    batch_size: int = 128,
    seed: int = 0,
    schedule: ScheduleLike = "cosine",
    augment: Augment | None = None,
    clip: float | None = None,
    micro_batches: int = 1,
    select: Literal["best", "last"] = "best",
    folder: str | Path | None = None,
    checkpoint_every_steps: int | None = None,
    hooks: Sequence[Hook] = (),
    on_event: OnEvent | None = None,
    progress: bool = False,
    precision: str = "32-true",
    accelerator: str = "cpu",
    devices: int = 1,
) -> FitResult:
    """Train a model, choose an epoch on the validation part, and measure it once on the test part.

    Called again with the same arguments and folder, an interrupted run goes on from its last checkpoint (the end of an
    epoch, or every `checkpoint_every_steps`) and ends with the same bits; a finished run returns its result.

    Args:
        model: The model, at its initial weights; it is trained in place.
        optimizer: Built from the model's parameters: any of torch's, or one of Lowland's wrappers around it.
        loss: A torch loss on (output, target) that gives the mean over the batch, or one of Lowland's losses.
        data: The parts to train on, choose by and test on; a mapping of train, validation and test will do.
        epochs: Passes over the training part.
        batch_size: Samples per step over all devices. Default 128 (He et al. 2016). Loaders keep their own.
        seed: Seed of order, augmentation and dropout; initial weights are the caller's.
        schedule: Learning rate over the run, as a multiple of each group's own. Default one cosine to 0.
        augment: Changes training batches; see `lowland.data.Augment`. For resident data only.
        clip: Largest global gradient norm; None clips nothing.
        micro_batches: Parts that every batch is cut into to save memory; their gradients add up to the batch's (batch
            norm sees the parts). With ``ascent="micro-batch"`` each part has its own ascent (m-sharpness).
        select: Whose weights count: of the ``"best"`` validation accuracy (ties to the earlier epoch; the lowest loss
            where there is no accuracy) or of the ``"last"`` epoch.
        folder: The run's folder; None writes nothing.
        checkpoint_every_steps: Optimizer steps between checkpoints within an epoch; None checkpoints epoch ends only.
        hooks: What happens beside training.
        on_event: Receives the progress; a step is a step of the optimizer.
        progress: Show a bar, in a terminal or a notebook. Default False.
        precision: Fabric's precision: ``"32-true"``, ``"bf16-mixed"``, ``"16-mixed"``, ``"64-true"`` ...
        accelerator: Fabric's accelerator: ``"cpu"``, ``"cuda"``, ``"auto"``.
        devices: Processes; above 1 start them by torchrun.

    Returns:
        The chosen weights and all numbers.

    Raises:
        InputError: If an argument is out of range or the folder is not one for a run; nothing was changed.
        CheckpointError: If the folder holds another run or a damaged checkpoint; nothing was changed.

    Example:
        >>> from lowland import data, models
        >>> model = models.create("resnet8", width=4, channels=1, seed=0)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> result = fit(model, optimizer, nn.CrossEntropyLoss(), data.load("digits", train_size=64), epochs=1)
        >>> result.steps, result.passes
        (1, 1)
    """
    setup.check_arguments(epochs, clip, micro_batches, select, checkpoint_every_steps, optimizer, model)
    multiple, noise = as_schedule(schedule), torch_seed(seed, "training")
    fabric = setup.make_fabric(accelerator, devices, precision)
    data = setup.as_splits(data)
    batches = setup.training_batches(data, batch_size, seed, augment, fabric)
    setup.check_lengths(optimizer, multiple, epochs * len(batches))
    # all that a user can get wrong has been met; only now is something written, and wherever the process goes later
    place = None if folder is None else open_run_folder(Path(folder).absolute())
    first = fabric.is_global_zero
    lock = nullcontext() if place is None or not first else only_writer(place / "checkpoints")
    graphs = (torch.inference_mode(False), torch.enable_grad())  # a notebook may have switched gradients off
    with graphs[0], graphs[1], shown(progress and first, "training", on_event) as told, lock, forked_rng(noise):
        run = FitState(model, optimizer, loss, data, place, epochs, len(batches), seed, fabric.global_rank)
        _seed(run)
        setup.prepare_loss(run, batches, fabric.device)
        own = (clip, micro_batches, checkpoint_every_steps)
        recipe = setup.recipe_of(run, batch_size, schedule, augment, own[:2], select, precision, fabric.world_size)
        return _run(Loop(fabric, run, batches, multiple, hooks, Announce(told), *own, recipe), select)


def _run(loop: Loop, select: Literal["best", "last"]) -> FitResult:
    # go on from the last checkpoint, if there is one, to the last epoch
    run = loop.run
    _resume(loop)
    kept = run.folder is not None and run.epoch >= run.epochs and has_result(run.folder)
    for hook in loop.every:
        hook.on_fit_start(run)
    while run.epoch < run.epochs and not run.stop:
        _train_epoch(loop)
        _end_epoch(loop)
    return _finish(loop, select, kept=kept)


def _seed(run: FitState) -> None:
    random.seed(torch_seed(run.seed, "training", "python"))
    np.random.seed(torch_seed(run.seed, "training", "numpy") % 2**32)
    if run.rank:  # every process has dropout masks of its own; the first has those of a run on one device
        torch.manual_seed(torch_seed(run.seed, "training", run.rank))


def _train_epoch(loop: Loop) -> None:
    run = loop.run
    set_mode(loop, training=True)
    if loop.method is not None:
        loop.method.epoch = run.epoch
    done = run.step - run.epoch * run.steps_per_epoch
    hooks, every = [hook for hook in loop.every if acts_on_steps(hook)], loop.checkpoint_every_steps
    started = time.perf_counter()
    for batch in loop.batches.batches(run.epoch, done):
        take_step(loop, batch)
        run.step += 1
        done += 1
        if hooks:
            paused = time.perf_counter()
            for hook in hooks:
                hook.on_step_end(run)
            started += time.perf_counter() - paused
        if every is not None and run.step % every == 0 and done < run.steps_per_epoch:
            run.seconds += time.perf_counter() - started
            _save(loop)
            started = time.perf_counter()
    run.seconds += time.perf_counter() - started
    run.epoch += 1


def _end_epoch(loop: Loop) -> None:
    # evaluate, let hooks work, decide what is best, write the checkpoint and the row
    run = loop.run
    total = loop.fabric.all_reduce(totals(loop.terms.taken(), loop.fabric.device), reduce_op="sum")
    loss, hits, counted, samples = total.tolist()
    loop.terms.put([])
    run.evaluation_passes += set_mode(loop, training=False)
    validation, passes = loop.evaluation(run.data.validation)
    run.evaluation_passes += passes
    run.row = {
        **{name: getattr(run, name) for name in _PROGRESS},
        "train_loss": loss / samples,
        "train_accuracy": hits / counted if counted else math.nan,
        "validation_loss": validation["loss"],
        "learning_rate": float(run.optimizer.param_groups[0]["lr"]),
    }
    if "accuracy" in validation:
        run.row["validation_accuracy"] = validation["accuracy"]
    if isinstance(run.loss, TrainingLoss):
        run.row.update({f"loss_{name}": value for name, value in run.loss.epoch_log().items() if name != "criterion"})
    if better(run.row, chosen_row(run.rows, "best") if run.rows else None):
        loop.best = (run.step, checkpoint.split_state(run.model)[0])
    for hook in loop.every:
        hook.on_epoch_end(run)
    run.rows.append(run.row)
    set_mode(loop, training=True)  # the checkpoint holds the weights that are trained
    _save(loop)
    if run.folder is not None and loop.fabric.is_global_zero:
        write_metrics(Run(run.folder).metrics_path, run.rows)


def _finish(loop: Loop, select: Literal["best", "last"], *, kept: bool) -> FitResult:
    # load the chosen weights, look at the test part once, and write the result
    run = loop.run
    row = chosen_row(run.rows, select)
    set_mode(loop, training=False)
    final = checkpoint.split_state(run.model)[0]
    set_mode(loop, training=True)
    assert loop.best is not None
    run.model.load_state_dict(loop.best[1] if select == "best" else final, strict=False)
    run.model.eval()
    test, _ = loop.evaluation(run.data.test)
    for hook in loop.every:
        hook.on_fit_end(run)
    result = FitResult(run.model, int(row["epoch"]), test, run.rows, run.step, run.passes, run.seconds, run.folder)
    if run.folder is not None and loop.fabric.is_global_zero and not kept:
        write_metrics(Run(run.folder).metrics_path, run.rows)
        chosen: dict[str, Any] = {"epoch": result.epoch, "select": select, "test": test, "chosen": row}
        chosen |= {f"test_{name}": value for name, value in test.items()}
        costs = {name: getattr(run, name) for name in ("passes", "evaluation_passes", "seconds")}
        known = {**setup.history_of(run), "recipe": loop.recipe, **provenance()}
        write_result(Run(run.folder).result_path, {**chosen, "steps": run.step, **costs, **known})
    loop.fabric.barrier()  # whoever returns finds the folder complete
    return result


def _save(loop: Loop) -> None:
    run = loop.run
    if loop.checkpoints is None:
        return
    loss = run.loss.state_dict() if hasattr(run.loss, "state_dict") else {}
    own: list[Any] = [(checkpoint.random_state(), loss, loop.terms.taken())]  # what every process has of its own
    if loop.fabric.world_size > 1:
        own = own * loop.fabric.world_size
        torch.distributed.all_gather_object(own, own[run.rank])
    if not loop.fabric.is_global_zero:
        return
    weights, extra = checkpoint.split_state(run.model)
    state = {
        "recipe": loop.recipe,
        "extra": extra,
        "optimizer": run.optimizer.state_dict(),
        "own": own,
        "precision": loop.fabric.strategy.precision.state_dict(),
        "hooks": [hook.state_dict() for hook in loop.hooks],
        **{name: getattr(run, name) for name in (*_PROGRESS, "stop", "rows")},
        "best_step": None if loop.best is None else loop.best[0],
    }
    loop.checkpoints.save(run.step, weights, state, best=loop.best)


def _resume(loop: Loop) -> None:
    # put everything back as it was at the last checkpoint, if there is one
    found = None if loop.checkpoints is None else loop.checkpoints.load()
    if found is None:
        return
    weights, state, best = found
    run = loop.run
    assert run.folder is not None
    recipe = state["recipe"]
    before = recipe.get("epochs", run.epochs)
    if before < run.epochs and not setup.why_fixed(loop.schedule, run.loss, before, run.epochs):
        recipe = {**recipe, "epochs": run.epochs}
    checkpoint.check_recipe(recipe, loop.recipe, run.folder)
    run.step = state["step"]
    check_processes(run, loop.batches, len(state["own"]), loop.fabric.world_size)
    if len(state["hooks"]) != len(loop.hooks):
        raise CheckpointError(f"`hooks` must be those of the run in {run.folder} ({len(state['hooks'])} hooks there)")
    run.model.load_state_dict({**weights, **state["extra"]})
    run.optimizer.load_state_dict(state["optimizer"])
    random_numbers, loss, terms = own_part(state["own"], run.rank, loop.fabric.world_size)
    if hasattr(run.loss, "load_state_dict"):
        run.loss.load_state_dict(loss)
    loop.fabric.strategy.precision.load_state_dict(state["precision"])
    for hook, saved in zip(loop.hooks, state["hooks"], strict=True):
        hook.load_state_dict(saved)
    if random_numbers is not None:
        checkpoint.restore_random_state(random_numbers)
    for name in (*_PROGRESS, "stop", "rows"):
        setattr(run, name, state[name])
    loop.terms.put(move(entry, loop.fabric.device) for entry in terms)
    loop.best = None if best is None else (state["best_step"], best)
