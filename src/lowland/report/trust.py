"""The box "Can I trust this figure?": what a surface stores about its own errors, and numbers taken from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from lowland.core.schema import STATUS_FAILED, STATUS_INTERPOLATED, STATUS_MEASURED, STATUS_OPEN
from lowland.report.curvature import causes_of, pictured, scalar, with_error
from lowland.report.sections import Box
from lowland.report.statistics import show
from lowland.results.geometry import numbers
from lowland.results.recipes import decoded, planes_of

if TYPE_CHECKING:
    import xarray as xr

Check: TypeAlias = tuple[str, str, str]
"""Name, value and what it means."""

_ROUNDING = 1e-12  # sums of differences end a little beside zero
_DELTA = 0.1  # height above the center at which basins are measured, in units of the loss

_BRIEF = {
    "worst random check": "worst check {} of the tolerance",
    "largest standard error of the loss": "standard error up to {}",
    "samples": "{} samples",
}


def trust_box(surface: xr.Dataset, name: str, *, run: str = "", curvature: xr.Dataset | None = None) -> Box:
    """Build the box "Can I trust this figure?" of a surface or line."""
    parts = (_points, _axes, _interpolation, _precision, _standard_errors, _geometry)
    checks = [check for part in parts for check in part(surface) if check[1] != "–"]
    checks += [*_mean_curvature(curvature), *_setting(surface)]
    return Box(f"Can I trust this figure? {name}", tuple(checks), run, _brief({check[0]: check[1] for check in checks}))


def _brief(values: Mapping[str, str]) -> str:
    said = [values["points"]]
    for name, words in _BRIEF.items():
        said += [words.format(values[name])] if name in values else []
    return "; ".join(said)


def _points(surface: xr.Dataset) -> list[Check]:
    status = np.asarray(surface["status"])
    count = {code: int((status == code).sum()) for code in range(4)}
    parts = [f"{count[STATUS_MEASURED]} of {status.size} measured"]
    for code, word in ((STATUS_INTERPOLATED, "interpolated"), (STATUS_FAILED, "failed"), (STATUS_OPEN, "open")):
        if count[code]:
            parts.append(f"{count[code]} {word}")
    return [("points", ", ".join(parts), "unfinished: drawn as far as it is" if count[STATUS_OPEN] else "")]


def _axes(surface: xr.Dataset) -> list[Check]:
    cosines = [float(plane["cosine"]) for plane in planes_of(surface) if isinstance(plane.get("cosine"), int | float)]
    if not cosines:
        return []
    return [("cosine between the axes", show(max(cosines, key=abs), 2), "0 means that they are orthogonal")]


def _interpolation(surface: xr.Dataset) -> Iterator[Check]:
    for report in decoded(surface.attrs.get("refinement")):
        if report.get("statement"):
            yield "interpolation error", str(report["statement"]), ""
        if isinstance(worst := report.get("worst_check"), int | float):
            yield "worst random check", show(float(worst), 2), "of the tolerance"


def _precision(surface: xr.Dataset) -> list[Check]:
    precision = surface.attrs.get("precision")
    if not isinstance(precision, str):
        return []
    for trial in decoded(surface.attrs.get("trial")):
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


def _geometry(surface: xr.Dataset) -> Iterator[Check]:
    """Give basin width, roughness, barrier and central curvature as the picture shows them."""
    if "loss" not in surface:
        return
    found = numbers(surface, delta=_DELTA)
    yield f"basin width at loss + {_DELTA:g}", _each(found["basin_width"]), "along each axis, in its unit"
    yield "curvature at the center", _each(found["curvature"]), _spacing(found)
    yield "roughness", _each(found["roughness"]), "0: one valley along every line"
    if "barrier" in found:
        yield "barrier height", _each(found["barrier"]), "above the straight line between the two models"
    if "curvature_se" in found:
        text = f"{_each(found['curvature_mean'])} ± {_each(found['curvature_se'])}"
        yield "curvature, mean over these directions", text, _spacing(found, of="")


def _spacing(found: Any, *, of: str = "along each axis, ") -> str:
    """Say at which spacing curvature was taken, and what twice that gives: with kinks they differ."""
    spacings = sorted({round(float(h), 9) for h in found["curvature_spacing"].values.ravel() if not math.isnan(h)})
    text = f"{of}at spacing {', '.join(f'{h:.3g}' for h in spacings)}"
    wider = _each(found["curvature_wider"])
    return text + (f"; at twice that {wider}" if of and wider != "–" else "")


def _each(values: Any) -> str:
    known = [float(value) for value in np.atleast_1d(values.values).ravel() if not math.isnan(value)]
    known = [0.0 if abs(value) < _ROUNDING else value for value in known]
    texts = ["beyond the figure" if math.isinf(value) else show(value) for value in known]
    if len(texts) > 6:  # many directions: the range says more than the list
        finite = [value for value in known if math.isfinite(value)]
        return f"{show(min(finite))} to {show(max(finite))}" if finite else "–"
    return ", ".join(texts) or "–"


def _mean_curvature(curvature: xr.Dataset | None) -> Iterator[Check]:
    if curvature is None or scalar(curvature, "filter_trace") is None:
        return
    spread = scalar(curvature, "filter_trace_spread")
    varying = "" if spread is None else f"; single directions vary by {show(spread, 2)}"
    trace = with_error(curvature, "filter_trace")
    yield "Hessian, mean over all directions", trace, f"filter-weighted trace, without kinks{varying}"
    if "kinks" in curvature:
        said = f"{with_error(curvature, 'kinks')} of {pictured(curvature)}"
        why = causes_of([curvature]) or " (no kinks known: what a parabola misses over the spacing)"
        yield "curvature beyond the Hessian's", said, "along the same random directions" + why


def _setting(surface: xr.Dataset) -> list[Check]:
    stated = {title: surface.attrs.get(title.replace(" ", "_")) for title in ("batch norm", "samples")}
    return [(title, str(v), "at every point") for title, v in stated.items() if isinstance(v, str | int | float)]
