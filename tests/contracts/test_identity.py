"""A store belongs to what it was measured with: another behavior is refused, the same one goes on, in a new process too."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowland import landscape, results
from lowland.core.errors import StoreError
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import STATUS_MEASURED, STATUS_OPEN


class Scaled:
    """A loss that is an object of the user's, whose state no name tells."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, output, target):
        return self.factor * F.mse_loss(output, target)


def closure(constant):
    def loss(output, target):
        return F.mse_loss(output, target) + constant * output.square().mean()

    return loss


class Counted(nn.Module):
    """A network with a number that is neither parameter nor buffer."""

    def __init__(self, factor=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.factor = nn.Linear(4, 1), factor

    def forward(self, x):
        return self.factor * self.layer(x)


class Ours(nn.Module):
    """A loss with an option inside an option."""

    def __init__(self, options):
        super().__init__()
        self.options = options

    def forward(self, output, target):
        return F.mse_loss(output, target) * self.options["inner"]["weight"]


class Buffered(nn.Module):
    """A network with a buffer that is saved with it, or is not."""

    def __init__(self, value, persistent):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.register_buffer("shift", torch.full((1,), value), persistent=persistent)

    def forward(self, x):
        return self.layer(x) + self.shift


class Plain(nn.Module):
    """A network with a tensor that is neither parameter nor buffer, and a function of the user's."""

    def __init__(self, value=1.0, function=torch.tanh):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.shift, self.function = nn.Linear(4, 1), torch.full((1,), value), function

    def forward(self, x):
        return self.function(self.layer(x)) + self.shift


class Source:
    """Data that are an object of the user's."""

    def __init__(self, seed, noise=0.0):
        self.seed, self.noise = seed, noise

    def __iter__(self):
        return iter([(x + self.noise, y) for x, y in data(self.seed)])


def by_evaluate(power):
    def evaluate(model, batch):
        return {"loss": (model(batch.input) - batch.target).abs().pow(power)[:, 0]}

    return {"evaluate": evaluate}


def by_metric(function):
    return {"metrics": {"size": function}}


def size(power, output, batch):
    return output.detach()[:, 0].abs() ** power


def network(activation=nn.Tanh):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), activation(), nn.Linear(3, 1))


def data(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(10, 4, generator=generator), torch.randn(10, 1, generator=generator))]


def survey(model, loss, store, *, batches=None, points=5, **options):
    batches = data() if batches is None else batches
    risk = EmpiricalRisk(model, loss, batches, **options.pop("risk", {}))
    line = landscape.random_line(model, seed=0)
    return landscape.evaluate(risk, line, landscape.grid(points), store=store, **options)


PAIRS = {
    "lambda": (lambda: (network(), lambda o, t: F.mse_loss(o, t)), lambda: (network(), lambda o, t: F.l1_loss(o, t))),
    "closure constant": (lambda: (network(), closure(0.1)), lambda: (network(), closure(0.2))),
    "partial": (
        lambda: (network(), functools.partial(F.huber_loss, delta=1.0)),
        lambda: (network(), functools.partial(F.huber_loss, delta=0.1)),
    ),
    "callable object": (lambda: (network(), Scaled(1.0)), lambda: (network(), Scaled(2.0))),
    "nested option": (
        lambda: (network(), Ours({"inner": {"weight": 1.0}})),
        lambda: (network(), Ours({"inner": {"weight": 2.0}})),
    ),
    "activation": (lambda: (network(), nn.MSELoss()), lambda: (network(nn.ReLU), nn.MSELoss())),
    "number of the model": (lambda: (Counted(), nn.MSELoss()), lambda: (Counted(1.5), nn.MSELoss())),
    "default argument": (
        lambda: (network(), lambda o, t, k=1.0: k * F.mse_loss(o, t)),
        lambda: (network(), lambda o, t, k=2.0: k * F.mse_loss(o, t)),
    ),
    "bound method": (lambda: (network(), Scaled(1.0).__call__), lambda: (network(), Scaled(2.0).__call__)),
    "class weights": (
        lambda: (network(), nn.BCEWithLogitsLoss(pos_weight=torch.ones(1)), Source(1, 0.5), TARGETS),
        lambda: (network(), nn.BCEWithLogitsLoss(pos_weight=torch.full((1,), 2.0)), Source(1, 0.5), TARGETS),
    ),
    "buffer": (lambda: (Buffered(1.0, True), nn.MSELoss()), lambda: (Buffered(1.5, True), nn.MSELoss())),
    "unsaved buffer": (lambda: (Buffered(1.0, False), nn.MSELoss()), lambda: (Buffered(1.5, False), nn.MSELoss())),
    "plain tensor": (lambda: (Plain(), nn.MSELoss()), lambda: (Plain(1.5), nn.MSELoss())),
    "function of the model": (
        lambda: (Plain(), nn.MSELoss()),
        lambda: (Plain(function=lambda x: torch.sin(x)), nn.MSELoss()),
    ),
    "forward hook": (lambda: (network(), nn.MSELoss()), lambda: (hooked(network()), nn.MSELoss())),
    "data object": (lambda: (network(), nn.MSELoss(), Source(1)), lambda: (network(), nn.MSELoss(), Source(2))),
    "number of the data": (
        lambda: (network(), nn.MSELoss(), Source(1, 0.1)),
        lambda: (network(), nn.MSELoss(), Source(1, 0.2)),
    ),
    "adapt": (
        lambda: (network(), nn.MSELoss(), None, {"adapt": lambda raw: (raw[0], raw[1])}),
        lambda: (network(), nn.MSELoss(), None, {"adapt": lambda raw: (raw[0], raw[1] + 1)}),
    ),
    "evaluate": (
        lambda: (network(), None, None, by_evaluate(2)),
        lambda: (network(), None, None, by_evaluate(1)),
    ),
    "metric": (
        lambda: (network(), nn.MSELoss(), None, by_metric(functools.partial(size, 1))),
        lambda: (network(), nn.MSELoss(), None, by_metric(functools.partial(size, 2))),
    ),
    "subset": (
        lambda: (network(), nn.MSELoss(), None, {"samples": 5, "seed": 0}),
        lambda: (network(), nn.MSELoss(), None, {"samples": 5, "seed": 1}),
    ),
}
TARGETS = {"adapt": lambda raw: (raw[0], (raw[1] > 0).float())}


