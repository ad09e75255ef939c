"""What a stored recipe says, read from the attributes of a result."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr


def decoded(stored: object) -> list[Mapping[str, Any]]:
    """Return an attribute, perhaps JSON text, as a list of mappings; empty where it is none."""
    try:
        content = json.loads(stored) if isinstance(stored, str) else stored
    except json.JSONDecodeError:
        return []
    return [entry for entry in (content if isinstance(content, list) else [content]) if isinstance(entry, Mapping)]


def planes_of(result: xr.Dataset) -> list[Mapping[str, Any]]:
    """Return the descriptions of the planes in a result's recipe."""
    return decoded(next(iter(decoded(result.attrs.get("recipe"))), {}).get("planes"))


def loss_of(result: xr.Dataset) -> str:
    """Return which loss a result is of, "" where that is not stored."""
    recipe: Mapping[str, Any] = next(iter(decoded(result.attrs.get("recipe"))), {})
    risks = [*decoded(result.attrs.get("risk")), *decoded(recipe.get("risk")), *decoded(recipe.get("risks"))]
    found = next(iter(risks), {})
    found = found if "loss" in found else next(iter(found.values()), {})  # of a surface: by part of the data
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(found.get("loss", ""))) if isinstance(found, Mapping) else ""
