"""What is disturbed: each command on a tiny network, and the ledger; what a folder holds at the end, to the bit."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from studies.claims.claim import Claim
from studies.claims.record import run_claim
from studies.claims.runs import RunCache
from tests.chaos.faults import Fault
from tests.golden.stores import FILES
from tests.golden.write import STUDY

import lowland as ll
from lowland.cli.main import main as command
from lowland.results import dataset
from lowland.study import Instrument

RUN: Final = FILES / "0.2.0" / "runs"
TINY: Final = "--model.name tests.golden.parts:net --data.name tests.golden.parts:tiny_data"
LINES: Final = {
    "fit": f"fit runs/new {TINY} --optimizer.method sala --loss.method saf --loss.options.start 1 --epochs 4"
    " --batch_size 16 --checkpoint_every_steps 2 --threads 1",
    "surface": "surface runs/sam --points 5x4",
    "refined": "surface runs/sam --points 9x9 --refine true",
    "line": "line runs/sam --other runs/sala --points 9",
    "trajectory": "trajectory runs/sam --points 4x3",
    "curvature": "curvature runs/sam --max_products 30 --trace_products 6 --directions 4 --top 1 --density_probes 2"
    " --layer_probes 2",
    "film": "film runs/sam --points 5x4 --frames 3",
    "card": "robustness runs/sam --other runs/sala --directions 2 --worst_steps 2 --radii [0.05,0.1] --attack_samples 8",
    "connect": "connect runs/sam --others runs/sala --epochs 1 --points 5",
    "study": "study study.yaml",
}


def ledger() -> int:
    """Measure a row of the ledger that trains."""
    arm = {"model.name": "tests.golden.parts:net", "data.name": "tests.golden.parts:tiny_data"}

    def measure(runs: RunCache, arms: Mapping[str, Any], seed: int) -> dict[str, float]:
        model = ll.models.create("tests.golden.parts:net", seed=seed)
        total = float(sum(weights.double().sum() for weights in model.parameters()))
        return {"base": total, "treated": total + 0.1 + 0.01 * seed, "passes base": float(len(arm))}

    pair, tool = (("treated", "base"),), Instrument()
    run_claim(Claim("row", "G", "s", "p", "e", 0.01, pair, measure, seeds=6, instrument=tool), Path(), RunCache("runs"))
    return 0


def _command(line: str) -> Callable[[], int]:
    return lambda: command([*line.split(), "--quiet"])


WORKS: Final[dict[str, Callable[[], int]]] = {
    **{name: _command(line) for name, line in LINES.items()},
    "ledger": ledger,
}


def prepare(folder: Path) -> Path:
    """Make a folder with two trained runs."""
    for name in ("sam", "sala"):
        left_out = shutil.ignore_patterns("surfaces", "curvature", "robustness", "curves", "figures", "*.zarr")
        shutil.copytree(RUN / name, folder / "runs" / name, ignore=left_out)
    (folder / "study.yaml").write_text(STUDY)
    return folder


def work(name: str, folder: str, fault: Fault, said: str, answer: Any) -> None:
    """Do a work in a folder, in a process of its own, and send how often it changed files."""
    torch.set_num_threads(1)
    os.chdir(folder)
    dataset._SECONDS = 0.0  # type: ignore[misc]  # every point is written at once, so that a kill finds some
    for number, mode in ((1, "w"), (2, "a")):
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if mode == "w" else os.O_APPEND)), number)
    active = fault.start()
    try:
        code = WORKS[name]()
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        code = 1
    sys.stderr.flush()
    answer.send((code, active.count))


VOLATILE: Final = {"seconds", "created", "date", "cpu_seconds", "revision", "machine", "versions", "verified", "sha256"}


def holds(folder: Path) -> dict[str, Any]:
    """Return what a folder holds, without times of day, what shows results, and what a kill left half written."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.suffix in (".lock", ".gif", ".html") or _left_over(path, name):
            continue
        if path.suffix == ".json":
            found[name] = _without(json.loads(path.read_text()))
        elif path.suffix == ".csv":
            found[name] = [_without(row) for row in csv.DictReader(path.read_text().splitlines())]
        elif path.suffix == ".state":
            found[name] = str(_without(torch.load(path, weights_only=True)))
        else:
            found[name] = path.read_bytes()
    return found


def _left_over(path: Path, name: str) -> bool:
    """Tell whether nothing reads a file: a time, a half-written one, or a checkpoint that its index does not name."""
    if (
        "/seconds/" in name
        or "/carry/" in name
        or path.suffix in (".partial", ".part")
        or ".part/" in name
        or ".old/" in name
    ):
        return True
    index = path.with_name("index.json")
    stale = path.parent.name == "checkpoints" and path != index and index.is_file()
    return stale and path.name not in index.read_text()


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without(one) for key, one in value.items() if key not in VOLATILE}
    return [_without(one) for one in value] if isinstance(value, list) else value
