"""Merge trees of stored surfaces: their basins, as far as the errors of the measurement tell them from none.

The error of a point has two parts. Sampling: the standard error of the difference to the loss at the origin, times the
quantile of Student's t that holds for all measured points together (Bonferroni). It is taken over all points and not
over the minima found, since these are chosen among all for being low; and at a saddle and a minimum one after the
other, which is never less than the error of their difference. Interpolation: the tolerance of the refinement at points
that were not measured, or more where a check was worse; its promise leaves out a stated share of the points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowland.core.errors import require
from lowland.core.facts import table_of
from lowland.core.schema import STATUS_INTERPOLATED, STATUS_MEASURED, check
from lowland.results.bottleneck import bottleneck
from lowland.results.choosing import Choice, check_metric, position_of, select
from lowland.results.geometry import finite_factor
from lowland.results.recipes import decoded
from lowland.results.topology import Basin, Neighbors, Values, basins, diagram

if TYPE_CHECKING:
    import xarray as xr

_NEAREST = 4
"""Measured points around an interpolated one, the largest of whose standard errors stands for its own."""
_GRID = "{} of {} basins may be made by the grid alone, along a valley narrower than its spacing: measure a finer one."


@dataclass(frozen=True, slots=True)
class MergeTree:
    """The basins of a surface that its errors could not have made, and how they meet.

    Args:
        basins: The lowest first, then by depth.
        places: Coordinates of their minima, shape [basins, axes].
        saddles: Coordinates of their saddles, shape [basins, axes]; NaN for the lowest.
        diagram: Birth and death of every part of the measured sublevel sets, also of bumps that are no features, shape
            [parts, 2].
        error: Largest error of a known point; infinite where points are missing.
        metric: What was measured.
        said: What the errors are made of, as sentences.
    """

    basins: tuple[Basin, ...]
    places: Values
    saddles: Values
    diagram: Values
    error: float
    metric: str
    said: tuple[str, ...]

    @property
    def resolution(self) -> float:
        """Depth that no further basin exceeds: twice the largest error, and the deepest bump that is no feature."""
        lives = np.sort(self.diagram[:, 1] - self.diagram[:, 0])[::-1]
        further = lives[len(self.basins) : len(self.basins) + 1]
        return float(2 * self.error + max(0.0, *further[np.isfinite(further)], 0.0))

    @property
    def counted_depth(self) -> float:
        """Depth that `count` counts from: the resolution, 0 where it is infinite."""
        return self.resolution if math.isfinite(self.resolution) else 0.0

    def count(self, depth: float | None = None) -> tuple[int, float]:
        """Return how many basins deeper than a depth there are, at least and at most.

        Args:
            depth: In units of the metric. Default None: the resolution, or 0 where points are missing that could hold
                basins of any depth; below the resolution the second number is infinite.

        Returns:
            Both numbers; the lowest basin counts in each.
        """
        chosen = self.counted_depth if depth is None else depth
        least = sum(min(basin.interval[0], basin.resolved) > chosen for basin in self.basins)
        most = sum(basin.interval[1] > chosen for basin in self.basins)
        return least, most if chosen >= self.resolution else math.inf

    def rows(self) -> list[dict[str, Any]]:
        """Return one row of numbers per basin; the depth of the lowest one is that up to the edge of the grid."""
        names = ("x", "y")[: self.places.shape[1]]
        return [
            {"basin": number}
            | dict(zip(names, map(float, place), strict=True))
            | {
                "lowest": basin.birth,
                "depth": basin.depth,
                "depth_low": basin.interval[0],
                "depth_high": basin.interval[1],
                "saddle": basin.death,
                "into": None if basin.parent is None else basin.parent + 1,
                "edge": basin.edge,
                "enclosed": basin.enclosed,
                "resolved": basin.resolved,
            }
            for number, (basin, place) in enumerate(zip(self.basins, self.places, strict=True), 1)
        ]

    def __repr__(self) -> str:
        depths = ", ".join(f"{basin.depth:.4g}" for basin in self.basins)
        return f"MergeTree of the {self.metric}: {len(self.basins)} basins of depth {depths}"

    def _repr_html_(self) -> str:
        return table_of([{key: f"{v:.4g}" for key, v in row.items() if v is not None} for row in self.rows()])


def merge_tree(
    surface: xr.Dataset,
    *,
    metric: str = "loss",
    level: float = 0.95,
    estimand: Literal["population", "data set"] = "population",
    size: int | None = None,
    split: Choice = None,
    direction: Choice = None,
    neighbors: Neighbors = 8,
) -> MergeTree:
    """Return the basins of a stored surface or line, simplified by the errors of the measurement.

    A basin is kept where its saddle less the errors lies above its minimum plus the errors, at the level for all points
    together; see `lowland.landscape.basins` for what is proved. Depths are those within the picture: a basin that
    reaches its edge may be deeper, or open, beyond it, and only ``enclosed`` holds there too.

    Args:
        surface: A surface with one or two axes, as measured or refined.
        metric: Which metric; basins are of low values. Default ``"loss"``.
        level: Chance that no basin is invented, as far as standard errors are right. Default 0.95.
        estimand: ``"population"``: samples are drawn from a population (default). ``"data set"``: the mean over a data
            set of ``size``; the sampling error is 0 where all of it was measured.
        size: Samples in the data set; needed for ``"data set"``.
        split: Name or position along ``split``; None (default) for the first.
        direction: Name or position along ``direction``; None (default) for the first.
        neighbors: Points that are connected: 4, or 8 with diagonals (default).

    Raises:
        InputError: If the metric is unknown, no point is finished, or the arguments do not fit.

    Example:
        >>> from lowland.core.schema import new_surface
        >>> line = new_surface([0.0, 1.0, 2.0, 3.0, 4.0])
        >>> line["loss"].values[:], line["status"].values[:] = [1.0, 0.0, 0.5, 0.2, 1.0], 1
        >>> [round(basin.depth, 2) for basin in merge_tree(line).basins]
        [inf, 0.3]
    """
    check(surface, "surface")
    check_metric(surface, metric)
    require(0 < level < 1, "level", "must lie between 0 and 1", level)
    one, _ = select(surface, split=split, direction=direction)
    choices = (("split", split), ("direction", direction))
    first = [
        f"Of {dim} {surface[dim].values[0] if dim in surface.coords else 0}, the first of {surface.sizes[dim]}."
        for dim, choice in choices
        if choice is None and surface.sizes.get(dim, 1) > 1
    ]
    axes = [name for name in ("x", "y") if name in one.dims]
    one = one.sortby(axes)
    values = np.asarray(one[metric].transpose(*axes).values, dtype=np.float64)
    status = np.asarray(one["status"].transpose(*axes).values)
    known = np.isin(status, (STATUS_MEASURED, STATUS_INTERPOLATED)) & ~np.isnan(values)
    require(known.any(), "surface", "has no finished point with a number", metric)
    sampling, said = _sampling(one, metric, known, level, finite_factor(surface, estimand, size))
    position = position_of(surface, "split", split), position_of(surface, "direction", direction)
    tolerance, promise = _tolerance(one, metric, values, status, *position)
    error = np.where(known, sampling + tolerance, np.inf)
    lost = int(np.isinf(error).sum())
    points = "1 point is" if lost == 1 else f"{lost} points are"
    missing = (f"{points} not known: what only they divide counts as one basin.",) if lost else ()
    found = basins(np.where(known, values, 0.0), error=error, neighbors=neighbors)
    doubtful = sum(basin.resolved == 0.0 for basin in found)
    grid = (_GRID.format(doubtful, len(found)),) if doubtful else ()
    coordinates = [np.asarray(one[name].values, dtype=np.float64) for name in axes]
    return MergeTree(
        found,
        _places(coordinates, [basin.minimum for basin in found]),
        _places(coordinates, [basin.saddle for basin in found]),
        diagram(np.where(known, values, np.inf), neighbors=neighbors),
        float(error.max()),
        metric,
        (*first, *said, *promise, *missing, *grid),
    )


def _places(axes: Sequence[Values], points: Sequence[tuple[int, ...] | None]) -> Values:
    rows = [[math.nan] * len(axes) if at is None else [x[k] for x, k in zip(axes, at, strict=True)] for at in points]
    return np.array(rows, dtype=np.float64).reshape(len(points), len(axes))


def _sampling(
    one: xr.Dataset, metric: str, known: NDArray[np.bool_], level: float, factor: float
) -> tuple[Values, tuple[str, ...]]:
    """Return the sampling error of every point at a level for all, and what it is made of."""
    dims, zero = [name for name in ("x", "y") if name in one.dims], np.zeros(known.shape)
    name = next((n for n in (f"{metric}_difference_se", f"{metric}_se") if n in one), None)
    if factor == 0.0:
        return zero, ("All of the data set was measured: there is no sampling error.",)
    found = zero if name is None else np.asarray(one[name].transpose(*dims).values, dtype=np.float64)
    measured = known & np.isfinite(found)
    if name is None or not measured.any():
        return zero, ("The surface has no standard errors: sampling is left out of the errors.",)
    from scipy.special import stdtrit  # slow to import

    count = int(one.attrs.get("samples", 0))
    times = factor * float(stdtrit(max(count - 1, 1), 1 - (1 - level) / (2 * int(measured.sum()))))
    of = "the difference to the origin" if "difference" in name else f"the {metric}"
    said = [f"Sampling: {times:.3g} standard errors of {of}, {100 * level:g} % for all points together."]
    if f"{metric}_skew" in one:
        skewed = int((count < 25 * np.asarray(one[f"{metric}_skew"].transpose(*dims).values)[measured] ** 2).sum())
        if skewed:
            said += [f"At {skewed} points the {metric} is so skewed that these errors hold less often than that."]
    return times * _spread(found, measured, known), tuple(said)


def _spread(found: Values, measured: NDArray[np.bool_], known: NDArray[np.bool_]) -> Values:
    """Give points without a standard error, which are interpolated, the largest of those measured nearest to them."""
    result, rest = np.where(measured, found, 0.0), np.argwhere(known & ~measured)
    if len(rest):
        from scipy.spatial import KDTree  # slow to import

        places = np.argwhere(measured)
        _, near = KDTree(places).query(rest, k=range(1, min(_NEAREST, len(places)) + 1))
        result[tuple(rest.T)] = found[tuple(places.T)][near].max(axis=1)
    return result


def _tolerance(
    one: xr.Dataset, metric: str, values: Values, status: NDArray[np.uint8], split: int, direction: int
) -> tuple[Values, tuple[str, ...]]:
    """Return the error of interpolated points, infinite where nothing is promised, and the promise."""
    guessed = status == STATUS_INTERPOLATED
    if not guessed.any():
        return np.zeros(values.shape), ()
    reports = decoded(one.attrs.get("refinement"))
    report = reports[direction] if direction < len(reports) else {}
    if metric != "loss" or "share_bound" not in report:
        return np.where(guessed, np.inf, 0.0), (f"Nothing is promised of the {metric} at interpolated points.",)
    span = np.ptp(values[(status == STATUS_MEASURED) & np.isfinite(values)])
    floor = np.maximum(np.abs(values), report["floor_value"][split])
    allowed = np.minimum(report["range"] * span, report["value"] * floor) * max(1.0, report["worst_check"])
    return np.where(guessed, allowed, 0.0), (f"Interpolation: {report['statement']}.",)


class Distance(NamedTuple):
    """How far apart the basins of two surfaces are."""

    value: float  # Bottleneck distance of the diagrams, each above its own lowest value
    error: float  # By how much the errors of both surfaces can change it
    offset: float  # Lowest value of the second less that of the first


def distance(first: MergeTree, second: MergeTree) -> Distance:
    """Return the bottleneck distance of two surfaces, each measured from its lowest value, with its error.

    All parts of the measured surfaces count, bumps below the errors too: a distance below its error says that none was
    found. The lowest values themselves are compared by ``offset``.

    Args:
        first: Merge tree of one surface.
        second: That of another, on any grid, in the same unit.

    Returns:
        Distance, error and offset, in units of the metric.

    Raises:
        InputError: If they are of different metrics, or nothing is known of one.

    Example:
        >>> from lowland.core.schema import new_surface
        >>> line = new_surface([0.0, 1.0, 2.0, 3.0, 4.0])
        >>> line["loss"].values[:], line["status"].values[:] = [1.0, 0.0, 0.5, 0.25, 1.0], 1
        >>> tree = merge_tree(line)
        >>> line["loss"].values[2] = 0.75
        >>> distance(tree, merge_tree(line))
        Distance(value=0.25, error=0.0, offset=0.0)
    """
    require(first.metric == second.metric, "second", f"must be of the metric {first.metric}", second.metric)
    for name, tree in (("first", first), ("second", second)):
        require(tree.basins, name, "must have a basin", repr(tree))
    lows = [float(tree.diagram[:, 0].min()) for tree in (first, second)]
    value = bottleneck(first.diagram - lows[0], second.diagram - lows[1])
    error = sum(tree.error + tree.basins[0].error for tree in (first, second))
    return Distance(value, error, lows[1] - lows[0])
