"""What a Krylov run may have missed: how far beyond its Ritz values the spectrum may reach."""

from __future__ import annotations

import math

from lowland.curvature.lanczos import Lanczos, Ritz


def missed_share(steps: int, size: int, *, randomness: float = 1.0, risk: float = 0.01) -> float:
    """Return how far beyond an extreme Ritz value the spectrum may reach, relative to its width."""
    # With probability ``1 - risk`` over the random start, the error of an extreme Ritz value after m products
    # is at most eps times the width of the spectrum, with ``1.648 sqrt(n) exp(-sqrt(eps) (2 m - 1)) = risk``
    # (Kuczynski and Wozniakowski, SIAM J. Matrix Anal. 13, 1992, theorem 4.2a). A warm start is random only in
    # a share r of its length, which puts ``sqrt(n) / r`` in the place of ``sqrt(n)``: the given part can only
    # by chance cancel the random one.
    if steps >= size:
        return 0.0
    if steps < 1 or randomness == 0.0:
        return 1.0
    odds = math.log(1.648 * math.sqrt(size) / (randomness * risk))
    return min(1.0, (odds / (2 * steps - 1)) ** 2)


def lower_reach(run: Lanczos, ritz: Ritz, *, tolerance: float = 1e-3, risk: float = 0.01) -> float:
    """Return how far below the smallest Ritz value the spectrum may reach, with probability ``1 - risk``."""
    # The bound of `missed_share` times the width would count the few large eigenvalues of a trained net as
    # width. But q steps of the run can be spent on polynomials that vanish at the q largest eigenvalues, and
    # never grow below them: the bound then holds with m - q products and the width W of what is left. The best
    # q is taken. W is read off the Ritz values, whose ends may fall short by the same share each: ``W =
    # (theta_q+1 - theta_min) / (1 - 2 share)``.
    if run.exhausted:
        return 0.0
    best = math.inf
    for q in range(run.steps):
        share = missed_share(run.steps - q, run.size, randomness=run.randomness, risk=risk)
        if share >= 0.5:
            break
        width = float(ritz.values[-1 - q] + ritz.residuals[-1 - q] - ritz.values[0]) / (1 - 2 * share)
        best = min(best, share * width)
        if ritz.residuals[-1 - q] > tolerance * ritz.scale:
            break
    return best
