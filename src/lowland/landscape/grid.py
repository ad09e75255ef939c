"""Where a survey measures: coordinates of a line or plane, and the order of the points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowland.core.errors import InputError

Extent: TypeAlias = "float | tuple[float, float] | tuple[tuple[float, float], tuple[float, float]]"
"""``1.0`` means [-1, 1] on every axis, ``(low, high)`` that range on every axis, a pair of those one per axis."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Coordinates of a line (``y`` is None) or plane; point (i, j) lies at ``(x[i], y[j])``.

    Args:
        x: Shape [nx], in units of the first axis.
        y: Shape [ny], in units of the second axis; None for a line.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of points per axis."""
        return (len(self.x),) if self.y is None else (len(self.x), len(self.y))

    @property
    def size(self) -> int:
        """Number of points."""
        return math.prod(self.shape)

    def coordinates(self, index: int) -> tuple[float, ...]:
        """Return where the point of a flat number (x slow, y fast) lies, one number per axis."""
        axes = [self.x] if self.y is None else [self.x, self.y]
        return tuple(float(a[i]) for a, i in zip(axes, np.unravel_index(index, self.shape), strict=True))

    def center(self) -> int:
        """Return the flat number of the point nearest to the origin (the first of equals)."""
        square = self.x**2 if self.y is None else self.x[:, None] ** 2 + self.y[None, :] ** 2
        return int(np.argmin(square))

    def describe(self) -> dict[str, Any]:
        """Return the coordinates as plain JSON values."""
        return {"x": self.x.tolist()} | ({} if self.y is None else {"y": self.y.tolist()})


def grid(nx: int, ny: int | None = None, *, extent: Extent = 1.0) -> Grid:
    """Return equally spaced coordinates; ends are exact, and so is 0 in the middle of an odd symmetric axis.

    Args:
        nx: Points along the first axis.
        ny: Points along the second axis; None makes a line.
        extent: Ranges in units of the axes. Default 1.0, [-1, 1] (Li et al. 2018, 51 x 51 points).

    Raises:
        InputError: If an axis has no points, an extent is 0 or not finite, or ends are in the wrong order.

    Example:
        >>> grid(3, 2, extent=((-1, 1), (0, 4))).y.tolist()
        [0.0, 4.0]
    """
    counts = [("nx", nx)] if ny is None else [("nx", nx), ("ny", ny)]
    for name, count in counts:
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise InputError(name, "must be a whole number of at least 1", count)
    ranges = _ranges(extent, len(counts))
    axes = [_axis(low, high, count) for (low, high), (_, count) in zip(ranges, counts, strict=True)]
    return Grid(*axes)


def _ranges(extent: Any, axes: int) -> list[tuple[float, float]]:
    if isinstance(extent, int | float | np.number):
        extent = (-float(extent), float(extent))
    parts = list(extent)
    if len(parts) == 2 and not any(isinstance(part, Sequence) for part in parts):
        parts = [tuple(parts)] * axes
    if len(parts) != axes or any(len(part) != 2 for part in parts):
        raise InputError("extent", f"must be a number, (low, high), or {axes} pairs of those", extent)
    for low, high in parts:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError("extent", "must reach from a lower to a higher finite number", extent, "for instance 1.0")
    return [(float(low), float(high)) for low, high in parts]


def _axis(low: float, high: float, count: int) -> NDArray[np.float64]:
    if count == 1:
        return np.array([(low + high) / 2])
    i = np.arange(count, dtype=np.float64)
    axis = (low * (count - 1 - i) + high * i) / (count - 1)  # symmetric, so that the middle of [-a, a] is exactly 0
    axis[0], axis[-1] = low, high
    return axis


def levels(count: int) -> list[NDArray[np.int64]]:
    """Return nested sets of indices of one axis, from coarse to full, by bisection."""
    # Level k holds the indices nearest to 2**k + 1 equally spaced places, so that each level contains the one
    # before and every index is one of the full axis (for 51: 2, 3, 5, 9, 17, 33, 51 of them).
    result, parts = [], 1
    while parts < count - 1:
        result.append(np.floor(np.linspace(0, count - 1, parts + 1) + 0.5).astype(np.int64))
        parts *= 2
    result.append(np.arange(count))
    return result


def ordered(grid: Grid, *, parents: bool = False) -> list[tuple[int, int | None]]:
    """Return the points from coarse to fine, each with its warm-start parent."""
    # The point nearest to the origin comes first. A parent is the nearest point (in indices, the lower number
    # of equals) of the coarser levels, so that it depends on the grid alone.
    per_axis = [levels(count) for count in grid.shape]
    depth = max(len(axis) for axis in per_axis)
    rank = np.full(grid.shape, depth, dtype=np.int64)
    for level in reversed(range(depth)):
        chosen = [axis[min(level, len(axis) - 1)] for axis in per_axis]
        rank[np.ix_(*chosen)] = level
    flat = rank.reshape(-1)
    flat[grid.center()] = -1
    order = np.argsort(flat, kind="stable")
    found: list[int | None] = [None] * len(order)
    if parents:
        places = np.stack(np.unravel_index(order, grid.shape), 1)
        starts = np.searchsorted(flat[order], flat[order])
        for k in range(1, len(order)):
            before = max(1, int(starts[k]))
            distance = ((places[:before] - places[k]) ** 2).sum(1)
            nearest = np.flatnonzero(distance == distance.min())
            found[k] = int(order[nearest].min())
    return [(int(index), parent) for index, parent in zip(order, found, strict=True)]
