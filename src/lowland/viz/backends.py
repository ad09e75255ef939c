"""The figure backends by name; each is one module with ``draw(spec, size=...)`` and ``save(figure, path)``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from lowland.core.errors import InputError, require
from lowland.viz.spec import Figure

BACKENDS: dict[str, tuple[str, ...]] = {
    "matplotlib": (".pdf", ".svg", ".png"),
    "plotly": (".html",),
    "vtk": (".vts", ".vtp"),
    "movie": (".gif", ".mp4"),
}
"""Backend -> suffixes of the files that it writes."""


def load(backend: str) -> Any:
    """Import a backend's module."""
    require(backend in BACKENDS, "backend", f"must be one of {', '.join(BACKENDS)}", backend)
    return importlib.import_module(f"lowland.viz.{backend}")


def backend_for(path: str | Path) -> str:
    """Return the backend that writes a file, by its suffix."""
    suffix = Path(path).suffix.lower()
    for name, suffixes in BACKENDS.items():
        if suffix in suffixes:
            return name
    known = [suffix for suffixes in BACKENDS.values() for suffix in suffixes]
    raise InputError("path", f"must end in one of {', '.join(known)}", str(path))


def draw(spec: Figure, backend: str = "matplotlib", *, size: str | tuple[float, float] | None = None) -> Any:
    """Draw any figure spec and return the backend's own figure; `size` is as in `contour`, None takes one that fits."""
    return load(backend).draw(spec, size=size)


def save(spec: Figure, path: str | Path, *, size: str | tuple[float, float] | None = None) -> Path:
    """Draw any figure spec and write it to a path whose suffix chooses the backend (`BACKENDS`); return the path."""
    backend = load(backend_for(path))
    backend.save(backend.draw(spec, size=size), path)
    return Path(path)
