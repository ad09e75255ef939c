"""The numbers of a report in one call: ends of the spectrum, traces, sharpness, and what they must be read with."""

from __future__ import annotations

import math
from collections.abc import Callable

import xarray as xr

from lowland.core.params import ParameterSpace
from lowland.core.provenance import provenance
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import new_curvature
from lowland.curvature.eigenvalues import SpectrumEnds, extreme_eigenvalues
from lowland.curvature.hessian import Hessian
from lowland.curvature.sharpness import Sharpness, sam_sharpness
from lowland.curvature.trace import ProbeEstimate, filter_weighted_trace, trace

__all__ = ["survey"]


def survey(
    risk: EmpiricalRisk,
    *,
    trace_products: int = 30,
    directions: int = 32,
    max_products: int = 80,
    rho: float = 0.05,
    seed: int = 0,
    on_product: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Measure the curvature of a risk at the present weights.

    A curvature is never shown alone: train loss, accuracy and the norm of the weights on the same data and in the same
    batch-norm mode go with it. Graphs are shared by all products; the model is restored bit for bit.

    Args:
        risk: What is measured; use training data.
        trace_products: Products for the trace (Hutch++). Default 30.
        directions: Random filter-normalised directions for the filter-weighted trace. Default 32.
        max_products: Most products for both ends of the spectrum. Default 80.
        rho: Radius of the SAM sharpness. Default 0.05.
        seed: Seed of start vector, probes and directions.
        on_product: Called with the number of products so far.

    Returns:
        A curvature Dataset: ``eigenvalue`` and ``residual`` over ``pair`` (lambda_min, lambda_max), and the scalars
        ``lambda_max, lambda_min, lambda_min_converged, lambda_min_bound, trace, trace_se, filter_trace,
        filter_trace_se, filter_trace_spread, sam_sharpness, train_loss, train_accuracy, weight_norm``.

    Example:
        >>> import torch
        >>> data = [(torch.eye(4), torch.arange(4))]
        >>> result = survey(EmpiricalRisk(torch.nn.Linear(4, 4), torch.nn.CrossEntropyLoss(), data))
        >>> float(result.lambda_max) > 0
        True
    """
    hessian = Hessian(risk, on_product=on_product)
    with hessian:
        ends = extreme_eigenvalues(hessian, max_products=max_products, min_products=min(6, max_products), seed=seed)
        whole = trace(hessian, products=trace_products, seed=seed)
        weighted = filter_weighted_trace(hessian, directions=directions, seed=seed)
    return _dataset(risk, hessian, ends, whole, weighted, sam_sharpness(risk, rho=rho), seed)


def _dataset(
    risk: EmpiricalRisk,
    hessian: Hessian,
    ends: SpectrumEnds,
    whole: ProbeEstimate,
    weighted: ProbeEstimate,
    sharp: Sharpness,
    seed: int,
) -> xr.Dataset:
    measured = risk.evaluate()
    with risk.prepared():
        weight_norm = ParameterSpace(risk.model).norm()
    scalars: dict[str, float | bool] = {
        "lambda_max": ends.lambda_max,
        "lambda_max_converged": ends.converged_max,
        "lambda_min": ends.lambda_min,
        "lambda_min_converged": ends.converged_min,
        "lambda_min_bound": ends.bound_min,
        "trace": whole.value,
        "trace_se": whole.standard_error,
        "filter_trace": weighted.value,
        "filter_trace_se": weighted.standard_error,
        "filter_trace_spread": weighted.spread,
        "sam_sharpness": sharp.value,
        "train_loss": measured["loss"].value,
        "train_accuracy": measured["accuracy"].value if "accuracy" in measured else math.nan,
        "weight_norm": weight_norm,
    }
    return new_curvature(
        [ends.lambda_min, ends.lambda_max],
        [ends.residual_min, ends.residual_max],
        variables={name: ((), value) for name, value in scalars.items()},
        attrs={
            **provenance(),
            "risk": risk.describe(),
            "batch_norm": risk.batch_norm,
            "products": hessian.products,
            "products_by_part": {"ends": ends.products, "trace": whole.products, "filter_trace": weighted.products},
            "samples": measured["loss"].samples,
            "parameters": hessian.size,
            "seeds": {"krylov": seed, "probe": seed},
            "negative_curvature": ends.negative,
            "rho": sharp.rho,
            "sam_sharpness_raw": sharp.raw,
            "settings": {"trace": whole.method, "sam_sharpness": sharp.settings, "tolerance": ends.tolerance},
        },
    )
