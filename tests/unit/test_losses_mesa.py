"""MESA: its teacher, when that is asked, at what cost, and what it reports."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from lowland.core.contexts import perturbed_pass, same_bits
from lowland.core.errors import CheckpointError, InputError
from lowland.core.types import Batch
from lowland.losses import MESA
from lowland.losses.divergence import tempered_divergence
from lowland.losses.mesa import Average

CE = nn.functional.cross_entropy


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 4)).to(dtype)


def batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(6, 3, generator=generator).to(dtype), torch.randint(4, (6,), generator=generator))


def prepared(model: nn.Module, **options) -> MESA:
    loss = MESA(nn.CrossEntropyLoss(), **{"start": 1, **options})
    loss.prepare(model=model, epochs=10, steps_per_epoch=2)
    return loss


class Counted(nn.Module):
    """Counts the passes of whatever copy of it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.passes = nn.Linear(3, 4).double(), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.layer(x)


def test_published_defaults():
    loss = MESA(nn.CrossEntropyLoss())
    assert (loss.weight, loss.temperature, loss.active.start, loss.temperature_squared) == (0.8, 5.0, 5, True)
    assert loss.effective_weight == 20.0
    loss.prepare(steps_per_epoch=1251)
    assert loss.decay_at(10**6) == pytest.approx(0.9998, abs=3e-6)


def test_half_life_is_the_time_to_half():
    loss = MESA(nn.CrossEntropyLoss(), half_life=3.0, warm_up=False)
    loss.prepare(steps_per_epoch=7)
    assert loss.decay_at(0) ** 21 == pytest.approx(0.5, rel=1e-12)
    warm = MESA(nn.CrossEntropyLoss(), half_life=3.0)
    warm.prepare(steps_per_epoch=7)
    assert [warm.decay_at(t) for t in (0, 1, 10)] == pytest.approx([0.1, 2 / 11, 11 / 20])
    assert warm.decay_at(1000) == loss.decay_at(0)
    assert MESA(nn.CrossEntropyLoss(), decay=0.9998, warm_up=False).decay_at(5) == 0.9998


def test_average_follows_parameters_and_statistics_and_copies_counters():
    model = network()
    average = Average(model)
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(batch().input)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    average.update(0.75)
    new, mine = model.state_dict(), average.model.state_dict()
    for name in new:
        if new[name].is_floating_point():
            torch.testing.assert_close(mine[name], 0.75 * old[name] + 0.25 * new[name], rtol=1e-14, atol=1e-15)
        else:
            assert mine[name] == new[name] == 1


def test_average_of_half_precision_weights_does_not_stall():
    model = nn.Linear(1, 1, bias=False).bfloat16()
    nn.init.constant_(model.weight, 1.0)
    average = Average(model)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(1000):
        average.update(0.999)  # each step moves by less than bfloat16 resolves
    assert average.model.weight.item() == pytest.approx(2 - 0.999**1000, abs=0.01)
    again = Average(model)
    again.load_state_dict(average.state_dict())
    for each in (average, again):  # what bfloat16 cannot hold is in the state too
        for _ in range(1000):
            each.update(0.999)
    assert again.model.weight.item() == average.model.weight.item() == pytest.approx(2 - 0.999**2000, abs=0.01)


def test_teacher_is_apart_from_the_model():
    model = network()
    loss = prepared(model)
    assert not loss.teacher.training and not any(p.requires_grad for p in loss.teacher.parameters())
    own = {p.data_ptr() for p in model.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in loss.teacher.parameters())
    model.train()
    loss.epoch = 1
    before = [tensor.clone() for tensor in loss.teacher.state_dict().values()]
    state = torch.get_rng_state()
    value = loss(model(batch().input), batch())
    used = torch.get_rng_state()
    value.backward()
    assert model.training and same_bits(list(loss.teacher.state_dict().values()), before)
    torch.set_rng_state(state)
    model(batch().input)
    assert torch.equal(torch.get_rng_state(), used)  # the teacher drew nothing


def test_value_and_log():
    model = network().eval()
    loss = prepared(model, temperature_squared=False)
    loss.epoch = 1
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    output = model(batch().input)
    kl = tempered_divergence(loss.teacher(batch().input), output, 5.0).mean()
    assert kl > 0
    torch.testing.assert_close(loss(output, batch()), CE(output, batch().target) + 0.8 * kl, rtol=1e-13, atol=0)
    log = loss.epoch_log()
    assert log["mesa_kl"] == pytest.approx(kl.item(), rel=1e-12)
    assert log["mesa_loss"] == pytest.approx(0.8 * kl.item(), rel=1e-12)
    assert log["criterion"] == pytest.approx(CE(output, batch().target).item(), rel=1e-12)


