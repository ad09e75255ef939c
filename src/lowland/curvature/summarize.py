"""The numbers of a report in one call: ends of the spectrum, traces, sharpness, and what they must be read with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import xarray as xr

from lowland.core.params import ParameterSpace
from lowland.core.provenance import provenance
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import new_curvature
from lowland.curvature.density import spectral_density
from lowland.curvature.diagonal import layer_traces
from lowland.curvature.eigenvalues import SpectrumEnds, extreme_eigenvalues
from lowland.curvature.hessian import Hessian
from lowland.curvature.measures import sharpness_table
from lowland.curvature.sharpness import Sharpness, sam_sharpness
from lowland.curvature.top import top_eigenvalues
from lowland.curvature.trace import ProbeEstimate, filter_weighted_trace, trace

__all__ = ["summarize"]


def summarize(
    risk: EmpiricalRisk,
    *,
    trace_products: int = 30,
    directions: int = 32,
    max_products: int = 80,
    rho: float = 0.05,
    top: int = 0,
    density_probes: int = 0,
    layer_probes: int = 0,
    sharpness: bool = False,
    seed: int = 0,
    on_product: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Measure the curvature of a risk at the present weights.

    A curvature is never shown alone: train loss, accuracy and the norm of the weights on the same data and in the same
    batch-norm mode go with it. Graphs are shared by all products; the model is restored bit for bit.

    Args:
        risk: What is measured; use training data.
        trace_products: Products for the trace (Hutch++). Default 30.
        directions: Random filter-normalized directions for the filter-weighted trace. Default 32.
        max_products: Most products for both ends of the spectrum. Default 80.
        rho: Radius of the SAM sharpness. Default 0.05.
        top: Also the largest so many eigenvalues: ``top_eigenvalue`` and ``top_residual`` over ``rank``. Default 0.
        density_probes: Also the density by so many start vectors of 40 products: ``density`` and ``density_se`` over
            ``grid``, with ``eigenvalue_grid``. Default 0.
        layer_probes: Also the trace of every tensor's block by so many probes: ``layer_trace`` and ``layer_trace_se``
            over ``layer``. Default 0.
        sharpness: Also the table of `sharpness_table`, over ``measure``. Default False.
        seed: Seed of start vector, probes and directions.
        on_product: Called with the number of products so far.

    Returns:
        A curvature Dataset: ``eigenvalue`` and ``residual`` over ``pair`` (lambda_min, lambda_max), and the scalars
        ``lambda_max, lambda_min, lambda_min_converged, lambda_min_bound, trace, trace_se, filter_trace,
        filter_trace_se, filter_trace_spread, sam_sharpness, train_loss, train_accuracy, weight_norm``.

    Example:
        >>> import torch
        >>> data = [(torch.eye(4), torch.arange(4))]
        >>> result = summarize(EmpiricalRisk(torch.nn.Linear(4, 4), torch.nn.CrossEntropyLoss(), data))
        >>> float(result.lambda_max) > 0
        True
    """
    hessian = Hessian(risk, on_product=on_product)
    with hessian:
        ends = extreme_eigenvalues(hessian, max_products=max_products, min_products=min(6, max_products), seed=seed)
        whole = trace(hessian, products=trace_products, seed=seed)
        weighted = filter_weighted_trace(hessian, directions=directions, seed=seed)
        more = _more(hessian, top, density_probes, layer_probes, seed)
    if sharpness:
        more |= _measures(risk, seed)
    result = _dataset(risk, hessian, ends, whole, weighted, sam_sharpness(risk, rho=rho), seed)
    return result.assign(more)


def _more(hessian: Hessian, top: int, density_probes: int, layer_probes: int, seed: int) -> dict[str, Any]:
    """Return the parts that were asked for beyond the numbers of a report, as variables."""
    found: dict[str, Any] = {}
    if top:
        pairs = top_eigenvalues(hessian, top, seed=seed)
        found |= {"top_eigenvalue": ("rank", pairs.values), "top_residual": ("rank", pairs.residuals)}
        found["top_checked"] = ((), pairs.checked)
    if density_probes:
        curve = spectral_density(hessian, probes=density_probes, seed=seed).dataset()
        found |= {name: curve[name].variable for name in ("eigenvalue_grid", "density", "density_se")}
    if layer_probes:
        layers = layer_traces(hessian, probes=layer_probes, seed=seed)
        found["layer"] = ("layer", list(layers))
        found["layer_trace"] = ("layer", [layer.value for layer in layers.values()])
        found["layer_trace_se"] = ("layer", [layer.standard_error for layer in layers.values()])
    return found


def _measures(risk: EmpiricalRisk, seed: int) -> dict[str, Any]:
    table = sharpness_table(risk, seed=seed)
    settings = {name: table.attrs[name] for name in ("samples", "batch_size", "apgd_steps", "draws", "mode")}
    names = ("measure", "sharpness", "sharpness_se", "rho", "winner")
    found: dict[str, Any] = {name: table[name].variable for name in names}
    found["sharpness"].attrs.update(settings)
    return found


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
