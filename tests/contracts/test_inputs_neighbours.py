"""What looks like an input of the table and is none, or almost: the direct number, or `InputError`."""

from __future__ import annotations

import copy
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

import lowland as ll
from lowland.core.errors import InputError

N = 7
PARTS = [slice(0, 4), slice(4, 7)]
Logged = namedtuple("Logged", "values loss")


def network() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def numbers() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, 3, generator=generator).double(), torch.randn(N, 1, generator=generator).double()


def measured(loss: Any = None, *, model: Any = None, batches: Any = None, **options: Any) -> Any:
    x, y = numbers()
    batches = [(x[part], y[part]) for part in PARTS] if batches is None else batches
    return ll.EmpiricalRisk(model or network(), loss or nn.MSELoss(), batches, **options)


def direct(rows: Any = slice(None), change: Any = lambda x: x) -> float:
    x, y = numbers()
    return F.mse_loss(network()(change(x[rows])), y[rows]).item()


class Doubling(DataLoader):
    """A loader that does something to every batch."""

    def __iter__(self) -> Any:
        for x, y in super().__iter__():
            yield 2 * x, y


def batches_of(kind: str) -> tuple[Any, float]:
    x, y = numbers()
    pairs = TensorDataset(x, y)
    return {
        "arrays": ([(x.numpy(), y.numpy())], direct()),
        "an empty batch": ([(x[:0], y[:0]), (x, y)], direct()),
        "drop_last in order": (DataLoader(pairs, 4, drop_last=True), direct(slice(0, 4))),
        "drop_last and shuffled": (DataLoader(pairs, 4, drop_last=True, shuffle=True), direct()),
        "a loader's own class": (Doubling(pairs, 4), direct(change=lambda x: 2 * x)),
        "a loader's own class, shuffled": (Doubling(pairs, 4, shuffle=True), direct(change=lambda x: 2 * x)),
        "unbatched samples": (list(zip(x, y, strict=True)), direct()),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "arrays",
        "an empty batch",
        "drop_last in order",
        "drop_last and shuffled",
        "a loader's own class",
        "a loader's own class, shuffled",
        "unbatched samples",
    ],
)
@pytest.mark.parametrize("loss", ["torch", "scalar"])
def test_batches(kind, loss):
    batches, expected = batches_of(kind)
    risk = measured(nn.MSELoss() if loss == "torch" else lambda o, t: ((o - t) ** 2).mean(), batches=batches)
    if kind.startswith("unbatched") and loss == "scalar":  # three numbers and one: how many samples are they?
        with pytest.raises(InputError, match="how many samples"):
            risk.evaluate()
        return
    assert risk.evaluate()["loss"].value == pytest.approx(expected, rel=1e-9)


class Weighted(nn.Module):
    """A mean with weights, of entries that have them already."""

    reduction = "mean"

    def forward(self, output: Any, target: Any) -> Any:
        weights = 1 + target.abs()
        entries = weights * (output - target) ** 2
        return entries if self.reduction == "none" else entries.sum() / weights.sum()


class Writing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Any) -> Any:
        x -= 0.5
        return self.net(x)


def classes(loss: Any) -> Any:
    x, _ = numbers()
    target = torch.tensor([0, 1, 2, -100, 0, -100, 1])
    return measured(loss, model=nn.Linear(3, 3).double(), batches=[(x[part], target[part]) for part in PARTS])


REFUSED: dict[str, tuple[str, Any]] = {
    "own weighted mean": ('as its "mean"', lambda: measured(Weighted())),
    "weights with a graph": (
        "follow the parameters",
        lambda: measured(lambda o, t: (((o - t) ** 2).squeeze(1), o.squeeze(1) ** 2 + 1)),
    ),
    "metric named loss": ("named like the loss", lambda: measured(metrics={"loss": lambda o, b: o.mean()})),
    "metrics in a list": ("mapping from names", lambda: measured(metrics=[lambda o, b: o.mean()])),
    "root of a mean": ("of two parts differs", lambda: measured(lambda o, t: ((o - t) ** 2).mean().sqrt())),
    "root as a metric": (
        "`rmse`.*of two parts differs",
        lambda: measured(metrics={"rmse": lambda o, b: ((o - b.target) ** 2).mean().sqrt()}),
    ),
    "entries that follow the batch a little": (
        "of two parts differs",
        lambda: measured(lambda o, t: (((o - t) ** 2) * (1 + 0.01 * o.mean())).squeeze(1)),
    ),
    "ignored classes in a lambda": ("of two parts", lambda: classes(lambda o, t: F.cross_entropy(o, t))),
    "class weights in a lambda": (
        "of two parts",
        lambda: classes(lambda o, t: F.cross_entropy(o, t.clamp(min=0), weight=torch.tensor([1.0, 5.0, 2.0]).double())),
    ),
    "forward writes to its input": ("written to", lambda: measured(model=Writing())),
    "loss writes to the target": ("written to", lambda: measured(lambda o, t: t.sub_(o.detach()).pow(2).mean())),
    "loss writes to the output": (
        "model's output",
        lambda: measured(
            lambda o, t: o.detach().sub_(t).pow_(2).mean(), metrics={"mae": lambda o, b: (o - b.target).abs()}
        ),
    ),
    "metric writes to the output": (
        "model's output",
        lambda: measured(metrics={"mae": lambda o, b: o.detach().sub_(b.target).abs()}),
    ),
    "named pair of a loss": ("values, weights", lambda: measured(lambda o, t: Logged(o.squeeze(1), (o - t).mean()))),
    "a number": ("a list of batches", lambda: measured(batches=5)),
    "a function": ("a list of batches", lambda: measured(batches=print)),
    "samples, never collated": ("adapt=", lambda: measured(batches=[[{"input": torch.ones(3)}] * 2])),
    "texts": ("adapt=", lambda: measured(batches=[["a", "b"]])),
    "a class": ("an object to call", lambda: measured(nn.MSELoss)),
    "a name": ("an object to call", lambda: measured("mse")),
    "a count": ("an object to call", lambda: measured(samples_of=3)),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind):
    match, build = REFUSED[kind]
    with pytest.raises(InputError, match=match):
        build().gradient()
        build().evaluate()
    if kind != "weights with a graph":  # their value is right
        with pytest.raises(InputError, match=match):
            build().evaluate()


