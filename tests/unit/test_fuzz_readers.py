"""Damaged and hostile files: readers raise our own errors, and nothing in a file is ever executed."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lowland import results
from lowland.core.errors import CheckpointError, InputError, LowlandError, StoreError
from lowland.core.schema import new_surface
from lowland.data.local import read_archive_member, read_idx, read_plain_pickle
from lowland.models.weights import decode_pickle, decode_safetensors, read_weights
from lowland.opening import open_runs
from lowland.results import Run
from lowland.training import CheckpointFolder
from lowland.training.checkpoint import to_safetensors
from lowland.workflows import fit
from lowland.workflows.parse import from_text

FEW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    """A few changes of a file: at a place (as a share of its length) cut it off, overwrite bytes or insert some."""
    one = st.tuples(st.sampled_from(["cut", "overwrite", "insert"]), st.floats(0, 1), st.binary(min_size=1, max_size=8))
    return draw(st.lists(one, min_size=1, max_size=4))


def damaged(data: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, share, new in changes:
        place = int(share * len(data))
        rest = b"" if kind == "cut" else data[place + (len(new) if kind == "overwrite" else 0) :]
        data = data[:place] + (b"" if kind == "cut" else new) + rest
    return data


def put(content: dict | list, keys: list[int], value: object) -> None:
    """Replace one entry somewhere inside nested JSON."""
    for depth, key in enumerate(keys):
        places = list(content) if isinstance(content, dict) else list(range(len(content)))
        if not places:
            return
        place = places[key % len(places)]
        if depth == len(keys) - 1 or not isinstance(content[place], dict | list):
            content[place] = value
            return
        content = content[place]


def answers(call: Callable[[], object], refusal: type[Exception]) -> bool:
    """Whether a reader returns, or refuses with the one error it may raise; any other error fails the test."""
    try:
        call()
    except refusal as error:
        return len(str(error)) > 0
    return True


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()


class Payload:
    """Touches a file when somebody unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def saved(content: object, *, old: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not old)
    return buffer.getvalue()


DECODERS = {
    "torch": (lambda: saved({"state_dict": state(), "epoch": 3}), lambda data: decode_pickle(data, Path("f"))),
    "old torch": (lambda: saved(state(), old=True), lambda data: decode_pickle(data, Path("f"))),
    "safetensors": (lambda: to_safetensors(state()), lambda data: decode_safetensors(data, Path("f"))),
    "plain pickle": (
        lambda: pickle.dumps({b"data": np.arange(6.0), b"labels": [1, 2]}, 2),
        lambda data: read_plain_pickle(data, "f"),
    ),
}


@pytest.mark.filterwarnings("ignore")  # torch and NumPy warn of bytes that look like old files
@pytest.mark.parametrize("name", DECODERS)
@FEW
@given(changes=damages(), noise=st.none() | st.binary(max_size=40))
def test_decoders_of_weights(name, changes, noise):
    whole, decode = DECODERS[name]
    try:
        decode(damaged(whole(), changes) if noise is None else noise)
    except (CheckpointError, InputError) as error:
        assert len(str(error)) < 5000


@FEW
@given(changes=damages(), suffix=st.sampled_from(["", ".gz"]))
def test_idx_files_and_archives(changes, suffix, tmp_path):
    array = struct.pack(">HBB2I", 0, 8, 2, 2, 3) + bytes(6)
    (tmp_path / f"a{suffix}").write_bytes(damaged(array, changes))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("member"), io.BytesIO())
    (tmp_path / "a.tar.gz").write_bytes(damaged(buffer.getvalue(), changes))
    for read in (
        lambda: read_idx(tmp_path / f"a{suffix}", None),
        lambda: read_archive_member(tmp_path / "a.tar.gz", "member", None),
    ):
        assert answers(read, InputError)


@pytest.fixture(scope="module")
def whole_store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    surface = new_surface(np.arange(3.0), np.arange(2.0), metrics=["loss"], attrs={"recipe": {"seed": 1}})
    surface["loss"][:] = 1.0
    results.save(surface, path)
    return path


