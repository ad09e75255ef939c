"""Several eigenpairs from one end of the spectrum, with their multiplicity."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lowland.core.errors import InputError
from lowland.curvature.bounds import missed_share
from lowland.curvature.eigenvalues import Source, as_operator
from lowland.curvature.lanczos import Lanczos, Ritz

__all__ = ["TopEigenvalues", "top_eigenvalues"]


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
