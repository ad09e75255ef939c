"""The small print under a figure: units, counts and the recipe, read from a result's attributes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lowland.core.schema import STATUS_FAILED, STATUS_INTERPOLATED, STATUS_OPEN

if TYPE_CHECKING:
    import xarray as xr

_SHOWN = ("seed", "normalization", "anchored")
_ATTRIBUTES = ("batch_norm", "samples", "precision")


def recipe_of(result: xr.Dataset) -> dict[str, Any]:
    """Return the recipe of a result as a dictionary."""
    recipe = result.attrs.get("recipe", "{}")
    if isinstance(recipe, str):
        try:
            recipe = json.loads(recipe)
        except json.JSONDecodeError:
            return {}
    return dict(recipe) if isinstance(recipe, Mapping) else {}


def planes_of(recipe: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the descriptions of the planes in a recipe."""
    planes = recipe.get("planes", [])
    return [plane for plane in planes if isinstance(plane, Mapping)] if isinstance(planes, list) else []


def axes_of(result: xr.Dataset) -> tuple[str, ...]:
    """Return the fingerprints of the axes that a surface or trajectory stands on."""
    stored = result.attrs.get("plane")
    try:
        planes = [json.loads(stored)] if isinstance(stored, str) else planes_of(recipe_of(result))
    except json.JSONDecodeError:
        return ()
    axes = planes[0].get("axes", []) if planes and isinstance(planes[0], Mapping) else []
    found = [str(axis.get("fingerprint", "")) for axis in axes if isinstance(axis, Mapping)]
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
    parts.extend(f"{name.replace('_', ' ')}: {attrs[name]}" for name in _ATTRIBUTES if _plain(attrs.get(name)))
    parts.extend(f"{name}: {value}" for name, value in _chosen(recipe_of(result)))
    if attrs.get("recipe_fingerprint"):
        parts.append(f"recipe {str(attrs['recipe_fingerprint'])[:12]}")
    return "; ".join(parts)


def _counts(status: np.ndarray[Any, Any]) -> list[str]:
    parts = []
    for code, words in ((STATUS_OPEN, "not computed yet"), (STATUS_FAILED, "failed")):
        count = int((status == code).sum())
        if count:
            parts.append(f"{count} of {status.size} points {words}")
    interpolated = int((status == STATUS_INTERPOLATED).sum())
    if interpolated:
        parts.append(f"{interpolated} of {status.size} points interpolated")
    return parts


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float) and value not in ("", "null")


def _chosen(recipe: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for plane in planes_of(recipe)[:1]:
        yield "plane", plane.get("kind", "given")
        arguments = plane.get("arguments", {})
        yield from ((key, arguments[key]) for key in _SHOWN if _plain(arguments.get(key)))
