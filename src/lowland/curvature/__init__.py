"""Curvature of an empirical risk: Hessian products, ends of the spectrum, traces and sharpness.

Everything is an operator with ``@``; estimators eat operators, or a risk (its Hessian is meant).
"""

from lowland.core.settings import SummaryOptions
from lowland.curvature.average_case import average_case_sharpness
from lowland.curvature.critical import CriticalSharpness, critical_sharpness
from lowland.curvature.density import SpectralDensity, spectral_density
from lowland.curvature.diagonal import DiagonalEstimate, diagonal, layer_traces
from lowland.curvature.eigenvalues import SpectrumEnds, extreme_eigenvalues
from lowland.curvature.fisher_rao import fisher_rao_norm
from lowland.curvature.gauss_newton import GaussNewton, gauss_newton_trace
from lowland.curvature.hessian import Hessian
from lowland.curvature.interop import ForeignOperator, from_curvlinops
from lowland.curvature.kinks import PictureCurvature, picture_curvature
from lowland.curvature.lanczos import Lanczos, Ritz
from lowland.curvature.measures import MEASURES, Measure, sharpness_table
from lowland.curvature.numbers import NUMBERS, Number, number
from lowland.curvature.operator import AbstractOperator, MatrixOperator, ScaledOperator
from lowland.curvature.parts import curvature_by_part, parts
from lowland.curvature.probe import Convexity, convexity_summary
from lowland.curvature.protocol import logits_normalized, protocol_risk
from lowland.curvature.sharpness import Sharpness, sam_sharpness
from lowland.curvature.stability import Stability, measurement_interval, stability, warm_started_extremes
from lowland.curvature.summarize import summarize
from lowland.curvature.top import TopEigenvalues, top_eigenvalues
from lowland.curvature.trace import ProbeEstimate, filter_weighted_trace, trace
from lowland.curvature.worst_case import WorstCase, worst_case_sharpness

__all__ = ["summarize", "SummaryOptions", "extreme_eigenvalues", "top_eigenvalues", "SpectrumEnds"]
__all__ += ["TopEigenvalues", "trace", "filter_weighted_trace", "picture_curvature"]
__all__ += ["PictureCurvature", "layer_traces", "curvature_by_part", "parts", "diagonal"]
__all__ += ["spectral_density", "stability", "warm_started_extremes", "measurement_interval"]
__all__ += ["Convexity", "convexity_summary", "ProbeEstimate", "DiagonalEstimate"]
__all__ += ["SpectralDensity", "Stability", "sam_sharpness", "average_case_sharpness"]
__all__ += ["worst_case_sharpness", "fisher_rao_norm", "critical_sharpness", "sharpness_table"]
__all__ += ["protocol_risk", "logits_normalized", "NUMBERS", "Number", "number", "MEASURES"]
__all__ += ["Measure", "Sharpness", "CriticalSharpness", "WorstCase", "Hessian", "GaussNewton"]
__all__ += ["gauss_newton_trace", "AbstractOperator", "MatrixOperator", "ScaledOperator"]
__all__ += ["ForeignOperator", "from_curvlinops", "Lanczos", "Ritz"]
