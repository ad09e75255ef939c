"""What a Krylov run may have missed: how far beyond its Ritz values the spectrum may reach."""

from __future__ import annotations

import math

import numpy as np

from lowland.curvature.lanczos import Lanczos, Ritz


def reach(run: Lanczos, ritz: Ritz, *, upper: bool = False, risk: float = 0.01) -> float:
    """Return how far below the smallest Ritz value (``upper``: above the largest) the spectrum may reach."""
    from scipy.optimize import brentq  # slow to import; most workers do without

    # The statement holds with probability ``1 - risk`` over the random start.
    # The polynomial p with leading coefficient 1 and the Ritz values as zeros has ``|p(A) start| = beta_1 ... beta_m``.
    # An eigenvalue x whose vector makes up a part c of the start fulfils ``|c p(x)| <= beta_1 ... beta_m``, and p only
    # grows outside its zeros (van Dorsselaer, Hochstenbach and van der Vorst, SIAM J. Matrix Anal. 22, 2000). In n
    # dimensions c is at most ``risk sqrt(pi / 2 n)`` with probability risk. A warm start is random only in a share of
    # its length, which stands before that: the given part can only by chance cancel the random one.
    if run.exhausted:
        return 0.0
    if run.randomness == 0.0:
        return math.inf
    distances = np.abs(ritz.values - ritz.values[-1 if upper else 0])
    smallest = max(run.epsilon * ritz.scale, np.finfo(np.float64).tiny)
    part = run.randomness * risk * math.sqrt(math.pi / (2 * run.size))
    most = float(np.log(np.maximum(run.couplings, smallest)).sum()) - math.log(part)

    def excess(logarithm: float) -> float:
        return float(np.log(distances + math.exp(logarithm)).sum()) - most

    low = math.log(smallest)
    if excess(low) >= 0.0:
        return smallest
    # no factor is less than the first, so that they are enough where its logarithm is `most` / m
    return math.exp(brentq(excess, low, max(most / len(distances), low) + 1.0, xtol=1e-3))
