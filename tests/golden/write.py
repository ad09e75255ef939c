"""Write what this version leaves on disk into ``files/VERSION``: ``python -m tests.golden.write``, once per release.

What a released version wrote is never written again: later versions must read it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, Final

import torch
from tests.golden import memories, methods
from tests.golden.stores import FILES, SURVEYS, Stopped, stop_after

import lowland as ll
from lowland.cli.main import main as command
from lowland.core.settings import RobustnessOptions
from lowland.results import Run
from lowland.workflows import DataSpec, FitSpec, LossSpec, ModelSpec, OptimizerSpec, film, fit, robustness

METHODS: Final = (
    *("sam", "asam", "gsam", "looksam", "msam", "fsam", "wsam", "late_sam"),
    *("sala", "lookahead", "ema", "swa"),
)
"""Optimizers that go on from the state that they had in the middle of a run."""

FITS: Final[dict[str, dict[str, Any]]] = {
    "sam": {"optimizer": {"method": "sam", "options": {"rho": 0.1}}, "snapshots_every_epochs": 1},
    "sala": {"optimizer": {"method": "sala"}, "loss": {"method": "llr", "options": {"initial_loss": 1.2}}},
    "ema": {"optimizer": {"method": "ema"}, "loss": {"method": "saf", "options": {"start": 1, "look_back": 1}}},
    "mesa": {"loss": {"method": "mesa", "options": {"start": 1}}},
}
"""Fits of four epochs of three steps; the same are stopped in the third epoch."""

COMMANDS: Final = {
    "surfaces/plane": "surface runs/sam --name plane --points 4x3",
    "surfaces/refined": "surface runs/sam --name refined --points 17x13 --refine true",
    "surfaces/between": "line runs/sam --other runs/sala --name between --points 5 --start -0.5 --stop 1.5",
    "surfaces/connect": "connect runs/sam --others runs/mesa --epochs 2 --points 5",
    "surfaces/film": "film runs/sam --points 9x7 --frames 4",
    "trajectory": "trajectory runs/sam --points 3x3",
    "curvature/hessian": "curvature runs/sam --name hessian --max_products 80 --trace_products 12 --directions 6 --top 2"
    " --density_probes 2 --layer_probes 2 --sharpness true",
    "robustness/card": "robustness runs/sam --other runs/sala --finetune_data tests.golden.parts:tiny_data"
    ' --finetune_options {"size":36} --finetune_steps 4 --directions 3 --worst_steps 3 --radii [0.05,0.1]',
}
"""What is measured of the run `sam`, by the store that it leaves there."""

STUDY: Final = """\
folder: study
base:
  model: {name: 'tests.golden.parts:net'}
  data: {name: 'tests.golden.parts:tiny_data'}
  epochs: 1
  batch_size: 16
  threads: 1
methods:
  SGD: {}
  SAM: {optimizer.method: sam, optimizer.options.rho: 0.1}
seeds: 2
"""


def spec(folder: str, **changes: Any) -> FitSpec:
    """Return the spec of a small run."""
    optimizer = {"learning_rate": 0.1, "weight_decay": 5e-4, **changes.pop("optimizer", {})}
    return FitSpec(
        folder=folder,
        model=ModelSpec(name="tests.golden.parts:net"),
        data=DataSpec(name="tests.golden.parts:tiny_data"),
        optimizer=OptimizerSpec(**optimizer),
        loss=LossSpec(**changes.pop("loss", {})),
        **{"epochs": 4, "batch_size": 16, "threads": 1, "snapshots_every_epochs": None, **changes},
    )


def run(line: str) -> None:
    """Run a command."""
    if code := command([*line.split(), "--quiet"]):
        sys.exit(code)


def write_runs() -> None:
    for name, changes in FITS.items():
        fit(spec(f"runs/{name}", **changes))
        with contextlib.suppress(Stopped):
            fit(spec(f"cut/{name}", **changes), on_event=stop_after(7))
    for line in COMMANDS.values():
        run(line)


def measure_halves(sam: Run, *, stop: bool = False) -> None:
    """Make a film and a card of the run, or stop in the middle of each."""
    options = RobustnessOptions(directions=3, worst_steps=3, finetune_steps=4, radii=[0.05, 0.1])
    other: dict[str, Any] = {"finetune_data": "tests.golden.parts:tiny_data", "finetune_options": {"size": 36}}
    with contextlib.suppress(Stopped):
        film(sam, name="half", points=(9, 7), frames=4, on_event=stop_after(2) if stop else None)
    with contextlib.suppress(Stopped):
        card = stop_after(2) if stop else None
        robustness(sam, options, other=ll.open("runs/sala"), **other, name="half", on_event=card)


def write_surveys() -> None:
    for name, survey in SURVEYS.items():
        survey(store=f"stores/{name}.zarr")
        with contextlib.suppress(Stopped):
            survey(store=f"stores/{name}-half.zarr", on_event=stop_after(7))


def write_states() -> None:
    found = {name: methods.optimizer_run(name, "sgd", torch.float64, count=15) for name in METHODS}
    states = {
        name: {
            "model": {key: value.detach() for key, value in {**made["parameters"], **made["buffers"]}.items()},
            "optimizer": made["state"],
        }
        for name, made in found.items()
    }
    torch.save(states, "states.pt")
    memories.write(Path("memories.pt"))


def main() -> None:
    torch.set_num_threads(1)
    folder = FILES / ll.__version__
    folder.mkdir()
    os.chdir(folder)
    write_surveys()
    write_states()
    write_runs()
    measure_halves(ll.open("runs/sam"), stop=True)
    Path("study.yaml").write_text(STUDY)
    run("study study.yaml")


if __name__ == "__main__":
    main()
