"""The demo goes on after a kill at any moment and ends with the same numbers."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tests.command_cases import FUNCTIONS

from lowland.cli.commands import COMMANDS
from lowland.cli.main import main
from lowland.core.settings import SummaryOptions
from lowland.engine import Serial
from lowland.engine.base import Workers
from lowland.engine.packing import pack, unpack
from lowland.workflows import DemoSpec
from lowland.workflows.parse import call

# What the installed command does. `python -m` would end by SIGINT instead of with 130 when the interrupt happens to arrive
# inside exec of text, which imports do.
COMMAND = "import sys; from lowland.cli.main import main; sys.exit(main())"

METHODS = ["--methods", '["sgd", "sam", "saf"]']
SMALL = [*METHODS, "--seeds", "2", "--epochs", "3", "--train_size", "60", "--points", "5", "--json"]
TINY = [*METHODS, "--seeds", "2", "--epochs", "2", "--train_size", "40", "--points", "3", "--json"]
COSTS = ("ms per step", "seconds")


def without_costs(shown: str) -> list[dict[str, str]]:
    return [
        {name: cell for name, cell in row.items() if not name.startswith(COSTS)} for row in json.loads(shown)["methods"]
    ]


class Travelling(Serial):
    """One process, where all that is computed is packed and unpacked as on the way to another."""

    def open(self, setup: Any, *, device: object = "cpu") -> Workers:
        workers = super().open(unpack(pack(setup, "setup")), device=device)
        plain = workers.results
        workers.results = lambda function, items, chunk: plain(  # type: ignore[method-assign]
            unpack(pack(function, "function")), [unpack(pack(item, "item")) for item in items], chunk
        )
        return workers


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """The demo's module, whose measurements are few and travel as to another process."""
    monkeypatch.chdir(tmp_path)
    module = import_module("lowland.study.demo")
    monkeypatch.setattr(module, "select", lambda engine: Travelling())
    monkeypatch.setattr(module, "trajectory", partial(module.trajectory, points=(3, 3)))
    monkeypatch.setattr(module, "SummaryOptions", partial(SummaryOptions, trace_products=6, directions=3))
    return module


def check_table(table: list[dict[str, str]]) -> None:
    """What a reader needs of it."""
    assert [row["method"] for row in table] == ["SGD", "SAM", "SAF"]
    for part in (
        "test accuracy",
        "difference to SGD",
        "train loss",
        "λ max",
        "λ min",
        "filter-weighted trace",
        "SAM sharpness",
        "passes",
    ):
        assert any(name.startswith(part) for name in table[0]), part
    # 4 steps of one pass or two, and 20 forward passes of evaluation at a third each: (8 + 20 / 3) / (4 + 20 / 3)
    assert "1.38 ×" in next(cell for name, cell in table[1].items() if name.startswith("passes"))


def test_a_first_page_comes_early_stays_after_ctrl_c_and_nothing_is_computed_twice(quick, capsys):
    sizes = {"methods": ["sgd", "sam", "saf"], "seeds": 2, "epochs": 2, "train_size": 40, "points": 3}
    spec, seen = DemoSpec(folder="demo", engine="serial", **sizes), []

    def interrupted(page):
        seen.append(page.read_text())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick.demo(spec, lambda label: lambda event: None, interrupted)
    page = Path("demo/report.html")
    assert page.read_text() == seen[0] and "This is a first page" in seen[0]
    assert "SGD, seed 0" in seen[0] and "SAM, seed 0" in seen[0] and "SAF, seed" not in seen[0]
    for section in ("Comparison", "Training", "Landscapes", "Curvature"):
        assert f">{section}</a>" in seen[0], section
    assert sorted(path.name for path in Path("demo/runs").iterdir()) == ["sam-0", "sgd-0"]
    kept = {path: path.stat().st_mtime_ns for path in Path("demo/runs").rglob("*") if path.suffix == ".safetensors"}
    kept |= {path: path.stat().st_mtime_ns for path in Path("demo/runs").glob("*/*/*.zarr/loss/c/**/*")}
    assert len(kept) > 6
    found = quick.demo(spec, lambda label: lambda event: None, interrupted)  # there is a page: no first one again
    assert len(seen) == 1 and "This is a first page" not in page.read_text() and "SAF, seed 1" in page.read_text()
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert len(found.commands) == 3
    for command in found.commands:
        name, *words = shlex.split(command)[1:]
        assert call(FUNCTIONS[name], words, positional=COMMANDS[name].positional).values
    assert Path("demo/report.html").stat().st_size > 1_000_000
    written = {path: path.stat().st_mtime_ns for path in Path("demo/runs").rglob("*.safetensors")}
    assert main(["demo", "--folder", "demo", "--engine", "serial", *TINY]) == 0
    table = without_costs(capsys.readouterr().out)
    check_table(table)
    rows = [dict(zip(found.table.header, row, strict=True)) for row in found.table.rows]
    assert table == without_costs(json.dumps({"methods": rows}))
    assert written == {path: path.stat().st_mtime_ns for path in Path("demo/runs").rglob("*.safetensors")} != {}


def start(folder: Path, engine: str = "serial") -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "demo", "--folder", "demo", "--engine", engine, *SMALL],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder: Path, engine: str = "serial") -> list[dict[str, str]]:
    child = start(folder, engine)
    shown, errors = child.communicate(timeout=280)
    assert child.returncode == 0, errors
    assert (folder / "demo" / "report.html").stat().st_size > 1_000_000
    return without_costs(shown)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[dict[str, str]]:
    return finish(tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_the_same_demo_gives_the_same_numbers_also_on_two_processes(whole, tmp_path):
    assert finish(tmp_path, "processes:2") == whole


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "processes:2"])
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_killed_again_and_again_it_ends_with_the_same_numbers(kill, engine, whole, tmp_path):
    moments = random.Random(int(kill))
    killed = 0
    for _ in range(6):
        child = start(tmp_path, engine)
        try:
            child.wait(timeout=moments.uniform(2.5, 9.0))
            child.communicate()
            break
        except subprocess.TimeoutExpired:
            child.send_signal(kill)
            _, errors = child.communicate(timeout=60)
            killed += 1
            if child.returncode == 0 and "Exception ignored" in errors:
                break  # Python drops an exception, Ctrl-C's too, that is raised inside a destructor: the demo went on
            assert kill == signal.SIGKILL or child.returncode == 130, errors
        time.sleep(0.1)
    assert killed
    assert finish(tmp_path, engine) == whole