def test_padding_takes_no_part_in_the_divergence():
    model = nn.Embedding(7, 7).double()
    loss = MESA(lambda o, t: CE(o.flatten(0, 1), t.flatten()), start=0, half_life=1.0, class_axis=2)
    loss.prepare(model=model, steps_per_epoch=2)
    with torch.no_grad():
        model.weight.mul_(1.3)
    tokens, short = torch.tensor([[1, 2, 3, 0, 0]]), torch.tensor([[1, 2, 3]])
    found = []
    for given, labels in ((tokens, torch.tensor([[1, 2, 3, -100, -100]])), (short, short)):
        found.append(loss(model(given), Batch(given, labels)).item())
    assert found[0] == pytest.approx(found[1], rel=1e-12) and loss.epoch_log()["mesa_kl"] > 0


def test_teacher_passes_are_only_those_needed():
    model = Counted()
    loss = prepared(model, start=1, stop=3)
    data = batch()
    passes = []
    for epoch in range(4):
        loss.epoch = epoch
        for _ in range(2):
            output = model(data.input)
            loss(output, data)
            with perturbed_pass():
                loss(model(data.input), data)
            loss.after_step()
        passes.append(loss.teacher.passes)
    assert passes == [0, 2, 4, 4] and loss.extra_forward_passes == 4
    with torch.no_grad():
        loss(model(data.input), data)
    assert loss.teacher.passes == loss.extra_forward_passes == 4


def test_a_perturbed_pass_on_other_data_asks_the_teacher_again():
    model = Counted()
    loss = prepared(model)
    loss.epoch = 1
    data = batch()
    first = loss(model(data.input), data)
    data.input.mul_(2.0)  # the same buffer, filled anew
    with perturbed_pass():
        second = loss(model(data.input), data)
    assert loss.teacher.passes == 2 and first != second


def test_average_is_left_alone_after_its_last_use():
    model = network()
    loss = prepared(model, stop=2)
    for epoch in range(4):
        loss.epoch = epoch
        loss(model(batch().input), batch())
        loss.after_step()
    assert loss.average.updates == 2


def test_teacher_in_bfloat16_is_close():
    model = network(torch.float32).eval()
    values = []
    for precision in (None, "bfloat16"):
        loss = prepared(model, teacher_precision=precision)
        with torch.no_grad():
            for parameter in loss.teacher.parameters():
                parameter.mul_(1.5)
        loss.epoch = 1
        data = batch(dtype=torch.float32)
        loss(model(data.input), data)
        values.append(loss.epoch_log()["mesa_kl"])
    assert values[0] != values[1] and values[1] == pytest.approx(values[0], rel=0.1)


def test_dict_batches_reach_the_teacher():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4).double()

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.layer(x)}

    model, data = Named(), batch()
    loss = prepared(model)
    loss.epoch = 1
    output = model(data.input)["logits"]
    assert loss(output, Batch({"x": data.input}, data.target)) == CE(output, data.target)


def test_wrapped_models_are_looked_through():
    model = network()
    loss = MESA(nn.CrossEntropyLoss())
    loss.prepare(model=torch.compile(model), steps_per_epoch=2)
    assert type(loss.teacher) is nn.Sequential


