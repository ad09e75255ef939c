"""A survey draws itself while it is measured; the picture never ends it, and shows what the store holds."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from lowland import landscape, results, training, viz
from lowland.core import bars
from lowland.core.errors import InputError, LowlandError
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import new_surface, new_trajectory
from lowland.data import DataSplits, TensorData
from lowland.results.snapshots import SnapshotReader, SnapshotWriter
from lowland.viz.live import as_html, as_text, path_on, said
from lowland.viz.live_path import PathSoFar, path_as_text


def partly(shape: tuple[int, ...]):
    axes = [np.linspace(-1, 1, size) for size in shape]
    surface = new_surface(*axes)
    surface["loss"][:] = np.nan
    flat = surface["loss"].values.reshape(-1)
    flat[: flat.size // 2] = 1.0 + np.arange(flat.size // 2)
    surface["status"].values.reshape(-1)[: flat.size // 2] = 1
    surface["status"].values.reshape(-1)[-1] = 3
    return surface


def test_words_and_cells_of_what_is_known():
    found = partly((4, 6))
    assert said(found, "loss") == "13 of 24 points, loss 1 to 12, 1 failed"
    lines = as_text(found, "loss").splitlines()
    assert len(lines) == 3 + 1 and all(line.count("▀") == 4 for line in lines[:3])  # two rows of y in one of text
    assert "40;40;40" in lines[0]
    line = as_text(partly((8,)), "loss").splitlines()[0]
    assert line[0] == "▁" and line[3:] == "█    "
    assert as_html(found, "loss").startswith('<figure><img alt="loss where measured; 13 of 24 points')
    empty = new_surface([0.0, 1.0], [0.0, 1.0])
    empty["loss"][:] = np.nan
    assert said(empty, "loss") == "0 of 4 points" and "▀" in as_text(empty, "loss")


def test_large_surfaces_fit_a_terminal():
    lines = as_text(partly((301, 101)), "loss").splitlines()
    assert len(lines) <= 33 and max(line.count("▀") for line in lines) <= 61


@pytest.fixture
def cell(monkeypatch):
    shown = []
    marimo = SimpleNamespace(running_in_notebook=lambda: True, output=SimpleNamespace(replace=shown.append), Html=str)
    monkeypatch.setitem(sys.modules, "marimo", marimo)
    return shown


def survey(path, on_event):
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), [(torch.eye(4), torch.arange(4))])
    plane = landscape.random_plane(model, seed=0)
    return landscape.evaluate(risk, plane, landscape.grid(5, 5), store=path, on_event=on_event)


def test_a_notebook_shows_the_survey_in_place_and_at_last_all_of_it(cell, tmp_path):
    with viz.live(tmp_path / "s.zarr", every=1e-6) as on_event:
        survey(tmp_path / "s.zarr", on_event)
    assert cell and "25 of 25 points" in cell[-1] and "data:image/png;base64," in cell[-1]


def test_a_terminal_shows_it_in_place(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(bars, "Console", lambda **_: Console(file=screen, force_terminal=True, width=100))
    monkeypatch.setattr(bars, "notebook_cell", lambda: None)
    with viz.live(tmp_path / "s.zarr", every=1e-6) as on_event:
        survey(tmp_path / "s.zarr", on_event)
    assert "▀" in screen.getvalue() and "25 of 25 points" in screen.getvalue()


def test_a_picture_that_fails_does_not_end_a_survey(cell, tmp_path):
    with viz.live(tmp_path / "s.zarr", "no such metric", every=1e-6) as on_event:
        assert survey(tmp_path / "s.zarr", on_event).sizes == {"x": 5, "y": 5}
    assert cell == []
    with viz.live(tmp_path / "nothing.zarr"):
        pass
    with pytest.raises(InputError, match="every"), viz.live(tmp_path / "s.zarr", every=0.0):
        pass


def trained(folder, on_event=None):
    torch.manual_seed(0)
    part = TensorData(torch.eye(4), torch.arange(4), torch.arange(4))
    model = nn.Linear(4, 4)
    training.fit(
        model,
        torch.optim.SGD(model.parameters(), lr=0.5),
        nn.CrossEntropyLoss(),
        DataSplits("four", part, part, part, classes=4, shape=(4,)),
        epochs=5,
        batch_size=2,
        folder=folder,
        hooks=[training.Snapshots()],
        on_event=on_event,
    )
    return model, EmpiricalRisk(model, nn.CrossEntropyLoss(), [(torch.eye(4), torch.arange(4))])


def test_a_training_draws_its_path_so_far_in_its_principal_plane(cell, tmp_path):
    with viz.live(tmp_path / "run", every=1e-6) as on_event:
        trained(tmp_path / "run", on_event)
    assert len(cell) > 1 and 'alt="Path of training; ' in cell[-1]
    assert "2 snapshots up to step 2" in cell[0] and "6 snapshots up to step 10, train loss " in cell[-1]
    rows = np.stack(
        [
            np.concatenate([a.ravel() for a in arrays.values()])
            for _, arrays in SnapshotReader(tmp_path / "run/snapshots")
        ]
    )
    left, sizes, _ = np.linalg.svd(rows.astype(np.float64) - rows[-1], full_matrices=False)
    found = PathSoFar(tmp_path / "run").trajectory()
    np.testing.assert_allclose(np.abs(found["coordinate"]), np.abs(left[:, :2] * sizes[:2]), atol=1e-6)
    np.testing.assert_allclose(found["variance_share"], sizes[:2] ** 2 / (sizes**2).sum(), atol=1e-6)


def test_long_weights_are_folded_each_snapshot_is_read_once_and_statistics_are_no_part_of_a_path(tmp_path, monkeypatch):
    random, count = np.random.default_rng(0), 9
    axes = random.normal(size=(2, 50_000))
    turns = np.linspace(0, 4, count)
    places = np.stack([np.cos(turns), np.sin(turns)], 1)
    writer, path = SnapshotWriter(tmp_path / "snapshots"), PathSoFar(tmp_path)
    read, reading = [], SnapshotReader.read
    monkeypatch.setattr(SnapshotReader, "read", lambda self, step: [read.append(step), reading(self, step)][1])
    for step, place in enumerate(places):
        writer.write(
            step, {"weight": np.float32(place @ axes), "norm.running_mean": np.full(9, 1e6 * step, np.float32)}
        )
        if step:
            found = path.trajectory()
    assert read == list(range(count)) and found["variance_share"].sum() > 0.999
    apart = lambda points: np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.testing.assert_allclose(apart(found["coordinate"].values), apart(places @ axes), rtol=0.05)
    again = SnapshotWriter(tmp_path / "other")
    again.write(0, {"weight": np.float32(axes[0])})
    for name in ("000000000.safetensors", "index.json"):
        (tmp_path / "snapshots" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(LowlandError, match="fewer than two"):  # another run has begun: nothing of the old one is shown
        path.trajectory()


def test_a_path_in_a_terminal_ends_in_a_disk():
    lines = path_as_text(
        new_trajectory([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]], steps=[0, 1, 2], variables={})
    ).splitlines()
    assert len(lines) == 17 and lines[-1] == "·" and lines[0] == " " * 30 + "·" and lines[8] == " " * 60 + "●"
    assert "●" in path_as_text(new_trajectory([[1.0, 1.0], [1.0, 1.0]], steps=[0, 1], variables={}))


def test_a_survey_over_the_plane_of_a_path_shows_the_path(cell, tmp_path):
    model, risk = trained(tmp_path)
    snapshots, stores = tmp_path / "snapshots", tmp_path / "surfaces"
    plane = landscape.pca_plane(model, snapshots)
    results.save(landscape.project_trajectory(model, snapshots, plane), tmp_path / "trajectory.zarr")
    with viz.live(stores / "trajectory.zarr") as on_event:
        over = landscape.evaluate(
            risk, plane, landscape.grid(3, 3), store=stores / "trajectory.zarr", on_event=on_event
        )
    other = landscape.evaluate(
        risk, landscape.random_plane(model, seed=0), landscape.grid(3, 3), store=stores / "r.zarr"
    )
    assert path_on(stores / "trajectory.zarr", over)["step"].values.tolist() == [0, 2, 4, 6, 8, 10]
    assert path_on(stores / "r.zarr", other) is None and "9 of 9 points" in cell[-1]
    assert as_html(over, "loss") != as_html(over, "loss", path_on(stores / "trajectory.zarr", over))
