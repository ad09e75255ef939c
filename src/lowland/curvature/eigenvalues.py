"""Both ends of the spectrum from one Krylov run, with a residual for every number.

What "converged" means for the lower end: on a trained net the smallest eigenvalue is about one per cent of the largest,
so that a residual measured against the largest says nothing about it. It has its own tolerance, relative to itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

from torch import Tensor

from lowland.core.errors import InputError, require
from lowland.core.facts import ShowsFacts, with_error
from lowland.core.risk import EmpiricalRisk
from lowland.curvature.bounds import reach
from lowland.curvature.counted import counted
from lowland.curvature.hessian import Hessian
from lowland.curvature.lanczos import Lanczos, Ritz
from lowland.curvature.operator import AbstractOperator

Source: TypeAlias = "EmpiricalRisk | AbstractOperator"
"""A risk (its Hessian is meant) or any operator."""

_CONFIRM_LEAST: Final = 3
"""Fewest products that confirm a result, however short the run."""
_LOUD: Final = 0.5
"""A random part this long, beside the given one, shows what that lacks so early that one product confirms."""
_ROUNDINGS: Final = 10.0
"""Own errors of the operator by which an eigenvalue may be moved; 736 convex risks took up to 6.6."""
_LOWER_RELATIVE: Final = 0.1
_LOWER_ABSOLUTE: Final = 1e-4
"""The lower end has converged if its residual is at most max(relative * |lambda_min|, absolute * scale)."""
_SMALL: Final = 0.01
"""Share of the scale, as the lower end of a trained net has it, to which the missing part of a smaller end is held."""


def as_operator(source: Source) -> AbstractOperator:
    """Return an operator as it is, and the Hessian of a risk."""
    advice = "wrap a curvlinops operator by lowland.curvature.from_curvlinops, a matrix by MatrixOperator"
    if isinstance(source, AbstractOperator):
        return source
    if isinstance(source, EmpiricalRisk):
        return Hessian(source)
    raise InputError("source", "must be an EmpiricalRisk or an operator", type(source).__name__, advice)


@dataclass(repr=False, frozen=True, slots=True)
class SpectrumEnds(ShowsFacts):
    """The largest and the smallest eigenvalue with everything needed to judge them.

    Args:
        lambda_max: Largest Ritz value; the largest eigenvalue is at least this.
        lambda_min: Smallest Ritz value; the smallest eigenvalue is at most this.
        residual_max: Norm of ``A v - lambda v`` for the upper pair: an eigenvalue lies within it.
        residual_min: The same for the lower pair.
        converged_max: Residual at most ``tolerance * scale``.
        converged_min: Residual at most ``max(0.1 |lambda_min|, 1e-4 scale)``.
        bound_min: ``|lambda_min|`` is at most this with probability 0.99 over the random start (see `reach`).
        scale: Largest absolute Ritz value.
        products: Number of products taken.
        tolerance: The tolerance asked for.
        seed: Seed of the start vector.
        warm: Whether the run started from given vectors.
        orthogonality: Largest deviation of the Krylov basis from orthonormality.
        vectors: Eigenvectors, shape [n, 2 * pairs]: upper, lower, then the next ones inwards in the same order.
        rounding: How far rounding in the products alone may move an eigenvalue.
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
    rounding: float = 0.0

    def _facts(self) -> dict[str, str]:
        ends = {
            "lambda_max": (self.lambda_max, self.residual_max, self.converged_max),
            "lambda_min": (self.lambda_min, self.residual_min, self.converged_min),
        }
        shown = {
            name: with_error(value, residual) + ("" if converged else " (not converged)")
            for name, (value, residual, converged) in ends.items()
        }
        return shown | {"products": str(self.products)}

    @property
    def ratio(self) -> float:
        """``|lambda_min| / |lambda_max|``, what the convexity map of Li et al. 2018 (section 6) shows."""
        return abs(self.lambda_min) / abs(self.lambda_max) if self.lambda_max != 0.0 else math.nan

    @property
    def negative(self) -> Literal["negative", "undecided", "none found"]:
        """Whether there is negative curvature: beyond residual and rounding, undecided, or none found if converged."""
        if self.lambda_min < -(self.residual_min + self.rounding):
            return "negative"
        return "none found" if self.converged_min else "undecided"


