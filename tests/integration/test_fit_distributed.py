"""Training on two processes started by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.integration.test_fit import double_splits, plain_network
from torch import nn

from lowland import optim
from lowland.training import FitState, Hook, Snapshots, fit, read_weights
from lowland.workflows.fitting import leave_processes

pytestmark = pytest.mark.slow


class StopAt(Hook):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, run: FitState) -> None:
        if run.step == self.step:
            os._exit(3)


def train(folder: Path, devices: int, stop: int | None = None) -> None:
    model = plain_network()
    model.insert(1, nn.Dropout(0.2 if devices == 2 and "dropout" in folder.name else 0.0))
    optimizer = optim.SAM(torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9), rho=0.05)
    fit(
        model,
        optimizer,
        nn.CrossEntropyLoss(),
        double_splits(),
        epochs=3,
        batch_size=8,
        folder=folder,
        select="last",
        hooks=[Snapshots(), StopAt(stop)],
        checkpoint_every_steps=2,
        devices=devices,
        precision="64-true",
    )


def launch(folder: Path, stop: int | None = None) -> int:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": root}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    return subprocess.run(
        [*command, str(folder), str(stop)], env=environment, capture_output=True, timeout=250
    ).returncode


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    train(tmp_path / "one", 1)
    assert launch(tmp_path / "two") == 0
    one, two = read_weights(tmp_path / "one"), read_weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-9, atol=1e-12)
    tables = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("one", "two")]
    for ours, theirs in zip(*tables, strict=True):
        assert ours.split(",")[:2] == theirs.split(",")[:2]


def test_a_killed_run_of_two_processes_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    assert launch(tmp_path / "dropout whole") == 0
    assert launch(tmp_path / "dropout cut", stop=8) != 0
    assert launch(tmp_path / "dropout cut") == 0
    whole, cut = read_weights(tmp_path / "dropout whole"), read_weights(tmp_path / "dropout cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


if __name__ == "__main__":
    train(Path(sys.argv[1]), 2, None if sys.argv[2] == "None" else int(sys.argv[2]))
    leave_processes()
