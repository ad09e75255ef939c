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

from lowland import landscape, viz
from lowland.core import bars
from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import new_surface
from lowland.viz.live import as_html, as_text, said


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
