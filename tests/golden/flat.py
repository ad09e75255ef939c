"""Results of any kind as a flat mapping of path to array, number or text."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

ROUNDING = 1e-14
"""Differences below it are none: residuals of converged pairs are this near to nothing."""

VOLATILE = frozenset(
    ("created", "machine", "revision", "versions", "trial", "seconds", "lowland", "resumed_with_threads")
)
"""Keys whose values differ from run to run, or that repeat others."""


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings, lists, dataclasses and datasets by path."""
    if isinstance(value, xr.Dataset):
        arrays = {str(name): array.values for name, array in value.variables.items()}
        return flat({"values": arrays, "attrs": {str(k): _read(v) for k, v in value.attrs.items()}}, path)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return flat({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, path)
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, entry in value.items():
            if key not in VOLATILE:
                found |= flat(entry, f"{path}/{key}" if path else str(key))
        return found or {path: "empty"}
    if isinstance(value, list | tuple):
        if value and all(isinstance(v, float | int) and not isinstance(v, bool) for v in value):
            return {path: np.array(value)}
        return flat(dict(enumerate(value)), path)
    return {path: _leaf(value)}


def _read(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and value.startswith(("{", "[")) else value


def _leaf(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.device | torch.dtype | Path):
        return str(value)
    if value is None or isinstance(value, np.ndarray | float | int | str | bool):
        return value
    return f"<{type(value).__name__}>"


def summary(leaf: Any) -> Any:
    """Return what stands for a leaf in a small file: short arrays whole, long ones by their sums."""
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiub":
        values = np.asarray(leaf, np.float64).reshape(-1)
        if values.size <= 8:
            return [_number(v) for v in values]
        finite = np.isfinite(values)
        kept = np.where(finite, values, 0.0)
        weights = np.cos(np.arange(kept.size))  # an order of the entries is seen too
        sums = [float(np.linalg.norm(kept)), float(kept.sum()), float(kept @ weights)]
        return {"shape": list(leaf.shape), "finite": int(finite.sum()), "sums": sums}
    if isinstance(leaf, np.ndarray):
        return [str(v) for v in leaf.reshape(-1)]
    return _number(leaf) if isinstance(leaf, float) else leaf


def _number(value: Any) -> Any:
    value = float(value)
    return value if math.isfinite(value) else str(value)


def agree(old: Any, new: Any, tolerance: float) -> bool:
    """Tell whether two summaries are the same within a tolerance, relative to the largest of an array's numbers."""
    if isinstance(old, dict) and isinstance(new, dict):
        same = old["shape"] == new["shape"] and old["finite"] == new["finite"]
        scale = np.sqrt(max(1, old["finite"])) * max(old["sums"][0], 1e-12)  # a sum of n entries against their norm
        return same and bool(np.all(np.abs(np.subtract(old["sums"], new["sums"])) <= tolerance * scale + ROUNDING))
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new) or [_kind(v) for v in old] != [_kind(v) for v in new]:
            return False
        numbers = [(a, b) for a, b in zip(old, new, strict=True) if _kind(a) == "number"]
        scale = max((abs(a) for a, _ in numbers), default=0.0)
        return all(abs(a - b) <= tolerance * scale + ROUNDING for a, b in numbers) and all(
            a == b for a, b in zip(old, new, strict=True) if _kind(a) != "number"
        )
    if _kind(old) == _kind(new) == "number":
        return abs(old - new) <= tolerance * abs(old) + ROUNDING
    return type(old) is type(new) and bool(old == new)


def _kind(value: Any) -> str:
    return "number" if isinstance(value, float | int) and not isinstance(value, bool) else "other"
