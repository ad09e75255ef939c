"""Write what tests/golden/files holds: ``PYTHONPATH=SOURCES_OF_0.1.0 python tools/golden/write_files.py``.

Stores, folders of runs, states and specs as version 0.1.0 wrote them. Never run it with another version: that old
files still open is what they are for.
"""

from __future__ import annotations

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import shutil
from contextlib import suppress
from pathlib import Path

import torch
import yaml
from tests.golden import methods, parts
from tests.golden.stores import FILES, SURVEYS, Stopped, stop_after
from tools.golden.commands import CURVATURE, SAM, TINY
from tools.golden.shell import say

import lowland
from lowland import spec as specs

FITS: dict[str, list[str]] = {
    "sam": [*TINY, *SAM, "--checkpoint_every_steps", "2"],
    "sala": [*TINY, "--optimizer.method", "sala", "--loss.method", "llr", "--loss.options.initial_loss", "1.2",
             "--snapshots_every_epochs", "null"],
    "ema": [*TINY, "--optimizer.method", "ema", "--optimizer.options.decay", "0.8", "--loss.method", "saf",
            "--loss.options.start", "2", "--loss.options.look_back", "1", "--snapshots_every_epochs", "null"],
}  # fmt: skip


def demand(*arguments: str) -> None:
    """Run a command, and stop if it fails."""
    answer = say(*arguments)
    if answer["exit"] != 0:
        raise RuntimeError(f"{arguments}: {answer}")


def stopping(passes: int) -> None:
    """Make the net stop the run in its so many-th training pass, as Ctrl-C does; 0 makes it run through."""
    real = stopping.__dict__.setdefault("net", parts.net)
    seen: list[int] = []

    def net(*, classes: int = parts.CLASSES) -> torch.nn.Sequential:
        model: torch.nn.Sequential = real(classes=classes)

        def count(module: torch.nn.Module, inputs: object) -> None:
            if module.training and torch.is_grad_enabled():
                seen.append(1)
                if len(seen) == passes:
                    raise KeyboardInterrupt

        model.register_forward_pre_hook(count)
        return model

    parts.net = net if passes else real  # type: ignore[assignment]


def write_runs() -> None:
    """Write finished runs with their results, and the same runs stopped on the way."""
    for name, passes in (("sam", 17), ("sala", 11), ("ema", 11)):
        stopping(passes)
        answer = say("fit", f"cut/{name}", *FITS[name])
        if answer["exit"] != 130 or Path(f"cut/{name}/result.json").exists():
            raise RuntimeError(f"{name} was not stopped: {answer}")
        stopping(0)
        demand("fit", f"runs/{name}", *FITS[name])
    demand("surface", "runs/sam", "--points", "[4, 3]")
    demand("line", "runs/sam", "--other", "runs/sala", "--points", "5", "--name", "between")
    demand("trajectory", "runs/sam", "--points", "[3, 3]")
    demand("curvature", "runs/sam", *CURVATURE)


def write_study() -> None:
    """Write the folder of a small study."""
    base = {
        "model": {"name": "tests.golden.parts:net"}, "data": {"name": "tests.golden.parts:tiny_data"}, "epochs": 1,
        "batch_size": 16, "snapshots_every_epochs": None, "threads": 1,
    }  # fmt: skip
    both = {"SGD": {}, "SAM": {"optimizer.method": "sam", "optimizer.options.rho": 0.1}}
    text = yaml.safe_dump({"folder": "study", "base": base, "methods": both, "seeds": 2}, sort_keys=False)
    Path("specs/study.yaml").write_text(text)
    demand("study", "specs/study.yaml")


def write_specs() -> None:
    """Write a spec of every command with all its keys, and a recipe."""
    tiny = specs.parse(specs.FitSpec, [*TINY, *SAM, "--folder", "new"])[0]
    made = {
        "fit": tiny,
        "surface": specs.SurfaceSpec(run="runs/sam", points=(4, 3), threads=None),
        "line": specs.LineSpec(run="runs/sam", other="runs/sala", points=5, name="between"),
        "trajectory": specs.TrajectorySpec(run="runs/sam", points=(3, 3)),
        "curvature": specs.parse(specs.CurvatureSpec, ["--run", "runs/sam", *CURVATURE])[0],
        "report": specs.ReportSpec(runs=["runs/sam"], output="made.html"),
        "figure": specs.FigureSpec(results=["runs/sam/surfaces/plane.zarr"], output="made.svg"),
    }
    for name, one in made.items():
        Path(f"specs/{name}.yaml").write_text(specs.to_yaml(one))
    keys = {"about": "a tiny net", "source": "none", "published": "nothing", "unknown": [], "differs": []}
    run = yaml.safe_load(specs.to_yaml(tiny))
    Path("specs/recipe.yaml").write_text(yaml.safe_dump({**keys, "run": run}, sort_keys=False))


def write_stores() -> None:
    """Write finished surveys, and surveys stopped half way."""
    for name, survey in SURVEYS.items():
        whole = survey(store=f"stores/{name}.zarr")
        if name != "refined":
            with suppress(Stopped):
                survey(store=f"stores/{name}-half.zarr", on_event=stop_after(whole["status"].size // 2))


def write_states() -> None:
    """Write model and optimizer of every method after 15 of 30 steps."""
    found = {}
    for method in ("sam", "asam", "gsam", "looksam", "msam", "sala", "lookahead", "ema", "swa"):
        half = methods.optimizer_run(method, "sgd", torch.float64, 15)
        model = {name: tensor.detach() for name, tensor in {**half["parameters"], **half["buffers"]}.items()}
        found[method] = {"model": model, "optimizer": half["state"]}
    torch.save(found, "states.pt")


def main() -> None:
    """Write all anew."""
    if lowland.__version__ != "0.1.0":
        raise SystemExit(f"the files are those of 0.1.0, not of {lowland.__version__}")
    torch.set_num_threads(1)
    shutil.rmtree(FILES, ignore_errors=True)
    (FILES / "specs").mkdir(parents=True)
    os.chdir(FILES)
    write_stores()
    write_states()
    write_runs()
    write_specs()
    write_study()
    for path in (*FILES.rglob("*.lock"), *FILES.rglob("report.html")):
        path.unlink()


if __name__ == "__main__":
    main()
