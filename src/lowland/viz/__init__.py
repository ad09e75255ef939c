"""Figures of stored results: ``contour(surface)`` and its kin return the backend's native figure.

Every verb builds a spec (plain data, `lowland.viz.spec`) and hands it to a backend, which is imported only then.

Example:
    >>> from lowland.core.schema import new_surface
    >>> surface = new_surface([-1.0, 0.0, 1.0], [-1.0, 1.0])
    >>> surface["loss"][:] = [[2.0, 3.0], [1.0, 2.0], [2.0, 3.0]]
    >>> surface["status"][:] = 1
    >>> figure = contour(surface)                     # a matplotlib figure: figure.savefig("contour.pdf")
    >>> figure.axes[0].get_xlabel()
    'first direction'
"""

from __future__ import annotations

from lowland.core.settings import FigureOptions
from lowland.viz.backends import BACKENDS, draw, save
from lowland.viz.export import export
from lowland.viz.live import live
from lowland.viz.spec import ScatterPoint
from lowland.viz.surfaces import shared_scale
from lowland.viz.verbs import (
    animate,
    compare,
    contour,
    convexity_map,
    cost,
    density,
    film,
    heat_map,
    line,
    merge_tree,
    path,
    slope,
    surface,
)

__all__ = ["BACKENDS", "ScatterPoint", "FigureOptions"]
__all__ += ["animate", "compare", "contour", "convexity_map", "cost", "density"]
__all__ += ["draw", "export", "film", "heat_map", "line", "live"]
__all__ += ["merge_tree", "path", "save", "shared_scale", "slope", "surface"]
