"""One metric, one split and one direction of a surface that has several."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from lowland.core.errors import InputError, require

if TYPE_CHECKING:
    import xarray as xr

Choice: TypeAlias = str | int | None


def position_of(surface: xr.Dataset, name: str, choice: Choice) -> int:
    """Return the position of a choice along ``split`` or ``direction``; 0 for none, or where there is only one."""
    if name not in surface.dims:
        if choice is not None:
            raise InputError(name, "cannot be chosen, this surface has only one", choice)
        return 0
    labels = [str(label) for label in surface[name].values]
    if isinstance(choice, str):
        require(choice in labels, name, f"must be one of {labels}", choice)
        return labels.index(choice)
    position = choice or 0
    if not -len(labels) <= position < len(labels):
        raise InputError(name, f"must be one of {labels} or a position below {len(labels)}", choice)
    return position % len(labels)


def select(surface: xr.Dataset, *, split: Choice = None, direction: Choice = None) -> tuple[xr.Dataset, str]:
    """Take one split and one direction of a surface, and say which."""
    notes = []
    for name, choice in (("split", split), ("direction", direction)):
        position = position_of(surface, name, choice)
        if name in surface.dims:
            labels = [str(label) for label in surface[name].values]
            surface = surface.isel({name: position})
            notes.append(f"{name} {labels[position]} of {len(labels)}" if len(labels) > 1 else "")
    return surface, ", ".join(note for note in notes if note)


def check_metric(surface: xr.Dataset, metric: str) -> None:
    """Refuse a metric that a surface does not have."""
    known = [str(name) for name in surface.data_vars if name not in ("status", "error")]
    require(metric in known, "metric", f"must be one of {', '.join(known)}", metric)