@FEW
@given(changes=damages(), number=st.integers(0, 30))
def test_stores_with_damaged_bytes(changes, number, whole_store, tmp_path):
    path = tmp_path / "s.zarr"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(whole_store, path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    chosen = files[number % len(files)]
    chosen.write_bytes(damaged(chosen.read_bytes(), changes))
    assert answers(lambda: results.open(path), StoreError)


@FEW
@given(keys=st.lists(st.integers(0, 9), min_size=1, max_size=4), value=JSON, number=st.integers(0, 5))
def test_stores_with_damaged_metadata(keys, value, number, whole_store, tmp_path):
    path = tmp_path / "s.zarr"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(whole_store, path)
    files = sorted(path.rglob("zarr.json"))
    chosen = files[number % len(files)]
    content = json.loads(chosen.read_text())
    put(content, keys, value)
    chosen.write_text(json.dumps(content))
    assert answers(lambda: results.open(path), StoreError)


def test_an_array_of_pickles_inside_a_store_is_never_read(whole_store, tmp_path):
    """Zarr's older format can hold pickles; an array of it is put in the place of one of ours."""
    numcodecs = pytest.importorskip("numcodecs")
    path, mark = tmp_path / "s.zarr", tmp_path / "mark"
    shutil.copytree(whole_store, path)
    shutil.rmtree(path / "loss")
    payload = np.array([[Payload(mark)] * 2] * 3, dtype=object)
    (path / "loss").mkdir()
    head = {
        "zarr_format": 2,
        "shape": [3, 2],
        "chunks": [3, 2],
        "dtype": "|O",
        "order": "C",
        "fill_value": None,
        "compressor": None,
        "filters": [{"id": "pickle", "protocol": 4}],
    }
    (path / "loss" / ".zarray").write_text(json.dumps(head))
    (path / "loss" / ".zattrs").write_text('{"_ARRAY_DIMENSIONS": ["x", "y"]}')
    (path / "loss" / "0.0").write_bytes(numcodecs.Pickle().encode(payload))
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text('{"schema": "lowland.surface/1"}')
    found = results.open(path)
    assert "loss" not in found and not mark.exists()
    (path / "zarr.json").unlink()
    with pytest.raises(StoreError, match="no store"):
        results.open(path)
    assert not mark.exists()
    assert zarr.open_group(path, mode="r", zarr_format=2) is not None  # the trap was a real one


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("snapshots")
    for step in (0, 10):
        results.SnapshotWriter(folder).write(step, {"w": np.ones(3, np.float32)}, {"epoch": step})
    return folder


@FEW
@given(keys=st.lists(st.integers(0, 9), min_size=1, max_size=4), value=JSON, changes=st.none() | damages())
def test_snapshots(keys, value, changes, snapshots, tmp_path):
    folder = tmp_path / "snapshots"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(snapshots, folder)
    if changes is None:
        content = json.loads((folder / "index.json").read_text())
        put(content, keys, value)
        (folder / "index.json").write_text(json.dumps(content))
    else:
        files = sorted(folder.iterdir())
        chosen = files[keys[0] % len(files)]
        chosen.write_bytes(damaged(chosen.read_bytes(), changes))

    def read() -> None:
        reader = results.SnapshotReader(folder)
        for step, _ in reader:
            reader.info(step), reader.rounding(step)

    assert answers(read, StoreError)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    CheckpointFolder(folder).save(3, state(), {"epoch": 1, "rng": torch.arange(3)}, best=(2, state()))
    return folder


@pytest.mark.filterwarnings("ignore")
@FEW
@given(keys=st.lists(st.integers(0, 9), min_size=1, max_size=4), value=JSON, changes=st.none() | damages())
def test_checkpoints_of_runs(keys, value, changes, checkpoint, tmp_path):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkpoint, folder)
    files = sorted((folder / "checkpoints").iterdir())
    index = folder / "checkpoints" / "index.json"
    if changes is None:
        content = json.loads(index.read_text())
        put(content, keys, value)
        index.write_text(json.dumps(content))
    else:
        chosen = files[keys[0] % len(files)]
        chosen.write_bytes(damaged(chosen.read_bytes(), changes))
    assert answers(lambda: CheckpointFolder(folder).load(), CheckpointError)


def everything(folder):
    run = open_runs([folder])[0]
    assert "Run(" in repr(run) and run._repr_html_()  # whatever is damaged
    return [
        run.metrics,
        run.number("test_loss"),
        run.number("momentum"),
        run.method,
        run.spec.identity("loss"),
        run.last("x"),
    ]


