"""Basins of a grid of values: its minima, the saddles between them, and which of them an error could not have made.

A sublevel set falls into connected parts. As the level rises, a part is born at each local minimum and ends where it
meets one with a lower minimum (the elder rule). The difference is the depth of that basin, its persistence
(Edelsbrunner, Letscher and Zomorodian 2002); the deepest never ends. Parts, parents and depths are the merge tree.

Values that are known up to an error lie between ``lower = values - error`` and ``upper = values + error``. At a level h
every function between them has at least as many parts as parts of ``{lower <= h}`` that hold a point of
``{upper <= h}``: the image of the homology of the one in that of the other (Cohen-Steiner, Edelsbrunner, Harer and
Morozov 2009). Its pairs are the basins that are certain. With one error e for all points they are the basins that are
deeper than 2 e (Cohen-Steiner, Edelsbrunner and Harer 2007).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lowland.core.errors import require

Values: TypeAlias = NDArray[np.float64]
Neighbors: TypeAlias = Literal[4, 8]


@dataclass(frozen=True, slots=True)
class Basin:
    """A basin: a minimum, and the saddle over which it meets a lower one.

    Args:
        minimum: Indices of its lowest point.
        saddle: Indices of the point over which it meets a lower basin; None for the lowest of all.
        birth: Value at the minimum.
        death: Value at the saddle; infinite for the lowest of all.
        on_edge: Whether the minimum lies on the edge of the grid, where what is beyond it could lie lower.
        interval: Least and largest depth within the grid that the errors allow. Of two basins whose minima the errors
            do not tell apart either may be the lower, and so the one whose depth that is.
        edge: Least value at which the basin reaches the edge of the grid; infinite where it does not below its saddle.
        parent: Position, among the basins, of the one it meets at its saddle; None for the lowest of all.
        error: Error of the value at the minimum.
        resolved: Depth that is left at least where the ground between the points of the grid lies as low as parabolas
            through them do; 0: the grid alone may have made the basin, along a valley narrower than its spacing.
    """

    minimum: tuple[int, ...]
    saddle: tuple[int, ...] | None
    birth: float
    death: float
    on_edge: bool
    interval: tuple[float, float]
    edge: float
    parent: int | None
    error: float = 0.0
    resolved: float = math.inf

    @property
    def depth(self) -> float:
        """Persistence: value at the saddle less that at the minimum; infinite for the lowest of all."""
        return self.death - self.birth

    @property
    def reaches_edge(self) -> bool:
        """Whether it reaches the edge of the grid below its saddle."""
        return self.edge < math.inf

    @property
    def enclosed(self) -> float:
        """Depth that it has at least, whatever lies beyond the grid: up to the saddle or the edge, less errors."""
        return max(0.0, min(self.interval[0], self.resolved, self.edge - self.birth - self.error))


def basins(values: Values, *, error: ArrayLike = 0.0, neighbors: Neighbors = 8) -> tuple[Basin, ...]:
    """Return the basins of a grid of values that its errors could not have made, the lowest first, then by depth.

    Of two minima at the same height the first one in the order of the array is the lower.

    Args:
        values: Shape [n] or [nx, ny], finite or infinite.
        error: Largest absolute error of the values, in their units: one for all, or one each. An infinite one marks a
            value that is not known at all. Default 0.0: all but ties are kept.
        neighbors: Points of a plane that are connected: 4, along the axes, or 8, across the diagonals too. Default 8:
            a narrow diagonal valley then is one basin and not a row of them.

    Returns:
        The basins; the first is the lowest, whose depth is infinite. None where no value is known.

    Raises:
        InputError: If a value is NaN, the array is empty or of more than two axes, or an error is negative.

    Example:
        >>> [round(basin.depth, 2) for basin in basins(np.array([1.0, 0.0, 0.5, 0.2, 1.0]))]
        [inf, 0.3]
        >>> len(basins(np.array([1.0, 0.0, 0.5, 0.2, 1.0]), error=0.2))
        1
    """
    values, errors = _checked(values, error)
    require(neighbors in (4, 8), "neighbors", "must be 4 or 8", neighbors)
    unknown = np.isinf(errors)
    lower, upper = np.where(unknown, -np.inf, values - errors), np.where(unknown, np.inf, values + errors)
    if unknown.all():
        return ()
    lowest, *others = reversed(_merges(lower, upper, neighbors))
    flat = values.ravel()
    others.sort(key=lambda merge: flat[merge.bottom] - flat[merge.saddle])
    highest = {m.bottom: m.level for m in _merges(upper, upper, neighbors)}
    fallen = _merges(lower - _below(np.where(unknown, np.nan, values)), upper, neighbors)
    left = {m.bottom: m.level - m.top for m in fallen}
    ordered = [lowest, *others]
    place = {merge.bottom: k for k, merge in enumerate(ordered)}
    found = [_basin(merge, values, errors, highest[merge.bottom], place) for merge in ordered]
    return tuple(replace(basin, resolved=left.get(m.bottom, 0.0)) for basin, m in zip(found, ordered, strict=True))


def diagram(values: Values, *, neighbors: Neighbors = 8) -> Values:
    """Return birth and death of every part of the sublevel sets, shape [parts, 2]; the lowest one dies at infinity."""
    values, _ = _checked(values, 0.0)
    return np.array([(merge.top, merge.level) for merge in _merges(values, values, neighbors)], dtype=np.float64)


def _checked(values: ArrayLike, error: ArrayLike) -> tuple[Values, Values]:
    array, errors = np.asarray(values, dtype=float), np.asarray(error, dtype=float)
    require(array.size > 0 and array.ndim in (1, 2), "values", "must have one or two axes, not empty", array.shape)
    require(not np.isnan(array).any(), "values", "must not be NaN", int(np.isnan(array).sum()))
    known = errors.shape in ((), array.shape) and bool((errors >= 0).all())
    require(known, "error", "must be at least 0, one or one for each value", np.asarray(error).tolist())
    return array, np.broadcast_to(errors, array.shape)


class _Merge(NamedTuple):
    """Where a part ends; points are flat indices."""

    bottom: int  # Its point of least upper value
    saddle: int | None  # None for the part that never ends
    survivor: int | None  # The bottom of the part that it becomes one with
    top: float  # Upper value at its bottom
    level: float  # Lower value at the saddle; infinite for the part that never ends
    floor: float  # Least lower value in it
    edge: float  # Least lower value in it on the edge of the grid; infinite where none is


def _basin(merge: _Merge, values: Values, errors: Values, highest: float, place: dict[int, int]) -> Basin:
    minimum = tuple(int(k) for k in np.unravel_index(merge.bottom, values.shape))
    saddle = None if merge.saddle is None else tuple(int(k) for k in np.unravel_index(merge.saddle, values.shape))
    death = math.inf if saddle is None else min(float(values[saddle]), highest)
    return Basin(
        minimum,
        saddle,
        birth=float(values[minimum]),
        death=death,
        on_edge=any(k in (0, size - 1) for k, size in zip(minimum, values.shape, strict=True) if size > 1),
        interval=(merge.level - merge.top, highest - merge.floor),
        edge=merge.edge,
        parent=None if merge.survivor is None else place[merge.survivor],
        error=float(errors[minimum]),
    )


def _merges(lower: Values, upper: Values, neighbors: Neighbors) -> list[_Merge]:
    """List the ends of the parts that are certain, as the level rises: union-find over ascending lower values."""
    order = np.argsort(lower, axis=None, kind="stable")
    age = np.empty(order.size, dtype=np.int64)  # of two parts the one whose bottom has the smaller age goes on
    age[np.argsort(upper, axis=None, kind="stable")] = np.arange(order.size)
    ages, points = age[order].tolist(), order.tolist()
    level, top = lower.ravel()[order].tolist(), upper.ravel()[order].tolist()
    edge = np.where(_on_edge(lower.shape).ravel()[order], lower.ravel()[order], np.inf).tolist()
    # all by rank: the root of a part is its lowest rank, its bottom may be another
    part, bottom = list(range(order.size)), list(range(order.size))

    def root(k: int) -> int:
        while part[k] != k:
            part[k] = part[part[k]]
            k = part[k]
        return k

    found = []
    for k, near in enumerate(_around(order, lower.shape, neighbors)):
        roots = sorted({root(other) for other in near if other < k} | {k})
        eldest = min((bottom[one] for one in roots), key=ages.__getitem__)
        for one in roots:
            own = bottom[one]
            if own != eldest and level[k] > top[own]:
                ends = _Merge(points[own], points[k], points[eldest], top[own], level[k], level[one], edge[one])
                found.append(ends)
        bottom[roots[0]], edge[roots[0]] = eldest, min(edge[one] for one in roots)
        for one in roots:
            part[one] = roots[0]
    last = bottom[0]
    return [*found, _Merge(points[last], None, None, top[last], math.inf, level[0], edge[0])]


def _around(order: NDArray[np.int64], shape: Sequence[int], neighbors: Neighbors) -> list[list[int]]:
    """Return the ranks of the neighbors of every point, by its own rank; the number of points where there is none."""
    rank = np.empty(order.size, dtype=np.int64)
    rank[order] = np.arange(order.size)
    ranks = np.pad(rank.reshape(shape), 1, constant_values=order.size)
    middle = tuple(slice(1, -1) for _ in shape)
    steps = [step for step in np.ndindex(*(3 for _ in shape)) if _joined(step, neighbors)]
    axes = tuple(range(len(shape)))
    near = [np.roll(ranks, [1 - k for k in step], axes)[middle].ravel()[order] for step in steps]
    found: list[list[int]] = np.stack(near, axis=1).tolist()
    return found


def _joined(step: tuple[int, ...], neighbors: Neighbors) -> bool:
    moved = sum(k != 1 for k in step)
    return moved == 1 or (moved == 2 and neighbors == 8)


def _below(values: Values) -> Values:
    """Return how far below every point of a plane the ground may lie beside it, on its way to the next points."""
    # A valley that runs between the points is seen at different distances from its floor, and looks like a row of pits.
    # The parabola through three points of a row has its lowest point on that floor; where it is within a step of the
    # middle one, the ground falls by slope^2 / (2 bend), and by up to twice that where the bend is another beside it.
    found = np.zeros(values.shape)
    for axis in range(values.ndim if values.ndim > 1 else 0):
        rows, below = np.moveaxis(values, axis, 0), np.moveaxis(found, axis, 0)
        with np.errstate(invalid="ignore", divide="ignore"):  # infinite and unknown values
            slope, bend = (rows[2:] - rows[:-2]) / 2, rows[2:] - 2 * rows[1:-1] + rows[:-2]
            fall = np.where((bend > 0) & (bend < np.inf) & (np.abs(slope) <= bend), slope**2 / bend, 0.0)
        below[1:-1] = np.maximum(below[1:-1], fall)
    return found


def _on_edge(shape: Sequence[int]) -> NDArray[np.bool_]:
    inside = tuple(slice(1, -1) if size > 1 else slice(None) for size in shape)
    edge = np.ones(shape, dtype=np.bool_)
    edge[inside] = False
    return edge
