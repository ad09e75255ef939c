"""Numbers of a finished run that have to be measured: curvature, sharpness along the path, surfaces, the path's share.

Each takes the run's folder and returns one number. All use the training part, running batch-norm statistics and the
last weights. What `kept` stores in the run's folder carries the fingerprint of the files that this one imports, so that
changed code measures anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from lowland import curvature, landscape
from lowland.core.risk import EmpiricalRisk
from lowland.results import Run, SnapshotReader
from lowland.study import matched_steps
from lowland.workflows import open_run
from studies.claims.files import write_whole
from studies.claims.imports import fingerprint

__all__ = [
    "lambda_max_at_matched_loss",
    "negative_share",
    "path_share_above_null",
    "sharpness_at_matched_loss",
    "sharpness_late",
    "surface_number",
]

FLOORS: Final = {"roughness": 1e-6, "curvature": 1e-3}
"""Numbers that are compared on a logarithmic scale, and what stands for values at or below 0."""


def kept(path: Path, name: str, measure: Callable[[], Any]) -> Any:
    """Return a stored number, or measure and store it."""
    file = path / "readers" / f"{name}-{fingerprint(__name__)}.json"
    if not file.is_file():
        write_whole(file, json.dumps(measure()) + "\n")
    return json.loads(file.read_text(encoding="utf-8"))


def _last(run: Run) -> EmpiricalRisk:
    risk: EmpiricalRisk = run.risk(weights="last")
    return risk


def _at_matched_loss(paths: Sequence[Path]) -> list[EmpiricalRisk]:
    """Make the risk of each run at the step where their paths have the same train loss."""
    runs = [open_run(path) for path in paths]
    return [run.risk(weights=step) for run, step in zip(runs, matched_steps(runs, _last), strict=True)]


def lambda_max_at_matched_loss(paths: Sequence[Path]) -> list[float]:
    """Return log10 of the Hessian's largest eigenvalue of each run, where their paths have the same train loss."""
    ends = [curvature.extreme_eigenvalues(risk) for risk in _at_matched_loss(paths)]
    return [math.log10(max(end.lambda_max, 1e-300)) for end in ends]


def sharpness_at_matched_loss(paths: Sequence[Path]) -> list[float]:
    """Return log10 of SAM's sharpness (rho 0.05) of each run, where their paths have the same train loss."""
    found = [curvature.sam_sharpness(risk).value for risk in _at_matched_loss(paths)]
    return [math.log10(max(value, 1e-12)) for value in found]


def sharpness_late(path: Path) -> float:
    """Return log10 of SAM's sharpness, averaged over the snapshots of the second half of the run."""

    def measure() -> list[float]:
        run = open_run(path)
        steps = SnapshotReader(run.snapshots_path).steps
        late = [step for step in steps if step > steps[-1] / 2][::4]
        return [curvature.sam_sharpness(run.risk(weights=step)).value for step in late]

    return math.log10(max(float(np.mean(kept(path, "sharpness_late", measure))), 1e-300))


def surface_number(name: str, *, normalization: str = "filter") -> Callable[[Path], float]:
    """Return a reader of one number of the loss surface: 11 x 11 points, extent 1, one fixed pair of directions."""
    # Roughness and curvature are returned as log10, with a floor of 1e-6 and 1e-3.

    def read(path: Path) -> float:
        def measure() -> dict[str, float]:
            risk = _last(open_run(path))
            kind: Any = normalization
            plane = landscape.random_plane(risk.model, 0, normalization=kind)
            found = landscape.numbers(landscape.evaluate(risk, plane, landscape.grid(11, 11, extent=1.0)))
            return {key: float(np.mean(found[key].values)) for key in ("roughness", "curvature", "basin_width")}

        value = float(kept(path, f"plane-{normalization}", measure)[name])
        return math.log10(max(value, FLOORS[name])) if name in FLOORS else value

    return read


def negative_share(path: Path) -> float:
    """Return the share of points of a 5 x 5 convexity map with negative curvature beyond its residual."""

    def measure() -> float:
        risk = _last(open_run(path))
        plane = landscape.random_plane(risk.model, 0)
        grid = landscape.grid(5, 5, extent=1.0)
        surface = landscape.evaluate(risk, plane, grid, probes=[curvature.Convexity(max_products=40)])
        counts = curvature.convexity_summary(surface)
        return float(counts["negative"]) / 25

    return float(kept(path, "negative_share", measure))


def path_share_above_null(path: Path) -> float:
    """Return the share of the path's variance on two components, less that of a random walk with the same steps."""

    def measure() -> float:
        run = open_run(path)
        found = landscape.project_trajectory(run.model("last"), SnapshotReader(run.snapshots_path))
        own, null = (float(found[name].values[:2].sum()) for name in ("variance_share", "null_share"))
        return own - null

    return float(kept(path, "path_share_above_null", measure))
