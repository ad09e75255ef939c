"""What every surface writer must do, and what the store on disk must survive; a new writer joins by one line."""

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import xarray as xr
import zarr as zarr_package

from lowland import results
from lowland.core.errors import LowlandError, StoreError
from lowland.core.schema import new_curvature, new_surface, new_trajectory
from lowland.results import dataset as dataset_module

WRITERS = {
    "memory": lambda folder: None,
    "zarr": lambda folder: folder / "s.zarr",
    "remote": lambda folder: f"memory:/{folder}/s.zarr",
}


def template(recipe="a", nx=4, ny=3, **options):
    attrs = {"recipe": {"seed": 1, "name": recipe}, "recipe_fingerprint": recipe}
    return new_surface(
        np.arange(nx) - 1.0, np.arange(ny) + 0.5, metrics=["loss", "accuracy"], errors=["loss"], attrs=attrs, **options
    )


def fill(writer, indices, offset=0.0):
    for i in indices:
        writer.put(i, {"loss": i + offset, "loss_se": 0.1, "accuracy": -i})


@pytest.mark.parametrize("name", WRITERS)
def test_points_land_at_their_own_coordinates_on_a_non_square_grid(name, tmp_path):
    with results.writer(WRITERS[name](tmp_path), template()) as writer:
        fill(writer, range(12))
    found = writer.dataset
    for i, x in enumerate(found.x.values):
        for j, y in enumerate(found.y.values):
            assert float(found.loss.sel(x=x, y=y)) == i * 3 + j
    assert (found.status == 1).all()


@pytest.mark.parametrize("name", WRITERS)
def test_what_a_point_hands_on_is_its_own(name, tmp_path):
    with results.writer(WRITERS[name](tmp_path), template()) as writer:
        writer.put(0, {"loss": 1.0}, carry={"v": np.arange(3)})
        found = writer.carried(0)
        found["w"] = found.pop("v")  # a caller goes on with it as it likes
        assert writer.carried(0)["v"].tolist() == [0, 1, 2] and set(writer.carried(0)) == {"v"}
        assert writer.carried(1) == {}


@pytest.mark.parametrize("name", WRITERS)
def test_nan_and_infinity_are_kept_and_failures_carry_their_text(name, tmp_path):
    with results.writer(WRITERS[name](tmp_path), template()) as writer:
        writer.put(0, {"loss": np.nan, "accuracy": -np.inf})
        writer.put(1, {"loss": np.inf})
        writer.put(2, {}, error="ValueError: " + "ü" * 150)
        assert writer.status.tolist()[:4] == [1, 1, 3, 0]
    found = writer.dataset if name == "memory" else results.open(WRITERS[name](tmp_path))
    assert np.isnan(found.loss[0, 0]) and found.accuracy[0, 0] == -np.inf and found.loss[0, 1] == np.inf
    assert str(found.error.values[0, 2]).endswith("üüü") and found.status.values[0, 2] == 3


@pytest.mark.parametrize("name", WRITERS)
def test_splits_and_directions_have_their_own_places(name, tmp_path):
    blank = template(splits=["train", "test"], directions=["0", "1"])
    with results.writer(WRITERS[name](tmp_path), blank) as writer:
        writer.put(12 + 5, {"loss": np.array([1.0, 2.0])})
    found = writer.dataset if name == "memory" else results.open(WRITERS[name](tmp_path))
    assert found.loss.dims == ("direction", "split", "x", "y")
    point = found.sel(direction="1").isel(x=1, y=2)
    assert point.loss.sel(split="test") == 2.0 and point.status == 1 and int(found.status.sum()) == 1


@pytest.mark.parametrize("name", WRITERS)
def test_attributes_and_the_template_is_left_alone(name, tmp_path):
    blank = template()
    with results.writer(WRITERS[name](tmp_path), blank) as writer:
        writer.annotate({"kernel": {"chunk": 3}})
        fill(writer, [0])
    assert json.loads(writer.dataset.attrs["kernel"]) == {"chunk": 3}
    assert "kernel" not in blank.attrs and np.isnan(blank.loss).all()


def test_the_file_equals_the_memory_bit_for_bit_without_any_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with results.writer(tmp_path / "s.zarr", template()) as writer:
            fill(writer, range(7), offset=1 / 3)
        xr.testing.assert_identical(results.open(tmp_path / "s.zarr"), writer.dataset)