def test_a_teacher_whose_output_has_another_shape_is_refused():
    class Wider(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.layer(x)
            return out if self.training else out[:, :1]

    model, one = Wider(), batch()
    loss = prepared(model)
    loss.epoch = 1
    with pytest.raises(InputError, match=r"shape of the teacher's, \[6, 1\]"):
        loss(model(one.input), one)


def test_missing_calls_are_errors():
    model = network()
    with pytest.raises(InputError, match="prepare"):
        MESA(nn.CrossEntropyLoss())(model(batch().input), batch())
    with pytest.raises(InputError, match="steps_per_epoch"):
        MESA(nn.CrossEntropyLoss()).prepare(model=model)
    loss = prepared(model)
    assert loss.needs_input and not loss.needs_index
    with pytest.raises(InputError, match="whole Batch"):
        loss(model(batch().input), batch().target)
    loss(model(batch().input), batch())
    with pytest.raises(InputError, match="after_step"):
        loss.epoch = 1


def test_a_teacher_of_another_model_is_refused():
    loss, other = prepared(network()), prepared(nn.Linear(3, 4).double())
    before = copy.deepcopy(loss.state_dict())
    with pytest.raises(CheckpointError, match="another model"):
        loss.load_state_dict(other.state_dict())
    with pytest.raises(CheckpointError, match="prepare"):
        MESA(nn.CrossEntropyLoss()).load_state_dict(before)


@pytest.mark.parametrize(
    "options, argument",
    [
        ({"temperature": 0.0}, "temperature"),
        ({"weight": -1.0}, "weight"),
        ({"half_life": 0.0}, "half_life"),
        ({"decay": 1.0}, "decay"),
        ({"decay": -0.1}, "decay"),
        ({"teacher_precision": "int8"}, "teacher_precision"),
        ({"start": 2.5}, "start"),
    ],
)
def test_bad_settings_are_refused(options, argument):
    with pytest.raises(InputError, match=f"^`{argument}`"):
        MESA(nn.CrossEntropyLoss(), **options)


@pytest.mark.parametrize("kind", ["closure", "partial", "cycle"])
def test_a_forward_that_a_trainer_put_on_the_model_does_not_make_the_student_its_own_teacher(kind):
    model = nn.Linear(4, 3)
    original = model.forward

    def patched(x):
        return other(x) if x is None else original(x)

    def other(x):
        return patched(x) if kind == "cycle" else x

    model.forward = functools.partial(patched) if kind == "partial" else patched
    loss = MESA(nn.CrossEntropyLoss(), start=0)
    loss.prepare(model=model, epochs=1, steps_per_epoch=2)
    batch = Batch(torch.randn(5, 4), torch.randint(3, (5,)))
    with torch.no_grad():
        model.weight.add_(torch.arange(12.0).view(3, 4))
    assert loss(model(batch.input), batch) > loss.plain_value


class Heads(nn.Module):
    """Two heads in training; in evaluation mode both, or the main one alone."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.main, self.aux, self.both = nn.Linear(3, 4).double(), nn.Linear(3, 4).double(), both

    def forward(self, x: torch.Tensor):
        return (self.main(x), self.aux(x)) if self.training or self.both else self.main(x)


@pytest.mark.parametrize(("both", "match"), [(False, "plain criterion"), (True, "one tensor")])
def test_a_second_head_is_not_compared_with_the_teacher_s_main_one(both, match):
    model, data = Heads(both), batch()
    loss = prepared(model, start=0)
    main, aux = model(data.input)
    with pytest.raises(InputError, match=match):
        loss(main, data) + loss(aux, data)
    if not both:
        loss.after_step()
        main, aux = model(data.input)
        (loss(main, data) + CE(aux, data.target)).backward()
        loss(model(data.input)[0], data).backward()  # the same input again, after the backward pass


@pytest.mark.parametrize("shape", [(6, 1), (6,), (6, 4)], ids=str)
def test_binary_labels_have_the_divergence_of_bernoulli(shape):
    torch.manual_seed(0)
    layer = nn.Linear(3, shape[-1] if len(shape) > 1 else 1).double()
    model = nn.Sequential(layer, nn.Identity() if len(shape) > 1 else nn.Flatten(0))
    loss = MESA(nn.BCEWithLogitsLoss(), start=0, temperature=2.0)
    loss.prepare(model=model, epochs=2, steps_per_epoch=2)
    x = batch().input
    past = model(x).detach()
    with torch.no_grad():
        layer.weight.add_(0.3)
    now = model(x)
    loss(now, Batch(x, torch.ones(shape, dtype=torch.float64)))
    p, q = torch.sigmoid(past / 2), torch.sigmoid(now.detach() / 2)
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum() / 6
    assert loss.epoch_log()["mesa_kl"] == pytest.approx(expected.item(), rel=1e-12)


def test_batches_without_labels_have_a_teacher_too():
    model = network()
    loss = MESA(lambda output, _: output.square().mean(), start=0)
    loss.prepare(model=model, epochs=2, steps_per_epoch=2)
    loss(model(batch().input), Batch(batch().input, None)).backward()
    assert loss.epoch_log()["mesa_kl"] > 0


def pruned(model):
    nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)


def old_weight_norm(model):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model[0])


@pytest.mark.parametrize("change", [pruned, old_weight_norm])
def test_a_weight_that_is_made_in_forward_has_a_teacher(change):
    model, data = network(), batch()
    change(model)
    model(data.input)  # the weight has a graph
    loss = prepared(model, start=0, decay=0.0, warm_up=False)
    torch.testing.assert_close(loss.teacher(data.input), model.eval()(data.input).detach())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    model.train()
    loss(model(data.input), data).backward()
    loss.after_step()  # decay 0: the teacher is the model
    torch.testing.assert_close(loss.teacher(data.input), model.eval()(data.input).detach())


def test_a_model_that_changed_its_tensors_is_refused():
    model, data = network(), batch()
    loss = prepared(model, start=0)
    loss(model(data.input), data).backward()
    pruned(model)
    with pytest.raises(InputError, match="tensors it was prepared with"):
        loss.after_step()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("model", "word"), [(lambda: nn.LazyLinear(3), "lazy"), (lambda: scripted(), "scripted")])
def test_what_has_no_copy_has_no_teacher(model, word):
    with pytest.raises(InputError, match=word):
        prepared(model())


def scripted():
    return torch.jit.script(nn.Linear(3, 4))
