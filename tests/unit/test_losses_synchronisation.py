"""No loss waits for an accelerator within a step: on meta tensors, which have no values, reading one is an error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lowland import losses
from lowland.core.contexts import perturbed_pass
from lowland.core.types import Batch

CASES: dict[str, Callable[[], losses.TrainingLoss]] = {
    "llr": lambda: losses.LLR(nn.CrossEntropyLoss(), initial_loss=2.0),
    "llr, first epoch": lambda: losses.LLR(nn.CrossEntropyLoss(), initial_loss="first_epoch"),
    "saf": lambda: losses.SAF(nn.CrossEntropyLoss(), look_back=1, start=0, samples=50),
    "saf, ids": lambda: losses.SAF(nn.CrossEntropyLoss(), look_back=1, start=0, samples=torch.arange(50) * 3),
    "saf, int8": lambda: losses.SAF(nn.CrossEntropyLoss(), look_back=1, start=0, samples=50, precision="int8"),
    "saf, pairs": lambda: losses.SAF(nn.CrossEntropyLoss(), look_back=1, start=0, samples=50, mixed="match"),
    "mesa": lambda: losses.MESA(nn.CrossEntropyLoss(), start=0, decay=0.9),
    "all": lambda: losses.LLR(
        losses.SAF(losses.MESA(nn.CrossEntropyLoss(), start=0, decay=0.9), look_back=1, start=0, samples=50),
        initial_loss=2.0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_reads_nothing_from_the_device(name, monkeypatch):
    monkeypatch.setattr("lowland.losses.memory.available_bytes", lambda device, path: 2**40)
    loss = CASES[name]()
    model = nn.Linear(3, 4, device="meta")
    loss.prepare(model=model)
    index = torch.arange(5, device="meta")
    mixed = {"partner": index, "share": torch.ones(5, device="meta")}
    batch = Batch(torch.zeros(5, 3, device="meta"), index, index, **mixed)
    loss.epoch = 0
    for _ in range(2):
        value = loss(model(batch.input), batch)
        value.backward()
        with perturbed_pass():
            loss(model(batch.input), batch).backward()
        loss.after_step()
    assert value.device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError)):  # what was collected is read at the end of the epoch
        loss.epoch_log()
