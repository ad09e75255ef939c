"""LLR: the two ways to apply it, where its constant comes from, its controls, and its errors."""

from __future__ import annotations

import gc
import math
import warnings
import weakref

import pytest
import torch
from tests.contracts.test_losses import Run
from torch import nn

from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.losses import (
    LLR,
    Custom,
    Cyclic,
    LinearWindow,
    LogExponential,
    Multipliers,
    Replayed,
    ScaledDecay,
    Sech,
    ShiftedBump,
    learning_rate_factor,
    measure_initial_loss,
    slope_over_losses,
)

RESHAPERS = [Sech(), ShiftedBump(), LogExponential(), LinearWindow(low=0.1, high=2.0), Custom(torch.square)]


def gradients(run: Run) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in run.model.parameters()]


@pytest.mark.parametrize("reshaper", RESHAPERS, ids=lambda r: type(r).__name__)
def test_gradient_is_the_multiplier_times_the_plain_one(reshaper):
    loss = LLR(nn.CrossEntropyLoss(), reshaper, initial_loss=1.7)
    run = Run(loss)
    batch = run.batches(0)[0]
    nn.functional.cross_entropy(run.model(batch.input), batch.target).backward()
    plain = gradients(run)
    run.optimizer.zero_grad()
    loss(run.model(batch.input), batch).backward()
    factor = loss.multiplier(loss.plain_value)
    for wrapped, gradient in zip(gradients(run), plain, strict=True):
        torch.testing.assert_close(wrapped, factor * gradient, rtol=1e-12, atol=1e-15)
    assert loss.multipliers.values == [float(factor)]


class Controlled(Run):
    """The plain criterion, with LLR's multiplier put on the gradient."""

    def step(self, batch):
        self.optimizer.zero_grad()
        value = nn.functional.cross_entropy(self.model(batch.input), batch.target)
        value.backward()
        factor = self.control.multiplier(value)
        for parameter in self.model.parameters():
            parameter.grad.mul_(factor)
        self.optimizer.step()


def test_wrapping_the_loss_equals_scaling_the_gradient():
    wrapped = Run(LLR(nn.CrossEntropyLoss(), initial_loss=1.4)).train()
    controlled = Controlled(None)
    controlled.control = LLR(nn.CrossEntropyLoss(), initial_loss=1.4)
    controlled.train()
    assert wrapped.loss.multipliers.values
    close(wrapped, controlled)


def test_no_graph_is_kept_for_the_record():
    loss, logits = LLR(nn.CrossEntropyLoss(), Sech(), initial_loss=1.0), torch.randn(4, 3, requires_grad=True)
    value = loss(logits, torch.tensor([0, 1, 2, 0]))
    node = weakref.ref(logits)  # lives as long as the graph
    del value, logits
    gc.collect()
    assert len(loss.multipliers) == 1 and node() is None


def test_a_height_of_all_ranks_leaves_each_its_own_gradient(monkeypatch):
    reshaper, logits = Sech(), torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    target, others = torch.tensor([0, 1, 2, 0]), 0.6
    plain = nn.CrossEntropyLoss()(logits, target)
    monkeypatch.setattr("lowland.losses.llr.rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.add_(others))
    LLR(nn.CrossEntropyLoss(), reshaper, initial_loss=2.0, distributed="global")(logits, target).backward()
    (expected,) = torch.autograd.grad(plain, logits)
    slope = reshaper.slope((plain.detach() + others) / 2 / 2.0)
    torch.testing.assert_close(logits.grad, slope * expected)


def test_replayed_passes_reproduce_the_run():
    wrapped = Run(LLR(nn.CrossEntropyLoss(), initial_loss=1.4, start=1)).train()
    replayed = Run(Replayed(nn.CrossEntropyLoss(), wrapped.loss.multipliers, per="pass")).train()
    close(wrapped, replayed)
    assert replayed.loss.multipliers.values == wrapped.loss.multipliers.values


def test_replayed_epochs_use_the_mean_of_each():
    recorded = Multipliers()
    for epoch, value in [(0, 0.2), (0, 0.6), (1, 2.0)]:
        recorded.append(epoch, torch.tensor(1.0), torch.tensor(value, dtype=torch.float64))
    assert recorded.epoch_means() == pytest.approx({0: 0.4, 1: 2.0})
    loss = Replayed(nn.CrossEntropyLoss(), recorded)
    for epoch, factor in [(0, 0.4), (1, 2.0)]:
        loss.epoch = epoch
        output = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        target = torch.tensor([0, 1, 2, 0])
        value = loss(output, target)
        (scaled,) = torch.autograd.grad(value, output)
        (plain,) = torch.autograd.grad(nn.functional.cross_entropy(output, target), output)
        torch.testing.assert_close(scaled, factor * plain, rtol=1e-13, atol=0)
        assert value.item() == pytest.approx(nn.functional.cross_entropy(output, target).item(), rel=1e-14)
    loss.epoch = 2
    with pytest.raises(InputError, match="cover epoch 2"):
        loss(output, target)


def test_learning_rate_factor_drives_a_torch_scheduler():
    recorded = Multipliers()
    for epoch, value in [(0, 0.5), (1, 2.0)]:
        recorded.append(epoch, torch.tensor(1.0), torch.tensor(value))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(recorded))
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.05, 0.2, 0.2])