def extreme_eigenvalues(
    source: Source,
    *,
    tolerance: float = 1e-3,
    lower_tolerance: float = 0.05,
    missed: float = 0.05,
    confirm: float = 0.1,
    max_products: int = 80,
    min_products: int = 6,
    start: Tensor | None = None,
    noise: float = 0.1,
    pairs: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> SpectrumEnds:
    """Return both ends of the spectrum from one Krylov run.

    Stops as soon as both residuals are small enough; what is not by then is marked as not converged.

    Memory: a set of weights for each product, room for a quarter more, and a dozen.

    Args:
        source: A risk (its Hessian) or an operator.
        tolerance: Residual of the upper pair relative to the spectral scale. Default 1e-3.
        lower_tolerance: Stop when the residual of the lower pair is at most this times ``|lambda_min|``, or 1e-4 of the
            scale. The error of the value is about its square over the gap to the next one. Default 0.05, half of what
            counts as converged.
        missed: Of a cold start: go on until, with probability 0.99 over it, the smallest eigenvalue lies at most this
            times ``|lambda_min|``, or times 1 % of the scale, below the one found (see `reach`): an eigenvector that
            the start hardly holds shows up late, after the run has converged to its neighbor. Default 0.05; 0.02
            takes about three products more (20 where nothing is negative), infinity omits it.
        confirm: Of a warm start: both residuals must stay small for this share of further products, at least 3, and
            the lower one must not grow meanwhile. Default 0.1; 0 omits it. With a ``noise`` of 0.5 or more at least 1,
            counted from where the lower end counts as converged.
        max_products: Most products to spend. Default 80.
        min_products: Fewest products; guards against stopping on a lucky start. Default 6.
        start: Warm start: approximate eigenvectors, shape [n] or [n, k].
        noise: Random part of a warm start, see `Lanczos`. Default 0.1; 1 finds more of what the given vectors lack,
            and mostly takes fewer products, since it needs fewer to confirm.
        pairs: Ritz vectors to return from each end; the inner ones need not have converged. Default 1.
        seed: Seed of the random vectors.
        progress: Show a bar, in a terminal or a notebook. Default False.

    Example:
        >>> import torch
        >>> from lowland.curvature.operator import MatrixOperator
        >>> ends = extreme_eigenvalues(MatrixOperator(torch.diag(torch.arange(-1.0, 9.0, dtype=torch.float64))))
        >>> round(ends.lambda_max, 6), round(ends.lambda_min, 6), ends.negative
        (8.0, -1.0, 'negative')
    """
    require(0 < tolerance < 1, "tolerance", "must lie between 0 and 1", tolerance)
    if not 0 < lower_tolerance <= _LOWER_RELATIVE:
        raise InputError("lower_tolerance", f"must be positive and at most {_LOWER_RELATIVE}", lower_tolerance)
    require(missed > 0, "missed", "must be positive", missed)
    require(0 <= confirm <= 1, "confirm", "must lie between 0 and 1", confirm)
    if not 1 <= min_products <= max_products:
        raise InputError("max_products", "must be at least `min_products`, and that at least 1", max_products)
    operator = as_operator(source)
    with operator, counted(operator, progress, "ends of the spectrum", max_products, bound=True):
        run = Lanczos(operator, start=start, noise=noise, seed=seed)
        run.extend(min_products)
        ritz, since, residual = run.ritz(), None, 0.0
        # what is missed shows by its random share times what the run makes of it: products cost, noise hardly does
        loud = start is not None and noise >= _LOUD
        settled, least = (_LOWER_RELATIVE, 1) if loud else (lower_tolerance, _CONFIRM_LEAST)
        while not run.exhausted and run.steps < max_products:
            if not all(_converged(ritz, tolerance, settled)):
                since = None
            elif start is None:
                if reach(run, ritz) <= missed * max(abs(float(ritz.values[0])), _SMALL * ritz.scale):
                    break
            elif since is None:
                since, residual = run.steps, float(ritz.residuals[0])
            long_enough = since is not None and run.steps >= since + _further(since, confirm, least)
            small = long_enough and all(_converged(ritz, tolerance, lower_tolerance))
            if small and float(ritz.residuals[0]) <= max(residual, 0.5 * _lower_limit(ritz, lower_tolerance)):
                break
            run.extend()
            ritz = run.ritz()
        ends = _ends(run, ritz, tolerance, seed, pairs, warm=start is not None)
        if ends.negative == "negative":  # is it, or do terms that cancel inside the products say so?
            ends = replace(ends, rounding=max(ends.rounding, operator.rounding()))
    return ends


def _further(since: int, confirm: float, least: int) -> int:
    """Return how many products more a warm start takes to confirm what it found."""
    return max(least, math.ceil(confirm * since)) if confirm > 0 else 0


def _converged(ritz: Ritz, tolerance: float, lower_tolerance: float = _LOWER_RELATIVE) -> tuple[bool, bool]:
    """Return whether the upper and the lower end have converged, each by its own rule."""
    lower = ritz.residuals[0] <= _lower_limit(ritz, lower_tolerance)
    return bool(ritz.residuals[-1] <= tolerance * ritz.scale), bool(lower)


def _lower_limit(ritz: Ritz, lower_tolerance: float) -> float:
    return max(lower_tolerance * abs(float(ritz.values[0])), _LOWER_ABSOLUTE * ritz.scale)


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
        bound_min=max(abs(bottom), abs(bottom - reach(run, ritz))),
        scale=ritz.scale,
        products=run.steps,
        tolerance=tolerance,
        seed=seed,
        warm=warm,
        orthogonality=orthogonality,
        vectors=run.vectors(ritz, [k for i in range(min(pairs, run.steps)) for k in (run.steps - 1 - i, i)]),
        rounding=_ROUNDINGS * run.rounding(ritz.values),
    )
