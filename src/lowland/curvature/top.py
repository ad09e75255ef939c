"""Several eigenpairs from one end of the spectrum, with their multiplicity."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lowland.core.errors import require
from lowland.core.facts import ShowsFacts
from lowland.curvature.bounds import reach
from lowland.curvature.counted import counted
from lowland.curvature.eigenvalues import Source, as_operator
from lowland.curvature.lanczos import Lanczos

_Floats: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]

_SHOWN: Final = 5
"""Most values in its short form."""


@dataclass(repr=False, frozen=True, slots=True)
class TopEigenvalues(ShowsFacts):
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

    values: _Floats
    residuals: _Floats
    converged: np.ndarray[tuple[int], np.dtype[np.bool_]]
    scale: float
    products: int
    checked: bool
    vectors: Tensor = field(repr=False, compare=False)

    def _facts(self) -> dict[str, str]:
        values = ", ".join(f"{value:.4g}" for value in self.values[:_SHOWN])
        state = "all" if self.converged.all() else f"{int(self.converged.sum())} of {len(self.values)}"
        return {
            "": values + ", ..." * (len(self.values) > _SHOWN),
            "converged": state,
            "checked": "yes" if self.checked else "no",
            "products": str(self.products),
        }


def top_eigenvalues(
    source: Source,
    k: int = 5,
    *,
    which: Literal["largest", "smallest"] = "largest",
    tolerance: float = 1e-3,
    max_products: int = 200,
    check: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> TopEigenvalues:
    """Return the k outermost eigenpairs of one end.

    One Krylov run sees only one vector of a degenerate eigenvalue. With ``check`` a second run, orthogonal to the pairs
    found, looks for further copies and for what was missed, until it finds nothing further out.

    Memory: a set of weights for each product, room for a quarter more, and a dozen.

    Args:
        source: A risk (its Hessian) or an operator.
        k: How many pairs, at most the dimension.
        which: Which end.
        tolerance: Residual relative to the spectral scale. Default 1e-3.
        max_products: Most products for each run. Default 200.
        check: Whether to look for missed pairs. Default True.
        seed: Seed of the start vectors.
        progress: Show a bar, in a terminal or a notebook. Default False.

    Example:
        >>> from lowland.curvature.operator import MatrixOperator
        >>> spectrum = torch.tensor([3.0, 3.0, 1.0, 0.5, 0.0], dtype=torch.float64)
        >>> top_eigenvalues(MatrixOperator(torch.diag(spectrum)), 3).values.round(6).tolist()
        [3.0, 3.0, 1.0]
    """
    operator = as_operator(source)
    require(1 <= k <= operator.size, "k", f"must lie between 1 and the dimension {operator.size}", k)
    require(which in ("largest", "smallest"), "which", 'must be "largest" or "smallest"', which)
    require(0 < tolerance < 1, "tolerance", "must lie between 0 and 1", tolerance)
    sign = 1.0 if which == "largest" else -1.0
    before = operator.products
    with operator, counted(operator, progress, "top eigenvalues", max_products, bound=True):
        found = _outermost(Lanczos(operator, seed=seed), k, sign, tolerance, max_products)
        checked = check and k == operator.size
        for again in range(1, k + 1 if check and not checked else 0):
            run = Lanczos(operator, against=found.vectors, seed=seed, stream=again)
            more = _outermost(run, 1, sign, tolerance, max_products, beyond=found)
            checked = sign * more.values[0] <= sign * found.values[-1] + more.residuals[0]
            if checked:
                break
            values = np.concatenate([found.values, more.values])
            residuals = np.concatenate([found.residuals, more.residuals])
            order = np.argsort(-sign * values)[:k]
            columns = torch.as_tensor(order.copy(), device=found.vectors.device)
            vectors = torch.cat([found.vectors, more.vectors], 1)[:, columns]
            found = _pairs(values[order], residuals[order], max(found.scale, more.scale), vectors, tolerance)
    return replace(found, products=operator.products - before, checked=bool(checked))


def _pairs(values: _Floats, residuals: _Floats, scale: float, vectors: Tensor, tolerance: float) -> TopEigenvalues:
    return TopEigenvalues(values, residuals, residuals <= tolerance * scale, scale, 0, False, vectors)


def _outermost(
    run: Lanczos, k: int, sign: float, tolerance: float, max_products: int, *, beyond: TopEigenvalues | None = None
) -> TopEigenvalues:
    """Return the k outermost pairs once converged, or once it is clear that none lies further out than those known."""
    run.extend(k)
    while True:
        ritz = run.ritz()
        order = np.argsort(-sign * ritz.values)[:k]
        converged = len(order) == k and bool((ritz.residuals[order] <= tolerance * ritz.scale).all())
        if run.exhausted or run.steps >= max_products or converged:
            break
        if beyond is not None:
            further = reach(run, ritz, upper=sign > 0)
            if sign * ritz.values[order[0]] + further < sign * beyond.values[-1]:
                break
        run.extend()
    return _pairs(ritz.values[order], ritz.residuals[order], ritz.scale, run.vectors(ritz, order.tolist()), tolerance)
