"""How far apart two persistence diagrams are: the bottleneck distance, exact."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowland.core.errors import require

Values: TypeAlias = NDArray[np.float64]


def bottleneck(first: Values, second: Values) -> float:
    """Return the bottleneck distance of two diagrams: the least d for which they match, moving no number beyond d.

    Each pair moves to one of the other diagram, or to the diagonal, where birth and death are the same; the distance is
    the largest change of a birth or death in the best matching (Cohen-Steiner, Edelsbrunner and Harer 2007). Two
    surfaces that differ by at most e have diagrams that differ by at most e. Exact: bisection over the distances that
    can be; a threshold is enough when the pairs that are too long for the diagonal can be matched from either side
    (Mendelsohn and Dulmage 1958).

    Args:
        first: Births and deaths, shape [pairs, 2]; what never dies has an infinite death.
        second: The same of another surface.

    Returns:
        The distance; infinite where the numbers of pairs that never die differ.

    Raises:
        InputError: If a diagram is not of that shape, holds NaN, or a death before a birth.

    Example:
        >>> bottleneck(np.array([[0.0, np.inf], [0.2, 0.5]]), np.array([[0.1, np.inf]]))
        0.15
    """
    from scipy.spatial.distance import cdist  # slow to import, and every result is opened through this room

    parts = [_split(name, pairs) for name, pairs in (("first", first), ("second", second))]
    (ours, our_ends), (theirs, their_ends) = parts
    if our_ends.size != their_ends.size:
        return math.inf
    same = our_ends == their_ends  # infinite births too, whose difference is no number
    ends = float(np.abs(our_ends[~same] - their_ends[~same]).max(initial=0.0))
    halves = np.concatenate([(one[:, 1] - one[:, 0]) / 2 for one in (ours, theirs)])
    apart = cdist(ours, theirs, "chebyshev").ravel() if len(ours) and len(theirs) else np.zeros(0)
    steps = np.unique(np.concatenate([[0.0], halves, apart[apart < halves.max(initial=0.0)]]))
    left, right = 0, len(steps) - 1  # the largest is half the longest life: everything goes to the diagonal
    while left < right:
        middle = (left + right) // 2
        if all(_covered(*pair, float(steps[middle])) for pair in ((ours, theirs), (theirs, ours))):
            right = middle
        else:
            left = middle + 1
    return max(ends, float(steps[left]))


def _split(name: str, pairs: Values) -> tuple[Values, Values]:
    """Return the pairs that die, and the births of the others, ascending."""
    pairs = np.asarray(pairs, dtype=float).reshape(-1, 2) if np.size(pairs) == 0 else np.asarray(pairs, dtype=float)
    fits = pairs.ndim == 2 and pairs.shape[1] == 2 and bool((pairs[:, 1] >= pairs[:, 0]).all())
    require(fits, name, "must hold a birth and a later death in every row", pairs.shape)
    dies = np.isfinite(pairs).all(axis=1)
    return pairs[dies], np.sort(pairs[~dies, 0])


def _covered(own: Values, others: Values, reach: float) -> bool:
    """Tell whether all pairs too long for the diagonal can be matched to different ones of the other diagram."""
    long = own[(own[:, 1] - own[:, 0]) / 2 > reach]
    if len(long) > len(others):
        return False
    if not len(long):
        return True
    from scipy import sparse
    from scipy.sparse.csgraph import maximum_bipartite_matching
    from scipy.spatial import KDTree

    near: Any = KDTree(others).query_ball_point(long, np.nextafter(reach, np.inf), p=np.inf)
    rows = np.repeat(np.arange(len(long)), [len(some) for some in near])
    columns = np.concatenate([np.asarray(some, dtype=np.int64) for some in near])
    close = np.abs(long[rows] - others[columns]).max(axis=1) <= reach  # the tree's own rounding does not decide
    graph = sparse.csr_matrix(
        (np.ones(int(close.sum())), (rows[close], columns[close])), shape=(len(long), len(others))
    )
    return bool((maximum_bipartite_matching(graph, perm_type="column") >= 0).all())
