"""Runs: where things lie, when they are read, what is refused, how they show themselves, and that no second place knows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from tests.report_cases import card, curvature, plane, walk

import lowland as ll
from lowland import results
from lowland.core.errors import InputError, MissingExtra, StoreError
from lowland.opening import open_runs
from lowland.results import Run, Runs, to_csv, to_frame, to_parquet
from lowland.results.files import write_atomically
from lowland.results.folders import find_runs, open_run_folder

SOURCE = Path(ll.__file__).parent
SPEC = "seed: {seed}\nfolder: x\ndata: {{name: digits}}\nloss: {{name: mse, method: llr}}\noptimizer: {{name: sgd, method: {method}}}\n"
RESULT = {
    "epoch": 2,
    "passes": 40,
    "steps": 20,
    "seconds": 1.5,
    "test": {"accuracy": 0.9, "loss": 0.4},
    "chosen": {"train_loss": 0.2, "learning_rate": 0.1},
    "recipe": {"optimizer settings": [{"lr": 0.1, "momentum": 0.9}]},
}


def written(folder: Path, *, seed: int = 0, method: str = "sam", stores: bool = True) -> Path:
    """A whole run folder."""
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text(SPEC.format(seed=seed, method=method))
    (folder / "metrics.csv").write_text("epoch,step,train_loss,train_accuracy\n1,10,0.5,0.6\n2,20,,0.7\n")
    (folder / "result.json").write_text(json.dumps(RESULT))
    if stores:
        results.save(plane(), folder / "surfaces" / "random.zarr")
        for name, step in (("hessian", None), ("later", 10), ("a-first", 2)):
            attrs = {} if step is None else {"step": step}
            results.save(curvature(0.1).assign_attrs(attrs), folder / "curvature" / f"{name}.zarr")
        results.save(walk(), folder / "trajectory.zarr")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("runs") / "sam")


def test_a_run_is_what_its_folder_holds(folder):
    run = ll.open(folder)
    assert isinstance(run, Run) and run.name == "sam" and run.folder == folder and run.finished
    assert run.spec["optimizer"]["method"] == "sam" and run.spec.text == (folder / "spec.yaml").read_text()
    assert (run.method, run.seed, run.group) == ("SAM + LLR", 0, "SAM + LLR")
    assert run.metrics[1] == {"epoch": 2.0, "step": 20.0, "train_accuracy": 0.7} and run.result == RESULT
    assert run.last("train_loss") == 0.5 and run.last("nothing") is None
    found = {name: run.number(name) for name in ("test_accuracy", "train_loss", "momentum", "passes", "nothing")}
    assert found == {"test_accuracy": 0.9, "train_loss": 0.2, "momentum": 0.9, "passes": 40.0, "nothing": None}
    assert list(run.surfaces) == ["random"] and run.surfaces["random"].identical(
        results.open(run.surface_path("random"))
    )
    assert list(run.curvature) == ["a-first", "later", "hessian"]  # the order of training, its end last
    assert run.final_curvature is run.curvature["hessian"]
    assert run.trajectory is not None and run.trajectory.sizes["snapshot"] == 12 and run.snapshots is None
    with pytest.raises(KeyError, match="there are: random"):
        run.surfaces["rnadom"]
    assert "rnadom" not in run.surfaces and run.surfaces.get("rnadom") is None


def test_parts_may_be_given_instead(folder):
    given = Run(folder, name="mine", method="m", seed=7, result={"test_accuracy": 0.1}, surfaces={}, spec="data: 1")
    assert (given.name, given.method, given.seed, given.number("test_accuracy")) == ("mine", "m", 7, 0.1)
    assert not given.surfaces and len(given.metrics) == 2 and given.spec["data"] == 1
    nowhere = Run(name="nowhere")
    assert not nowhere.finished and nowhere.metrics == () and not nowhere.curvature and nowhere.number("passes") is None
    for ask in (lambda: nowhere.folder, lambda: nowhere.result, nowhere.model, nowhere.report):
        with pytest.raises(InputError, match="`run`"):
            ask()
    other = given.labeled("other", seed=8)
    assert (other.name, other.seed, other.method, given.name) == ("other", 8, "m", "mine")


def test_results_know_their_run(folder):
    run = Run(folder)
    for store in (run.surface_path("plane"), run.curvature_path("hessian"), run.trajectory_path):
        assert Run.of_store(store).folder == folder


def test_surfaces_of_the_tool_of_li_are_surfaces_of_a_run(tmp_path):
    (tmp_path / "surfaces").mkdir()
    results.write_li_hdf5(plane().drop_vars("loss_se"), tmp_path / "surfaces" / "theirs.h5")
    run = ll.open(tmp_path)
    assert list(run.surfaces) == ["theirs"] and np.allclose(run.surfaces["theirs"]["loss"], plane()["loss"])


def test_opening_runs_reads_no_store(tmp_path, monkeypatch):
    for seed in range(3):
        for method in ("none", "sam"):
            written(tmp_path / f"{method}-{seed}", seed=seed, method=method)
    monkeypatch.setattr("lowland.results.zarr.read", lambda path: pytest.fail(f"{path} was read"))
    monkeypatch.setattr("zarr.open_group", lambda *given, **named: pytest.fail("a store was opened"))
    runs = ll.open(tmp_path)
    assert isinstance(runs, Runs) and len(runs) == 6
    assert [run.method for run in runs] == ["LLR"] * 3 + ["SAM + LLR"] * 3 and [run.seed for run in runs] == [
        0,
        1,
        2,
    ] * 2
    text = repr(runs) + runs._repr_html_()
    assert all(
        word in text for word in ("6 runs", "SAM + LLR", "90.00 %", "train loss 0.2", "surfaces random", "later")
    )
    assert len(runs[:2]) == 2 and runs["sam-1"].seed == 1
    with pytest.raises(KeyError, match="there are"):
        runs["sam-9"]


def test_no_torch_until_weights_are_asked_for(folder):
    code = (
        f"import sys, lowland as ll, lowland.results, lowland.core.pace\nrun = ll.open({str(folder)!r})\n"
        "assert run.final_curvature is not None and run.surfaces['random'].sizes['x'] == 9 and len(run.to_frame()) == 2\n"
        "run.report(); repr(run); run._repr_html_(); run.trajectory; ll.open(str(run.surface_path('random')))\n"
        "assert 'torch' not in sys.modules\n"
        "try: run.model()\nexcept ll.core.errors.InputError: pass\n"
        "assert 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_open_tells_what_a_path_is(folder, tmp_path):
    assert isinstance(ll.open(str(folder)), Run)
    assert isinstance(ll.open(folder / "surfaces" / "random.zarr"), xr.Dataset)
    (tmp_path / "study" / "epochs").mkdir(parents=True)
    os.symlink(folder, tmp_path / "study" / "epochs" / "sam")
    runs = ll.open(tmp_path / "study")
    assert isinstance(runs, Runs) and [run.name for run in runs] == ["sam"]
    h5 = tmp_path / "surface.h5"
    results.write_li_hdf5(plane().drop_vars("loss_se"), h5)
    assert ll.open(h5).attrs["schema"].startswith("lowland.surface/")
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.pt").write_bytes(b"")
    for path, words in (
        (tmp_path / "none", "must exist"),
        (tmp_path / "empty", "must hold"),
        (tmp_path / "weights.pt", "must"),
    ):
        with pytest.raises(InputError, match=f"`path` {words}.*lowland fit"):
            ll.open(path)
    for path in (tmp_path / "none.zarr", tmp_path / "surface.zarr"):
        path.mkdir()
        with pytest.raises(StoreError):
            ll.open(path)


def test_runs_are_looked_for_in_folders_but_not_in_runs(folder, tmp_path):
    below = tmp_path / "a" / "b" / "c"
    for name in ("two", "one"):
        (below / name).mkdir(parents=True)
        (below / name / "metrics.csv").write_text("epoch\n1\n")
    inside = below / "one" / "inner"
    inside.mkdir()
    (inside / "metrics.csv").write_text("epoch\n1\n")
    assert [path.name for path in find_runs(tmp_path)] == ["one", "two"]
    with pytest.raises(InputError, match="each folder once"):
        open_runs([folder, folder])
    with pytest.raises(InputError, match="`run` must be a folder"):
        open_runs([tmp_path / "nowhere"])


def test_folders_for_runs(tmp_path):
    assert open_run_folder(tmp_path / "new", new=True).is_dir()
    (tmp_path / "new" / ".spec.yaml.17.part").write_text("")  # what another process of the same start is writing
    open_run_folder(tmp_path / "new", new=True)
    (tmp_path / "new" / "metrics.csv").write_text("")
    with pytest.raises(InputError, match="must be new, empty or"):
        open_run_folder(tmp_path / "new", new=True)
    open_run_folder(tmp_path / "new")


def test_damaged_files_are_refused_when_they_are_read_and_shown_as_damaged(tmp_path):
    run = written(tmp_path / "run", stores=False)
    (run / "result.json").unlink()
    with pytest.raises(InputError, match="must be finished"):
        _ = Run(run).result
    assert "unfinished" in repr(Run(run))
    for text in ("{", "[1]", '"a"', "\x00"):
        (run / "result.json").write_text(text)
        with pytest.raises(InputError, match="damaged"):
            _ = Run(run).result
        assert "damaged" in repr(Run(run)) and "damaged" in Run(run)._repr_html_()
    for strange in (
        {"test": [1], "chosen": 3, "recipe": {"optimizer settings": {}}},
        {"recipe": {"optimizer settings": [1]}},
    ):
        (run / "result.json").write_text(json.dumps(strange))
        assert Run(run).number("test_accuracy") is None and Run(run).number("momentum") is None
    results.save(card(), run / "robustness" / "card.zarr")
    (run / "robustness" / "card.zarr" / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match=r"card\.zarr is damaged"):
        _ = Run(run).cards["card"]
    (run / "metrics.csv").write_text("epoch,loss\n1,x\n")
    with pytest.raises(InputError, match="readable metrics"):
        _ = Run(run).metrics
    (run / "spec.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="damaged file"):
        _ = Run(run).spec
    (run / "spec.yaml").write_text("{")
    assert dict(Run(run).spec) == {} and Run(run).method == ""
    (run / "surfaces" / "plane.zarr").mkdir(parents=True)
    with pytest.raises(StoreError, match="no store"):
        Run(run).surfaces["plane"]


def test_a_page_escapes_what_a_folder_is_called():
    assert "<b>" not in Run(name="<b>")._repr_html_()


def test_a_report_from_the_run(folder, tmp_path):
    page = ll.open(folder).report(tmp_path / "report.html")
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "report.html" and "SAM + LLR" in text and str(folder) in text


def test_frames_have_units(folder, tmp_path):
    run = ll.open(folder)
    frame = run.to_frame()
    assert list(frame["train_loss"].dropna()) == [0.5] and frame.attrs["units"]["train_loss"] == "loss"
    surface = to_frame(run.surfaces["random"])
    point = surface[(surface["x"] == surface["x"].unique()[2]) & (surface["y"] == surface["y"].unique()[1])]
    assert float(point["loss"].iloc[0]) == float(run.surfaces["random"]["loss"][2, 1]) and len(surface) == 9 * 6
    assert surface.attrs["units"]["x"] == "normalized direction" and surface.attrs["units"]["loss"] == "loss"
    table = Runs([run, run.labeled("b")]).to_frame()
    assert list(table["name"]) == ["sam", "b"] and list(table["curvature_lambda_max"]) == [10.0, 10.0]
    assert table["test_accuracy"][0] == 0.9 and table.attrs["units"]["curvature_lambda_max"].startswith("loss per")
    with pytest.raises(InputError, match="`result`"):
        to_frame(3)

    to_csv(run, tmp_path / "metrics.csv")
    assert pd.read_csv(tmp_path / "metrics.csv").equals(frame)
    columns = json.loads((tmp_path / "metrics.csv-metadata.json").read_text())["tableSchema"]["columns"]
    assert {"name": "step", "titles": "step", "unit": "steps"} in columns


def test_parquet_keeps_units_and_says_what_is_missing(folder, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    surface = Run(folder).surfaces["random"]
    to_parquet(surface, tmp_path / "s.parquet")
    schema = parquet.read_schema(tmp_path / "s.parquet")
    assert schema.field("loss").metadata == {b"units": b"loss"} and schema.field("status").metadata is None
    found = pd.read_parquet(tmp_path / "s.parquet")
    assert np.array_equal(found["loss"], to_frame(surface)["loss"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"lowland\[parquet\]"):
        to_parquet(surface, tmp_path / "again.parquet")


def test_writes_are_whole_flushed_and_without_leftovers(tmp_path, monkeypatch):
    flushed = []
    real = os.fsync
    monkeypatch.setattr("os.fsync", lambda handle: (flushed.append(handle), real(handle))[1])
    write_atomically(tmp_path / "a" / "file", b"one")
    write_atomically(tmp_path / "a" / "file", b"two")
    assert len(flushed) == 2 and (tmp_path / "a" / "file").read_bytes() == b"two"
    monkeypatch.setattr("os.replace", lambda *names: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(StoreError, match="Read-only"):
        write_atomically(tmp_path / "a" / "file", b"three")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("text", "home"),
    [
        (r'"(result\.json|metrics\.csv|trajectory\.zarr)"', "results/run.py"),
        (r'"spec\.yaml"', "core/names.py"),
        (r"os\.replace\(", "results/files.py"),
    ],
)
def test_one_place_knows(text, home):
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if re.search(text, path.read_text(encoding="utf-8"))
    }
    assert found == {home}


def test_texts_along_a_dimension_are_stored_as_zarr_specifies_them(tmp_path, recwarn):
    made = xr.Dataset({"value": ("measure", [1.0, 2.0])}, {"measure": ["short", "a longer one"]})
    made.attrs["schema"] = "lowland.curvature/2"
    results.save(made, tmp_path / "made.zarr")
    assert json.loads((tmp_path / "made.zarr" / "measure" / "zarr.json").read_text())["data_type"] == "string"
    assert results.open(tmp_path / "made.zarr")["measure"].values.tolist() == ["short", "a longer one"]
    assert not recwarn.list


def test_a_run_is_taken_where_its_folder_is(tmp_path):
    assert os.fspath(Run(tmp_path)) == str(tmp_path)
    with pytest.raises(InputError, match="`run` must have a folder for this"):
        os.fspath(Run(None, name="bare"))
