"""Numbers of a finished run that have to be measured: curvature, sharpness along the path, surfaces, the path's share.

Each takes the run's folder and returns one number. All use the training part, running batch-norm statistics and the
last weights. What `kept` stores in the run's folder carries the fingerprint of the files that this one imports, so that
changed code measures anew.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lowland import curvature, landscape
from lowland.core.risk import EmpiricalRisk
from lowland.results import Run, SnapshotReader, basins
from lowland.workflows import open_run
from studies.claims.files import write_whole
from studies.claims.imports import fingerprint

__all__ = [
    "bumps",
    "ends_ratio",
    "log_bowl",
    "log_lambda_max",
    "log_sharpness",
    "negative_share",
    "path_share_above_null",
    "sharpness_late",
    "surface_number",
]

FLOORS: Final = {"roughness": 1e-6, "curvature": 1e-3, "ratio": 1e-6, "bumps": 1e-4}
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


def log_lambda_max(risk: EmpiricalRisk) -> float:
    """Return log10 of the Hessian's largest eigenvalue."""
    return math.log10(max(curvature.extreme_eigenvalues(risk).lambda_max, 1e-300))


def log_sharpness(risk: EmpiricalRisk) -> float:
    """Return log10 of SAM's sharpness (rho 0.05)."""
    return math.log10(max(curvature.sam_sharpness(risk).value, 1e-12))


def log_bowl(risk: EmpiricalRisk) -> float:
    """Return log10 of the curvature at the center of an 11 x 11 filter-normalized surface, with a floor of 1e-3."""
    return math.log10(max(_plane_numbers(risk, "filter")["curvature"], FLOORS["curvature"]))


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
            return _plane_numbers(_last(open_run(path)), normalization)

        value = float(kept(path, f"plane-{normalization}", measure)[name])
        return math.log10(max(value, FLOORS[name])) if name in FLOORS else value

    return read


def ends_ratio(risk: EmpiricalRisk) -> float:
    """Return log10 of the median of |lambda_min / lambda_max| over 25 points of a plane, of the weights it moves."""
    moved = [name for name, module in risk.model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    probe = curvature.Convexity(max_products=40, modules=moved)
    plane, grid = landscape.random_plane(risk.model, 0), landscape.grid(5, 5, extent=1.0)
    ratio = landscape.evaluate(risk, plane, grid, probes=[probe])["ratio"].values
    return math.log10(max(float(np.nanmedian(ratio)), FLOORS["ratio"]))


def bumps(risk: EmpiricalRisk) -> dict[str, float]:
    """Measure log10 of the depth of all local minima of a plane but the deepest, with a floor of 1e-4."""
    # Heights are the logarithm of the loss, which spans decades out to the border; which minima there are does not
    # depend on it, and float32 sums are known to a share of their value. Beside it stand the median loss on the
    # border, and the same measure with one dent planted in the surface, a tenth deeper than its rim.
    plane = landscape.random_plane(risk.model, 0)
    surface = landscape.evaluate(risk, plane, landscape.grid(31, 31, extent=1.0), paired=False)
    values = np.log(np.maximum(surface["loss"].values, 1e-300))
    dented = values.copy()
    dented[8, 8] = min(values[7, 8], values[9, 8], values[8, 7], values[8, 9]) - 0.1
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    return {
        "": _log_depth(values),
        "planted": _log_depth(dented),
        "edge": float(np.exp(np.median(border))),
    }


def _log_depth(values: NDArray[np.float64]) -> float:
    found = basins(values, error=5e-5)  # ten times the rounding of float32 sums over the samples
    depth = sum(basin.depth for basin in found[1:])
    return math.log10(max(depth, FLOORS["bumps"]))


def _plane_numbers(risk: EmpiricalRisk, normalization: str) -> dict[str, float]:
    kind: Any = normalization
    plane = landscape.random_plane(risk.model, 0, normalization=kind)
    found = landscape.numbers(landscape.evaluate(risk, plane, landscape.grid(11, 11, extent=1.0)))
    return {key: float(np.mean(found[key].values)) for key in ("roughness", "curvature", "basin_width")}


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
