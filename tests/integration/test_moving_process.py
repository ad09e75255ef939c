"""A process that changes its folder meanwhile: what was named by a relative path stays where it was begun."""

from __future__ import annotations

import os

import pytest
import torch
from tests.integration.test_fit import network, splits
from torch import nn

from lowland import landscape, results, training, workflows
from lowland.core.risk import EmpiricalRisk


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)  # and back to where the tests were


class Leaving(training.Hook):
    """Changes the folder after a step, as a user's hook or data set may."""

    def on_step_end(self, run: training.FitState) -> None:
        if run.step == 3:
            os.chdir("elsewhere")


def test_a_run_goes_on_in_the_folder_in_which_it_began(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"epochs": 2, "batch_size": 10, "checkpoint_every_steps": 2, "folder": "runs/one"}
    hooks = [training.Snapshots(every_steps=2), training.CriticalCurve(every_steps=4, samples=20), Leaving()]
    found = training.fit(model, optimizer, nn.CrossEntropyLoss(), splits(), hooks=hooks, **options)
    assert not any((tmp_path / "elsewhere").iterdir())
    run = results.Run(tmp_path / "runs" / "one")
    assert len(run.metrics) == 2 and run.result["test"] == found.test
    assert results.SnapshotReader(run.snapshots_path).steps == (0, 2, 4, 6, 8)
    assert found.folder is not None and found.folder.samefile(run.folder)


def test_a_run_of_a_spec_returns_the_run_in_the_folder_in_which_it_began(tmp_path):
    data = workflows.DataSpec(name="digits", options={"train_size": 64})
    spec = workflows.FitSpec(folder="runs/two", data=data, epochs=1)
    run = workflows.fit(spec, on_event=lambda event: os.chdir(tmp_path / "elsewhere"))
    assert run.finished and run.folder.samefile(tmp_path / "runs" / "two")


def test_a_survey_goes_on_in_the_store_in_which_it_began(tmp_path):
    model, data = network().eval(), splits()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data.train.batches(20))
    plane, grid = landscape.random_plane(model, seed=0), landscape.grid(3, 3)
    moves = {"on_event": lambda event: os.chdir(tmp_path / "elsewhere")}
    surface = landscape.evaluate(risk, plane, grid, store="surfaces/plane.zarr", **moves)
    stored = results.open(tmp_path / "surfaces" / "plane.zarr")
    assert bool((stored.status == 1).all()) and stored.loss.equals(surface.loss)
    assert not any((tmp_path / "elsewhere").iterdir())


def test_snapshots_stay_in_one_folder(tmp_path):
    writer = results.SnapshotWriter("snapshots")
    writer.write(0, {"w": torch.zeros(2).numpy()})
    reader = results.SnapshotReader("snapshots")
    os.chdir("elsewhere")
    writer.write(1, {"w": torch.ones(2).numpy()})
    assert reader.read(0)["w"].tolist() == [0, 0]
    assert results.SnapshotReader(tmp_path / "snapshots").steps == (0, 1)
