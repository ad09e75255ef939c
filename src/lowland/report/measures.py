"""What curvature results hold beyond the ends of the spectrum, side by side: sharpness, top eigenvalues, layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lowland.report.sections import Block, Details, Figure, Table
from lowland.report.statistics import show
from lowland.results.run import Run
from lowland.viz.curves import build_spectrum

if TYPE_CHECKING:
    import xarray as xr


def further_blocks(runs: Sequence[Run]) -> list[Block]:
    """Build the tables and figures of everything that was measured on request."""
    blocks: list[Block] = []
    for dim, value, error, title, note in _TABLES:
        results = _latest(runs, value)
        if results:
            table = _side_by_side(results, dim, value, error, title, note)
            blocks.append(Details(title, (table,)) if dim == "layer" else table)
    spectra = _latest(runs, "density")
    scales = {str(result.attrs.get("scale", "linear")) for result in spectra.values()}
    for scale in sorted(scales):
        chosen = {n: r for n, r in spectra.items() if str(r.attrs.get("scale", "linear")) == scale}
        blocks.append(Figure(build_spectrum(chosen, title="Spectral density of the Hessian"), height=400))
    return blocks


_WORST = "± standard error; in brackets which of one step, eigenvectors and auto-PGD found the worst case."
_TABLES = (
    ("measure", "sharpness", "sharpness_se", "Sharpness measures", _WORST),
    ("rank", "top_eigenvalue", "top_residual", "Largest eigenvalues", "In brackets the norm of the residual."),
    ("layer", "layer_trace", "layer_trace_se", "Trace of the Hessian by tensor", "± standard error over probes."),
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
    header = {"measure": "measure", "rank": "rank", "layer": "tensor"}[dim]
    losses = ", ".join(
        f"{name} {show(float(result['train_loss']))}" for name, result in results.items() if "train_loss" in result
    )
    notes = (note, f"Train loss: {losses}.") if losses else (note,)
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