def test_what_is_refused_leaves_the_data_alone():
    x, y = numbers()
    for model, loss in ((Writing(), nn.MSELoss()), (network(), lambda o, t: t.sub_(o.detach()).pow(2).mean())):
        with pytest.raises(InputError, match="written to"):
            ll.EmpiricalRisk(model, loss, [(x, y)]).evaluate()
    assert torch.equal(x, numbers()[0]) and torch.equal(y, numbers()[1])


def test_what_is_refused_once_is_refused_again_by_the_same_risk():
    x, y = (value.repeat(12, 1) for value in numbers())  # more than the few samples that are looked at
    risk = ll.EmpiricalRisk(network(), lambda o, t: (o - t).pow(2).mean(), [(x, y.squeeze(1))])
    for call in (risk.check_deterministic, risk.evaluate, risk.gradient, risk.check_deterministic):
        with pytest.raises(InputError, match="all with all"):
            call()


def test_one_batch_may_have_a_loss_that_is_no_mean():
    risk = measured(lambda o, t: ((o - t) ** 2).mean().sqrt(), batches=[numbers()])
    assert risk.evaluate()["loss"].value == pytest.approx(direct() ** 0.5, rel=1e-12)
    both = measured(lambda o, t: (len(o) * ((o - t) ** 2).mean().sqrt(), torch.tensor(float(len(o)))))
    assert both.evaluate()["loss"].weight == N


def test_sums_of_half_types_do_not_overflow():
    x, y = (value.half() for value in numbers())
    model = nn.Linear(3, 1).half()
    for loss in (lambda o, t: (0 * o + 3e4).mean(), lambda o, t: (0 * o + 3e4).expand(-1, 9)):
        risk = ll.EmpiricalRisk(model, loss, [(x, y)])
        assert risk.evaluate()["loss"].value == 30000.0 and all(g.isfinite().all() for g in risk.gradient().values())


class Layered(nn.Module):
    """A loss with layers and a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(1).double()

    def forward(self, output: Any, target: Any) -> Any:
        return (self.drop(self.norm(output) - target) ** 2).mean()


def test_a_loss_with_layers_is_measured_like_the_model():
    loss = Layered()
    state = copy.deepcopy(loss.state_dict())
    risk = measured(loss)
    found = risk.evaluate()
    assert found == risk.evaluate() and loss.training
    assert all(torch.equal(value, state[name]) for name, value in loss.state_dict().items())
    loss.eval()
    assert found["loss"].value == pytest.approx(loss(network()(numbers()[0]), numbers()[1]).item(), rel=1e-9)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(list(zip(*numbers(), strict=True)))


def loader_of(kind: str, generator: Any) -> Any:
    pairs = TensorDataset(*numbers())
    return {
        "shuffle": lambda: DataLoader(pairs, 4, shuffle=True, generator=generator),
        "sampler": lambda: DataLoader(pairs, 4, sampler=RandomSampler(pairs, generator=generator)),
        "stream": lambda: DataLoader(Stream(), 4, generator=generator),
        "workers": lambda: DataLoader(pairs, 4, shuffle=True, num_workers=1, generator=generator),
        "persistent": lambda: DataLoader(pairs, 4, num_workers=1, persistent_workers=True, generator=generator),
        "stream of workers": lambda: DataLoader(
            Stream(), 4, num_workers=1, persistent_workers=True, generator=generator
        ),
    }[kind]()


@pytest.mark.parametrize("kind", ["shuffle", "sampler", "stream", "workers", "persistent", "stream of workers"])
def test_reading_a_loader_moves_no_random_state_and_disturbs_no_loop_over_it(kind):
    generator = torch.Generator().manual_seed(3)
    loader = loader_of(kind, generator)
    running = iter(loader)
    next(running)
    states = generator.get_state(), torch.get_rng_state()
    risk = measured(batches=loader, resident=False)
    for _ in range(2):
        assert risk.evaluate()["loss"].value == pytest.approx(direct(), rel=1e-9)
        risk.data_fingerprint()
    assert torch.equal(states[0], generator.get_state()) and torch.equal(states[1], torch.get_rng_state())
    assert len(list(running)) == 1
    assert len(list(loader)) == 2
