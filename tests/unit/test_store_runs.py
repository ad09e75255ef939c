"""Run folders: where things lie, what is refused, and that no second place knows it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lowland
from lowland.core.errors import InputError, StoreError
from lowland.results.files import write_atomically
from lowland.results.run_folder import RunPaths, open_run_folder, read_metrics, read_result

SOURCE = Path(lowland.__file__).parent


def test_results_know_their_run():
    paths = RunPaths(Path("/runs/a"))
    for store in (paths.surface("plane"), paths.curvature("hessian"), paths.trajectory):
        assert RunPaths.of_store(store) == paths


def test_folders_for_runs(tmp_path):
    assert open_run_folder(tmp_path / "new", new=True).is_dir()
    (tmp_path / "new" / ".spec.yaml.17.part").write_text("")  # what another process of the same start is writing
    open_run_folder(tmp_path / "new", new=True)
    (tmp_path / "new" / "metrics.csv").write_text("")
    with pytest.raises(InputError, match="must be new, empty or"):
        open_run_folder(tmp_path / "new", new=True)
    open_run_folder(tmp_path / "new")


def test_results_are_read_or_refused(tmp_path):
    with pytest.raises(InputError, match="must be finished"):
        read_result(tmp_path)
    for text in ("{", "[1]", '"a"', "\x00"):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(InputError, match="damaged"):
            read_result(tmp_path)
    (tmp_path / "result.json").write_bytes(b'{"a": 1}')
    assert read_result(tmp_path) == {"a": 1}
    (tmp_path / "metrics.csv").write_text("epoch,loss\n1,x\n")
    with pytest.raises(InputError, match="readable metrics"):
        read_metrics(tmp_path / "metrics.csv")


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
        (r'"(spec\.yaml|result\.json|metrics\.csv|trajectory\.zarr)"', "results/run_folder.py"),
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


def test_no_torch_is_needed():
    code = "import sys; sys.modules['torch'] = None\nimport lowland.results.run_folder, lowland.core.matched, lowland.core.pace"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
