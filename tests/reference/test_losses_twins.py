"""SAF and MESA against slow twins that keep everything in dictionaries and write every sum as a loop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lowland.core.contexts import perturbed_pass
from lowland.core.types import Batch
from lowland.losses import MESA, SAF

# batches of 5 and a small step: batch norm over a few repeated samples would blow rounding up beyond the tolerance
SAMPLES, CLASSES, EPOCHS, TEMPERATURE, WEIGHT = 15, 3, 6, 5.0, 0.3


def softmax(scores: list[float]) -> list[float]:
    powers = [math.exp(score / TEMPERATURE) for score in scores]
    return [power / sum(powers) for power in powers]


def divergence(past: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    target = softmax(past.tolist())
    powers = [torch.exp(score / TEMPERATURE) for score in now]
    total = now.new_zeros(())
    for p, power in zip(target, powers, strict=True):
        total = total + p * (math.log(p) - torch.log(power / sum(powers)))
    return total


class DictionarySAF:
    def __init__(self, look_back: int, start: int, squared: bool) -> None:
        self.look_back, self.start, self.factor = look_back, start, TEMPERATURE**2 if squared else 1.0
        self.outputs: dict[tuple[int, int], torch.Tensor] = {}
        self.epoch = 0

    def __call__(self, model: nn.Module, batch: Batch, clean: bool) -> torch.Tensor:
        output = model(batch.input)
        loss = nn.functional.cross_entropy(output, batch.target)
        if self.epoch >= self.start:
            for row, number in zip(output, batch.index.tolist(), strict=True):
                past = self.outputs.get((self.epoch - self.look_back, number))
                if past is not None:
                    loss = loss + WEIGHT * self.factor * divergence(past, row) / len(output)
        if clean:
            for row, number in zip(output, batch.index.tolist(), strict=True):
                self.outputs[self.epoch, number] = row.detach().clone()
        return loss

    def after_step(self, model: nn.Module) -> None:
        pass


class DictionaryMESA:
    def __init__(self, model: nn.Module, start: int, squared: bool, half_life_steps: float) -> None:
        self.start, self.factor = start, TEMPERATURE**2 if squared else 1.0
        self.average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.decay, self.updates, self.epoch = 2 ** (-1 / half_life_steps), 0, 0

    def __call__(self, model: nn.Module, batch: Batch, clean: bool) -> torch.Tensor:
        output = model(batch.input)
        loss = nn.functional.cross_entropy(output, batch.target)
        if self.epoch >= self.start:
            teacher = copy.deepcopy(model).eval()
            teacher.load_state_dict(self.average)
            with torch.no_grad():
                past = teacher(batch.input)
            for before, row in zip(past, output, strict=True):
                loss = loss + WEIGHT * self.factor * divergence(before, row) / len(output)
        return loss

    def after_step(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in model.state_dict().items():
            old = self.average[name]
            self.average[name] = decay * old + (1 - decay) * tensor if tensor.is_floating_point() else tensor.clone()
        self.updates += 1


class Ours:
    def __init__(self, loss: Any) -> None:
        self.loss = loss

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "epoch":
            self.loss.epoch = value
        else:
            super().__setattr__(name, value)

    def __call__(self, model: nn.Module, batch: Batch, clean: bool) -> torch.Tensor:
        if clean:
            return self.loss(model(batch.input), batch)
        with perturbed_pass():
            return self.loss(model(batch.input), batch)

    def after_step(self, model: nn.Module) -> None:
        self.loss.after_step()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


def batches(epoch: int, repeats: bool) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 2, generator=generator, dtype=torch.float64) * 2
    y = torch.randint(CLASSES, (SAMPLES,), generator=generator)
    generator.manual_seed(50 + epoch)
    if repeats:  # within a batch, between batches, and some samples not at all
        order = torch.randint(SAMPLES, (SAMPLES,), generator=generator)
        order[1] = order[0]
    else:
        order = torch.randperm(SAMPLES, generator=generator)
    # another view of the same sample each time, as augmentation gives
    return [Batch(x[i] + 0.1 * torch.randn(len(i), 2, generator=generator).double(), y[i], i) for i in order.split(5)]


def train(model: nn.Module, loss: Any, repeats: bool, sam: bool, start: int = 0, stop: int = EPOCHS) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # stateless, so that a twin may begin in mid-run
    values = []
    for epoch in range(start, stop):
        loss.epoch = epoch
        for batch in batches(epoch, repeats):
            optimizer.zero_grad()
            value = loss(model, batch, True)
            values.append(value.item())
            value.backward()
            if sam:
                base = [p.detach().clone() for p in model.parameters()]
                with torch.no_grad():
                    norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
                    for p in model.parameters():
                        p.add_(p.grad, alpha=0.1 / float(norm))
                optimizer.zero_grad()
                value = loss(model, batch, False)
                values.append(value.item())
                value.backward()
                with torch.no_grad():
                    for p, b in zip(model.parameters(), base, strict=True):
                        p.copy_(b)
            optimizer.step()
            loss.after_step(model)
    return values


def pairs(squared: bool, placement: str, tmp_path: Any) -> dict[str, Callable[[nn.Module], tuple[Any, Any]]]:
    def saf(model: nn.Module) -> tuple[Any, Any]:
        path = tmp_path / "outputs" if placement == "file" else None
        ours = SAF(
            nn.CrossEntropyLoss(),
            look_back=2,
            start=2,
            weight=WEIGHT,
            temperature=TEMPERATURE,
            precision="float64",
            temperature_squared=squared,
            placement=placement,
            path=path,
        )
        ours.prepare(samples=SAMPLES)
        return Ours(ours), DictionarySAF(2, 2, squared)

    def mesa(model: nn.Module) -> tuple[Any, Any]:
        ours = MESA(
            nn.CrossEntropyLoss(),
            start=1,
            weight=WEIGHT,
            temperature=TEMPERATURE,
            temperature_squared=squared,
            half_life=1.0,
        )
        ours.prepare(model=model, steps_per_epoch=3)
        return Ours(ours), DictionaryMESA(model, 1, squared, 3.0)

    return {"saf": saf, "mesa": mesa}


@pytest.mark.parametrize("sam", [False, True], ids=["one-pass", "two-pass"])
@pytest.mark.parametrize("repeats", [False, True], ids=["reshuffled", "repeats"])
@pytest.mark.parametrize(
    "method, squared, placement",
    [
        ("saf", True, "device"),
        ("saf", False, "device"),
        ("saf", True, "host"),
        ("saf", True, "file"),
        ("mesa", True, "-"),
        ("mesa", False, "-"),
    ],
)
def test_equals_its_twin(method, squared, placement, repeats, sam, tmp_path):
    model, twin_model = network(), network()
    ours, twin = pairs(squared, placement, tmp_path)[method](model)
    values = train(model, ours, repeats, sam)
    expected = train(twin_model, twin, repeats, sam)
    assert values == pytest.approx(expected, rel=1e-12, abs=1e-12)
    compare(model, twin_model)


@pytest.mark.parametrize("method", ["saf", "mesa"])
def test_equals_its_twin_after_a_resume_in_mid_epoch(method, tmp_path):
    model, twin_model = network(), network()
    ours, twin = pairs(True, "device", tmp_path)[method](model)
    train(model, ours, True, True, 0, 3)
    train(twin_model, twin, True, True, 0, 3)
    ours.epoch = twin.epoch = 3
    half = batches(3, True)[:2]
    for each, loss in ((model, ours), (twin_model, twin)):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        for batch in half:
            optimizer.zero_grad()
            loss(each, batch, True).backward()
            optimizer.step()
            loss.after_step(each)
    saved = copy.deepcopy((model.state_dict(), ours.loss.state_dict()))
    again = network()
    resumed, _ = pairs(True, "device", tmp_path)[method](again)
    again.load_state_dict(saved[0])
    resumed.loss.load_state_dict(saved[1])
    values = train(again, resumed, True, True, 3)
    assert values == pytest.approx(train(twin_model, twin, True, True, 3), rel=1e-12, abs=1e-12)
    compare(again, twin_model)


def compare(first: nn.Module, second: nn.Module) -> None:
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
