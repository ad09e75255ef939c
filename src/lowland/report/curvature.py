"""Curvature in a report: never without train loss, with residuals, comparable or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lowland.report.measures import further_blocks
from lowland.report.sections import Block, Paragraph, Section, Table
from lowland.report.statistics import show
from lowland.results.matched import LOSS_RATIO, common_loss, comparable, nearest, within
from lowland.results.run import Run

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


def with_error(result: xr.Dataset | None, name: str) -> str:
    """Write a scalar with its standard error."""
    value, error = scalar(result, name), scalar(result, f"{name}_se")
    return show(value) if value is None or error is None else f"{show(value)} ± {show(error, 2)}"


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
        return f"{sign}not converged" + ("" if bound is None else f", |λ min| ≤ {show(bound)}")
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
    losses = [scalar(result, "train_loss") for _, result in measured]
    notes = [
        "λ max and λ min are the ends of the Hessian's spectrum, each with the norm of its residual H v − λ v; a "
        "Krylov method cannot promise that nothing was missed.",
        "Filter-weighted trace: mean curvature over all filter-normalized directions, with its standard error.",
        "η λ max / 2(1+β), with step size η of the chosen epoch and momentum β: plain SGD pushes it towards 1; the "
        "edge of SAM lies lower.",
    ]
    caption = "Curvature at the weights that count, on the data and in the mode stated"
    blocks: list[Block] = [Table.of([_row(run, result) for run, result in measured], caption, tuple(notes))]
    further = _further(measured)
    blocks += [further] if further is not None else []
    modes = {str(result.attrs.get("batch_norm", "not stored")) for _, result in measured}
    if len(modes) > 1:
        blocks.append(Paragraph(f"Not comparable: the batch-norm modes differ ({', '.join(sorted(modes))})."))
    apart = len(measured) > 1 and not comparable(losses)
    if apart:
        blocks.append(
            Paragraph(
                "Not comparable at the end: the train losses differ by more than a factor "
                f"{LOSS_RATIO} (or are not stored), and cross-entropy curvature vanishes as a net memorizes. "
                "The runs are compared at matched train loss below."
            )
        )
    if apart or (len(measured) > 1 and any(_along(run) > 1 for run, _ in measured)):
        blocks.append(_matched(measured))
    return Section("Curvature", (*blocks, *further_blocks(runs)))


def _known(value: float | None) -> str:
    # NaN is stored where a quantity does not exist, as accuracy in a regression
    return "–" if value is None or math.isnan(value) else show(value)


def _edge(run: Run, result: xr.Dataset) -> str:
    # where lambda_max lies against the edge of stability of SGD with momentum, 1 being the edge
    rate, momentum, top = run.number("learning_rate"), run.number("momentum"), scalar(result, "lambda_max")
    if rate is None or momentum is None or top is None:
        return "–"
    return show(rate * top / (2 * (1 + momentum)), 2)


def _row(run: Run, result: xr.Dataset, *, end: bool = True) -> dict[str, str]:
    attrs = result.attrs
    return {
        "run": run.name,
        "train loss": show(scalar(result, "train_loss")),
        "train accuracy": _known(scalar(result, "train_accuracy")),
        "weight norm": show(scalar(result, "weight_norm")),
        "λ max": highest_eigenvalue(result),
        "η λ max / 2(1+β)": _edge(run, result) if end else "–",  # the step size is that of the chosen epoch
        "λ min": lowest_eigenvalue(result),
        "trace": with_error(result, "trace"),
        "filter-weighted trace": with_error(result, "filter_trace"),
        "SAM sharpness": with_error(result, "sam_sharpness"),
        "batch norm": str(attrs.get("batch_norm", "not stored")),
        "samples": str(attrs.get("samples", "–")),
        "products": str(attrs.get("products", "–")),
    }


def _further(measured: Sequence[tuple[Run, xr.Dataset]]) -> Table | None:
    # every other stored scalar: further sharpness measures, logit-normalized ones ...
    names: list[str] = []
    for _, result in measured:
        scalars = [str(name) for name, values in result.data_vars.items() if values.ndim == 0]
        names += [name for name in scalars if name not in (*names, *_SHOWN) and not name.endswith(_MINOR)]
    if not names:
        return None
    rows = tuple((run.name, *(with_error(result, name) for name in names)) for run, result in measured)
    return Table(
        ("run", *(name.replace("_", " ") for name in names)), rows, "Further measures at the weights that count"
    )


def _along(run: Run) -> int:
    """Return at how many points of training a run's curvature was measured."""
    return sum(scalar(result, "lambda_max") is not None for result in run.curvature.values())


def _matched(measured: Sequence[tuple[Run, xr.Dataset]]) -> Block:
    # The lowest train loss that every run has reached, looked up along each run's own curvature results.
    target = common_loss([scalar(result, "train_loss") for _, result in measured])
    if target is None:
        return Paragraph("No comparison at matched loss: a run does not store its train loss.")
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
        rows.append({"run": run.name, "snapshot": name} | _row(run, result, end=at_end))
    if missing:
        return Paragraph(
            f"No comparison at matched loss: no curvature of {', '.join(missing)} was measured within a factor "
            f"{LOSS_RATIO} of train loss {show(target)}; survey a snapshot from earlier in training."
        )
    return Table.of(rows, f"Curvature at matched train loss near {show(target)}")
