"""What every loss promises; a new one joins by a line in `LOSSES`."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lowland import losses
from lowland.core.contexts import perturbed_pass, same_bits
from lowland.core.errors import CheckpointError, InputError
from lowland.core.types import Batch
from lowland.losses import TrainingLoss

SAMPLES, CLASSES, BATCH, EPOCHS = 20, 4, 6, 5

LOSSES: dict[str, Callable[[Any], TrainingLoss]] = {
    "llr": lambda criterion: losses.LLR(criterion, initial_loss=1.4, start=2),
    "llr_first_epoch": lambda criterion: losses.LLR(criterion, initial_loss="first_epoch", start=2),
    "replayed": lambda criterion: losses.Replayed(criterion, recorded()),
    "saf": lambda criterion: losses.SAF(criterion, start=2, look_back=1, precision="float64"),
    "saf_int8": lambda criterion: losses.SAF(criterion, start=2, look_back=2, precision="int8"),
    "saf_file": lambda criterion: losses.SAF(
        criterion, start=2, look_back=1, precision="float16", placement="file", path=new_file()
    ),
    "mesa": lambda criterion: losses.MESA(criterion, start=2, half_life=0.5),
    "saf_on_mesa": lambda criterion: losses.SAF(losses.MESA(criterion, start=2, half_life=0.5), start=3, look_back=2),
    "llr_on_saf": lambda criterion: losses.LLR(losses.SAF(criterion, start=2, look_back=1), initial_loss=1.4, start=2),
    "llr_on_llr": lambda criterion: losses.LLR(
        losses.LLR(criterion, initial_loss=1.4, start=2), initial_loss=2.0, start=3
    ),
}


_FILES = tempfile.TemporaryDirectory()


def new_file() -> str:
    """Return one path for a loss and the one that takes over its state, as in a run that is resumed."""
    return f"{_FILES.name}/outputs"


def recorded() -> losses.Multipliers:
    record = losses.Multipliers()
    for epoch, factor in enumerate([1.0, 1.0, 0.4, 0.7, 1.3]):
        record.append(epoch, torch.tensor(1.0), torch.tensor(factor))
    return record


@pytest.fixture(params=LOSSES)
def make(request: pytest.FixtureRequest) -> Callable[..., TrainingLoss]:
    build = LOSSES[request.param]
    return lambda criterion=None: build(nn.CrossEntropyLoss() if criterion is None else criterion)


class Run:
    """Training on random data with an order that depends on the epoch alone."""

    def __init__(self, loss: TrainingLoss | None, *, learning_rate: float = 0.2) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(SAMPLES, 3, generator=generator, dtype=torch.float64)
        self.y = torch.randint(CLASSES, (SAMPLES,), generator=generator)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES)).double()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=learning_rate, momentum=0.9, weight_decay=1e-3)
        self.loss = loss
        if loss is not None:
            loss.prepare(model=self.model, epochs=EPOCHS, steps_per_epoch=len(self.batches(0)), samples=SAMPLES)

    def batches(self, epoch: int) -> list[Batch]:
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(100 + epoch))
        return [Batch(self.x[rows], self.y[rows], rows) for rows in order.split(BATCH)]

    def step(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        output = self.model(batch.input)
        value = nn.functional.cross_entropy(output, batch.target) if self.loss is None else self.loss(output, batch)
        value.backward()
        self.optimizer.step()
        if self.loss is not None:
            self.loss.after_step()

    def train(self, start: int = 0, stop: int = EPOCHS, first_batch: int = 0) -> Run:
        for epoch in range(start, stop):
            if self.loss is not None:
                self.loss.epoch = epoch
            for batch in self.batches(epoch)[first_batch if epoch == start else 0 :]:
                self.step(batch)
        return self

    def weights(self) -> list[torch.Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]


def test_is_named_by_its_settings_alone(make):
    first, second = make(), make()
    assert repr(first) == repr(Run(second).train().loss)
    assert " at 0x" not in repr(first) and "CrossEntropyLoss()" in repr(first)


def test_plain_outside_training(make):
    run = Run(make()).train()
    before = copy.deepcopy(run.loss.state_dict())
    batch = run.batches(0)[0]
    with torch.no_grad():
        output = run.model(batch.input)
        value = run.loss(output, batch)
    assert torch.equal(value, nn.functional.cross_entropy(output, batch.target))
    assert equal_states(before, run.loss.state_dict())


def test_plain_before_its_start(make):
    run, plain = Run(make()).train(0, 2), Run(None).train(0, 2)
    assert same_bits(run.weights(), plain.weights())


def test_differs_from_plain_after_its_start(make):
    run, plain = Run(make()).train(), Run(None).train()
    assert not same_bits(run.weights(), plain.weights())


def test_the_perturbed_pass_leaves_no_trace(make):
    run = Run(make()).train(0, 4)
    batch = run.batches(3)[0]
    run.loss(run.model(batch.input), batch)  # a teacher has seen the batch, as in every step
    before = copy.deepcopy(run.loss.state_dict())
    with perturbed_pass():
        run.loss(run.model(batch.input), batch).backward()
    assert equal_states(before, run.loss.state_dict())


def test_both_passes_see_the_same_function(make):
    run = Run(make()).train(0, 4)
    run.loss.epoch = 4
    batch = run.batches(4)[0]
    output = run.model(batch.input)
    clean = run.loss(output, batch)
    with perturbed_pass():
        assert torch.equal(run.loss(output, batch), clean)


@pytest.mark.parametrize("batches_done", [0, 1, 3])
def test_resumes_in_mid_epoch_to_the_same_bits(make, batches_done):
    straight = Run(make()).train()
    run = Run(make()).train(0, 3)
    run.loss.epoch = 3
    for batch in run.batches(3)[:batches_done]:
        run.step(batch)
    saved = copy.deepcopy((run.model.state_dict(), run.optimizer.state_dict(), run.loss.state_dict()))
    run.step(run.batches(3)[batches_done])  # what a crash throws away
    again = Run(make())
    again.model.load_state_dict(saved[0])
    again.optimizer.load_state_dict(saved[1])
    again.loss.load_state_dict(saved[2])
    again.train(3, first_batch=batches_done)
    assert same_bits(again.weights(), straight.weights())
    assert equal_states(again.loss.state_dict(), straight.loss.state_dict())
    assert again.loss.epoch_log() == straight.loss.epoch_log()


def test_setting_the_epoch_twice_changes_nothing(make):
    once, twice = Run(make()).train(), Run(make())
    for epoch in range(EPOCHS):
        twice.loss.epoch = epoch
        twice.train(epoch, epoch + 1)
    assert same_bits(once.weights(), twice.weights())


def test_preparing_it_again_begins_a_new_run(make):
    loss = make()
    first = Run(loss).train(0, 4)
    assert len(first.loss.epoch_log())
    again, fresh = Run(loss).train(), Run(make()).train()
    assert same_bits(again.weights(), fresh.weights())
    assert equal_states(again.loss.state_dict(), fresh.loss.state_dict())


def test_logs_the_plain_loss(make):
    run = Run(make()).train(0, 2)
    values = []
    run.loss.epoch = 2
    for batch in run.batches(2):
        run.model.train()
        run.step(batch)
        values.append(float(run.loss.plain_value) * batch.size)
    log = run.loss.epoch_log()
    assert log["criterion"] == pytest.approx(sum(values) / SAMPLES, rel=1e-12)
    assert all(isinstance(value, float) for value in log.values())


def test_a_new_epoch_starts_a_new_log(make):
    run = Run(make()).train(0, 1)
    run.loss.epoch = 1
    assert run.loss.epoch_log() == {}


def test_state_survives_a_file(make, tmp_path):
    run = Run(make()).train(0, 4)
    torch.save(run.loss.state_dict(), tmp_path / "state.pt")
    other = Run(make())
    other.loss.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert equal_states(other.loss.state_dict(), run.loss.state_dict())


def test_refuses_a_foreign_state(make):
    class Other(TrainingLoss):
        def _settings(self) -> dict[str, Any]:
            return {}

        def _training(self, output: Any, batch: Batch) -> torch.Tensor:
            return self._inner(output, batch)

    run = Run(make()).train(0, 4)
    before = copy.deepcopy(run.loss.state_dict())
    for state in (Other(nn.CrossEntropyLoss()).state_dict(), {"epoch": 3}, {**before, "own": {}}):
        with pytest.raises(CheckpointError, match="nothing was loaded"):
            run.loss.load_state_dict(state)
    assert equal_states(before, run.loss.state_dict())


def test_refuses_a_criterion_that_gives_no_scalar(make):
    run = Run(make(nn.CrossEntropyLoss(reduction="none")))
    with pytest.raises(InputError, match="mean over the batch"):
        run.train()
    with pytest.raises(InputError, match="criterion"):
        make("cross entropy")


@pytest.mark.parametrize("epoch", [-1, 1.0, True])
def test_refuses_what_is_no_epoch(make, epoch):
    with pytest.raises(InputError, match="epoch"):
        make().epoch = epoch


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_outputs_give_finite_gradients(make, dtype):
    run = Run(make()).train(0, 4)
    run.loss.epoch = 4
    batch = run.batches(4)[0]
    output = (run.model(batch.input) * 20).to(dtype)
    output.retain_grad()
    value = run.loss(output, batch)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(output.grad).all()


def test_takes_the_target_alone_where_it_needs_no_more(make):
    run = Run(make())
    if run.loss.needs_input:
        pytest.skip("needs the batch")
    run.loss.epoch = 2
    batch = run.batches(2)[0]
    output = run.model(batch.input)
    with perturbed_pass():
        assert torch.equal(run.loss(output, batch.target), run.loss(output, batch))


def equal_states(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and same_bits([first], [second])
    if isinstance(first, dict):
        if "key" in first:  # of a file: new in every run
            return first.keys() == second.keys()
        return first.keys() == second.keys() and all(equal_states(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal_states, first, second))
    return first == second or (first != first and second != second)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("module", [True, False])
def test_a_criterion_that_is_a_sum_is_refused(name, module):
    total = functools.partial(nn.functional.cross_entropy, reduction="sum")
    with pytest.raises(InputError, match="mean over the batch"):
        LOSSES[name](nn.CrossEntropyLoss(reduction="sum") if module else total)
