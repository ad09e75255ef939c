"""How long figures and the report take: a 51 x 51 surface in every backend, the report of six runs, and its command.

Each time is the median processor time over fresh figures after one that is not counted: drawing uses one core, and what
else runs on the machine shall not count. Ratios are to the drawing of a contour. The command is a process of its own,
which imports what it needs and reads the runs from their folders.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from lowland import report, results, viz
from lowland.core.provenance import provenance
from lowland.core.schema import new_curvature, new_surface, new_trajectory
from lowland.viz.surfaces import build_contour, build_surface


def surface_of(points: int, seed: int) -> xr.Dataset:
    axis = np.linspace(-1, 1, points)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    result = new_surface(axis, axis, errors=["loss"], attrs={"batch_norm": "running", "samples": 1000})
    result["loss"][:] = 0.05 + x**2 + 2 * y**2 + 0.05 * np.random.default_rng(seed).random(x.shape)
    result["loss_se"][:], result["status"][:] = 0.01, 1
    return result


def run_of(points: int, seed: int, epochs: int = 100) -> results.Run:
    rng = np.random.default_rng(seed)
    path = rng.normal(size=(epochs, 2)).cumsum(0)
    axes = {"variance_share": ("axis", [0.8, 0.1]), "null_share": ("axis", [0.6, 0.2])}
    trajectory = new_trajectory(path - path[-1], steps=np.arange(epochs), variables=axes)
    scalars = {"train_loss": 0.1, "lambda_max": 9.0, "lambda_min": -0.1, "filter_trace": 1.0, "filter_trace_se": 0.1}
    curvature = new_curvature([-0.1, 9.0], [0.01, 0.01], variables={k: ((), v) for k, v in scalars.items()})
    rows = tuple(
        {"epoch": float(e), "train_loss": float(np.exp(-e / 30)), "validation_accuracy": 0.9} for e in range(epochs)
    )
    surfaces = {"plane": surface_of(points, seed), "trajectory": surface_of(25, seed)}
    result = {"test_accuracy": 0.9 + 0.01 * rng.random(), "passes": 100, "seconds": 10.0, "steps": 100}
    return results.Run(
        name=f"run {seed}", method=f"method {seed}", seed=0, metrics=rows, result=result, surfaces=surfaces,
        curvature={"end": curvature}, trajectory=trajectory,
    )  # fmt: skip


def store(run: results.Run, folder: Path) -> None:
    place = results.Run(folder / run.name.replace(" ", "-"))
    for kind in (run.surfaces, run.curvature):
        for name, result in kind.items():
            results.save(result, (place.surface_path if kind is run.surfaces else place.curvature_path)(name))
    assert run.trajectory is not None
    results.save(run.trajectory, place.trajectory_path)
    place.result_path.write_text(json.dumps(run.result))
    with place.metrics_path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(run.metrics[0]))
        writer.writeheader()
        writer.writerows(run.metrics)


def command(folder: Path) -> float:
    """Return the processor time of `lowland report` in a process of its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ["report", str(folder / "runs"), "--output", str(folder / "command.html")]
    subprocess.run([sys.executable, "-m", "lowland.cli.main", *words], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    call()  # imports, font cache
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


def measure(points: int, runs: int, repeats: int, folder: Path) -> list[dict[str, object]]:
    surface = surface_of(points, 0)
    what: dict[str, tuple[Callable[[], object], float]] = {
        "contour, PNG": (lambda: viz.save(build_contour(surface), folder / "c.png"), 1.0),
        "contour, PDF": (lambda: viz.save(build_contour(surface), folder / "c.pdf"), 1.0),
        "contour, SVG": (lambda: viz.save(build_contour(surface), folder / "c.svg"), 1.0),
        "surface, PNG": (lambda: viz.save(build_surface(surface), folder / "s.png"), 1.0),
        "surface, HTML": (lambda: viz.save(build_surface(surface), folder / "s.html"), 1.0),
        "surface, VTK": (lambda: viz.save(build_surface(surface), folder / "s.vts"), 1.0),
    }
    listed = [run_of(points, seed) for seed in range(runs)]
    page = folder / "report.html"
    what[f"report of {runs} runs"] = (lambda: report.write(report.build(listed), page), 0.9)
    rows: list[dict[str, object]] = []
    for name, (call, limit) in what.items():
        rows.append({"what": name, "seconds": median_seconds(call, repeats), "limit": limit})
    for run in listed:
        store(run, folder / "runs")
    command(folder)  # files that the system keeps in memory
    seconds = statistics.median(command(folder) for _ in range(repeats))
    rows.append({"what": f"command, {runs} runs", "seconds": seconds, "limit": 0.9})
    first = float(str(rows[0]["seconds"]))
    for row in rows:
        row["ratio"] = float(str(row["seconds"])) / first
    rows[-2]["megabytes"] = page.stat().st_size / 1e6
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=51, help="points along each axis")
    parser.add_argument("--runs", type=int, default=6, help="runs in the report")
    parser.add_argument("--repeats", type=int, default=5, help="times that each figure is drawn")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/figures.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.points, options.runs, options.repeats, Path(folder))
    print(f"{'figure':<22}{'seconds':>9}{'limit':>8}{'ratio':>8}")
    for row in rows:
        print(f"{row['what']:<22}{row['seconds']:>9.3f}{row['limit']:>8.1f}{row['ratio']:>8.2f}")
    print(f"size of the report: {rows[-2]['megabytes']:.2f} MB (limit 4)")
    settings = {"points": options.points, "runs": options.runs, "repeats": options.repeats}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"rows": rows, "settings": settings, **provenance()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
