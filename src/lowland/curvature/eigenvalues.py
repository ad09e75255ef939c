"""Both ends of the spectrum, and its top pairs, from Krylov runs with a residual for every number.

What "converged" means for the lower end: on a trained net the smallest eigenvalue is about one per cent of the largest,
so that a residual measured against the largest says nothing about it. It has its own tolerance, relative to itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.curvature.hessian import Hessian
from lowland.curvature.lanczos import Lanczos, Ritz
from lowland.curvature.operator import AbstractOperator

__all__ = [
    "SpectrumEnds",
    "TopEigenvalues",
    "as_operator",
    "extreme_eigenvalues",
    "lower_reach",
    "missed_share",
    "top_eigenvalues",
]

Source: TypeAlias = "EmpiricalRisk | AbstractOperator"
"""A risk (its Hessian is meant) or any operator."""

_CONFIRM_LEAST: Final = 3
"""Fewest products that confirm a result, however short the run."""
_LOWER_RELATIVE: Final = 0.1
_LOWER_ABSOLUTE: Final = 1e-4
"""The lower end has converged if its residual is at most max(relative * |lambda_min|, absolute * scale)."""


def as_operator(source: Source) -> AbstractOperator:
    """Return an operator as it is, and the Hessian of a risk.

    Args:
        source: A risk or an operator.

    Returns:
        The operator.

    Raises:
        InputError: If it is neither.
    """
    if isinstance(source, AbstractOperator):
        return source
    if isinstance(source, EmpiricalRisk):
        return Hessian(source)
    raise InputError(
        "source", "must be an EmpiricalRisk or an operator", type(source).__name__,
        "wrap a curvlinops operator by lowland.curvature.from_curvlinops, a matrix by MatrixOperator",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SpectrumEnds:
    """The largest and the smallest eigenvalue with everything needed to judge them.

    Args:
        lambda_max: Largest Ritz value; the largest eigenvalue is at least this.
        lambda_min: Smallest Ritz value; the smallest eigenvalue is at most this.
        residual_max: Norm of ``A v - lambda v`` for the upper pair: an eigenvalue lies within it.
        residual_min: The same for the lower pair.
        converged_max: Residual at most ``tolerance * scale``.
        converged_min: Residual at most ``max(0.1 |lambda_min|, 1e-4 scale)``.
        bound_min: ``|lambda_min|`` is at most this with probability 0.99 over the random start (see `lower_reach`).
        scale: Largest absolute Ritz value.
        products: Number of products taken.
        tolerance: The tolerance asked for.
        seed: Seed of the start vector.
        warm: Whether the run started from given vectors.
        orthogonality: Largest deviation of the Krylov basis from orthonormality.
        vectors: Eigenvectors, shape [n, 2 * pairs]: upper, lower, then the next ones inwards in the same order.
    """

    lambda_max: float
    lambda_min: float
    residual_max: float
    residual_min: float
    converged_max: bool
    converged_min: bool
    bound_min: float
    scale: float
    products: int
    tolerance: float
    seed: int
    warm: bool
    orthogonality: float
    vectors: Tensor = field(repr=False, compare=False)

    @property
    def ratio(self) -> float:
        """``|lambda_min| / |lambda_max|``, what the convexity map of Li et al. 2018 (section 6) shows."""
        return abs(self.lambda_min) / abs(self.lambda_max) if self.lambda_max != 0.0 else math.nan

    @property
    def negative(self) -> Literal["negative", "undecided", "none found"]:
        """Whether there is negative curvature: beyond its residual, not decided, or none found by a converged run."""
        if self.lambda_min < -self.residual_min:
            return "negative"
        return "none found" if self.converged_min else "undecided"


def extreme_eigenvalues(
    source: Source,
    *,
    tolerance: float = 1e-3,
    lower_tolerance: float = 0.05,
    confirm: float = 0.1,
    max_products: int = 80,
    min_products: int = 6,
    start: Tensor | None = None,
    noise: float = 0.1,
    pairs: int = 1,
    seed: int = 0,
) -> SpectrumEnds:
    """Return both ends of the spectrum from one Krylov run.

    Stops as soon as both residuals are small enough; what is not by then is marked as not converged.

    Args:
        source: A risk (its Hessian) or an operator.
        tolerance: Residual of the upper pair relative to the spectral scale. Default 1e-3.
        lower_tolerance: Stop when the residual of the lower pair is at most this times ``|lambda_min|``, or 1e-4 of the
            scale. The error of the value is about its square over the gap to the next one. Default 0.05, half of what
            counts as converged: it keeps the error below one per cent on trained networks.
        confirm: Both residuals must stay small for this share of further products, at least 3: an eigenvector that the
            start hardly holds shows up late, after the run has converged to its neighbour. Default 0.1; 0 omits it.
        max_products: Most products to spend. Default 80.
        min_products: Fewest products; guards against stopping on a lucky start. Default 6.
        start: Warm start: approximate eigenvectors, shape [n] or [n, k].
        noise: Random part of a warm start, see `Lanczos`. Default 0.1.
        pairs: Ritz vectors to return from each end; the inner ones need not have converged. Default 1.
        seed: Seed of the random vectors.

    Returns:
        Values, residuals, flags, bound, number of products and the vectors.

    Raises:
        InputError: If an argument is out of range.

    Example:
        >>> from lowland.curvature.operator import MatrixOperator
        >>> ends = extreme_eigenvalues(MatrixOperator(torch.diag(torch.arange(-1.0, 9.0, dtype=torch.float64))))
        >>> round(ends.lambda_max, 6), round(ends.lambda_min, 6), ends.negative
        (8.0, -1.0, 'negative')
    """
    if not 0 < tolerance < 1:
        raise InputError("tolerance", "must lie between 0 and 1", tolerance)
    if not 0 < lower_tolerance <= _LOWER_RELATIVE:
        raise InputError("lower_tolerance", f"must be positive and at most {_LOWER_RELATIVE}", lower_tolerance)
    if not 0 <= confirm <= 1:
        raise InputError("confirm", "must lie between 0 and 1", confirm)
    if not 1 <= min_products <= max_products:
        raise InputError("max_products", "must be at least `min_products`, and that at least 1", max_products)
    operator = as_operator(source)
    with operator:
        run = Lanczos(operator, start=start, noise=noise, seed=seed)
        run.extend(min_products)
        ritz, since = run.ritz(), None
        while not run.exhausted and run.steps < max_products:
            since = (since or run.steps) if all(_converged(ritz, tolerance, lower_tolerance)) else None
            if since is not None and run.steps >= since + _confirming(since, confirm):
                break
            run.extend()
            ritz = run.ritz()
    return _ends(run, ritz, tolerance, seed, pairs, warm=start is not None)


def _confirming(steps: int, share: float) -> int:
    return max(_CONFIRM_LEAST, math.ceil(share * steps)) if share > 0 else 0


def _converged(ritz: Ritz, tolerance: float, lower_tolerance: float = _LOWER_RELATIVE) -> tuple[bool, bool]:
    """Return whether the upper and the lower end have converged, each by its own rule."""
    lower = max(lower_tolerance * abs(float(ritz.values[0])), _LOWER_ABSOLUTE * ritz.scale)
    return bool(ritz.residuals[-1] <= tolerance * ritz.scale), bool(ritz.residuals[0] <= lower)


def _ends(run: Lanczos, ritz: Ritz, tolerance: float, seed: int, pairs: int, *, warm: bool) -> SpectrumEnds:
    upper, lower = _converged(ritz, tolerance)
    orthogonality = run.orthogonality()
    sound = orthogonality <= math.sqrt(run.epsilon)
    top, bottom = float(ritz.values[-1]), float(ritz.values[0])
    return SpectrumEnds(
        lambda_max=top,
        lambda_min=bottom,
        residual_max=float(ritz.residuals[-1]),
        residual_min=float(ritz.residuals[0]),
        converged_max=upper and sound,
        converged_min=lower and sound,
        bound_min=max(abs(bottom), abs(bottom - lower_reach(run, ritz))),
        scale=ritz.scale,
        products=run.steps,
        tolerance=tolerance,
        seed=seed,
        warm=warm,
        orthogonality=orthogonality,
        vectors=run.vectors(ritz, [k for i in range(min(pairs, run.steps)) for k in (run.steps - 1 - i, i)]),
    )


def missed_share(steps: int, size: int, *, randomness: float = 1.0, risk: float = 0.01) -> float:
    """Return how far beyond an extreme Ritz value the spectrum may reach, relative to its width.

    With probability ``1 - risk`` over the random start, the error of an extreme Ritz value after m products is at most
    eps times the width of the spectrum, with ``1.648 sqrt(n) exp(-sqrt(eps) (2 m - 1)) = risk`` (Kuczynski and
    Wozniakowski, SIAM J. Matrix Anal. 13, 1992, theorem 4.2a). A warm start is random only in a share r of its length,
    which puts ``sqrt(n) / r`` in the place of ``sqrt(n)``: the given part can only by chance cancel the random one.

    Args:
        steps: Number of products m.
        size: Dimension n.
        randomness: Share r of the start vector's length that is random. Default 1, a cold start.
        risk: Probability that the bound fails. Default 0.01.

    Returns:
        eps, in [0, 1]; 0 when the whole space is spanned, 1 where nothing can be said.

    Example:
        >>> round(missed_share(40, 1000), 4)
        0.0117
    """
    if steps >= size:
        return 0.0
    if steps < 1 or randomness == 0.0:
        return 1.0
    odds = math.log(1.648 * math.sqrt(size) / (randomness * risk))
    return min(1.0, (odds / (2 * steps - 1)) ** 2)


def lower_reach(run: Lanczos, ritz: Ritz, *, tolerance: float = 1e-3, risk: float = 0.01) -> float:
    """Return how far below the smallest Ritz value the spectrum may reach, with probability ``1 - risk``.

    The bound of `missed_share` times the width would count the few large eigenvalues of a trained net as width. But q
    steps of the run can be spent on polynomials that vanish at the q largest eigenvalues, and never grow below them:
    the bound then holds with m - q products and the width W of what is left. The best q is taken. W is read off the
    Ritz values, whose ends may fall short by the same share each: ``W = (theta_q+1 - theta_min) / (1 - 2 share)``.

    Args:
        run: A Krylov run.
        ritz: Its Ritz pairs.
        tolerance: Residual, relative to the scale, up to which a pair counts as one of the largest. Default 1e-3.
        risk: Probability that the bound fails. Default 0.01.

    Returns:
        A length on the axis of eigenvalues; infinite where the run is too short to say anything.
    """
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


@dataclass(frozen=True, slots=True)
class TopEigenvalues:
    """Several eigenpairs from one end of the spectrum.

    Args:
        values: Eigenvalues, the outermost first, shape [k].
        residuals: Norm of ``A v - lambda v`` of each, shape [k].
        converged: Residual at most ``tolerance * scale``, shape [k].
        scale: Largest absolute Ritz value.
        products: Number of products taken, the checks included.
        checked: Whether a second run orthogonal to all pairs found nothing further out.
        vectors: Shape [n, k].
    """

    values: np.ndarray[tuple[int], np.dtype[np.float64]]
    residuals: np.ndarray[tuple[int], np.dtype[np.float64]]
    converged: np.ndarray[tuple[int], np.dtype[np.bool_]]
    scale: float
    products: int
    checked: bool
    vectors: Tensor = field(repr=False, compare=False)


def top_eigenvalues(
    source: Source,
    k: int = 5,
    *,
    which: Literal["largest", "smallest"] = "largest",
    tolerance: float = 1e-3,
    max_products: int = 200,
    check: bool = True,
    seed: int = 0,
) -> TopEigenvalues:
    """Return the k outermost eigenpairs of one end.

    One Krylov run sees only one vector of a degenerate eigenvalue. With ``check`` a second run, orthogonal to the pairs
    found, looks for further copies and for what was missed, until it finds nothing further out.

    Args:
        source: A risk (its Hessian) or an operator.
        k: How many pairs, at most the dimension.
        which: Which end.
        tolerance: Residual relative to the spectral scale. Default 1e-3.
        max_products: Most products for each run. Default 200.
        check: Whether to look for missed pairs. Default True.
        seed: Seed of the start vectors.

    Returns:
        Values from the outermost inwards, with residuals and vectors.

    Raises:
        InputError: If `k` exceeds the dimension or an argument is out of range.

    Example:
        >>> from lowland.curvature.operator import MatrixOperator
        >>> spectrum = torch.tensor([3.0, 3.0, 1.0, 0.5, 0.0], dtype=torch.float64)
        >>> top_eigenvalues(MatrixOperator(torch.diag(spectrum)), 3).values.round(6).tolist()
        [3.0, 3.0, 1.0]
    """
    operator = as_operator(source)
    if not 1 <= k <= operator.size:
        raise InputError("k", f"must lie between 1 and the dimension {operator.size}", k)
    if which not in ("largest", "smallest"):
        raise InputError("which", 'must be "largest" or "smallest"', which)
    if not 0 < tolerance < 1:
        raise InputError("tolerance", "must lie between 0 and 1", tolerance)
    sign = 1.0 if which == "largest" else -1.0
    before = operator.products
    with operator:
        found = _outermost(Lanczos(operator, seed=seed), k, sign, tolerance, max_products)
        checked = not check
        for again in range(1, k + 1 if check else 0):
            if found.size >= operator.size:
                checked = True
                break
            run = Lanczos(operator, against=found.vectors, seed=seed, stream=again)
            more = _outermost(run, 1, sign, tolerance, max_products, beyond=found)
            if sign * more.values[0] <= sign * found.values[-1] + more.residuals[0]:
                checked = True
                break
            found = _merged(found, more, sign, k)
    return TopEigenvalues(
        found.values, found.residuals, found.residuals <= tolerance * found.scale, found.scale,
        operator.products - before, check and checked, found.vectors,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Pairs:
    values: np.ndarray[tuple[int], np.dtype[np.float64]]
    residuals: np.ndarray[tuple[int], np.dtype[np.float64]]
    scale: float
    vectors: Tensor

    @property
    def size(self) -> int:
        return len(self.values)


def _outermost(
    run: Lanczos, k: int, sign: float, tolerance: float, max_products: int, *, beyond: _Pairs | None = None
) -> _Pairs:
    """Return the k outermost pairs once converged, or once it is clear that none lies further out than those known."""
    ritz = _after(run, k)
    while not run.exhausted and run.steps < max_products:
        order = np.argsort(-sign * ritz.values)[:k]
        if len(order) == k and bool((ritz.residuals[order] <= tolerance * ritz.scale).all()):
            break
        if beyond is not None:
            reach = missed_share(run.steps, run.size) * 2 * max(beyond.scale, ritz.scale)
            if sign * ritz.values[order[0]] + reach < sign * beyond.values[-1]:
                break
        ritz = _after(run, 1)
    chosen = np.argsort(-sign * ritz.values)[:k].tolist()
    return _Pairs(ritz.values[chosen], ritz.residuals[chosen], ritz.scale, run.vectors(ritz, chosen))


def _after(run: Lanczos, steps: int) -> Ritz:
    run.extend(steps)
    return run.ritz()


def _merged(first: _Pairs, second: _Pairs, sign: float, k: int) -> _Pairs:
    values = np.concatenate([first.values, second.values])
    residuals = np.concatenate([first.residuals, second.residuals])
    order = np.argsort(-sign * values)[:k]
    vectors = torch.cat([first.vectors, second.vectors], 1)[
        :, torch.as_tensor(order.copy(), device=first.vectors.device)
    ]
    return _Pairs(values[order], residuals[order], max(first.scale, second.scale), vectors)