@pytest.mark.parametrize(
    "result",
    [
        template(splits=["train", "test"]),
        new_trajectory([[0.0, 1.0], [np.nan, 3.0]], steps=[0, 10], variables={"loss": ("snapshot", [1.0, np.inf])}),
        new_curvature([0.1], [0.0], variables={"trace": ((), 2.5), "winner": ((), "ascent")}, attrs={"seeds": [1, 2]}),
    ],
    ids=["surface", "trajectory", "curvature"],
)
def test_every_kind_of_result_comes_back(result, tmp_path):
    given = result.copy(deep=True)
    given[next(iter(given.data_vars))].encoding["units"] = "as the user set it"
    results.save(given, tmp_path / "r.zarr")
    found = results.open(tmp_path / "r.zarr")
    xr.testing.assert_identical(found, result)
    assert [v.dtype for v in given.variables.values()] == [v.dtype for v in result.variables.values()]
    assert given[next(iter(given.data_vars))].encoding == {"units": "as the user set it"}
    with pytest.raises(StoreError, match="exists already"):
        results.save(result, tmp_path / "r.zarr")
    results.save(result.assign_attrs(again=1), tmp_path / "r.zarr", overwrite=True)
    assert results.open(tmp_path / "r.zarr").attrs["again"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [".r.zarr.lock", "r.zarr"]


def test_a_usual_surface_is_one_chunk_and_a_large_one_is_written_by_chunks(tmp_path, monkeypatch):
    blank = new_surface(np.arange(101), np.arange(101), metrics=["loss"], attrs={"recipe_fingerprint": "a"})
    results.save(blank, tmp_path / "one.zarr")
    assert zarr_package.open_group(tmp_path / "one.zarr")["loss"].nchunks == 1
    blank = new_surface(np.arange(150), np.arange(120), metrics=["loss"], attrs={"recipe_fingerprint": "a"})
    with results.writer(tmp_path / "four.zarr", blank) as writer:
        for index in (0, 119, 149 * 120 + 119):
            writer.put(index, {"loss": float(index)})
    xr.testing.assert_identical(results.open(tmp_path / "four.zarr"), writer.dataset)


def test_a_second_run_goes_on_and_long_errors_fit(tmp_path):
    with results.writer(tmp_path / "s.zarr", template()) as writer:
        fill(writer, range(5))
        assert not writer.resumed
    with results.writer(tmp_path / "s.zarr", template()) as writer:
        assert writer.resumed and writer.status.tolist() == [1] * 5 + [0] * 7
        fill(writer, range(5, 11))
        writer.put(11, {}, error="e" * 200)
    found = results.open(tmp_path / "s.zarr")
    assert found.loss.values.reshape(-1)[:11].tolist() == list(range(11))
    assert len(str(found.error.values[-1, -1])) == 200


def test_the_last_digits_of_another_processor_are_no_other_recipe(tmp_path):
    def begun(cosine, name):
        attrs = {"recipe": {"planes": [{"cosine": cosine, "norms": [1.5]}]}, "recipe_fingerprint": name}
        return new_surface(np.arange(4.0), np.arange(3.0), metrics=["loss"], attrs=attrs)

    path = tmp_path / "store.zarr"
    with results.writer(path, begun(-0.0876509370816943, "a")):
        pass
    with results.writer(path, begun(-0.08765093708169429, "b")):
        pass
    with pytest.raises(StoreError, match="another recipe: planes"), results.writer(path, begun(-0.0876509371, "c")):
        pass


def test_long_lists_of_a_recipe_are_refused_in_short(tmp_path):
    def begun(values):
        attrs = {"recipe": {"grid": {"x": values}, "name": "n" * 200}, "recipe_fingerprint": str(values)}
        return new_surface(np.arange(4.0), np.arange(3.0), metrics=["loss"], attrs=attrs)

    path = tmp_path / "store.zarr"
    with results.writer(path, begun([0.5, *range(50)])):
        pass
    with pytest.raises(StoreError) as caught, results.writer(path, begun([0.5, *range(7, 90)])):
        pass
    said = "grid.x (51 values: ..., 0, 1, 2, ... there, 84 values: ..., 7, 8, 9, ... here); choose"
    assert said in str(caught.value)


def test_another_recipe_is_refused_with_what_differs(tmp_path):
    with results.writer(tmp_path / "s.zarr", template()) as writer:
        fill(writer, range(5))
    before = results.open(tmp_path / "s.zarr")
    with (
        pytest.raises(StoreError, match=r"name \('a' there, 'b' here\)"),
        results.writer(tmp_path / "s.zarr", template("b")),
    ):
        pass
    xr.testing.assert_identical(results.open(tmp_path / "s.zarr"), before)


def test_one_writer_at_a_time_and_readers_any_time(tmp_path):
    with results.writer(tmp_path / "s.zarr", template()) as writer:
        fill(writer, range(5))
        writer.flush()
        for attempt in (
            lambda: results.writer(tmp_path / "s.zarr", template()).__enter__(),
            lambda: results.save(template(), tmp_path / "s.zarr", overwrite=True),
        ):
            with pytest.raises(StoreError, match="being written"):
                attempt()
        assert int(results.open(tmp_path / "s.zarr").status.sum()) == 5
    with results.writer(tmp_path / "s.zarr", template()):
        pass  # the lock was given back


def test_a_lock_of_another_process_is_respected(tmp_path):
    handle = os.open(tmp_path / ".s.zarr.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    code = (
        "import sys, numpy as np\nfrom lowland import results\nfrom lowland.core.schema import new_surface\n"
        "try:\n    results.save(new_surface([0.0], [0.0]), sys.argv[1])\n"
        "except Exception as e:\n    print(type(e).__name__); sys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s.zarr")], capture_output=True, text=True)
    os.close(handle)
    assert done.returncode == 3 and done.stdout.strip() == "StoreError" and not (tmp_path / "s.zarr").exists()


