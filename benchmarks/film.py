"""What films cost, and whether their frames keep their promise: ``python benchmarks/film.py`` (minutes).

Trains a ResNet-8 on noisy digits, films its path, counts the measured points of each frame, and compares every frame
with pixels of its own that no check has seen; beside it, each frame refined alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import lowland as ll
from lowland.core.provenance import provenance
from lowland.core.risk import EmpiricalRisk
from lowland.landscape import Grid, Tolerance
from lowland.landscape.film import FRAMES, _frames
from lowland.landscape.tolerance import too_far
from lowland.results import Run
from lowland.workflows import DataSpec, FitSpec, OptimizerSpec, fit

METHODS = {"SGD": "none", "SAM": "sam"}


def trained(folder: Path, name: str, epochs: int) -> Run:
    data = DataSpec(name="digits", options={"train_size": 300, "label_noise": 0.2})
    optimizer = OptimizerSpec(method=METHODS[name])
    folder = folder / name
    fit(FitSpec(folder=str(folder), data=data, batch_size=32, optimizer=optimizer, epochs=epochs, threads=1))
    run = ll.open(folder)
    assert isinstance(run, Run)
    return run


def alone(risk: EmpiricalRisk, run: Run, grid: Grid) -> int:
    """Return the points that the same frames need without their neighbors."""
    plane = ll.landscape.pca_plane(risk.model, run.snapshots)
    path = ll.landscape.project_trajectory(risk.model, run.snapshots, plane, walks=1)
    chosen = np.unique(np.linspace(0, path.sizes["snapshot"] - 1, FRAMES).round().astype(int))
    path = path.isel(snapshot=chosen)
    frames = {name: replace(frame, along=None) for name, frame in _frames(risk, run.snapshots, plane, path).items()}
    store = run.surface_path("alone")
    found = ll.landscape.evaluate(risk, frames, grid, refined=Tolerance(), paired=False, store=store)
    return int((found.status == 1).sum())


def outside(film: xr.Dataset, truth: xr.Dataset) -> list[dict[str, float]]:
    """Compare interpolated pixels of each frame with those that were measured for this alone."""
    rows = []
    for frame, exact in zip(film.loss, truth.loss, strict=True):
        guessed = film.status.sel(direction=frame.direction, x=truth.x, y=truth.y).values == 2
        seen, wanted = frame.sel(x=truth.x, y=truth.y).values[guessed], exact.values[guessed]
        floor = 0.1 * abs(float(frame.sel(x=0, y=0, method="nearest")))
        ratios = too_far(seen - wanted, wanted, float(np.ptp(frame.values)), floor, Tolerance())
        rows.append({"pixels": len(ratios), "outside": int((ratios > 1).sum()), "worst": float(ratios.max())})
    return rows


def measure(run: Run, every: int) -> dict[str, Any]:
    risk = run.risk(weights="last")
    film = ll.landscape.film(risk, run.snapshots, store=run.surface_path("film"))
    grid = Grid(film.x.values, film.y.values)
    sparse = Grid(grid.x[1::every], grid.y[1::every])
    seen = outside(film, ll.landscape.film(risk, run.snapshots, sparse, refined=None, store=run.surface_path("sparse")))
    reports = json.loads(film.attrs["refinement"])
    kept = ("measured", "checked", "failures", "worst_check", "share_bound")
    frames = [
        {"step": int(step), **{key: report.get(key) for key in kept}, **more}
        for step, report, more in zip(film.direction.values, reports, seen, strict=True)
    ]
    return {"frames": frames, "points": grid.size, "alone": alone(risk, run, grid)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--every", type=int, default=5, help="every how many-th pixel of a row and column is looked at")
    parser.add_argument("--methods", default="SGD", help="of SGD and SAM")
    parser.add_argument("--folder", type=Path, help="where runs and films are kept, to go on; default: nowhere")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/film.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for name in options.methods.split(","):
            results[name] = found = measure(trained(folder, name, options.epochs), options.every)
            counts = [frame["measured"] for frame in found["frames"]]
            print(f"{name}: {len(counts)} frames, {min(counts)} to {max(counts)} points each, {sum(counts)} in all")
            print(f"  {sum(counts) / found['points']:.2f} full surfaces, alone {found['alone'] / found['points']:.2f}")
            worst = max(frame["worst_check"] for frame in found["frames"])
            wrong, pixels = (sum(frame[key] for frame in found["frames"]) for key in ("outside", "pixels"))
            most = max(frame["outside"] / frame["pixels"] for frame in found["frames"])
            print(f"  worst check {worst:.2f} tolerances; {wrong} of {pixels} fresh pixels beyond, {most:.1%} at most")
            settings = {"epochs": options.epochs, "every": options.every}
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(
                json.dumps({"runs": results, "settings": settings, **provenance()}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
