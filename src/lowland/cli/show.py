"""What is shown of a run, a survey, a path, a spectrum and a figure: a table for people, values for programs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowland.cli.output import Shown

if TYPE_CHECKING:
    import xarray as xr

    from lowland.results import Distance, MergeTree, Run
    from lowland.workflows.inspecting import Inspection
    from lowland.workflows.parse import Call


def show_fit(run: Run, call: Call) -> Shown:
    """Show the chosen epoch of a run."""
    result = run.result
    test, chosen = result["test"], result["chosen"]
    row = {
        "epoch": f"{result['epoch']}",
        "train loss (epoch's mean)": _loss(chosen["train_loss"]),
        "validation accuracy": _share(chosen.get("validation_accuracy")),
        "test accuracy": _share(test.get("accuracy")),
        "test loss": _loss(test["loss"]),
        "passes": f"{run.number('passes'):.4g}",
        "seconds": f"{result['seconds']:.1f}",
    }
    lines = [*_diverged(run), f"Run: {call.spec.folder}"]
    return Shown({"folder": call.spec.folder, **result}, lines, [[*row], [*row.values()]])


def _loss(stored: float | str) -> str:
    value = float(stored)  # what is not finite is stored as text
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


_CALMER = "try a lower --optimizer.learning_rate, --schedule.warmup, or --clip 1"


def _diverged(run: Run) -> list[str]:
    """Say from when on the loss was not finite, and what to try."""
    lost = [row for row in run.metrics if not math.isfinite(float(row.get("train_loss", 0.0)))]
    if not lost:
        broken = not math.isfinite(float(run.result["test"]["loss"]))
        return [f"The test loss is not finite, since training diverged in its last epoch; {_CALMER}"] * broken
    first, rate = int(lost[0]["epoch"]), float(lost[0].get("learning_rate", math.nan))
    text = f"The train loss was not finite in {len(lost)} of {len(run.metrics)} epochs, first in epoch {first}"
    return [f"{text} (learning rate {rate:.3g}); {_CALMER}"]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * float(value):.2f} %"


def show_surface(found: tuple[xr.Dataset, Path], call: Call) -> Shown:
    """Show the range of every part of the data."""
    from lowland.core.schema import STATUS_FAILED, STATUS_MEASURED

    surface, path = found
    failed, points = int((surface["status"] == STATUS_FAILED).sum()), int(surface["status"].size)
    measured = int((surface["status"] == STATUS_MEASURED).sum())
    losses = _by_split(surface)
    result: dict[str, Any] = {"path": str(path), "points": points, "measured": measured, "failed": failed}
    rows = []
    for name, loss in losses.items():
        center = float(loss.sel(x=0.0, y=0.0, method="nearest"))
        values = {"center": center, "lowest": float(loss.min()), "highest": float(loss.max())}  # they skip NaN
        result |= values if len(losses) == 1 else {name: values}
        rows.append([name, str(points), str(measured), str(failed), *(f"{value:.4g}" for value in values.values())])
    exact = 0.0 in surface["x"].values and 0.0 in surface["y"].values  # an even number of points has none there
    place = "loss at the center" if exact else "loss nearest the center"
    head = ["split", "points", "measured", "failed", place, "lowest", "highest"]
    return Shown(result, [_measured_on(surface), f"Surface: {path}"], [head, *rows])


def _measured_on(found: xr.Dataset) -> str:
    return f"{found.attrs.get('samples', '?')} samples, batch norm {found.attrs.get('batch_norm', 'not stored')}"


def _by_split(found: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return the losses of every part of the data that was measured."""
    if "split" not in found.dims:
        return {str(found.attrs["split"]): found["loss"]}
    return {str(name): found["loss"].sel(split=name) for name in found["split"].values}


def show_line(found: tuple[xr.Dataset, Path], call: Call) -> Shown:
    """Show the range of every part of the data, and the barrier where the line leads to other weights."""
    from lowland.results.geometry import barrier

    line, path = found
    rows, result = [], {"path": str(path), "points": int(line["status"].size)}
    for name, loss in _by_split(line).items():
        row = {"lowest": float(loss.min()), "highest": float(loss.max())}
        if call.arguments["other"] is not None:  # which has one direction
            row["barrier"] = barrier(line["x"].values, loss.values.reshape(-1))
        result[name] = row
        rows.append([name, *("-" if math.isnan(value) else f"{value:.4g}" for value in row.values())])
    return Shown(result, [_measured_on(line), f"Line: {path}"], [["split", *row], *rows])


