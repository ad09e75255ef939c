"""Risk: batch forms, fixed subsets, batch-norm modes, gradients, determinism, restoring."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lowland.core.batches import is_sample_list
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError, NotDeterministic
from lowland.core.risk import EmpiricalRisk
from lowland.core.types import Batch
from lowland.data import TensorData


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(4 * 36, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.relu(self.norm(self.conv(x)))).flatten(1))


def data(n: int = 20) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 1, 8, 8), torch.randint(0, 3, (n,))


def state_of(model: nn.Module) -> list[Tensor]:
    return [t.clone() for t in [*model.parameters(), *model.buffers()]]


@pytest.mark.parametrize("form", ["tuple", "triple", "dict", "batch"])
def test_batch_forms_agree(form):
    x, y = data()
    raw = {
        "tuple": (x, y),
        "triple": (x, y, torch.arange(20)),
        "dict": {"x": x, "target": y, "sample_id": torch.arange(20)},
        "batch": Batch(x, y),
    }[form]
    model = Net().eval()
    expected = nn.functional.cross_entropy(model(x), y).item()
    assert EmpiricalRisk(model, nn.CrossEntropyLoss(), [raw]).evaluate()["loss"].value == pytest.approx(expected)


def test_hugging_face_style_output_and_labels():
    class Output(dict):
        __getattr__ = dict.get

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 3)

        def forward(self, x: Tensor, labels: Tensor) -> Output:
            logits = self.net(x)
            return Output(loss=nn.functional.cross_entropy(logits, labels), logits=logits)

    model, x, y = Model(), torch.randn(6, 4), torch.randint(0, 3, (6,))
    expected = model(x, y).loss.item()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), [{"x": x, "labels": y}])
    assert risk.evaluate()["loss"].value == pytest.approx(expected)
    own = EmpiricalRisk(model, batches=[(x, y)], evaluate=lambda m, b: {"loss": (m(b.input, b.target).loss * 6, 6)})
    assert own.evaluate()["loss"].value == pytest.approx(expected)


def test_a_shuffled_loader_is_read_in_order_and_a_subset_is_fixed():
    x, y = data(50)
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    risk = EmpiricalRisk(Net(), nn.CrossEntropyLoss(), loader, resident=False)
    seen = torch.cat([b.input for b in risk.batches()])
    assert torch.equal(seen, x)
    subsets = [
        torch.cat([b.input for b in EmpiricalRisk(Net(), nn.CrossEntropyLoss(), source, samples=13, seed=3).batches()])
        for source in (loader, [(x[:31], y[:31]), (x[31:], y[31:])])
    ]
    assert subsets[0].shape[0] == 13
    assert torch.equal(*subsets)
    other = EmpiricalRisk(Net(), nn.CrossEntropyLoss(), loader, samples=13, seed=4)
    assert not torch.equal(subsets[0], torch.cat([b.input for b in other.batches()]))
    assert risk.data_fingerprint() != other.data_fingerprint()


def test_batch_norm_modes_differ_and_restore():
    model = Net().train()
    model.norm.running_mean.fill_(0.3)
    model.norm.num_batches_tracked.fill_(7)
    x, y = data()
    before = state_of(model)
    values = {
        mode: EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x[:12], y[:12]), (x[12:], y[12:])], batch_norm=mode)
        .evaluate()["loss"]
        .value
        for mode in ("running", "batch", "recalibrated")
    }
    assert len(set(values.values())) == 3
    assert same_bits(before, state_of(model))
    assert model.training and model.norm.training and model.norm.momentum == 0.1
    twin = copy.deepcopy(model).train()
    expected = sum(nn.functional.cross_entropy(twin(x[s]), y[s], reduction="sum") for s in (slice(12), slice(12, 20)))
    assert values["batch"] == pytest.approx(expected.item() / 20, rel=1e-6)
    torch.optim.swa_utils.update_bn([(x[:12],), (x[12:],)], twin)
    expected = nn.functional.cross_entropy(twin.eval()(x), y).item()
    assert values["recalibrated"] == pytest.approx(expected, rel=1e-5)


def test_gradient_is_exact_for_ragged_batches_and_zero_for_unused():
    model, (x, y) = Net().double(), data()
    x = x.double()
    weight = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
    loss = nn.CrossEntropyLoss(weight=weight)
    risk = EmpiricalRisk(model, loss, [(x[:19], y[:19]), (x[19:], y[19:])])
    gradient = risk.gradient()
    twin = copy.deepcopy(model).eval()
    loss(twin(x), y).backward()
    for name, parameter in twin.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(gradient[name], expected, rtol=1e-12, atol=1e-14), name
    assert not gradient["unused.weight"].any()


@pytest.mark.parametrize("fail", [False, True])
def test_everything_is_restored_even_after_an_exception(fail):
    model, (x, y) = Net(dropout=0.5).train(), data()
    model.conv.eval()
    model.unused.weight.requires_grad_(False)
    model(x).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    copies = {n: None if g is None else g.clone() for n, g in gradients.items()}
    before, flags = state_of(model), [m.training for m in model.modules()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = (random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state())

    def metric(output: Tensor, batch: Batch) -> Tensor:
        torch.rand(3), random.random(), np.random.rand()
        next(model.parameters()).requires_grad_(False)
        if fail:
            raise RuntimeError("the user's metric fails")
        return output[:, 0]

    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x, y)], metrics={"first": metric}, batch_norm="batch")
    if fail:
        with pytest.raises(RuntimeError, match="user's metric"):
            risk.evaluate()
    else:
        assert set(risk.evaluate()) == {"loss", "accuracy", "first"}
    assert same_bits(before, state_of(model))
    assert flags == [m.training for m in model.modules()]
    for name, parameter in model.named_parameters():
        assert parameter.grad is gradients[name]
        assert copies[name] is None or torch.equal(copies[name], parameter.grad)
        assert parameter.requires_grad == (name != "unused.weight")
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])


def test_dropout_that_ignores_the_mode_is_found():
    class Always(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(nn.functional.dropout(x.flatten(1), 0.5, training=True))

    x, y = data()
    with pytest.raises(NotDeterministic, match="evaluation mode"):
        EmpiricalRisk(Always(), nn.CrossEntropyLoss(), [(x, y)]).check_deterministic()
    EmpiricalRisk(Net(dropout=0.5).train(), nn.CrossEntropyLoss(), [(x, y)]).check_deterministic()


def test_data_that_change_between_passes_are_found():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from zip(*data(8), strict=True)

    with pytest.raises(NotDeterministic, match="between two passes"):
        EmpiricalRisk(Net(), nn.CrossEntropyLoss(), DataLoader(Stream(), batch_size=4)).check_deterministic()


def test_an_iterator_is_read_once_and_kept():
    x, y = data()
    risk = EmpiricalRisk(Net(), nn.CrossEntropyLoss(), iter([(x, y)]), resident=False)
    assert risk.evaluate() == risk.evaluate()


def test_compiled_and_wrapped_models_are_looked_through():
    model = Net()
    risk = EmpiricalRisk(torch.compile(model), nn.CrossEntropyLoss(), [data()])
    assert risk.model is model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": None}, "`loss` must be given"),
        ({"batches": None}, "`batches` must be given"),
        ({"batches": TensorData(torch.zeros(4, 3), torch.zeros(4), torch.arange(4))}, r"pass its batches\(500\)"),
        ({"batch_norm": "train"}, "`batch_norm` must be"),
        ({"samples": 0}, "`samples` must be at least 1"),
        ({"samples": 21}, "must not exceed the 20 samples"),
        ({"model": "resnet"}, "`model` must be a torch.nn.Module"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    good = {"model": Net(), "loss": nn.CrossEntropyLoss(), "batches": [data()]}
    with pytest.raises(InputError, match=message):
        EmpiricalRisk(**{**good, **arguments})


@pytest.mark.parametrize("batches", [[], [{1, 2}], [(1, 2, 3, 4)]], ids=["none", "set", "four"])
def test_bad_batches_are_named(batches):
    with pytest.raises(InputError, match="`batches`"):
        EmpiricalRisk(Net(), nn.CrossEntropyLoss(), batches).evaluate()


def test_a_subset_of_a_list_comes_in_whole_batches_as_from_a_loader() -> None:
    x = torch.randn(40, 3)
    parts = [(x[k : k + 8], torch.zeros(40, dtype=torch.int64)[k : k + 8]) for k in range(0, 40, 8)]
    listed = list(EmpiricalRisk(nn.Linear(3, 2), nn.CrossEntropyLoss(), parts, samples=13, seed=3).batches())
    loader = DataLoader(TensorDataset(x, torch.zeros(40, dtype=torch.int64)), batch_size=8)
    loaded = list(EmpiricalRisk(nn.Linear(3, 2), nn.CrossEntropyLoss(), loader, samples=13, seed=3).batches())
    assert [batch.size for batch in listed] == [8, 5]
    assert all(torch.equal(a.input, b.input) for a, b in zip(listed, loaded, strict=True))
    ragged = [(torch.zeros(4, k), torch.zeros(4, dtype=torch.int64)) for k in (2, 3)]
    kept = EmpiricalRisk(nn.Identity(), nn.CrossEntropyLoss(), ragged, samples=8, device="cpu")
    assert [batch.size for batch in kept.batches()] == [4, 4]


@pytest.mark.parametrize("kind", ["list", "iterator", "empty data", "dropped"])
def test_data_of_no_batch_are_refused_when_the_risk_is_made(kind):
    three = TensorDataset(*data(3))
    batches = {
        "list": [],
        "iterator": iter(()),
        "empty data": DataLoader(TensorDataset(*data(0)), 2),
        "dropped": DataLoader(three, 4, drop_last=True),
    }[kind]
    with pytest.raises(InputError, match="`batches` must hold at least one batch"):
        EmpiricalRisk(Net(), nn.CrossEntropyLoss(), batches)


def test_a_risk_is_printed_in_one_line_without_reading_its_loader():
    class Unread(IterableDataset):
        def __iter__(self):
            pytest.fail("read")

    loader = DataLoader(TensorDataset(*data(20)), 8)
    told = [repr(EmpiricalRisk(Net(), nn.CrossEntropyLoss(), batches)) for batches in ([data(3), data(2)], loader)]
    assert told == [f"EmpiricalRisk(Net, CrossEntropyLoss, {n} samples, batch norm running)" for n in (5, 20)]
    with_none = EmpiricalRisk(Net(), nn.CrossEntropyLoss(), [data(0), data(3), data(0), data(2)])
    assert repr(with_none) == told[0], "batches of no samples hold none"
    stream = EmpiricalRisk(Net(), nn.functional.cross_entropy, DataLoader(Unread(), None), batch_norm="batch")
    assert repr(stream) == "EmpiricalRisk(Net, cross_entropy, data of unknown size, batch norm batch)"


def test_a_model_or_loss_that_does_not_fit_the_data_is_told_with_shapes_and_place():
    class Wrong(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).nothing

    vectors = [(torch.zeros(5, 7), torch.zeros(5, dtype=torch.long))]
    with pytest.raises(
        InputError, match=r"`model` must fit the data.* \(5, 7\) it raises RuntimeError.*self.conv\(x\)"
    ):
        EmpiricalRisk(Net(), nn.CrossEntropyLoss(), vectors).evaluate()
    with pytest.raises(InputError, match=r"AttributeError.*see test_core_risk.py:\d+, return super"):
        EmpiricalRisk(Wrong(), nn.CrossEntropyLoss(), [data(5)], batch_norm="recalibrated").check_deterministic()
    x, y = data(5)
    with pytest.raises(InputError, match=r"`loss` must fit the data.*\(5, 3\) and \(5,\) it raises IndexError"):
        EmpiricalRisk(Net(), nn.CrossEntropyLoss(), [(x, y + 3)]).gradient()
    with pytest.raises(torch.OutOfMemoryError):  # no matter of the model
        EmpiricalRisk(Net(), lambda o, t: (_ for _ in ()).throw(torch.OutOfMemoryError("full")), [(x, y)]).evaluate()


def test_a_list_beside_samples_holds_samples_only_if_all_are():
    parts = [torch.zeros(2, 3), torch.zeros(2, 3)]
    assert is_sample_list(parts, 2, beside=[{"box": 1}, {"box": 2}]) is True
    assert is_sample_list(parts, 2, beside=[{"box": 1}, torch.zeros(2)]) is None


def test_a_group_of_one_process_measures_as_a_process_alone_and_of_two_whose_buffers_differ_is_refused(monkeypatch):
    made = {"model": nn.Sequential(nn.BatchNorm2d(1), Net()), "loss": nn.CrossEntropyLoss(), "batches": [data()]}
    alone = EmpiricalRisk(**made).evaluate()["loss"].value
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert EmpiricalRisk(**made, process_group=dist.group.WORLD).evaluate()["loss"].value == alone
        risk, told = EmpiricalRisk(**made, process_group=dist.group.WORLD), []
        monkeypatch.setattr(risk.ranks, "gather", lambda value: told.append(value) or [value])
        for _ in range(2):  # as two ranks would
            risk.check_deterministic()
            made["model"][0].running_mean.add_(1)
        monkeypatch.setattr(risk.ranks, "gather", lambda value: [value] if value is None else told[1::2])
        with pytest.raises(InputError, match="same parameters and buffers on all ranks"):
            risk.check_deterministic()
    finally:
        dist.destroy_process_group()


def test_what_is_only_looked_at_keeps_no_graph():
    class Asked(Net):
        def forward(self, image):
            modes.append(torch.is_grad_enabled())
            return super().forward(image)

    modes: list[bool] = []
    risk = EmpiricalRisk(Asked(), nn.CrossEntropyLoss(), [data(), data(12)])
    risk.gradient()
    assert len(modes) > 2 and sum(modes) == 2, "a graph for each of the two batches alone"
    modes.clear()
    EmpiricalRisk(Asked(), nn.CrossEntropyLoss(), [data()]).check_deterministic()
    assert modes and not any(modes)


def test_a_stream_without_a_batch_is_refused_as_such():
    class Nothing(IterableDataset):
        def __iter__(self):
            return iter(())

    risk = EmpiricalRisk(Net(), nn.CrossEntropyLoss(), DataLoader(Nothing(), None))
    with pytest.raises(InputError, match="`batches` must hold at least one batch"):
        risk.check_deterministic()
