"""`lowland connect`: curve, line and matched line of runs in one result, kept, read back, reported, and refused in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowland import landscape, results, viz, workflows
from lowland.cli.main import main
from lowland.core.errors import InputError, StoreError
from lowland.report.landscapes import landscapes_section
from lowland.results import Run
from lowland.viz.surfaces import build_contour
from lowland.workflows import DataSpec, FitSpec, ModelSpec, OptimizerSpec, RiskSpec, SubjectSpec


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    home = tmp_path_factory.mktemp("connect")
    found = []
    for number, width in enumerate((4, 4, 4, 6)):
        spec = FitSpec(
            folder=str(home / f"run{number}"),
            model=ModelSpec(name="resnet8", options={"width": width}),
            data=DataSpec(name="digits", options={"train_size": 120}),
            epochs=4,
            batch_size=30,
            seed=number,
            snapshots_every_epochs=None,
            threads=1,
        )
        found.append(str(workflows.fit(spec).folder))
    return found


def connected(runs: list[str], *others: int, **options: Any) -> tuple[Any, Path]:
    return workflows.connect(runs[0], others=[runs[k] for k in others], **{"points": 5, "threads": 1, **options})


def test_the_ways_are_measured_kept_and_read_back(runs: list[str]) -> None:
    events: list[Any] = []
    surface, path = connected(runs, 1, epochs=6, splits=["train", "test"], on_event=events.append)
    assert list(surface.direction.values) == ["line", "matched line", "bezier curve"] and events
    assert surface.attrs["batch_norm"] == "recalibrated" and bool((surface.status == 1).all())
    file = Path(runs[0]) / "curves" / "connect.safetensors"
    before = file.stat().st_mtime_ns
    again, _ = connected(runs, 1, epochs=6, splits=["train", "test"])
    assert file.stat().st_mtime_ns == before and again.loss.equals(surface.loss)
    curve = landscape.Curve.load(file)
    first = Run(runs[0])
    model = workflows.open_run(runs[0]).model()
    assert curve.settings["epochs"] == 6 and all(
        torch.equal(curve.points[0][name], p) for name, p in model.named_parameters()
    )
    np.testing.assert_allclose(surface.loss[0, :, [0, -1]], surface.loss[2, :, [0, -1]], rtol=1e-5)
    for options in ({"epochs": 7}, {"epochs": 6, "bends": 2}, {"epochs": 6, "optimizer": OptimizerSpec(name="adam")}):
        with pytest.raises(StoreError, match="another curve"):
            connected(runs, 1, **options)
    with pytest.raises(StoreError, match="another curve"):
        connected(runs, 2, epochs=6)
    section = landscapes_section([first])
    assert section is not None and "matched line" in repr(section) and "barrier" in repr(section)
    assert len(viz.line(results.open(path)).axes[0].get_lines()) >= 6  # three ways of two parts


def test_three_networks_a_plane_and_another_optimizer(runs: list[str]) -> None:
    sam = OptimizerSpec(learning_rate=0.03, method="sam", options={"rho": 0.05}, weight_decay=0.0)
    options = {"epochs": 1, "name": "three", "kind": "polychain", "bends": 2, "optimizer": sam, "match": False}
    surface, _ = connected(runs, 1, 2, plane=True, plane_points=(3, 4), **options)
    assert list(surface.direction.values) == ["line", "polychain curve"] and 0.5 in surface.x.values
    assert landscape.ways(surface).length[0] == pytest.approx(1.0)
    plane = Run(runs[0]).surfaces["three-plane"]
    contour = build_contour(plane)
    assert plane.loss.shape == (3, 4) and contour.paths[0].stars == (0, 30, 60)
    assert "from the plane" in contour.caption


def test_the_plane_of_a_curve_is_read_as_any_surface(runs: list[str], tmp_path: Path) -> None:
    options = {"epochs": 1, "match": False, "plane": True, "plane_points": (5, 5), "name": "read"}
    connected(runs, 1, risk=RiskSpec(batch_norm="recalibrated", split="test"), **options)
    path = Path(runs[0]) / "surfaces" / "read-plane.zarr"
    plane, ways = results.open(path), results.open(path.with_name("read.zarr"))
    assert plane.attrs["weights"] == ways.attrs["weights"] == "best" and plane.attrs["split"] == "test"
    assert set(plane.attrs) >= {"samples", "batch_norm", "recipe", "precision", "threads"}
    tree, apart, figure = workflows.topology(str(path), other=str(path), output=str(tmp_path / "tree.svg"))
    assert tree.basins and apart is not None and apart.value == 0.0 and figure is not None and figure.is_file()
    frame = results.to_frame(plane)
    assert len(frame) == 25 and frame.attrs["units"]["loss"]
    section = landscapes_section([Run(runs[0])])
    assert "test" in repr(section) and "not stored" not in repr(section)
    assert main(["figure", str(path), "--output", str(tmp_path / "plane.svg"), "--quiet"]) == 0
    with pytest.raises(InputError):  # it has no frames
        viz.export({"plane": plane}, tmp_path / "plane.gif", "film")


def test_what_does_not_fit_is_one_line_and_leaves_nothing(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path(runs[0]).rglob("*"))
    assert main(["connect", runs[0], "--others", runs[3], "--name", "other", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "must have the architecture of the first model" in said and len(said.splitlines()) == 1
    assert main(["connect", runs[0], "--others", runs[0], "--name", "other", "--quiet"]) == 2
    assert "must differ" in capsys.readouterr().err
    assert main(["connect", runs[0], "--others", runs[1], "--name", "other", "--risk.batch_norm", "running"]) == 2
    assert "`risk.batch_norm` must be recalibrated or batch" in capsys.readouterr().err
    assert sorted(Path(runs[0]).rglob("*")) == before


def test_models_of_ones_own(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject = SubjectSpec(
        model="resnet8",
        model_options={"width": 4, "channels": 1, "classes": 10},
        checkpoint=runs[0],
        data="digits",
        data_options={"train_size": 120},
        folder=str(tmp_path / "own"),
    )
    risk = RiskSpec(batch_norm="batch", samples=60)
    with pytest.raises(InputError, match="epochs"):
        workflows.connect(subject, others=[runs[1]])
    surface, path = workflows.connect(subject, others=[runs[1]], epochs=1, points=3, risk=risk, threads=1)
    assert path.parent.parent == tmp_path / "own" and surface.attrs["samples"] == 60
    words = ["connect", runs[0], "--others", runs[1], "--epochs", "1", "--points", "3", "--name", "json", "--json"]
    assert main(words) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["line"]["train"]["barrier"] >= 0 and set(shown) >= {"path", "bezier curve", "matched line"}
