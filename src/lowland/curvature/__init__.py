"""Curvature of an empirical risk: Hessian products, ends of the spectrum, traces and sharpness.

Everything is an operator with ``@``; estimators eat operators, or a risk (its Hessian is meant).
"""

from lowland.curvature.density import SpectralDensity, spectral_density
from lowland.curvature.diagonal import DiagonalEstimate, diagonal, layer_traces
from lowland.curvature.eigenvalues import (
    SpectrumEnds,
    TopEigenvalues,
    extreme_eigenvalues,
    top_eigenvalues,
)
from lowland.curvature.gauss_newton import GaussNewton
from lowland.curvature.hessian import Hessian
from lowland.curvature.lanczos import Lanczos, Ritz
from lowland.curvature.operator import AbstractOperator, MatrixOperator, ScaledOperator
from lowland.curvature.sharpness import Sharpness, sam_sharpness
from lowland.curvature.stability import Stability, interval, stability, warm_started_extremes
from lowland.curvature.survey import survey
from lowland.curvature.trace import ProbeEstimate, filter_weighted_trace, trace

__all__ = [
    "survey",
    "extreme_eigenvalues",
    "top_eigenvalues",
    "SpectrumEnds",
    "TopEigenvalues",
    "trace",
    "filter_weighted_trace",
    "layer_traces",
    "diagonal",
    "spectral_density",
    "stability",
    "warm_started_extremes",
    "interval",
    "ProbeEstimate",
    "DiagonalEstimate",
    "SpectralDensity",
    "Stability",
    "sam_sharpness",
    "Sharpness",
    "Hessian",
    "GaussNewton",
    "AbstractOperator",
    "MatrixOperator",
    "ScaledOperator",
    "Lanczos",
    "Ritz",
]