def _set_schema(path, text):
    content = json.loads((path / "zarr.json").read_text())
    content["attributes"]["schema"] = text
    (path / "zarr.json").write_text(json.dumps(content))


def _cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def _turn(path, word, turned):
    content = path.read_bytes()
    assert word in content
    path.write_bytes(content.replace(word, turned))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: _set_schema(path, "lowland.surface/3"), "newer"),
        (lambda path: _set_schema(path, "other.thing/1"), "not a result"),
        (lambda path: (path / "zarr.json").write_text("{"), "damaged"),
        (lambda path: (path / "zarr.json").unlink(), "no store"),
        (lambda path: (path / "loss/zarr.json").write_text("{"), "damaged"),
        (lambda path: (path / "loss/zarr.json").unlink(), r"missing of `loss` \(zarr.json\)"),
        (
            lambda path: _turn(path / "loss/zarr.json", b'"data_type"', b'"datA_type"'),
            "metadata of `loss` cannot be read",
        ),
        (lambda path: (path / "loss/c/0/0").unlink(), r"missing of `loss` \(1 chunk\)"),
        (lambda path: _cut(path / "loss/c/0/0"), "damaged .`loss`: "),
        (lambda path: _flip(path / "loss/c/0/0"), "damaged"),
        (lambda path: _cut(path / "status/c/0/0"), "damaged"),
    ],
    ids=[
        "newer",
        "foreign",
        "torn group",
        "no group",
        "torn array",
        "no array",
        "turned word",
        "no chunk",
        "cut chunk",
        "bit rot",
        "cut status",
    ],
)
def test_damage_is_named_and_left_as_it_is(damage, words, tmp_path):
    with results.writer(tmp_path / "s.zarr", template()) as writer:
        fill(writer, range(12), offset=0.1)
    damage(tmp_path / "s.zarr")
    before = {p: p.read_bytes() for p in (tmp_path / "s.zarr").rglob("*") if p.is_file()}
    with pytest.raises(StoreError, match=words):
        results.open(tmp_path / "s.zarr")
    with pytest.raises(StoreError), results.writer(tmp_path / "s.zarr", template()):
        pass
    assert {p: p.read_bytes() for p in (tmp_path / "s.zarr").rglob("*") if p.is_file()} == before


