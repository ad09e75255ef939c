"""What the tests of the integrations share: methods, tiny data, and the plain loop that every trainer must equal."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tests import optim_cases
from torch import nn

import lowland.optim as optim
from lowland.core.contexts import same_bits
from lowland.core.types import Batch
from lowland.losses import TrainingLoss
from lowland.training import Hook

METHODS = {
    **optim_cases.METHODS,
    # an epoch does not end where slow and fast weights meet
    "Lookahead": lambda base, model=None, **_: optim.Lookahead(base, period=3, model=model),
    "SGD": lambda base, **_: base,
}
SAMPLES, BATCH = 32, 4


def slow_but(choices, few):
    """Parameters of a test, of which all but a few run with the slow tests."""
    return [choice if choice in few else pytest.param(*as_tuple(choice), marks=pytest.mark.slow) for choice in choices]


def as_tuple(choice):
    return choice if isinstance(choice, tuple) else (choice,)


EVERY_METHOD = slow_but(METHODS, {"SAM", "LookSAM", "SALA", "EMA"})


def network(dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def wrapped(model, method="SAM", base="sgd", **options):
    made = (
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        if base == "sgd"
        else torch.optim.AdamW(model.parameters(), lr=0.01)
    )
    return METHODS[method](made, **options)


class Samples(torch.utils.data.Dataset):
    """Items ``(input, target)``, or dicts as a Hugging Face model takes them."""

    def __init__(self, *, dicts=False, count=SAMPLES):
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(count, 6, generator=generator)
        self.y = torch.randint(0, 3, (count,), generator=generator)
        self.dicts = dicts

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.y[i]} if self.dicts else (self.x[i], self.y[i])


def batches():
    data = Samples()
    return [
        Batch(data.x[i : i + BATCH], data.y[i : i + BATCH], torch.arange(i, i + BATCH))
        for i in range(0, SAMPLES, BATCH)
    ]


def bfloat16():
    """Autocast as a trainer enters it."""
    return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)


def plain_loop(
    model,
    optimizer,
    loss=None,
    *,
    epochs=1,
    micro_batches=1,
    cast=nullcontext,
    forward=nullcontext,
    scaler=None,
    clip=None,
):
    """What everything is compared with; returns the losses of the clean passes.

    A loss of ours is prepared and told about epochs and steps, as its documentation says. `cast` is entered around
    model and loss, `forward` around the model alone, whose output is in float32 then.
    """
    loss = loss or nn.CrossEntropyLoss()
    ours, seen = isinstance(loss, TrainingLoss), []
    ascent = optimizer if isinstance(optimizer, optim.Ascent) else None
    if scaler is not None:
        optimizer.use_scaler(scaler)
    steps = len(batches()) // micro_batches
    if ours:
        loss.prepare(model=model, epochs=epochs, steps_per_epoch=steps, samples=SAMPLES)

    def backward(batch):
        with cast():
            with forward():
                output = model(batch.input)
            output = output if forward is nullcontext else output.float()
            value = loss(output, batch if ours else batch.target) / micro_batches
        (value if scaler is None else scaler.scale(value)).backward()
        seen.append(value.item())

    for epoch in range(epochs):
        if ours:
            loss.epoch = epoch
        for start in range(0, len(batches()), micro_batches):
            group = batches()[start : start + micro_batches]
            optimizer.zero_grad()
            two = ascent is not None and ascent.needs_perturbation()
            each = two and ascent.options.ascent == "micro-batch"
            for together in [[part] for part in group] if each else [group]:
                for part in together:
                    with ascent.first_pass() if two else nullcontext():
                        backward(part)
                clean = list(seen)
                if two:
                    with ascent.perturb():
                        for part in together:
                            backward(part)
                seen = clean
            if scaler is not None:
                scaler.unscale_(optimizer)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            if ours:
                loss.after_step()
    return seen


def assert_same(first, second):
    assert same_bits([*first.parameters(), *first.buffers()], [*second.parameters(), *second.buffers()])


class Unending(torch.utils.data.IterableDataset):
    """The samples as a stream without a length."""

    def __init__(self, *, dicts=False):
        self.samples = Samples(dicts=dicts)

    def __iter__(self):
        return (self.samples[k] for k in range(len(self.samples)))


class StopAfter(Hook):
    """Ends a run after an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, run):
        run.stop = run.epoch == self.epoch
