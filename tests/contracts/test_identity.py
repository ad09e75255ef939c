"""A store belongs to what it was measured with: another behavior is refused, the same one goes on, in a new process too."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

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


def network(activation=nn.Tanh):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), activation(), nn.Linear(3, 1))


def data(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(10, 4, generator=generator), torch.randn(10, 1, generator=generator))]


def survey(model, loss, store, *, batches=None, points=5, **options):
    risk = EmpiricalRisk(model, loss, batches or data(), **options.pop("risk", {}))
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
}
pairs = pytest.mark.parametrize("pair", list(PAIRS))


@pairs
def test_another_behavior_is_refused_and_changes_nothing(pair, tmp_path):
    first, second = PAIRS[pair]
    before = survey(*first(), tmp_path / "s.zarr").load()
    files = {path: path.read_bytes() for path in (tmp_path / "s.zarr").rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match="choose another store"):
        survey(*second(), tmp_path / "s.zarr")
    assert files == {path: path.read_bytes() for path in (tmp_path / "s.zarr").rglob("*") if path.is_file()}
    assert np.array_equal(survey(*first(), tmp_path / "s.zarr").loss, before.loss)  # the same goes on


@pairs
def test_an_unfinished_store_is_refused_too(pair, tmp_path):
    first, second = PAIRS[pair]

    def stop(event):
        if event.kind == "progress" and event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survey(*first(), tmp_path / "s.zarr", on_event=stop)
    assert (results.open(tmp_path / "s.zarr").status.values == STATUS_OPEN).any()
    with pytest.raises(StoreError, match="choose another store"):
        survey(*second(), tmp_path / "s.zarr")
    whole = survey(*first(), tmp_path / "s.zarr")
    assert (whole.status.values == STATUS_MEASURED).all()
    assert np.array_equal(whole.loss, survey(*first(), None).loss)


def test_another_metric_of_the_same_name_is_refused(tmp_path):
    def risk(power):
        return {"metrics": {"size": lambda output, batch: output.detach()[:, 0].abs() ** power}}

    survey(network(), nn.MSELoss(), tmp_path / "s.zarr", risk=risk(1))
    with pytest.raises(StoreError, match="size .* there, .* here"):
        survey(network(), nn.MSELoss(), tmp_path / "s.zarr", risk=risk(2))


def test_without_verification_the_store_says_so(tmp_path):
    first, second = PAIRS["lambda"]
    survey(*first(), tmp_path / "s.zarr")
    found = survey(*second(), tmp_path / "s.zarr", verify=False)
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


SCRIPT = """
import functools, sys, torch, torch.nn.functional as F, lowland as ll
from torch import nn
torch.manual_seed(0)
model = nn.Linear(4, 3)
data = [(torch.randn(10, 4), torch.randint(3, (10,)))]
class Smooth:
    def __call__(self, output, target): return F.cross_entropy(output, target, label_smoothing=0.2)
kinds = {"partial": functools.partial(F.cross_entropy, label_smoothing=0.1), "object": Smooth(),
         "lambda": lambda o, t: F.cross_entropy(o, t), "metric": nn.CrossEntropyLoss()}
for name, loss in kinds.items():
    metrics = {"first": functools.partial(lambda power, o, b: o.detach()[:, 0] ** power, 2)} if name == "metric" else {}
    risk = ll.EmpiricalRisk(model, loss, data, metrics=metrics)
    line = ll.landscape.random_line(model, seed=0)
    print(ll.landscape.evaluate(risk, line, ll.landscape.grid(3), store=sys.argv[1] + f"/{name}.zarr").loss.values)
"""


def test_the_same_script_goes_on_in_another_process(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "script.py"), str(tmp_path)]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), second.stderr[-500:]
    assert first.stdout == second.stdout
    for name in ("partial", "object", "lambda", "metric"):
        assert "0x" not in str(results.open(Path(tmp_path) / f"{name}.zarr").attrs["recipe"])