@FEW
@given(changes=damages(), name=st.sampled_from(["metrics.csv", "result.json", "spec.yaml"]))
def test_plain_files_of_runs(changes, name, tmp_path):
    whole = {
        "metrics.csv": b"epoch,step,train_loss\n1,10,1.5\n2,20,\n",
        "result.json": b'{"test": {"accuracy": 0.5}, "chosen": {"train_loss": 0.1}, "recipe": {}}',
        "spec.yaml": b"seed: 3\ndata: {name: digits}\nloss: {name: mse}\noptimizer: {name: sgd}\n",
    }
    for file, data in whole.items():
        (tmp_path / file).write_bytes(damaged(data, changes) if file == name else data)
    for read in (
        lambda: Run(tmp_path).metrics,
        lambda: Run(tmp_path).result,
        lambda: everything(tmp_path),
    ):
        assert answers(read, InputError)


@FEW
@given(content=JSON, part=st.sampled_from(["result.json", "spec.yaml"]))
def test_reports_on_runs_with_other_contents(content, part, tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch\n1\n")
    for name in ("result.json", "spec.yaml"):
        (tmp_path / name).write_text(json.dumps(content) if name == part else "{}")
    assert answers(lambda: everything(tmp_path), InputError)


@FEW
@given(changes=damages())
def test_surface_files_of_the_tool(changes, tmp_path):
    pytest.importorskip("h5py")
    whole = tmp_path / "whole.h5"
    if not whole.exists():
        surface = new_surface(np.arange(3.0), np.arange(2.0), metrics=["loss"])
        surface["loss"][:] = 1.0
        results.write_li_hdf5(surface, whole)
        results.write_directions(tmp_path / "directions.h5", [[np.ones(3)], [np.ones(3)]])
    for source, read in ((whole, results.read_li_hdf5), (tmp_path / "directions.h5", results.read_directions)):
        place = tmp_path / "damaged.h5"
        place.write_bytes(damaged(source.read_bytes(), changes))
        assert answers(partial(read, place), StoreError)


@pytest.mark.parametrize("kind", ["group", "text", "scalar", "two axes", "twice the same", "strings"])
def test_surface_files_of_the_tool_with_other_contents(kind, tmp_path):
    h5py = pytest.importorskip("h5py")
    contents = {
        "text": "a",
        "scalar": 3.0,
        "two axes": np.ones((2, 2)),
        "twice the same": np.ones(3),
        "strings": np.array([b"a", b"b"]),
    }
    for name in ("xcoordinates", "train_loss", "xdirection"):
        with h5py.File(tmp_path / "f.h5", "w") as file:
            file.update({"xcoordinates": np.arange(3.0), "train_loss": np.ones(3)})
            file.pop(name, None)
            if kind == "group":
                file.create_group(name)["x"] = 1
            else:
                file[name] = contents[kind]
        for read in (results.read_li_hdf5, results.read_directions):
            assert answers(partial(read, tmp_path / "f.h5"), StoreError)


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.t7", "a.bin"])
def test_weights_with_code_in_them_are_refused_without_running_it(name, tmp_path):
    mark = tmp_path / "mark"
    hostile = {"state_dict": state(), "hyper_parameters": {"x": Payload(mark)}}
    (tmp_path / name).write_bytes(saved(hostile, old=name.endswith("t7")))
    with pytest.raises(CheckpointError, match="need code to load"):
        read_weights(tmp_path / name)
    with pytest.raises(InputError):
        read_plain_pickle(pickle.dumps({b"data": Payload(mark)}), "data_batch_1")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()  # the payload works where it is let


def test_errors_of_readers_are_ours():
    assert issubclass(CheckpointError, LowlandError) and issubclass(StoreError, LowlandError)


@pytest.mark.parametrize(
    "text",
    [
        "optimizer: {true: 1, name: sgd}\n",
        "optimizer: {2024-01-02: 1, name: sgd}\n",
        "optimizer: &a {name: sgd, options: *a}\n",
        "seed: 2024-13-45\n",
        "seed: " + "[" * 3000 + "]" * 3000 + "\n",
    ],
    ids=["keys of two types", "a date as key", "itself", "no such day", "deep"],
)
def test_specs_of_runs_that_no_command_writes(text, tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch\n1\n")
    (tmp_path / "spec.yaml").write_text(text)
    assert answers(lambda: everything(tmp_path), InputError)
    assert answers(lambda: from_text(fit, text), InputError)
