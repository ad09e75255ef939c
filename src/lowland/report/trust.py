"""The box "Can I trust this figure?": what a surface stores about its own errors, and numbers taken from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from lowland.core.schema import STATUS_FAILED, STATUS_INTERPOLATED, STATUS_MEASURED, STATUS_OPEN
from lowland.report.curvature import scalar, with_error
from lowland.report.sections import Box
from lowland.report.statistics import show
from lowland.results.geometry import numbers
from lowland.viz.caption import planes_of, recipe_of

if TYPE_CHECKING:
    import xarray as xr

Check: TypeAlias = tuple[str, str, str]
"""Name, value and what it means."""

_ROUNDING = 1e-12  # sums of differences end a little beside zero
_DELTA = 0.1  # height above the center at which basins are measured, in units of the loss


def trust_box(surface: xr.Dataset, name: str, *, run: str = "", curvature: xr.Dataset | None = None) -> Box:
    """Build the box "Can I trust this figure?" of a surface or line."""
    checks = [
        *_points(surface),
        *_axes(surface),
        *_interpolation(surface),
        *_precision(surface),
        *_standard_errors(surface),
        *_geometry(surface),
        *_mean_curvature(curvature),
        *_setting(surface),
    ]
    return Box(f"Can I trust this figure? {name}", tuple(checks), run)


def _points(surface: xr.Dataset) -> list[Check]:
    status = np.asarray(surface["status"])
    count = {code: int((status == code).sum()) for code in range(4)}
    parts = [f"{count[STATUS_MEASURED]} of {status.size} measured"]
    for code, word in ((STATUS_INTERPOLATED, "interpolated"), (STATUS_FAILED, "failed"), (STATUS_OPEN, "open")):
        if count[code]:
            parts.append(f"{count[code]} {word}")
    return [("points", ", ".join(parts), "unfinished: drawn as far as it is" if count[STATUS_OPEN] else "")]


def _axes(surface: xr.Dataset) -> list[Check]:
    planes = planes_of(recipe_of(surface))
    cosines = [float(plane["cosine"]) for plane in planes if isinstance(plane.get("cosine"), int | float)]
    if not cosines:
        return []
    return [("cosine between the axes", show(max(cosines, key=abs), 2), "0 means that they are orthogonal")]


def _interpolation(surface: xr.Dataset) -> list[Check]:
    checks: list[Check] = []
    for report in _decoded(surface.attrs.get("refinement")):
        statement = report.get("statement")
        if statement:
            checks.append(("interpolation error", str(statement), ""))
        worst = report.get("worst_check")
        if isinstance(worst, int | float):
            checks.append(("worst random check", show(float(worst), 2), "of the tolerance"))
    return checks


def _precision(surface: xr.Dataset) -> list[Check]:
    precision = surface.attrs.get("precision")
    if not isinstance(precision, str):
        return []
    for trial in _decoded(surface.attrs.get("trial")):
        error = trial.get("bfloat16_error")
        if precision == "bfloat16" and isinstance(error, Mapping) and isinstance(error.get("of_range"), int | float):
            return [
                ("precision", precision, f"differs from float32 by {show(float(error['of_range']), 2)} of the range")
            ]
    return [("precision", precision, "sums in float64" if precision == "float32" else "")]


def _standard_errors(surface: xr.Dataset) -> list[Check]:
    """Return the largest standard error of the loss, absolute and relative to the loss at the same point."""
    if "loss_se" not in surface:
        return []
    loss, error = (np.asarray(surface[name].values, dtype=np.float64) for name in ("loss", "loss_se"))
    known = np.isfinite(loss) & np.isfinite(error)
    if not known.any():
        return []
    place = int(np.argmax(np.where(known, error, -1.0)))
    text = f"{show(float(error.flat[place]), 2)} at loss {show(float(loss.flat[place]))}"
    return [("largest standard error of the loss", text, "as an estimate for all data of this kind")]


def _geometry(surface: xr.Dataset) -> list[Check]:
    """Return basin width, roughness, barrier and central curvature as the picture shows them."""
    if "loss" not in surface:
        return []
    found = numbers(surface, delta=_DELTA)
    checks: list[Check] = [
        (f"basin width at loss + {_DELTA:g}", _each(found["basin_width"]), "along each axis, in its unit"),
        ("curvature at the center", _each(found["curvature"]), "along each axis, from three points"),
        ("roughness", _each(found["roughness"]), "0: one valley along every line"),
    ]
    if "barrier" in found:
        checks.append(("barrier height", _each(found["barrier"]), "above the straight line between the two models"))
    if "curvature_se" in found:
        text = f"{_each(found['curvature_mean'])} ± {_each(found['curvature_se'])}"
        checks.append(("curvature, mean over these directions", text, ""))
    return [check for check in checks if check[1] != "–"]


def _each(values: Any) -> str:
    known = [float(value) for value in np.atleast_1d(values.values).ravel() if not math.isnan(value)]
    known = [0.0 if abs(value) < _ROUNDING else value for value in known]
    texts = ["beyond the figure" if math.isinf(value) else show(value) for value in known]
    if len(texts) > 6:  # many directions: the range says more than the list
        finite = [value for value in known if math.isfinite(value)]
        return f"{show(min(finite))} to {show(max(finite))}" if finite else "–"
    return ", ".join(texts) or "–"


def _mean_curvature(curvature: xr.Dataset | None) -> list[Check]:
    if scalar(curvature, "filter_trace") is None:
        return []
    spread = scalar(curvature, "filter_trace_spread")
    meaning = "filter-weighted trace" + ("" if spread is None else f"; single directions vary by {show(spread, 2)}")
    return [("curvature, mean over all directions", with_error(curvature, "filter_trace"), meaning)]


def _setting(surface: xr.Dataset) -> list[Check]:
    meanings = {"batch_norm": ("batch norm", "at every point"), "samples": ("samples", "at every point")}
    return [
        (title, str(surface.attrs[key]), meaning)
        for key, (title, meaning) in meanings.items()
        if isinstance(surface.attrs.get(key), str | int | float)
    ]


def _decoded(stored: object) -> list[Mapping[str, Any]]:
    """Return an attribute of JSON text as a list of mappings; empty where it is none."""
    try:
        content = json.loads(stored) if isinstance(stored, str) else stored
    except json.JSONDecodeError:
        return []
    listed = content if isinstance(content, list) else [content]
    return [entry for entry in listed if isinstance(entry, Mapping)]