@pytest.mark.parametrize("kind", ["llr", "replayed"])
def test_weight_decay_is_untouched_by_the_multiplier(kind):
    weights = []
    for use in (False, True):
        weight = torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.3)
        criterion = lambda output, target: output.sum() * 0 + 1.0
        loss = LLR(criterion, initial_loss=2.0)
        if kind == "replayed":
            recorded = Multipliers()
            recorded.append(0, torch.tensor(1.0), torch.tensor(0.01))
            loss = Replayed(criterion, recorded)
        for _ in range(4):
            optimizer.zero_grad()
            (loss(weight, None) if use else criterion(weight, None)).backward()
            optimizer.step()
        weights.append(weight.detach())
    assert same_bits(weights[:1], weights[1:])


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_scaled_decay_scales_decay_by_the_multiplier(kind):
    def train(scale: bool) -> tuple[torch.Tensor, float]:
        weight = torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True)
        optimizer = kind([weight], lr=0.1, weight_decay=0.3)
        loss = LLR(lambda output, target: output.sum() * 0 + 1.0, initial_loss=2.0)
        scaled = ScaledDecay(optimizer, loss) if scale else None
        loss(weight, None).backward()
        optimizer.step()
        assert optimizer.param_groups[0]["weight_decay"] == 0.3
        if scaled is not None:
            scaled.remove()
            weight.grad = None
            before = weight.detach().clone()
            loss(weight, None).backward()
            optimizer.step()
            torch.testing.assert_close(weight.detach() / before, torch.full_like(before, 1 - 0.03))
            weight = before
        return weight.detach(), loss.multipliers.values[0]

    weight, factor = train(True)
    assert 0 < factor < 1
    torch.testing.assert_close(weight, torch.full_like(weight, 2.0 * (1 - 0.1 * 0.3 * factor)), rtol=1e-12, atol=0)


def test_scaled_decay_goes_on_after_a_resume():
    def build() -> tuple[Run, ScaledDecay]:
        run = Run(LLR(nn.CrossEntropyLoss(), initial_loss=1.4))
        return run, ScaledDecay(run.optimizer, run.loss)

    straight = build()[0].train()
    run = build()[0].train(0, 3)
    again = build()[0]
    again.model.load_state_dict(run.model.state_dict())
    again.optimizer.load_state_dict(run.optimizer.state_dict())
    again.loss.load_state_dict(run.loss.state_dict())
    assert same_bits(again.train(3).weights(), straight.weights())


def test_scaled_decay_needs_a_decay():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    with pytest.raises(InputError, match="weight decay"):
        ScaledDecay(optimizer, LLR(nn.CrossEntropyLoss(), initial_loss=1.0))


def test_unknown_initial_loss_names_the_three_ways():
    run = Run(LLR(nn.CrossEntropyLoss()))
    before = run.loss.state_dict()
    with pytest.raises(InputError) as error:
        run.train()
    for way in ("number", "measure_initial_loss(", "first_epoch"):
        assert way in str(error.value)
    assert run.loss.state_dict() == before


def test_measured_initial_loss_is_the_exact_mean_and_restores_the_model():
    run = Run(LLR(nn.CrossEntropyLoss()))
    weights = [tensor.clone() for tensor in run.weights()]
    run.model.train()
    value = run.loss.measure_initial_loss(run.model, run.batches(0))
    assert run.model.training and same_bits(run.weights(), weights)
    run.model.eval()
    with torch.no_grad():
        expected = nn.functional.cross_entropy(run.model(run.x), run.y).item()
    assert value == run.loss.initial_loss == pytest.approx(expected, rel=1e-12)
    nested = LLR(LLR(nn.CrossEntropyLoss(), initial_loss=1.0))
    assert nested.measure_initial_loss(run.model, run.batches(1)) == pytest.approx(expected, rel=1e-12)


def test_initial_loss_of_the_first_epoch_is_its_mean():
    run = Run(LLR(nn.CrossEntropyLoss(), initial_loss="first_epoch")).train(0, 1)
    mean = run.loss.epoch_log()["criterion"]
    assert run.loss.initial_loss is None and set(run.loss.multipliers.values) == {1.0}
    run.loss.epoch = 1
    assert run.loss.initial_loss == pytest.approx(mean, rel=1e-14)


def test_first_epoch_stays_first_after_a_resume_within_it():
    straight = Run(LLR(nn.CrossEntropyLoss(), initial_loss="first_epoch")).train()
    run = Run(LLR(nn.CrossEntropyLoss(), initial_loss="first_epoch"))
    run.loss.epoch = 0
    for batch in run.batches(0)[:2]:
        run.step(batch)
    again = Run(LLR(nn.CrossEntropyLoss(), initial_loss="first_epoch"))
    again.model.load_state_dict(run.model.state_dict())
    again.optimizer.load_state_dict(run.optimizer.state_dict())
    again.loss.load_state_dict(run.loss.state_dict())
    assert same_bits(again.train(0, first_batch=2).weights(), straight.weights())