def test_places_that_hold_something_else_are_refused(tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        results.open(tmp_path / "none.zarr")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("mine")
    with pytest.raises(StoreError, match="no store"):
        results.save(template(), tmp_path / "folder", overwrite=True)
    with pytest.raises(StoreError, match="no store"), results.writer(tmp_path / "folder", template()):
        pass
    assert (tmp_path / "folder" / "file").read_text() == "mine"
    with pytest.raises(StoreError, match="not a result"):
        results.save(xr.Dataset({"a": 1}), tmp_path / "foreign.zarr")
    with pytest.raises(StoreError):
        results.save(template(), tmp_path / "folder" / "file" / "below.zarr")


def test_flushes_are_two_seconds_apart_and_values_come_before_status(tmp_path, monkeypatch):
    now, written = [100.0], []
    monkeypatch.setattr(dataset_module.time, "monotonic", lambda: now[0])
    real = zarr_package.Array.__setitem__
    monkeypatch.setattr(
        zarr_package.Array, "__setitem__", lambda self, *a: (written.append(self.basename), real(self, *a))[1]
    )
    with results.writer(tmp_path / "s.zarr", template()) as writer:
        written.clear()
        fill(writer, [0])
        assert written == ["loss", "loss_se", "accuracy", "error", "status"] and len(written) == len(set(written))
        now[0] += 1.9
        fill(writer, [1])
        assert len(written) == 5
        now[0] += 0.1
        fill(writer, [2])
        assert len(written) == 10
    assert len(written) == 10  # nothing was left to flush


KILLED = """
import sys, time
import numpy as np
from lowland import results
from lowland.results import dataset
sys.path.insert(0, sys.argv[2])
dataset._SECONDS = 0.0
from lowland.core.schema import new_surface
attrs = {"recipe": {}, "recipe_fingerprint": "a"}
blank = new_surface(np.arange(20.0), np.arange(10.0), metrics=["loss", "accuracy"], attrs=attrs)
with results.writer(sys.argv[1], blank) as writer:
    print("ready", flush=True)
    for index in np.flatnonzero(writer.status == 0):
        writer.put(int(index), {"loss": float(index) / 7, "accuracy": float(index) / 3})
"""


def test_killed_at_any_moment_a_store_goes_on_to_the_same_bits(tmp_path):
    generator = np.random.default_rng(0)
    path, kills = tmp_path / "s.zarr", 0
    for attempt in range(6):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(path), "."], stdout=subprocess.PIPE)
        if attempt < 5:
            process.stdout.readline()
            time.sleep(generator.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
        found = results.open(path)
        measured = found.status.values == 1
        expected = np.arange(200.0).reshape(20, 10)
        assert np.array_equal(found.loss.values[measured], (expected / 7)[measured])
        assert np.array_equal(found.accuracy.values[measured], (expected / 3)[measured])
    assert measured.all() and kills >= 1


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path):
    """A file-size limit makes the kernel refuse the write, as a full disk does."""
    values = np.random.default_rng(0).standard_normal(101 * 101)
    blank = new_surface(np.arange(101.0), np.arange(101.0), metrics=["loss"], attrs={"recipe_fingerprint": "a"})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(StoreError, match="cannot write"), results.writer(tmp_path / "s.zarr", blank) as writer:
            writer.put(0, {"loss": 1.5})
            writer.flush()
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
            for index, value in enumerate(values[1:], 1):
                writer.put(index, {"loss": value})
            writer.flush()
        with pytest.raises(StoreError, match="cannot write"):
            results.save(blank.assign(loss=(("x", "y"), values.reshape(101, 101))), tmp_path / "t.zarr")
        with pytest.raises(StoreError, match="cannot write"):
            results.SnapshotWriter(tmp_path / "snapshots").write(0, {"w": values})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert not (tmp_path / "t.zarr").exists()
    found = results.open(tmp_path / "s.zarr")
    assert int(found.status.sum()) == 1 and found.loss[0, 0] == 1.5
    with results.writer(tmp_path / "s.zarr", blank) as writer:
        fill_in = np.flatnonzero(writer.status == 0)
        assert len(fill_in) == 101 * 101 - 1


def test_a_store_that_cannot_be_put_in_place_leaves_the_one_before(tmp_path, monkeypatch):
    path, rename = tmp_path / "s.zarr", os.rename
    results.save(template(), path)

    def fails_on_new(source, target):
        if str(source).endswith(".part"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fails_on_new)
    with pytest.raises(StoreError, match="cannot write"):
        results.save(template(recipe="b"), path, overwrite=True)
    assert results.open(path).attrs["recipe_fingerprint"] == "a"
    assert [place.name for place in tmp_path.iterdir() if not place.name.endswith(".lock")] == ["s.zarr"]


@pytest.fixture
def read_only(tmp_path):
    """A folder that even root cannot write to: a read-only mount."""
    place = tmp_path / "mount"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting needs more rights than this process has")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_read_only_file_system_is_one_clear_error(read_only):
    with results.writer(read_only / "s.zarr", template()) as writer:
        fill(writer, range(5))
    subprocess.run(["mount", "-o", "remount,ro", read_only], check=True)
    assert int(results.open(read_only / "s.zarr").status.sum()) == 5
    for attempt in (
        lambda: results.writer(read_only / "s.zarr", template()).__enter__(),
        lambda: results.save(template(), read_only / "t.zarr"),
        lambda: results.SnapshotWriter(read_only / "snapshots").write(0, {"w": np.ones(2)}),
    ):
        with pytest.raises(StoreError, match=r"(?i)read-only"):
            attempt()
    subprocess.run(["mount", "-o", "remount,rw", read_only], check=True)


def test_no_torch_is_needed():
    code = "import sys; sys.modules['torch'] = None\nimport lowland.results, lowland.results.snapshots; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "fine", done.stderr


def test_store_errors_are_ours():
    assert issubclass(StoreError, LowlandError)


def test_what_is_missing_of_a_line_is_named_too(tmp_path):
    line = new_surface(np.arange(3.0), metrics=["loss"])
    line["loss"][:], line["status"][:] = 1.0, 1
    results.save(line, tmp_path / "s.zarr")
    (tmp_path / "s.zarr/loss/c/0").unlink()
    with pytest.raises(StoreError, match=r"missing of `loss` \(1 chunk\)"):
        results.open(tmp_path / "s.zarr")
