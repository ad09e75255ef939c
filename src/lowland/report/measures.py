"""What curvature results hold beyond the ends of the spectrum, side by side: sharpness, top eigenvalues, layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lowland.report.sections import Block, Details, Figure, Table
from lowland.report.statistics import show
from lowland.results.run import Run
from lowland.viz.curves import build_spectrum
from lowland.viz.spec import Axis, Curve, Line

if TYPE_CHECKING:
    import xarray as xr


def further_blocks(runs: Sequence[Run]) -> list[Block]:
    """Build the tables and figures of everything that was measured on request."""
    blocks: list[Block] = []
    for dim, value, error, title, note in _TABLES:
        results = _latest(runs, value)
        if results:
            table = _side_by_side(results, dim, value, error, title, note)
            blocks.append(Details(title, (table,)) if dim in ("layer", "part") else table)
    by_part = _latest(runs, "part_trace")
    if by_part:
        blocks.append(Figure(by_part_profile(by_part), height=380))
    spectra = _latest(runs, "density")
    scales = {str(result.attrs.get("scale", "linear")) for result in spectra.values()}
    for scale in sorted(scales):
        chosen = {n: r for n, r in spectra.items() if str(r.attrs.get("scale", "linear")) == scale}
        blocks.append(Figure(build_spectrum(chosen, title="Spectral density of the Hessian"), height=400))
    return blocks


def by_part_profile(results: dict[str, xr.Dataset]) -> Line:
    """Draw the trace of every part, in the order of the network, one curve a run."""
    parts = tuple(dict.fromkeys(str(part) for result in results.values() for part in result["part"].values))
    curves = []
    for name, result in results.items():
        places = np.array([parts.index(str(part)) + 1.0 for part in result["part"].values])
        values, errors = result["part_trace"].values, 2 * result["part_trace_se"].values
        edges = {"low": values - errors, "high": values + errors, "band": "two standard errors"}
        curves.append(Curve(name, places, values, markers=True, **edges))
    axes = Axis("part", limits=(0.5, len(parts) + 0.5), categories=parts), Axis("trace of the Hessian")
    return Line(tuple(curves), *axes, "Where the curvature sits")


_WORST = "± standard error; in brackets which of one step, eigenvectors and auto-PGD found the worst case."
_TABLES = (
    ("measure", "sharpness", "sharpness_se", "Sharpness measures", _WORST),
    ("rank", "top_eigenvalue", "top_residual", "Largest eigenvalues", "In brackets the norm of the residual."),
    ("layer", "layer_trace", "layer_trace_se", "Trace of the Hessian by tensor", "± standard error over probes."),
    ("part", "part_trace", "part_trace_se", "Trace of the Hessian by part", "± standard error over probes."),
    ("part", "part_lambda_max", "part_lambda_max_se", "Largest eigenvalue by part", "± norm of the residual."),
    ("part", "part_lambda_min", "part_lambda_min_se", "Smallest eigenvalue by part", "± norm of the residual."),
    ("part", "part_rise", "part_rise_se", "Rise of the loss by noise on one part", "± standard error over draws."),
)


def _latest(runs: Sequence[Run], variable: str) -> dict[str, xr.Dataset]:
    """Return for each run the last curvature result that holds a variable."""
    found = {}
    for run in runs:
        for result in run.curvature.values():
            if variable in result:
                found[run.name] = result
    return found


def _side_by_side(results: dict[str, xr.Dataset], dim: str, value: str, error: str, title: str, note: str) -> Table:
    columns = {name: _column(result, dim, value, error) for name, result in results.items()}
    labels = list(dict.fromkeys(label for column in columns.values() for label in column))
    rows = tuple((label, *(column.get(label, "–") for column in columns.values())) for label in labels)
    header = {"measure": "measure", "rank": "rank", "layer": "tensor", "part": "part"}[dim]
    told: dict[str, list[str]] = {}
    for name, result in results.items():
        if "train_loss" in result:
            part = str(result.attrs.get("split", "train"))
            told.setdefault(part, []).append(f"{name} {show(float(result['train_loss']))}")
    losses = "; ".join(f"{part.capitalize()} loss: {', '.join(numbers)}" for part, numbers in told.items())
    notes = (note, f"{losses}.") if losses else (note,)
    return Table((header, *columns), rows, title, notes)


def _column(result: xr.Dataset, dim: str, value: str, error: str) -> dict[str, str]:
    labels = [str(label) for label in result[dim].values] if dim in result.coords or dim in result else []
    if not labels:
        labels = [str(place + 1) for place in range(result.sizes[dim])]
    cells = {}
    for place, label in enumerate(labels):
        number, spread = float(result[value][place]), float(result[error][place]) if error in result else math.nan
        cells[label] = show(number)
        if dim == "rank" and not math.isnan(spread):
            cells[label] += f" (residual {show(spread, 1)})"
        elif spread > 0:
            cells[label] += f" ± {show(spread, 2)}"
        winner = str(result["winner"].values[place]) if dim == "measure" and "winner" in result else ""
        cells[label] += f" ({winner})" if winner else ""
    return cells
