"""What is shown of a run, a survey, a path, a spectrum and a figure: a table for people, values for programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowland.cli.output import Shown

if TYPE_CHECKING:
    import xarray as xr

    from lowland.results import Run
    from lowland.workflows.parse import Call


def show_fit(run: Run, call: Call) -> Shown:
    """Show the chosen epoch of a run."""
    result = run.result
    test, chosen = result["test"], result["chosen"]
    row = {
        "epoch": f"{result['epoch']}",
        "train loss": f"{chosen['train_loss']:.4f}",
        "validation accuracy": _share(chosen.get("validation_accuracy")),
        "test accuracy": _share(test.get("accuracy")),
        "test loss": f"{test['loss']:.4f}",
        "passes": f"{result['passes']}",
        "seconds": f"{result['seconds']:.1f}",
    }
    return Shown({"folder": call.spec.folder, **result}, [f"Run: {call.spec.folder}"], [[*row], [*row.values()]])


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def show_surface(found: tuple[xr.Dataset, Path], call: Call) -> Shown:
    """Show the range of every part of the data."""
    from lowland.core.schema import STATUS_FAILED

    surface, path = found
    failed, points = int((surface["status"] == STATUS_FAILED).sum()), int(surface["status"].size)
    splits = [str(name) for name in surface["split"].values] if "split" in surface.dims else [_split(call)]
    result: dict[str, Any] = {"path": str(path), "points": points, "failed": failed}
    rows = []
    for name in splits:
        loss = surface["loss"].sel(split=name) if "split" in surface.dims else surface["loss"]
        center = float(loss.sel(x=0.0, y=0.0, method="nearest"))
        values = {"center": center, "lowest": float(loss.min()), "highest": float(loss.max())}  # they skip NaN
        result |= values if len(splits) == 1 else {name: values}
        rows.append([name, str(points), str(failed), *(f"{value:.4g}" for value in values.values())])
    head = ["split", "points", "failed", "loss at the center", "lowest", "highest"]
    return Shown(result, [f"Surface: {path}"], [head, *rows])


def _split(call: Call) -> str:
    split: str = call.options["risk"].split
    return split


def show_line(found: tuple[xr.Dataset, Path], call: Call) -> Shown:
    """Show the range of every part of the data, and the barrier where the line leads to other weights."""
    from lowland.results.geometry import barrier

    line, path = found
    outer = [dim for dim in line["loss"].dims if dim != "x"]
    names = [str(name) for name in line["split"].values] if "split" in outer else [_split(call)]
    loss = line["loss"].values.reshape(-1, len(names), line.sizes["x"])
    rows, result = [], {"path": str(path), "points": int(line["status"].size)}
    for place, name in enumerate(names):
        values = loss[:, place]
        part = line["loss"].sel(split=name) if "split" in outer else line["loss"]
        row = {"lowest": float(part.min()), "highest": float(part.max())}
        if call.options["other"] is not None:
            row["barrier"] = barrier(line["x"].values, values[0])
        result[name] = row
        rows.append([name, *(f"{value:.4g}" for value in row.values())])
    return Shown(result, [f"Line: {path}"], [["split", *row], *rows])


def show_trajectory(found: tuple[xr.Dataset, Path], call: Call) -> Shown:
    """Show the shares of the axes, beside a random walk's."""
    trajectory, path = found
    shares = [[float(v) for v in trajectory[name]] for name in ("variance_share", "null_share")]
    rows = [[f"{i + 1}", f"{100 * a:.1f} %", f"{100 * b:.1f} %"] for i, (a, b) in enumerate(zip(*shares, strict=True))]
    rows.append(["together", *(f"{100 * sum(share):.1f} %" for share in shares)])
    snapshots = trajectory.sizes["snapshot"]
    result = {"path": str(path), "snapshots": snapshots, "variance_share": shares[0], "null_share": shares[1]}
    table = [["axis", "share of the path", "share of a random walk with the same steps"], *rows]
    return Shown(result, [f"{snapshots} snapshots", f"Trajectory: {path}"], table)


def show_curvature(found: tuple[xr.Dataset, Path], call: Call) -> Shown:
    """Show the numbers that a sharpness must be read with."""
    measured, path = found
    values = {str(name): float(measured[name]) for name in measured.data_vars if measured[name].ndim == 0}
    shown = [
        ["lambda max", f"{values['lambda_max']:.4g}"],
        ["lambda min", _lowest(values)],
        ["trace", f"{values['trace']:.4g} +- {values['trace_se']:.2g}"],
        ["filter-weighted trace", f"{values['filter_trace']:.4g} +- {values['filter_trace_se']:.2g}"],
        ["SAM sharpness", f"{values['sam_sharpness']:.4g}"],
        ["train loss", f"{values['train_loss']:.4g}"],
        ["train accuracy", f"{100 * values['train_accuracy']:.2f} %"],
        ["norm of the weights", f"{values['weight_norm']:.4g}"],
    ]
    facts = {name: measured.attrs[name] for name in ("samples", "batch_norm", "products")}
    said = f"{facts['samples']} samples, batch norm {facts['batch_norm']}, {facts['products']} products"
    result = {"path": str(path), **values, **facts}
    return Shown(result, [said, f"Curvature: {path}"], [["measure", "value"], *shown])


def _lowest(values: dict[str, float]) -> str:
    if values["lambda_min_converged"]:
        return f"{values['lambda_min']:.4g}"
    return f"not converged, |lambda min| <= {values['lambda_min_bound']:.4g}"


def show_figure(made: Path, call: Call) -> Shown:
    """Say where the figure is."""
    return Shown({"figure": str(made), "results": len(call.options["results"])}, [f"Figure: {made}"])
