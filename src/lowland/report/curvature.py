"""Curvature in a report: never without train loss, with residuals, comparable or not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lowland.report.marks import not_begun, shows, told, weights_of
from lowland.report.measures import further_blocks
from lowland.report.sections import Block, Paragraph, Section, Table
from lowland.report.statistics import show, show_known
from lowland.results.matched import LOSS_RATIO, common_loss, comparable, nearest, within
from lowland.results.run import Run
from lowland.viz.spec import Axis

if TYPE_CHECKING:
    import xarray as xr

_SHOWN = [
    "train_loss",
    "train_accuracy",
    "weight_norm",
    "lambda_max",
    "lambda_min",
    "trace",
    "filter_trace",
    "picture_curvature",
    "kinks",
    "sam_sharpness",
]
_MINOR = ("_se", "_converged", "_bound", "_residual", "_spread", "_checked")


def scalar(result: xr.Dataset | None, name: str) -> float | None:
    """Return a scalar of a result, from its variables or its attributes."""
    if result is None:
        return None
    if name in result and result[name].ndim == 0:
        return float(result[name])
    value = result.attrs.get(name)
    return float(value) if isinstance(value, int | float) else None


def part_of(result: xr.Dataset) -> str:
    """Return the part of the data on which curvature and loss were measured; training data where it is not said."""
    return str(result.attrs.get("split", "train"))


def with_error(result: xr.Dataset | None, name: str) -> str:
    """Write a scalar with its standard error."""
    value, error = scalar(result, name), scalar(result, f"{name}_se")
    if value is not None and math.isnan(value) and result is not None and result[name].attrs.get("missing"):
        return "–"  # it does not exist here; the result says why
    return show(value) if value is None or error is None else f"{show(value)} ± {show(error, 2)}"


def pictured(result: xr.Dataset) -> str:
    """Write the mean curvature of pictures with the spacing that it is seen at."""
    if "picture_curvature" not in result:
        return "–"
    spacing = float(result["picture_curvature"].attrs["spacing"])
    return f"{with_error(result, 'picture_curvature')} (at spacing {spacing:.3g})"


def ascended(result: xr.Dataset) -> str:
    """Write the SAM sharpness with the radius that it is seen at."""
    radius = scalar(result, "rho")
    return with_error(result, "sam_sharpness") + ("" if radius is None else f" (at radius {radius:.3g})")


def beyond(result: xr.Dataset) -> str:
    """Write by how much the curvature of pictures exceeds the Hessian's, and what that is."""
    if "kinks" not in result:
        return "–"
    causes = result["kinks"].attrs.get("causes", "")
    return f"{with_error(result, 'kinks')} ({causes or 'no kinks known: what a parabola misses'})"


def causes_of(results: Iterable[xr.Dataset]) -> str:
    """Return the functions with kinks that were recognized, as an insertion; empty where none was."""
    found = [str(result["kinks"].attrs.get("causes", "")) for result in results if "kinks" in result]
    return f" ({', '.join(sorted(set(found) - {''}))})" if any(found) else ""


def highest_eigenvalue(result: xr.Dataset) -> str:
    """Write lambda_max with the residual of its pair."""
    value = scalar(result, "lambda_max")
    residual = scalar(result, "lambda_max_residual")
    if "eigenvalue" in result and result["eigenvalue"].size:
        position = int(np.argmax(result["eigenvalue"].values))
        value = float(result["eigenvalue"][position]) if value is None else value
        residual = float(result["residual"][position]) if residual is None else residual
    return show(value) if residual is None else f"{show(value)} (residual {show(residual, 1)})"


def lowest_eigenvalue(result: xr.Dataset) -> str:
    """Write lambda_min in one of its three forms."""
    value = scalar(result, "lambda_min")
    if value is None:
        return "–"
    bound = scalar(result, "lambda_min_bound")
    answer = str(result.attrs.get("negative_curvature", ""))
    if scalar(result, "lambda_min_converged") == 0:
        sign = "negative, " if answer == "negative" else ""
        known = bound is not None and math.isfinite(bound)
        return f"{sign}not converged" + (f", |λ min| ≤ {show(bound)}" if known else "")
    residual = scalar(result, "lambda_min_residual")
    if residual is None and "residual" in result and result["residual"].size:
        residual = float(result["residual"][int(np.argmin(result["eigenvalue"].values))])
    if value - (residual or 0.0) >= 0:
        return f"none found below 0 ({show(value)})"
    if value + (residual or 0.0) >= 0:
        return f"sign undecided ({show(value)}, residual {show(residual, 1)})"
    return show(value) if residual is None else f"{show(value)} (residual {show(residual, 1)})"


