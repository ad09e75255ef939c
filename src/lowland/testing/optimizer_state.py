"""Rules of sharpness-aware optimizers: checkpoints, copies, schedulers, hooks and GradScaler."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowland.core.contexts import same_bits
from lowland.testing.adapters import OptimizerAdapter
from lowland.testing.networks import bits, flat, mlp
from lowland.testing.problems import Training
from lowland.testing.rulebook import demand, rule


@rule("Schedulers, trainers and profilers refuse anything else, or count two steps.")
def is_an_optimizer(adapter: OptimizerAdapter) -> None:
    """It is a ``torch.optim.Optimizer`` whose step hooks run once a step."""
    training = Training(adapter)
    demand(isinstance(training.optimizer, torch.optim.Optimizer), "not a torch.optim.Optimizer")
    calls: list[int] = []
    training.optimizer.register_step_pre_hook(lambda *_: calls.append(0))
    training.optimizer.register_step_post_hook(lambda *_: calls.append(1))
    training.run(0, 3)
    demand(calls == [0, 1] * 3, f"hooks ran {calls} in three steps")


@rule("A wrapper with parameter groups of its own is scheduled without effect.")
def scheduler_attaches(adapter: OptimizerAdapter) -> None:
    """A learning-rate scheduler attaches, warns of nothing, and its rate is the one that is used."""
    training = Training(adapter)
    scheduler = torch.optim.lr_scheduler.LambdaLR(training.optimizer, lambda epoch: 0.0 if epoch else 1.0)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        training.step(0)
        scheduler.step()
    demand(not found, f"warns: {found[0].message if found else ''}")
    before = flat(adapter.trained(training.model, training.optimizer))
    training.step(1)
    moved = float((flat(adapter.trained(training.model, training.optimizer)) - before).norm())
    demand(moved < 1e-12, f"with the rate scheduled to 0 a step still moves the weights by {moved:.2g}")


@rule("Lost momentum, or a lost place in a cycle, shows as a jump of the loss at every restart.")
def resumes_at_every_step(adapter: OptimizerAdapter) -> None:
    """Model and optimizer saved after any step, and loaded into new ones, go on with the same bits."""
    for base in adapter.bases:
        whole = Training(adapter, base)
        saved = []
        for index in range(9):
            whole.step(index)
            saved.append((packed(whole.model.state_dict()), packed(whole.optimizer.state_dict())))
        for steps, (weights, state) in enumerate(saved[:-1], 1):
            resumed = Training(adapter, base)
            resumed.model.load_state_dict(unpacked(weights))
            resumed.optimizer.load_state_dict(unpacked(state))
            resumed.run(steps, 9)
            gap = float((flat(whole.model) - flat(resumed.model)).abs().max())
            demand(gap == 0, f"resumed after step {steps} on {base}, the weights end {gap:.2g} away")


def packed(state: object) -> bytes:
    """Return the bytes of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpacked(data: bytes) -> dict[str, Tensor]:
    """Return what a checkpoint holds."""
    return torch.load(io.BytesIO(data), weights_only=False)  # type: ignore[no-any-return]


@rule("Population training, ensembles and some trainers copy them.")
def deep_copy_goes_on(adapter: OptimizerAdapter) -> None:
    """``copy.deepcopy`` of model and optimizer together goes on with the same bits."""
    _goes_on(adapter, copy.deepcopy)


@rule("Processes that are started with them need it.")
def pickle_goes_on(adapter: OptimizerAdapter) -> None:
    """Model and optimizer pickled together go on with the same bits."""
    _goes_on(adapter, lambda both: pickle.loads(pickle.dumps(both)))


def _goes_on(adapter: OptimizerAdapter, copied: Callable[[Any], Any]) -> None:
    for base in adapter.bases:
        for steps in (0, 3):
            training, twin = Training(adapter, base), Training(adapter, base)
            training.run(0, steps)
            twin.model, twin.optimizer = copied((training.model, training.optimizer))
            training.run(steps, 7)
            twin.run(steps, 7)
            same = same_bits(bits(training.model), bits(twin.model))
            demand(same, f"a copy after step {steps} on {base} goes another way")


class _Growing(nn.Module):
    """A network one of whose layers is used only when asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.extra, self.last = mlp()[0], nn.Linear(8, 8).double(), mlp()[2]
        self.grown = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores."""
        hidden = torch.tanh(self.first(x))
        if self.grown:
            hidden = hidden + self.extra(hidden)
        scores: Tensor = self.last(hidden)
        return scores


@rule("A wrapper that keeps its own entries in the base's state makes Adam believe that its moments exist.")
def layer_used_later(adapter: OptimizerAdapter) -> None:
    """A layer that gets its first gradient after some steps is trained then, with AdamW too."""
    training = Training(adapter, adapter.bases[-1], model=_Growing())
    training.run(0, 3)
    model = training.model
    assert isinstance(model, _Growing)
    before = flat(model.extra)
    model.grown = True
    training.run(3, 9)
    demand(float((flat(model.extra) - before).norm()) > 0, "the layer is not trained")


@rule("Training in float16 needs the scaler; applying a scaled gradient is 65536 times too far.")
def grad_scaler_changes_nothing(adapter: OptimizerAdapter) -> None:
    """With torch's GradScaler, as documented by the tool, the weights are those without it."""
    plain, scaled = (Training(adapter, model=mlp(torch.float32)) for _ in range(2))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for index in range(6):
        plain.step(index)
        adapter.scaled_step(scaled.model, scaled.optimizer, scaler, partial(scaled.loss, index))
        scaler.update()
    gap = float((flat(plain.model) - flat(scaled.model)).abs().max())
    demand(gap < 1e-6, f"after six steps the weights differ by {gap:.2g}")


@rule("The first steps of every run in float16 overflow.")
def grad_scaler_skips_overflow(adapter: OptimizerAdapter) -> None:
    """A step that overflows under GradScaler leaves the weights alone, and the next one is taken."""
    training = Training(adapter, model=mlp(torch.float32))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = bits(training.model)
    x, y = training.batches[0]
    adapter.scaled_step(
        training.model, training.optimizer, scaler, lambda: math.inf * F.cross_entropy(training.model(x), y)
    )
    scaler.update()
    demand(same_bits(before, bits(training.model)), "an overflowing step changed the weights")
    adapter.scaled_step(training.model, training.optimizer, scaler, lambda: training.loss(1))
    scaler.update()
    moved = flat(training.model)
    demand(bool(torch.isfinite(moved).all()), "the weights are not finite")
    demand(not same_bits(before, bits(training.model)), "the step after the overflow was not taken")