def show_connect(found: tuple[xr.Dataset, Path], call: Call) -> Shown:
    """Show barrier, highest and mean loss, and length of every way."""
    from lowland.results.ways import ways

    surface, path = found
    numbers, rows, result = ways(surface), [], {"path": str(path), "points": int(surface["status"].size)}
    found_ways: dict[str, dict[str, Any]] = {}
    names = ("barrier", "highest", "mean", "length")
    for way in (str(label) for label in surface["direction"].values):
        for split in _by_split(surface):
            chosen = (
                numbers.sel(direction=way) if "split" not in numbers.dims else numbers.sel(direction=way, split=split)
            )
            row = {name: float(chosen[name]) for name in names}
            found_ways.setdefault(way, {})[split] = row
            rows.append([way, split, *(f"{value:.4g}" for value in row.values())])
    said = [
        f"{_measured_on(surface)}; barrier: above the straight line between the ends; length: over the straight one"
    ]
    return Shown(result | found_ways, [*said, f"Ways: {path}"], [["way", "split", *names], *rows])


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


def show_film(found: tuple[xr.Dataset, Path, Path], call: Call) -> Shown:
    """Show what the frames cost and how exact they are."""
    from lowland.results.recipes import decoded

    film, path, target = found
    frames, points = film.sizes["direction"], film.sizes["x"] * film.sizes["y"]
    measured = int((film["status"] == 1).sum())
    reports = decoded(film.attrs.get("refinement"))
    known = {key: max((r[key] for r in reports if key in r), default=None) for key in ("worst_check", "share_bound")}
    result = {"path": str(path), "film": str(target), "frames": frames, "points": points, "measured": measured, **known}
    row = [str(frames), str(measured), f"{measured / points:.1f}", _number(known["worst_check"])]
    table = [["frames", "points measured", "as full surfaces", "worst check (tolerances)"], row]
    return Shown(result, [f"Film: {target}", f"Frames: {path}"], table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def show_curvature(found: tuple[xr.Dataset, Path], call: Call) -> Shown:
    """Show the numbers that a sharpness must be read with."""
    measured, path = found
    values = {str(name): float(measured[name]) for name in measured.data_vars if measured[name].ndim == 0}
    part, loss, accuracy = measured.attrs.get("split", "train"), values.pop("train_loss"), values.pop("train_accuracy")
    shown = [
        ["lambda max", f"{values['lambda_max']:.4g}" + ("" if values["lambda_max_converged"] else ", not converged")],
        ["lambda min", _lowest(values)],
        ["trace", _with_error(values, "trace")],
        ["filter-weighted trace", _with_error(values, "filter_trace")],
        [f"SAM sharpness at radius {measured.attrs.get('rho', math.nan):.3g}", f"{values['sam_sharpness']:.4g}"],
        [f"{part} loss", f"{loss:.4g}"],
        [f"{part} accuracy", _share(None if math.isnan(accuracy) else accuracy)],
        ["norm of the weights", f"{values['weight_norm']:.4g}"],
    ]
    named = {str(name): array.attrs["long_name"] for name, array in measured.items() if "long_name" in array.attrs}
    why = {name: str(measured[name].attrs.get("missing", "")) for name in named}  # of a number that does not exist here
    units = {name: str(measured[name].attrs.get("units", "")) for name in named}
    behind = {name: f" ({unit})" if unit not in ("", "1") else "" for name, unit in units.items()}
    shown += [[title, why[name] or _with_error(values, name) + behind[name]] for name, title in named.items()]
    facts = {name: measured.attrs[name] for name in ("samples", "batch_norm", "products")}
    said = f"{_measured_on(measured)}, {facts['products']} products"
    result = {"path": str(path), **values, f"{part}_loss": loss, f"{part}_accuracy": accuracy, **facts}
    return Shown(result, [said, f"Curvature: {path}"], [["measure", "value"], *shown])


def show_inspect(found: Inspection, call: Call) -> Shown:
    """Show what a checkpoint is and what was measured."""
    facts = found.facts
    numbers = [f"{count:,} {kind}" for kind, count in facts.types.items()]
    rows = [["kind", facts.kind], *([name, text] for name, text in facts.about.items())]
    rows += [["tensors", f"{facts.tensors:,}"], ["parameters", f"{facts.parameters:,}"], ["types", ", ".join(numbers)]]
    if len(found.steps) > 1:
        steps = [str(step) for step in found.steps.values()]
        shown = ", ".join(steps if len(steps) <= 6 else [*steps[:3], "...", *steps[-2:]])
        rows.append(["series", f"{len(steps)} checkpoints, steps {shown}"])
    elif facts.step is not None:
        rows.append(["step", str(facts.step)])
    results = {name: str(path) for name, path in found.results.items()}
    series = [{"name": name, "step": step} for name, step in found.steps.items()]  # oldest first
    result: dict[str, Any] = {
        "path": facts.path,
        "kind": facts.kind,
        **facts.about,
        "tensors": facts.tensors,
        "step": facts.step,
    }
    result |= {"parameters": facts.parameters, "types": facts.types, "series": series, "results": results}
    lines = [f"{name.capitalize()}: {path}" for name, path in results.items()]
    lines += [f"Report: {found.page}"] if found.page else [found.advice]
    return Shown(result | {"report": found.page and str(found.page)}, lines, [["what", "value"], *rows])


def _with_error(values: dict[str, float], name: str) -> str:
    error = values.get(f"{name}_se", math.nan)
    return f"{values[name]:.4g}" + ("" if math.isnan(error) else f" +- {error:.2g}")


def _lowest(values: dict[str, float]) -> str:
    if values["lambda_min_converged"]:
        return f"{values['lambda_min']:.4g}"
    bound = values["lambda_min_bound"]
    return "not converged" + (f", |lambda min| <= {bound:.4g}" if math.isfinite(bound) else "")


def show_robustness(found: tuple[xr.Dataset, Path], call: Call) -> Shown:
    """Show every change with what it did, what was predicted, and their ratio."""
    from lowland.report.robustness import card_table, sizes_told

    card, path = found
    table = card_table(card)
    facts = {name: card.attrs[name] for name in ("train_loss", "filter_trace", "weight_norm", "samples")}
    columns = {str(name): card[name].values.tolist() for name in card.data_vars if card[name].ndim == 1}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    shown = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    narrow = [  # without what the page and --json have beside it: 80 columns hold it
        {"change": f"{row['part']}: {row['change']}"}
        | {name: row[name] for name in table.header[2:] if name not in _WIDE}
        for row in shown
    ]
    lines = [f"{table.caption}.", sizes_told(card), f"Card: {path}"]
    return Shown(
        {"path": str(path), **facts, "rows": rows}, lines, [list(narrow[0]), *(list(r.values()) for r in narrow)]
    )


_WIDE = ("loss", "like noise")


def show_merge(found: tuple[dict[str, Any], Path], call: Call) -> Shown:
    """Show what each checkpoint weighs, and the loss where it was measured."""
    result, path = found
    rows = [[name, f"{weight:.4f}"] for name, weight in zip(result["merged"], result["weights"], strict=True)]
    said = [f"Merged: {path}"]
    if "validation_loss" in result:
        newest = result["validation_loss_newest"]
        said.insert(0, f"validation loss {result['validation_loss']:.4g}, of the newest snapshot {newest:.4g}")
    return Shown({"path": str(path), **result}, said, [["checkpoint", "weight"], *rows])


def show_topology(found: tuple[MergeTree, Distance | None, Path | None], call: Call) -> Shown:
    """Show the basins with the intervals of their depths, and how far another surface is."""
    from lowland.report.basins import basin_cells

    tree, apart, made = found
    least, most = tree.count()
    counted = f"{least}" if least == most else f"{least} to {most:g}"
    basins = f"{len(tree.basins)} basin" + "s" * (len(tree.basins) != 1)
    said = [f"{basins}; deeper than {tree.counted_depth:.4g}: {counted}", *tree.said]
    result: dict[str, Any] = {"basins": tree.rows(), "resolution": tree.resolution, "counted": [least, most]}
    if apart is not None:
        said.append(f"Distance {apart.value:.4g} +- {apart.error:.2g}, lowest value {apart.offset:+.4g}")
        result["distance"] = {"value": apart.value, "error": apart.error, "offset": apart.offset}
    if made is not None:
        said.append(f"Figure: {made}")
        result |= {"figure": str(made)}
    rows = basin_cells(tree)
    return Shown(result, said, [[*rows[0]], *([*row.values()] for row in rows)] if rows else [])


def show_figure(made: Path, call: Call) -> Shown:
    """Say where the figure is."""
    return Shown({"figure": str(made), "results": len(call.arguments["results"])}, [f"Figure: {made}"])