def test_active_epochs_and_calm_end():
    loss = LLR(nn.CrossEntropyLoss(), initial_loss=1.4, start=0.2, stop=4, calm_down=2)
    with pytest.raises(InputError, match="prepare"):
        loss.multiplier(torch.tensor(1.0))
    loss.prepare(epochs=5)
    factors = []
    for epoch in range(5):
        loss.epoch = epoch
        factors.append(float(loss.multiplier(torch.tensor(1.4))) != 1.0)
    assert factors == [False, True, True, False, False]


def test_cyclic_width_reaches_the_gradient():
    loss = LLR(nn.CrossEntropyLoss(), Cyclic(Sech(b=0.2), rise=0.4, period=2), initial_loss=2.0)
    for epoch, width in [(0, 0.2), (1, 0.4), (2, 0.2)]:
        loss.epoch = epoch
        assert loss.multiplier(torch.tensor(2.0 * width)).item() == pytest.approx(1.25, rel=1e-6)


def test_a_constant_slope_of_one_is_the_plain_run():
    plain, wrapped = Run(None).train(), Run(LLR(nn.CrossEntropyLoss(), LinearWindow(a=1.0), initial_loss=2.0)).train()
    assert wrapped.loss.multipliers.values == [1.0] * len(wrapped.loss.multipliers)
    close(plain, wrapped)


def test_a_negative_loss_that_would_climb_is_an_error():
    loss = LLR(lambda output, target: output.mean(), initial_loss=1.0)
    with pytest.raises(InputError, match="climb"):
        loss(torch.full((2,), -1.0, requires_grad=True), None)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, True, "measured"])
def test_bad_initial_losses_are_refused(value):
    with pytest.raises(InputError, match="initial_loss"):
        LLR(nn.CrossEntropyLoss(), initial_loss=value)


def test_other_bad_settings_are_refused():
    criterion = nn.CrossEntropyLoss()
    for arguments, name in [
        ({"reshaper": lambda u: u}, "reshaper"),
        ({"distributed": "all"}, "distributed"),
        ({"start": -1}, "start"),
        ({"start": 1.5}, "start"),
        ({"start": 3, "stop": 3}, "stop"),
    ]:
        with pytest.raises(InputError, match=f"^`{name}`"):
            LLR(criterion, **arguments)
    with pytest.raises(InputError, match="recorded"):
        Replayed(criterion, Multipliers())
    with pytest.raises(InputError, match="positive"):
        measure_initial_loss(lambda output, target: output.sum() * 0, nn.Linear(2, 2), [(torch.zeros(1, 2), None)])


def test_slope_over_losses_counts_what_training_met():
    run = Run(LLR(nn.CrossEntropyLoss(), initial_loss=1.4)).train()
    met = run.loss.multipliers
    data = slope_over_losses(run.loss.reshaper, met, 1.4, bins=7)
    assert int(data.passes.sum()) == len(met) == 5 * 4
    torch.testing.assert_close(torch.tensor(data.slope.values), Sech().slope(torch.tensor(data.loss.values) / 1.4))
    assert data.left[0] == 0 and float(data.right[-1]) == pytest.approx(max(met.losses))
    assert float(data.mean_multiplier) == pytest.approx(sum(met.values) / len(met))
    met.append(5, torch.tensor(math.nan), torch.tensor(math.nan))  # a run that diverged is still drawn
    assert int(slope_over_losses(run.loss.reshaper, met, 1.4).passes.sum()) == 5 * 4
    with pytest.raises(InputError, match="recorded"):
        slope_over_losses(Sech(), Multipliers(), 1.0)


def close(first: Run, second: Run) -> None:
    for one, other in zip(first.weights(), second.weights(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_multiplier_that_stays_near_0_is_told_once():
    loss = LLR(nn.CrossEntropyLoss(), initial_loss=math.log(3))
    output, target = torch.zeros(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])  # the loss stays at its start
    told = []
    for epoch in range(8):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss.epoch = epoch
        told.append([str(one.message) for one in caught])
        loss(output, target).backward()
    assert [len(texts) for texts in told] == [0, 0, 0, 0, 0, 1, 0, 0]
    assert "Sech(base=0.5)" in told[5][0]


def test_losses_are_reshaped_in_full_precision_under_autocast():
    lowered = []

    def square(u):
        lowered.append(torch.is_autocast_enabled("cpu"))
        return u * u

    loss = LLR(nn.CrossEntropyLoss(), Custom(square), initial_loss=1.0)
    lowered.clear()
    with torch.autocast("cpu", torch.bfloat16):
        loss(torch.randn(4, 3, requires_grad=True), torch.arange(4) % 3)
    assert lowered and not any(lowered)
