"""Stores on an object store: what goes up in which order, one writer, and writers that die."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import fsspec
import numpy as np
import pytest
import xarray as xr

from lowland import results
from lowland.core import errors
from lowland.core.errors import InputError, MissingExtra, StoreError
from lowland.core.schema import new_surface
from lowland.results import remote


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(remote, "_BEAT", 0.2)


@pytest.fixture
def url(tmp_path):
    return f"memory:/{tmp_path}/s.zarr"


def files(url):
    return fsspec.core.url_to_fs(url)


def template(recipe="a"):
    attrs = {"recipe": {"name": recipe}, "recipe_fingerprint": recipe}
    return new_surface(np.arange(4.0), np.arange(3.0), metrics=["loss"], attrs=attrs)


def marker(url):
    system, path = files(url)
    return json.loads(system.cat_file(f"{path}.writer"))


def test_which_paths_are_urls(tmp_path):
    assert remote.is_url("s3://bucket/a") and not remote.is_url("a/b") and not remote.is_url(tmp_path)


def test_a_survey_goes_on_where_an_earlier_one_stopped(url):
    with results.writer(url, template()) as writer:
        writer.put(0, {"loss": 1.0}, carry={"v": np.arange(3)})
    with results.writer(url, template()) as writer:
        assert writer.resumed and writer.carried(0)["v"].tolist() == [0, 1, 2]
        writer.put(1, {"loss": 2.0})
    assert results.open(url).loss.values.reshape(-1)[:2].tolist() == [1.0, 2.0]
    system, path = files(url)
    assert not system.exists(f"{path}.writer")


def test_values_go_up_before_the_status_and_the_metadata_last(url, monkeypatch):
    order = []
    system, root = files(url)
    real = type(system).pipe_file
    monkeypatch.setattr(
        type(system),
        "pipe_file",
        lambda self, path, *w, **k: (order.append(path[len(root) + 1 :]), real(self, path, *w, **k))[1],
    )
    with results.writer(url, template()) as writer:
        created = len(order)
        assert order[created - 1] == "zarr.json" and not any(name == "zarr.json" for name in order[: created - 1])
        writer.put(0, {"loss": 1.0})
        writer.flush()
        data = [name for name in order[created:] if "/c/" in name]
    assert data[-1].startswith("status/") and any(name.startswith("loss/") for name in data[:-1])


def test_only_what_changed_goes_up(url, monkeypatch):
    with results.writer(url, template()) as writer:
        writer.put(0, {"loss": 1.0})
        writer.flush()
        sent = []
        system, _ = files(url)
        real = type(system).pipe_file
        monkeypatch.setattr(
            type(system), "pipe_file", lambda self, path, *w, **k: (sent.append(path), real(self, path, *w, **k))[1]
        )
        writer.flush()
        assert [path for path in sent if not path.endswith(".writer")] == []


def test_a_living_writer_keeps_others_out_and_is_not_disturbed(url):
    with results.writer(url, template()) as writer:
        writer.put(0, {"loss": 1.0})
        with (
            pytest.raises(StoreError, match=r"s\.zarr is being written by another run"),
            results.writer(url, template()),
        ):
            pass
        writer.put(1, {"loss": 2.0})
        writer.flush()
    assert int(results.open(url).status.sum()) == 2


def test_a_marker_without_a_beat_is_taken_over_and_its_owner_stops(url):
    with results.writer(url, template()) as writer:
        writer.put(0, {"loss": 1.0})
        writer.flush()
        system, path = files(url)
        ours = marker(url)["owner"]
        system.pipe_file(f"{path}.writer", json.dumps({"owner": "x", "machine": "elsewhere", "process": 1}).encode())
        with results.writer(url, template()) as other:
            assert marker(url)["owner"] not in ("x", ours)
            with pytest.raises(StoreError, match="taken over by another run"):
                writer.annotate({"late": 1})
            other.put(1, {"loss": 2.0})
        writer._marks[:] = False  # what it could not write any more
    assert results.open(url).attrs.get("late") is None and int(results.open(url).status.sum()) == 2


def test_a_writer_that_was_killed_here_holds_nobody_up(tmp_path):
    url = f"local://{tmp_path}/bucket/s.zarr"
    code = """
        import sys, time
        sys.path.insert(0, ".")
        from lowland import results
        results.remote._BEAT = 0.2
        from tests.unit.test_results_remote import template
        with results.writer(sys.argv[1], template()) as writer:
            writer.put(5, {"loss": 5.0})
            writer.flush()
            print("ready", flush=True)
            time.sleep(60)
    """
    words = [sys.executable, "-c", textwrap.dedent(code), url]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline().strip() == "ready"
    with pytest.raises(StoreError, match="written by another run"), results.writer(url, template()):
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert marker(url)["process"] == child.pid
    start = time.monotonic()
    with results.writer(url, template()) as writer:
        waited = time.monotonic() - start
        assert writer.status[5] == 1
    assert waited < remote._STALE * remote._BEAT + 5  # and not the patience for a writer elsewhere


def test_whole_results(url):
    result = template()
    results.save(result, url)
    xr.testing.assert_identical(results.open(url), result)
    with pytest.raises(StoreError, match=r"memory:.*s\.zarr exists already"):
        results.save(result, url)
    results.save(result.drop_vars("loss"), url, overwrite=True)
    assert "loss" not in results.open(url)
    system, path = files(url)
    assert not any("/loss/" in name for name in system.find(path))


def test_another_recipe_and_nothing_there(url):
    with pytest.raises(StoreError, match=r"memory:.*s\.zarr does not exist"):
        results.open(url)
    with results.writer(url, template()):
        pass
    with (
        pytest.raises(StoreError, match=r"memory:.*s\.zarr holds a survey of another recipe"),
        results.writer(url, template("b")),
    ):
        pass


def test_an_upload_that_fails_is_one_clear_error_and_a_new_run_goes_on(url, monkeypatch):
    system, _ = files(url)
    real = type(system).pipe_file

    def full(self, path, *words, **options):
        if "/status/" in path:
            raise OSError("quota exceeded")
        return real(self, path, *words, **options)

    with (
        pytest.raises(StoreError, match=r"cannot write memory:.*quota exceeded.*are kept"),
        results.writer(url, template()) as writer,
    ):
        writer.put(0, {"loss": 1.0})
        writer.flush()
        writer.put(1, {"loss": 2.0})
        monkeypatch.setattr(type(system), "pipe_file", full)
        writer.flush()
    monkeypatch.undo()
    assert int(results.open(url).status.sum()) == 1
    with results.writer(url, template()) as writer:
        assert writer.status.tolist()[:2] == [1, 0]


def test_bad_urls_and_a_missing_package(monkeypatch, url):
    with pytest.raises(InputError, match="store"):
        results.open("nosuchprotocol://a/b")

    def absent(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(errors.importlib, "import_module", absent)
    with pytest.raises(MissingExtra, match=r'pip install "lowland\[remote\]"'):
        results.open(url)