def curvature_section(runs: Sequence[Run]) -> Section | None:
    """Build the section on curvature."""
    measured = [(run, result) for run in runs if (result := run.final_curvature) is not None]
    if not measured:
        return None
    losses, parts = [scalar(result, "train_loss") for _, result in measured], {part_of(r) for _, r in measured}
    data = parts.pop() if len(parts) == 1 else ""
    notes = [
        "λ max and λ min are the ends of the Hessian's spectrum, each with the norm of its residual H v − λ v; a "
        "Krylov method cannot promise that nothing was missed.",
        "Filter-weighted trace: mean of the Hessian's curvature over all filter-normalized directions, with its "
        "standard error. What pictures show are second differences at a spacing, which also hold the jumps of the "
        f"slope{causes_of(result for _, result in measured)} that no Hessian sees, and what a parabola misses over the "
        "spacing: beyond the Hessian, on the same directions. The two are not compared with one another.",
        "λ max / edge: the edge is 2(1+β) / η, with step size η of the chosen epoch and momentum β (Nesterov's: that "
        "over 1+2β). Plain SGD pushes it towards 1; the edge of SAM lies lower. Other optimizers step in another "
        "metric, which the curve along training knows.",
    ]
    caption = "Curvature at the weights that count, on the data and in the mode stated"
    ends = [(run, weights_of(result)) for run, result in measured]
    blocks: list[Block] = [*shows(ends, (data,) if data else ())]
    blocks += [Table.of([_row(run, result, data) for run, result in measured], caption, tuple(notes))]
    further = _further(measured)
    blocks += [further] if further is not None else []
    modes = {str(result.attrs.get("batch_norm", "not stored")) for _, result in measured}
    if len(modes) > 1:
        blocks.append(Paragraph(f"Not comparable: the batch-norm modes differ ({', '.join(sorted(modes))})."))
    if not data:
        blocks.append(Paragraph("Not comparable: the losses and curvatures are of different parts of the data."))
        return Section("Curvature", (*blocks, *further_blocks(runs)))
    apart = len(measured) > 1 and not comparable(losses)
    if apart:
        blocks.append(
            Paragraph(
                f"Not comparable at the end: the {data} losses differ by more than a factor "
                f"{LOSS_RATIO} (or are not stored), and cross-entropy curvature vanishes as a net memorizes."
            )
        )
    if apart or (len(measured) > 1 and any(_along(run) > 1 for run, _ in measured)):
        blocks.append(_matched(measured, data))
    return Section("Curvature", (*blocks, *further_blocks(runs)))


def _edge(run: Run, result: xr.Dataset) -> str:
    # where lambda_max lies against the edge of stability, 1 being the edge; others than SGD step in another metric
    rate, momentum, top = run.number("learning_rate"), run.number("momentum"), scalar(result, "lambda_max")
    groups = run.optimizer_groups
    ways = {tuple(group.get(name) for name in ("lr", "momentum", "dampening", "nesterov")) for group in groups}
    if rate is None or momentum is None or top is None or len(ways) > 1 or (groups and "dampening" not in groups[0]):
        return "–"
    _, _, dampening, nesterov = next(iter(ways), (rate, momentum, 0.0, False))
    limit = 2 * (1 + momentum) / ((1 + 2 * momentum) if nesterov else 1)
    return show(rate * (1 - float(dampening or 0.0)) * top / limit, 2)


def _row(run: Run, result: xr.Dataset, data: str, *, end: bool = True) -> dict[str, str]:
    attrs = result.attrs
    return {
        "run": run.name,
        f"{data} loss".strip(): show(scalar(result, "train_loss")) + ("" if data else f" ({part_of(result)})"),
        f"{data} accuracy".strip(): show_known(scalar(result, "train_accuracy")),  # none in a regression
        "weight norm": show(scalar(result, "weight_norm")),
        "λ max": highest_eigenvalue(result),
        "λ max / edge": _edge(run, result) if end else "–",  # the step size is that of the chosen epoch
        "λ min": lowest_eigenvalue(result),
        "trace": with_error(result, "trace"),
        "filter-weighted trace": with_error(result, "filter_trace"),
        "curvature of pictures": pictured(result),
        "beyond the Hessian": beyond(result),
        "SAM sharpness": ascended(result),
        "batch norm": str(attrs.get("batch_norm", "not stored")),
        "samples": str(attrs.get("samples", "–")),
        "products": str(attrs.get("products", "–")),
    }


def _further(measured: Sequence[tuple[Run, xr.Dataset]]) -> Table | None:
    # every other stored scalar: further sharpness measures, logit-normalized ones ...
    titles: dict[str, str] = {}
    for _, result in measured:
        for name, values in result.data_vars.items():
            if values.ndim == 0 and name not in _SHOWN and not str(name).endswith(_MINOR):
                title = Axis(values.attrs.get("long_name", str(name).replace("_", " ")), values.attrs.get("units", ""))
                titles.setdefault(str(name), title.text)
    if not titles:
        return None
    rows = tuple((run.name, *(with_error(result, name) for name in titles)) for run, result in measured)
    return Table(("run", *titles.values()), rows, "Further measures at the weights that count")


def _along(run: Run) -> int:
    """Return at how many points of training a run's curvature was measured."""
    return sum(scalar(result, "lambda_max") is not None for result in run.curvature.values())


def _matched(measured: Sequence[tuple[Run, xr.Dataset]], data: str) -> Block:
    # The lowest loss that every run has reached, looked up along each run's own curvature results.
    target = common_loss([scalar(result, "train_loss") for _, result in measured])
    if target is None:
        return Paragraph(f"No comparison at matched loss: a run does not store its {data} loss.")
    rows, missing = [], []
    for run, _ in measured:
        whole = {name: result for name, result in run.curvature.items() if scalar(result, "lambda_max") is not None}
        known = {name: scalar(result, "train_loss") for name, result in whole.items()}
        losses = {name: loss for name, loss in known.items() if loss is not None and loss > 0}
        name = nearest(losses, target)
        if not within(losses[name], target):
            missing.append(run.name)
            continue
        result = run.curvature[name]
        at_end = result is run.final_curvature
        weights = weights_of(result)
        place = ", ".join(filter(None, (told(run, weights) if weights else name, not_begun(run, weights))))
        rows.append({"run": run.name, "weights of": place} | _row(run, result, data, end=at_end))
    if missing:
        return Paragraph(
            f"No comparison at matched loss: no curvature of {', '.join(missing)} was measured within a factor "
            f"{LOSS_RATIO} of {data} loss {show(target)}; survey a snapshot from earlier in training."
        )
    return Table.of(rows, f"Curvature at matched {data} loss near {show(target)}")
