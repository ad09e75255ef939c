"""Curvature of an empirical risk: Hessian products, ends of the spectrum, traces and sharpness.

Everything is an operator with ``@``; estimators eat operators, or a risk (its Hessian is meant).
"""

from lowland.curvature.eigenvalues import (
    SpectrumEnds,
    TopEigenvalues,
    extreme_eigenvalues,
    top_eigenvalues,
)
from lowland.curvature.hessian import Hessian
from lowland.curvature.lanczos import Lanczos, Ritz
from lowland.curvature.operator import AbstractOperator, MatrixOperator, ScaledOperator
from lowland.curvature.sharpness import Sharpness, sam_sharpness
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
    "ProbeEstimate",
    "sam_sharpness",
    "Sharpness",
    "Hessian",
    "AbstractOperator",
    "MatrixOperator",
    "ScaledOperator",
    "Lanczos",
    "Ritz",
]