def hooked(model):
    model[0].register_forward_hook(lambda module, arguments, output: 2 * output)
    return model


def made(pair, which):
    """Return a survey of a pair's first or second kind, as a function of its store."""
    given = PAIRS[pair][which]()
    model, loss, batches, risk = (*given, *(None, {})[len(given) - 2 :])
    return functools.partial(survey, model, loss, batches=batches, risk=risk)


pairs = pytest.mark.parametrize("pair", list(PAIRS))


@pairs
def test_another_behavior_is_refused_and_changes_nothing(pair, tmp_path):
    store = tmp_path / "s.zarr"
    before = made(pair, 0)(store=store).load()
    files = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match="choose another store"):
        made(pair, 1)(store=store)
    assert files == {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert np.array_equal(made(pair, 0)(store=store).loss, before.loss)  # the same goes on


@pairs
def test_an_unfinished_store_is_refused_too(pair, tmp_path):
    store = tmp_path / "s.zarr"

    def stop(event):
        if event.kind == "progress" and event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made(pair, 0)(store=store, on_event=stop)
    assert (results.open(store).status.values == STATUS_OPEN).any()
    with pytest.raises(StoreError, match="choose another store"):
        made(pair, 1)(store=store)
    whole = made(pair, 0)(store=store)
    assert (whole.status.values == STATUS_MEASURED).all()
    assert np.array_equal(whole.loss, made(pair, 0)(store=None).loss)


def test_another_metric_of_the_same_name_is_refused(tmp_path):
    def risk(power):
        return {"metrics": {"size": lambda output, batch: output.detach()[:, 0].abs() ** power}}

    survey(network(), nn.MSELoss(), tmp_path / "s.zarr", risk=risk(1))
    with pytest.raises(StoreError, match="size .* there, .* here"):
        survey(network(), nn.MSELoss(), tmp_path / "s.zarr", risk=risk(2))


def test_without_verification_the_store_says_so(tmp_path):
    made("lambda", 0)(store=tmp_path / "s.zarr")
    found = made("lambda", 1)(store=tmp_path / "s.zarr", verify=False)
    assert (
        not json.loads(str(found.attrs["verified"]).lower()) and "verified" in results.open(tmp_path / "s.zarr").attrs
    )


def test_two_points_are_measured_and_no_more(tmp_path):
    calls = []

    def loss(output, target):
        calls.append(1)
        return F.mse_loss(output, target)

    survey(network(), loss, tmp_path / "s.zarr", points=21, paired=False)
    calls.clear()
    survey(network(), loss, tmp_path / "s.zarr", points=21, paired=False, verify=False)
    looked = len(calls)
    calls.clear()
    survey(network(), loss, tmp_path / "s.zarr", points=21, paired=False)
    assert len(calls) - looked <= 2


def all_losses(folder):
    return [
        f"{pair} {made(pair, which)(store=f'{folder}/{pair}-{which}.zarr', points=3).loss.values}"
        for pair in PAIRS
        for which in (0, 1)
    ]


def test_the_same_script_goes_on_in_another_process(tmp_path):
    first = all_losses(tmp_path)
    script = (
        "import sys; from tests.contracts.test_identity import all_losses; print(*all_losses(sys.argv[1]), sep=chr(10))"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([os.getcwd(), *sys.path]))
    second = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert second.returncode == 0, second.stderr[-500:]
    assert first == second.stdout.splitlines() and len(first) == 2 * len(PAIRS)
    for pair in PAIRS:
        assert "0x" not in str(results.open(tmp_path / f"{pair}-0.zarr").attrs["recipe"])
