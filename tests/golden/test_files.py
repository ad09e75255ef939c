"""What every version left on disk: it opens, goes on to the same values, and its YAML still makes the same runs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.golden import methods, write
from tests.golden.flat import flat
from tests.golden.names import KEYS, respelled
from tests.golden.stores import FILES, SURVEYS

import lowland as ll
from lowland.cli.main import main as command
from lowland.core.errors import StoreError
from lowland.results import SnapshotReader
from lowland.results import open as open_result

MEASURED = 1e-10
"""In float64, on any processor."""
WRITTEN_WITH = "AVX512"
"""Kernels of the processor that wrote the files of 0.1.0."""
TRAINED = 1e-4
"""The commands train in float32: after twelve steps processors are so far apart."""


OLD, NEW = VERSIONS = ("0.1.0", "0.2.0")
RUNS = {OLD: ["sam", "sala", "ema"], NEW: [*write.FITS]}
EACH_RUN = pytest.mark.parametrize(("version", "name"), [(version, name) for version in RUNS for name in RUNS[version]])


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture
def place(version, tmp_path, monkeypatch):
    """A copy of what a version left, as the working directory: folders in specs are relative."""
    shutil.copytree(FILES / version, tmp_path / "files")
    monkeypatch.chdir(tmp_path / "files")
    for path in Path("specs").glob("*.yaml"):
        text = path.read_text()
        for old, new in KEYS.items():
            text = text.replace(f"{old}:", f"{new}:")
        path.write_text(text)
    return tmp_path / "files"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def values(folder):
    """Everything but the heads of stores, which a writer brings to the present schema."""
    return {path: data for path, data in contents(folder).items() if path.name != "zarr.json"}


def assert_close(old, new, tolerance, *, leave=()):
    """Compare two datasets: every variable of the old one is in the new one with the same values."""
    for name in [*old.coords, *old.data_vars]:
        assert name in new.variables, name
        if name in leave:
            continue
        a, b = old[name].values, new[name].values
        assert a.shape == b.shape and a.dtype.kind == b.dtype.kind, name
        if a.dtype.kind != "f":
            assert [respelled(str(v)) for v in a.reshape(-1)] == [str(v) for v in b.reshape(-1)], name
            continue
        scale = np.nanmax(np.abs(a)) if np.isfinite(a).any() else 1.0
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * scale + 1e-13, equal_nan=True, err_msg=str(name))


def rows_of(path):
    with open(path, newline="") as file:
        return [{k: float(v) for k, v in row.items() if v and k != "seconds"} for row in csv.DictReader(file)]


def assert_same_rows(old, new, tolerance):
    assert [list(row) for row in old] == [list(row) for row in new]
    for before, after in zip(old, new, strict=True):
        for name, value in before.items():
            # one sample more or less on the right side is possible elsewhere
            slack = 0.05 if "accuracy" in name else tolerance * max(1.0, abs(value))
            assert abs(value - after[name]) <= slack, (name, value, after[name])


def stores_of(version):
    return sorted((FILES / version).rglob("*.zarr"))


def test_there_are_stores_of_every_kind(version):
    kinds = {open_result(path).attrs["schema"] for path in stores_of(version)}
    newer = {"lowland.robustness/1"} if version == NEW else set()
    assert kinds == {"lowland.surface/2", "lowland.curvature/2", "lowland.trajectory/1"} | newer  # by their migrations


def test_a_store_opens_and_is_left_as_it_is(version):
    for path in stores_of(version):
        before = contents(path)
        found = open_result(path).load()
        assert found.sizes and found.attrs["schema"].startswith("lowland."), path
        assert contents(path) == before, path
        if "status" in found:
            assert bool((found["status"] == 0).any()) == path.stem.endswith("half"), path


ENDS = ("lambda_max", "lambda_min", "lambda_min_bound", "residual_max", "residual_min", "products", "ratio")
"""What 0.1.0 sought less far: its lowest value was up to 1.8% off in these files."""


def assert_same_picture(old, new, tolerance):
    """Compare two refined pictures: which points are measured is not promised, the values and the statement are."""
    both = ((old["status"] == 1) & (new["status"] == 1)).values
    assert both.sum() > 0.2 * both.size  # the first level, and where the ground is rough
    for metric in ("loss", "accuracy"):
        a, b = (data[metric].values[np.broadcast_to(both, data[metric].shape)] for data in (old, new))
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * np.abs(a).max() + 1e-13)
    limits, loss = json.loads(new.attrs["refinement"]), old["loss"].values
    allowed = np.minimum(limits["range"] * np.ptp(loss), limits["value"] * np.abs(loss))
    assert (np.abs(new["loss"].values - loss) > 2 * allowed).mean() <= limits["share_bound"]


def assert_same_survey(name, old, new, tolerance, version):
    if name == "refined":
        return assert_same_picture(old, new, tolerance)
    sought_less = name == "convexity" and version == OLD
    assert_close(old, new, tolerance, leave=ENDS if sought_less else ())
    if sought_less:
        np.testing.assert_allclose(new["lambda_max"], old["lambda_max"], rtol=1e-3)
        np.testing.assert_allclose(new["lambda_min"], old["lambda_min"], rtol=0.02)
        assert (new["lambda_min"] <= 0.999 * old["lambda_min"]).all()  # all of them are negative


# A refined picture of 0.1.0 says what is not true of low losses; it opens, and is not passed off as one of today's.
EACH_SURVEY = pytest.mark.parametrize(
    ("version", "name"), [(v, name) for v in VERSIONS for name in SURVEYS if (v, name) != (OLD, "refined")]
)


@EACH_SURVEY
def test_a_survey_measures_what_the_store_holds(version, name):
    old = open_result(FILES / version / "stores" / f"{name}.zarr")
    assert_same_survey(name, old, SURVEYS[name](), MEASURED, version)


@pytest.mark.parametrize("version", [OLD])
def test_a_refined_picture_of_before_is_refused_and_left(version, place):
    path = place / "stores" / "refined.zarr"
    before = contents(path)
    with pytest.raises(StoreError, match="recipe"):
        SURVEYS["refined"](store=path)
    assert contents(path) == before


@EACH_SURVEY
def test_a_finished_survey_is_read_back(version, name, place):
    path = place / "stores" / f"{name}.zarr"
    old = open_result(path).load()
    assert_close(old, SURVEYS[name](store=path), 0.0)


@EACH_SURVEY
def test_a_stopped_survey_goes_on_to_the_same_values(version, name, place):
    path = place / "stores" / f"{name}-half.zarr"
    half = open_result(path).load()
    done = half["status"].values == 1
    assert 0 < done.sum() < done.size
    gone_on = SURVEYS[name](store=path)
    assert (gone_on["status"].values >= 1).all() and (name == "refined" or (gone_on["status"].values == 1).all())
    stored = open_result(path).load()
    for metric in ("loss", "accuracy"):  # what was measured is kept to the bit
        kept = np.broadcast_to(done, half[metric].shape)
        assert np.array_equal(stored[metric].values[kept], half[metric].values[kept])
    assert_same_survey(name, open_result(FILES / version / "stores" / f"{name}.zarr"), stored, MEASURED, version)


STATES = {version: torch.load(FILES / version / "states.pt", weights_only=True) for version in VERSIONS}


@pytest.mark.parametrize(("version", "method"), [(version, name) for version in STATES for name in STATES[version]])
def test_an_optimizer_goes_on_from_its_state(version, method):
    state = STATES[version][method]
    names = set(flat(state["optimizer"]))
    gone_on = methods.optimizer_run(method, "sgd", torch.float64, state=state, done=15)
    whole = methods.optimizer_run(method, "sgd", torch.float64)
    assert names <= set(flat(whole["state"])) | {name for name in names if "seconds" in name}
    old, new = flat({**whole, "losses": whole["losses"][15:]}), flat(gone_on)
    assert set(old) == set(new)
    for path, value in old.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(new[path], value, rtol=1e-9, atol=1e-11, err_msg=path)
        else:
            assert new[path] == pytest.approx(value) if isinstance(value, float) else new[path] == value, path


@EACH_RUN
def test_a_stopped_fit_goes_on_from_its_checkpoint(version, name, place):
    spec = place / "cut" / name / "spec.yaml"
    before = rows_of(place / "cut" / name / "metrics.csv")
    assert 0 < len(before) < 4 and not (place / "cut" / name / "result.json").exists()
    assert command(["fit", "--config", str(spec), "--quiet"]) == 0
    rows = rows_of(place / "cut" / name / "metrics.csv")
    assert rows[: len(before)] == before  # it did not begin anew
    assert_same_rows(rows_of(FILES / version / "runs" / name / "metrics.csv"), rows, TRAINED)


@EACH_RUN
def test_a_finished_fit_is_left_alone(version, name, place, capsys):
    before = contents(place / "runs" / name)
    assert command(["fit", "--config", f"runs/{name}/spec.yaml", "--json"]) == 0
    passes = {"sam": 24, "sala": 18}  # of twelve steps; a teacher's forward passes are counted beside them
    assert json.loads(capsys.readouterr().out)["passes"] == passes.get(name, 12)
    assert contents(place / "runs" / name) == before


def test_a_run_opens(version):
    run = ll.open(FILES / version / "runs" / "sam")
    assert len(run.metrics) == 4
    assert {"plane", "between", "trajectory"} <= set(run.surfaces)
    assert "hessian" in run.curvature and run.trajectory is not None
    assert "tests.golden.parts:net" in str(run.spec)


def test_snapshots_open(version):
    reader = SnapshotReader(FILES / version / "runs" / "sam" / "snapshots")
    assert list(reader.steps) == [0, 3, 6, 9, 12]
    assert set(reader.read(12)) >= {"0.weight", "1.weight", "5.bias", "7.weight"}


OF_OLD = pytest.mark.parametrize("version", [OLD])
OF_NEW = pytest.mark.parametrize("version", [NEW])


@OF_OLD
@pytest.mark.parametrize("name", ["surface", "line", "trajectory", "curvature"])
def test_the_yaml_of_a_measurement_reads_back_its_result(version, name, place):
    before = values(place / "runs" / "sam")
    code = command([name, "--config", f"specs/{name}.yaml", "--quiet"])
    # the recipe of a plane of float32 weights holds its norms, whose last bits other kernels change: refused there
    assert code == 0 or (code == 2 and torch.backends.cpu.get_cpu_capability() != WRITTEN_WITH)
    assert values(place / "runs" / "sam") == before


@OF_OLD
@pytest.mark.parametrize("name", ["surface", "line", "trajectory", "curvature"])
def test_the_yaml_of_a_measurement_measures_the_same(version, name, place):
    stores = {
        "surface": "surfaces/plane.zarr",
        "line": "surfaces/between.zarr",
        "trajectory": "trajectory.zarr",
        "curvature": "curvature/hessian.zarr",
    }
    path = place / "runs" / "sam" / stores[name]
    shutil.rmtree(path)
    assert command([name, "--config", f"specs/{name}.yaml", "--quiet"]) == 0
    assert_measured_again(OLD, path)


def assert_measured_again(version, path):
    """Compare a store of a copied run with what it was."""
    old, new = open_result(FILES / version / path.relative_to(Path.cwd())), open_result(path)
    if path.stem == "refined":
        return assert_same_picture(old, new, 1e-3)
    # the last digits of float32 decide residuals, and with them bounds and how many products were taken
    assert_close(old, new, 1e-3, leave=[v for v in old.variables if "residual" in str(v) or "bound" in str(v)])


@OF_NEW
@pytest.mark.parametrize("name", write.COMMANDS)
def test_a_command_reads_back_its_result(version, name, place):
    before = values(place / "runs" / "sam")
    write.run(write.COMMANDS[name])
    assert values(place / "runs" / "sam") == before


@OF_NEW
@pytest.mark.parametrize("name", write.COMMANDS)
def test_a_command_measures_the_same(version, name, place):
    path = place / "runs" / "sam" / f"{name}.zarr"
    for store in path.parent.glob(f"{path.stem}*.zarr"):
        shutil.rmtree(store)
    write.run(write.COMMANDS[name])
    assert_measured_again(NEW, path)


@OF_NEW
@pytest.mark.parametrize(
    ("half", "whole"), [("surfaces/half", "surfaces/film"), ("robustness/half", "robustness/card")]
)
def test_a_stopped_film_and_card_go_on(version, half, whole, place):
    path = place / "runs" / "sam" / f"{half}.zarr"
    assert not open_result(path).equals(open_result(path.with_stem(Path(whole).stem)))
    write.measure_halves(ll.open("runs/sam"))
    assert_close(open_result(place / "runs" / "sam" / f"{whole}.zarr"), open_result(path), 1e-3)


@OF_OLD
@pytest.mark.parametrize("config", ["specs/fit.yaml", "specs/recipe.yaml"])
def test_the_yaml_of_a_fit_trains_the_same(version, config, place):
    assert command(["fit", "new", "--config", config, "--quiet"]) == 0
    assert_same_rows(rows_of(FILES / version / "runs" / "sam" / "metrics.csv"), rows_of("new/metrics.csv"), TRAINED)


@OF_OLD
def test_the_yaml_of_report_and_figure(version, place):
    assert command(["report", "--config", "specs/report.yaml", "--quiet"]) == 0
    assert command(["figure", "--config", "specs/figure.yaml", "--quiet"]) == 0
    assert (place / "made.html").stat().st_size > 10_000 and (place / "made.svg").stat().st_size > 1000


def test_a_finished_study_is_compared_without_training(version, place, capsys):
    runs = {path: data for path, data in contents(place / "study").items() if "epochs" in path.parts}
    assert command(["study", "specs/study.yaml" if version == OLD else "study.yaml", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["method"]: sorted(row["values"]) for row in rows} == {"SGD": ["0", "1"], "SAM": ["0", "1"]}
    assert {path: data for path, data in contents(place / "study").items() if "epochs" in path.parts} == runs
