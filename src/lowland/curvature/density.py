"""The density of eigenvalues, by stochastic Lanczos quadrature.

A Krylov run from a random unit vector v gives nodes theta_i and weights w_i that sum to one, with
``v^T f(A) v = sum_i w_i f(theta_i)`` exactly for polynomials f up to degree 2 m - 1; its mean over v is ``tr f(A) / n``
(Golub and Welsch 1969; Ubaru, Chen and Saad 2017; for networks Ghorbani, Krishnan and Xiao 2019, algorithm 1). The
density shows each node as a Gaussian; the band is the standard error over start vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lowland.core.errors import check_positive, require
from lowland.core.facts import ShowsFacts
from lowland.core.schema import new_curvature
from lowland.curvature.counted import counted
from lowland.curvature.eigenvalues import Source, as_operator
from lowland.curvature.lanczos import Lanczos, Ritz

if TYPE_CHECKING:
    import xarray as xr

_FOUND: Final = 1e-6
"""Residual, as a share of the scale, below which a node is an eigenvalue."""


@dataclass(repr=False, frozen=True, slots=True)
class SpectralDensity(ShowsFacts):
    """A density of eigenvalues with its band.

    Args:
        grid: Where it was taken: eigenvalues, or ``log10 |eigenvalue|``; shape [points].
        density: Share of eigenvalues per unit of the grid, shape [points]; it integrates to one.
        standard_error: Over start vectors, shape [points]; NaN for one.
        scale: ``"linear"`` or ``"log"``.
        width: Standard deviation of the Gaussians, in units of the grid.
        runs: Nodes, weights and residuals of each start vector.
        size: Dimension n.
        products: Number of products.
        seed: Seed of the start vectors.
    """

    grid: NDArray[np.float64]
    density: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    scale: Literal["linear", "log"]
    width: float
    runs: tuple[Ritz, ...] = field(repr=False)
    size: int
    products: int
    seed: int

    def _facts(self) -> dict[str, str]:
        ends = f"{self.grid[0]:.4g} to {self.grid[-1]:.4g}"
        counts = {"start vectors": str(len(self.runs)), "products": str(self.products)}
        return {"eigenvalues": str(self.size), f"{self.scale} grid": ends, **counts}

    @property
    def lambda_max(self) -> float:
        """Largest Ritz value of all runs."""
        return max(float(run.values[-1]) for run in self.runs)

    @property
    def lambda_min(self) -> float:
        """Smallest Ritz value of all runs."""
        return min(float(run.values[0]) for run in self.runs)

    def mean(self, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> tuple[float, float]:
        """Return the mean of a function over all eigenvalues, ``tr f(A) / n``, with its standard error.

        Args:
            function: f, applied to an array of eigenvalues.

        Returns:
            Value and standard error over start vectors, at least what a single eigenvalue far from the others makes:
            few start vectors that all hardly hold it agree by chance.
        """
        values = np.array([float(run.weights @ function(run.values)) for run in self.runs])
        mean, count = float(values.mean()), len(values)
        if count < 2:
            return mean, math.nan
        # For v uniform on the sphere, Var v^T F v = 2 / (n + 2) * (tr F^2 / n - (tr F / n)^2), and an eigenvalue
        # that was found (its pair has converged) has the weight 1/n or more in tr F^2 / n, whatever v holds of it.
        found = [function(run.values[run.residuals <= _FOUND * run.scale]) for run in self.runs]
        apart = max((float(((part - mean) ** 2).max()) for part in found if part.size), default=0.0)
        least = math.sqrt(2 / (self.size + 2) * apart / self.size / count)
        return mean, max(float(values.std(ddof=1)) / math.sqrt(count), least if self.size > 1 else 0.0)

    def interval(
        self, function: Callable[[NDArray[np.float64]], NDArray[np.float64]], level: float = 0.95
    ) -> tuple[float, float]:
        """Return both ends of a confidence interval of `mean` by t quantiles, since start vectors are few; NaN for one.

        On planted spectra of 200 eigenvalues, flat ones and with one or ten outliers, 95 % intervals of 2 to 8 start
        vectors covered 0.93 to 1.00; 1.96 standard errors cover 0.70 with 2 vectors and 0.91 with 8.
        """
        from scipy.special import stdtrit  # slow to import; most workers do without

        mean, error = self.mean(function)
        half = float(stdtrit(len(self.runs) - 1, 0.5 + level / 2)) * error if len(self.runs) > 1 else math.nan
        return mean - half, mean + half

    def dataset(self) -> xr.Dataset:
        """Return the density as a curvature Dataset with the dims ``grid`` and ``pair`` (the two ends)."""
        low, high = min(self.runs, key=lambda run: run.values[0]), max(self.runs, key=lambda run: run.values[-1])
        return new_curvature(
            [float(low.values[0]), float(high.values[-1])],
            [float(low.residuals[0]), float(high.residuals[-1])],
            variables={
                "eigenvalue_grid": ("grid", self.grid),
                "density": ("grid", self.density),
                "density_se": ("grid", self.standard_error),
            },
            attrs={
                "scale": self.scale,
                "width": self.width,
                "parameters": self.size,
                "products": self.products,
                "probes": len(self.runs),
                "seeds": {"krylov": self.seed},
            },
        )


def spectral_density(
    source: Source,
    *,
    probes: int = 8,
    steps: int = 40,
    scale: Literal["linear", "log"] = "linear",
    points: int = 512,
    width: float | None = None,
    floor: float = 1e-6,
    seed: int = 0,
    progress: bool = False,
) -> SpectralDensity:
    """Return the density of eigenvalues.

    Memory: a set of weights for each of `steps`, room for a quarter more, and a dozen.

    Args:
        source: A risk (its Hessian) or an operator.
        probes: Number of random start vectors; the band needs at least 2. Default 8.
        steps: Products for each of them. Default 40.
        scale: ``"linear"``, or ``"log"`` for the density of ``log10 |eigenvalue|``.
        points: Points of the grid. Default 512.
        width: Standard deviation of the Gaussians in units of the grid. Default: for a grid of length R,
            ``R / (steps - 1) / sqrt(8 ln 3)`` (Papyan 2019, section D: neighboring nodes melt into one another).
        floor: On the logarithmic scale, eigenvalues below this share of the largest count as this small. Default 1e-6.
        seed: Seed of the start vectors.
        progress: Show a bar, in a terminal or a notebook. Default False.

    Example:
        >>> import torch
        >>> from lowland.curvature.operator import MatrixOperator
        >>> found = spectral_density(MatrixOperator(torch.eye(4, dtype=torch.float64)), probes=2, width=0.1)
        >>> round(float(found.mean(lambda x: x)[0]), 6)
        1.0
    """
    for name, value, least in (("probes", probes, 1), ("steps", steps, 2), ("points", points, 2)):
        require(value >= least, name, f"must be at least {least}", value)
    require(scale in ("linear", "log"), "scale", 'must be "linear" or "log"', scale)
    check_positive(width=width)
    require(0 < floor < 1, "floor", "must lie between 0 and 1", floor)
    operator = as_operator(source)
    before, runs = operator.products, []
    with operator, counted(operator, progress, "spectral density", probes * steps):
        for probe in range(probes):
            run = Lanczos(operator, seed=seed, stream=probe)
            run.extend(steps)
            runs.append(run.ritz())
    smallest, nodes = floor * max(run.scale for run in runs) or 1.0, [run.values for run in runs]
    if scale == "log":
        nodes = [np.log10(np.maximum(np.abs(values), smallest)) for values in nodes]
    low, high = min(float(part.min()) for part in nodes), max(float(part.max()) for part in nodes)
    length = (high - low) or max(abs(high), 1.0)
    sigma = width if width is not None else length / (steps - 1) / math.sqrt(8 * math.log(3))
    grid = np.linspace(low - 4 * sigma, high + 4 * sigma, points)
    bells = [np.exp(-0.5 * ((grid[:, None] - part) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi)) for part in nodes]
    curves = np.stack([bell @ run.weights for bell, run in zip(bells, runs, strict=True)])
    error = curves.std(0, ddof=1) / math.sqrt(probes) if probes > 1 else np.full(points, math.nan)
    return SpectralDensity(
        grid, curves.mean(0), error, scale, sigma, tuple(runs), operator.size, operator.products - before, seed
    )
