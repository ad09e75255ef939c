"""Losses and optimizer wrappers together: each part works, resumes to the same bits, and can be switched off."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lowland import losses, optim
from lowland.core.contexts import same_bits
from lowland.core.types import Batch

SAMPLES, CLASSES, EPOCHS = 24, 4, 6
NEVER = 1000


def saf(**options: Any) -> losses.SAF:
    return losses.SAF(nn.CrossEntropyLoss(), **{"look_back": 2, "start": 2, "precision": "float64", **options})


def llr(inner: Any, **options: Any) -> losses.LLR:
    return losses.LLR(inner, **{"initial_loss": 1.5, "start": 1, **options})


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3)


def sala(parameters: Any) -> torch.optim.Optimizer:
    return optim.SALA(sgd(parameters), rho=0.6, period=2, alpha=0.5)


def sam(parameters: Any) -> torch.optim.Optimizer:
    return optim.SAM(sgd(parameters), rho=0.1)


class Run:
    def __init__(self, make_loss: Callable[[], Any], make_optimizer: Callable[[Any], Any]) -> None:
        torch.manual_seed(0)
        body = [nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, CLASSES)]
        self.model = nn.Sequential(*body).double()
        self.optimizer = make_optimizer(self.model.parameters())
        self.loss = make_loss()
        if isinstance(self.loss, losses.TrainingLoss):
            self.loss.prepare(model=self.model, epochs=EPOCHS, steps_per_epoch=4, samples=SAMPLES)
        self.x = torch.randn(SAMPLES, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.y = torch.randint(CLASSES, (SAMPLES,), generator=torch.Generator().manual_seed(2))
        self.values: list[float] = []
        self.ascents = 0

    def batches(self, epoch: int) -> list[Batch]:
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))
        return [Batch(self.x[i], self.y[i], i) for i in order.split(6)]

    def backward(self, batch: Batch) -> float:
        output = self.model(batch.input)
        ours = isinstance(self.loss, losses.TrainingLoss)
        value = self.loss(output, batch if ours else batch.target)
        value.backward()
        return value.item()

    def step(self, epoch: int, number: int) -> None:
        batch = self.batches(epoch)[number]
        torch.manual_seed(1000 * epoch + number)  # dropout
        self.optimizer.zero_grad()
        self.values.append(self.backward(batch))
        if getattr(self.optimizer, "needs_perturbation", bool)():
            with self.optimizer.perturb():
                self.backward(batch)
            self.ascents += 1
        self.optimizer.step()
        if isinstance(self.loss, losses.TrainingLoss):
            self.loss.after_step()

    def train(self, start: int = 0, stop: int = EPOCHS, skip: int = 0) -> Run:
        for epoch in range(start, stop):
            if isinstance(self.loss, losses.TrainingLoss):
                self.loss.epoch = epoch
            for number in range(skip if epoch == start else 0, 4):
                self.step(epoch, number)
        return self

    def weights(self) -> list[torch.Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]


@pytest.mark.parametrize("make_optimizer", [sala, sam], ids=["sala", "sam"])
@pytest.mark.parametrize("inner", [saf, lambda: losses.MESA(nn.CrossEntropyLoss(), start=2)], ids=["saf", "mesa"])
@pytest.mark.parametrize("stopped", [(0, 3), (3, 0), (3, 1), (4, 2)])
def test_llr_on_a_trajectory_loss_on_a_wrapper_resumes_to_the_same_bits(inner, make_optimizer, stopped):
    straight = Run(lambda: llr(inner()), make_optimizer).train()
    assert straight.ascents and straight.values[-1] < straight.values[4]
    run = Run(lambda: llr(inner()), make_optimizer)
    epoch, number = stopped
    run.train(0, epoch)
    run.loss.epoch = epoch
    for done in range(number):
        run.step(epoch, done)
    states = copy.deepcopy([part.state_dict() for part in (run.model, run.optimizer, run.loss)])
    again = Run(lambda: llr(inner()), make_optimizer)
    for part, state in zip((again.model, again.optimizer, again.loss), states, strict=True):
        part.load_state_dict(state)
    again.train(epoch, skip=number)
    assert same_bits(again.weights(), straight.weights())
    assert run.values + again.values == straight.values


@pytest.mark.parametrize(
    "off, alone",
    [
        ((lambda: llr(saf(), start=NEVER), sala), (saf, sala)),
        ((lambda: llr(saf(start=NEVER)), sala), (lambda: llr(nn.CrossEntropyLoss()), sala)),
        ((lambda: llr(saf(weight=0.0)), sala), (lambda: llr(nn.CrossEntropyLoss()), sala)),
        (
            (lambda: llr(saf()), lambda p: optim.SALA(sgd(p), rho=0.0, alpha=1.0)),
            (lambda: llr(saf()), sgd),
        ),
        ((lambda: llr(saf(start=NEVER), start=NEVER), sala), (nn.CrossEntropyLoss, sala)),
        (
            (lambda: llr(saf(start=NEVER), start=NEVER), lambda p: optim.SALA(sgd(p), rho=0.0, alpha=1.0)),
            (nn.CrossEntropyLoss, sgd),
        ),
        ((lambda: losses.MESA(nn.CrossEntropyLoss(), weight=0.0, start=0), sam), (nn.CrossEntropyLoss, sam)),
    ],
    ids=["no llr", "no saf", "saf weight 0", "no sala", "sala alone", "nothing", "mesa weight 0"],
)
def test_a_part_switched_off_leaves_the_others_exactly(off, alone):
    with_all, without = Run(*off).train(), Run(*alone).train()
    assert same_bits(with_all.weights(), without.weights())
    assert with_all.values == without.values


def test_each_part_does_something():
    full = Run(lambda: llr(saf()), sala).train()
    for make_loss, make_optimizer in [
        (saf, sala),
        (lambda: llr(nn.CrossEntropyLoss()), sala),
        (lambda: llr(saf()), sgd),
    ]:
        assert not same_bits(full.weights(), Run(make_loss, make_optimizer).train().weights())


@pytest.mark.parametrize("make_optimizer", [sam, sala], ids=["sam", "sala"])
def test_two_passes_count_once(make_optimizer):
    run = Run(lambda: llr(saf()), make_optimizer).train()
    assert len(run.loss.multipliers) == 4 * EPOCHS
    log = run.loss.epoch_log()
    assert log["saf_hit_rate"] == 1.0 and {"criterion", "saf_kl", "saf_loss", "llr_multiplier"} <= set(log)


def test_llr_leaves_the_direction_of_the_ascent_as_it_is():
    """The ascent is rho g / |g|, so a multiplier cancels: LLR's gradient is f' at the perturbed loss times SAM's."""
    plain, reshaped = Run(nn.CrossEntropyLoss, sam), Run(lambda: llr(nn.CrossEntropyLoss(), start=0), sam)
    perturbed = []
    for run in (plain, reshaped):
        batch = run.batches(0)[0]
        torch.manual_seed(0)
        run.backward(batch)
        with run.optimizer.perturb():
            perturbed.append([p.detach().clone() for p in run.model.parameters()])
            run.backward(batch)
    for one, other in zip(*perturbed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
