"""The small print under a figure: units, counts and the recipe, read from a result's attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lowland.core.schema import STATUS_FAILED, STATUS_INTERPOLATED, STATUS_MEASURED, STATUS_OPEN
from lowland.results.recipes import decoded, planes_of

if TYPE_CHECKING:
    import xarray as xr

_SHOWN = ("seed", "normalization")
_ATTRIBUTES = {"split": "data", "batch_norm": "batch norm", "samples": "samples", "precision": "precision"}


def axes_of(result: xr.Dataset) -> tuple[str, ...]:
    """Return the fingerprints of the axes that a surface or trajectory stands on."""
    planes = decoded(result.attrs["plane"]) if "plane" in result.attrs else planes_of(result)
    found = [str(axis.get("fingerprint", "")) for axis in decoded(planes[0].get("axes"))] if planes else []
    return tuple(found) if all(found) else ()


def caption_of(result: xr.Dataset, *, note: str = "") -> str:
    """Write the caption of a stored result."""
    parts = [note] if note else []
    unit = str(result["x"].attrs.get("units", "")) if "x" in result.coords else ""
    if unit:
        parts.append(f"axes in units of the {unit}")
    if "status" in result:
        parts.extend(_counts(np.asarray(result["status"])))
    attrs = result.attrs
    known = ((title, attrs.get(name)) for name, title in _ATTRIBUTES.items())
    parts.extend(f"{title}: {value}" for title, value in known if _plain(value) and title != value)
    parts.extend(f"{name}: {value}" for name, value in _chosen(planes_of(result)))
    if attrs.get("recipe_fingerprint"):
        parts.append(f"recipe {str(attrs['recipe_fingerprint'])[:12]}")
    return "; ".join(parts)


def _counts(status: np.ndarray[Any, Any]) -> Iterator[str]:
    for code, words in ((STATUS_OPEN, "not computed yet"), (STATUS_FAILED, "failed")):
        if count := int((status == code).sum()):
            yield f"{count} of {status.size} points {words}"
    if count := int((status == STATUS_INTERPOLATED).sum()):
        measured = int((status == STATUS_MEASURED).sum())
        yield f"{measured} of {status.size} points measured, {count} interpolated"


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float) and value not in ("", "null")


def _chosen(planes: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    for plane in planes[:1]:
        yield "plane", plane.get("kind", "given")
        arguments = plane.get("arguments", {})
        yield from ((key, arguments[key]) for key in _SHOWN if _plain(arguments.get(key)))
        if "anchored" in arguments:
            yield "anchored at", "end of the path" if arguments["anchored"] else "mean of the path"
