"""The small print under a figure: units, counts and the recipe, read from a result's attributes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lowland.core.schema import STATUS_FAILED, STATUS_INTERPOLATED, STATUS_OPEN

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["caption_of", "recipe_of"]

_SHOWN = ("normalize", "normalisation", "normalization", "direction", "directions", "kind", "seed", "kernel")
_ATTRIBUTES = ("batch_norm", "samples", "precision")


def recipe_of(result: xr.Dataset) -> dict[str, Any]:
    """Return the recipe of a result as a dictionary.

    Args:
        result: Any stored result.

    Returns:
        The decoded attribute ``recipe``; empty where there is none or it is no JSON object.
    """
    recipe = result.attrs.get("recipe", "{}")
    if isinstance(recipe, str):
        try:
            recipe = json.loads(recipe)
        except json.JSONDecodeError:
            return {}
    return dict(recipe) if isinstance(recipe, Mapping) else {}


def caption_of(result: xr.Dataset, *, note: str = "") -> str:
    """Write the caption of a stored result.

    Args:
        result: Surface, line, trajectory or curvature.
        note: A sentence to put first.

    Returns:
        One line: note, unit of the axes, unfinished and failed points, batch-norm mode, samples, precision, seeds
        and normalisation, and the fingerprint of the recipe.
    """
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
    seen: set[str] = set()
    stack: list[Mapping[str, Any]] = [recipe]
    while stack:
        level = stack.pop(0)
        for key, value in level.items():
            if isinstance(value, Mapping):
                stack.append(value)
            elif key in _SHOWN and key not in seen and _plain(value):
                seen.add(key)
                yield key, value
