"""The numbers of a report in one call: ends of the spectrum, traces, sharpness, and what they must be read with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lowland.core.names import check_options
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import new_curvature
from lowland.core.settings import SummaryOptions
from lowland.curvature.counted import counted
from lowland.curvature.density import spectral_density
from lowland.curvature.diagonal import layer_traces
from lowland.curvature.eigenvalues import SpectrumEnds, extreme_eigenvalues
from lowland.curvature.hessian import Hessian
from lowland.curvature.kinks import PictureCurvature, picture_curvature
from lowland.curvature.measures import read_with, sharpness_table
from lowland.curvature.numbers import measured_numbers, with_error
from lowland.curvature.parts import curvature_by_part
from lowland.curvature.sharpness import Sharpness, sam_sharpness
from lowland.curvature.top import top_eigenvalues
from lowland.curvature.trace import ProbeEstimate, trace

if TYPE_CHECKING:
    import xarray as xr


def summarize(
    risk: EmpiricalRisk,
    options: SummaryOptions = SummaryOptions(),
    *,
    on_product: Callable[[int], None] | None = None,
    progress: bool = False,
    **changes: Any,
) -> xr.Dataset:
    """Measure the curvature of a risk at the present weights.

    A curvature is never shown alone: train loss, accuracy and the norm of the weights on the same data and in the same
    batch-norm mode go with it. Graphs are shared by all products; the model is restored bit for bit.

    Args:
        risk: What is measured; use training data.
        options: What is measured beyond that, and how hard it tries.
        on_product: Called with the number of products so far.
        progress: Show a bar, in a terminal or a notebook. Default False.
        **changes: Fields of the options by name, such as ``top=5``.

    Returns:
        A curvature Dataset: ``eigenvalue`` and ``residual`` over ``pair`` (lambda_min, lambda_max), and the scalars
        ``lambda_max, lambda_min, lambda_min_converged, lambda_min_bound, trace, trace_se, filter_trace,
        filter_trace_se, filter_trace_spread, picture_curvature, kinks, sam_sharpness, train_loss, train_accuracy,
        weight_norm``, and those of `lowland.curvature.NUMBERS`; ``_se`` is a standard error.

    Example:
        >>> import torch
        >>> data = [(torch.eye(4), torch.arange(4))]
        >>> result = summarize(EmpiricalRisk(torch.nn.Linear(4, 4), torch.nn.CrossEntropyLoss(), data))
        >>> float(result.lambda_max) > 0
        True
    """
    check_options("call of", "summarize", SummaryOptions, changes)
    options = replace(options, **changes)
    hessian, seed, most = Hessian(risk, on_product=on_product), options.seed, options.max_products
    with hessian, counted(hessian, progress, "curvature", _most_products(options), bound=True):
        ends = extreme_eigenvalues(hessian, max_products=most, min_products=min(6, most), seed=seed)
        whole = trace(hessian, products=options.trace_products, seed=seed)
        more = _more(hessian, options)
        picture = picture_curvature(hessian, spacing=options.spacing, directions=options.directions, seed=seed)
    if options.sharpness:
        more |= _measures(risk, seed)
    sharp = sam_sharpness(risk, rho=options.rho)
    beside, attrs = read_with(risk)
    products = {"ends": ends.products, "trace": whole.products, "filter_trace": picture.trace.products}
    settings = {"trace": whole.method, "sam_sharpness": sharp.settings, "tolerance": ends.tolerance}
    attrs |= {
        "products": hessian.products,
        "products_by_part": products,
        "parameters": hessian.size,
        "seeds": {"krylov": seed, "probe": seed},
        "negative_curvature": ends.negative,
        "rho": sharp.rho,
        "sam_sharpness_raw": sharp.raw,
        "settings": settings,
    }
    result = new_curvature(
        [ends.lambda_min, ends.lambda_max],
        [ends.residual_min, ends.residual_max],
        variables=_numbers(ends, whole, picture, sharp) | beside,
        attrs=attrs,
    )
    return result.assign(more | measured_numbers(risk))


def _most_products(options: SummaryOptions) -> int:
    """Return a bound on the products, as long as parts are not asked for."""
    more = 200 * bool(options.top) + 40 * options.density_probes + options.layer_probes
    return options.max_products + options.trace_products + options.directions + more


def _more(hessian: Hessian, options: SummaryOptions) -> dict[str, Any]:
    """Return the parts that were asked for beyond the numbers of a report, as variables."""
    found: dict[str, Any] = {}
    if options.top:
        pairs = top_eigenvalues(hessian, options.top, seed=options.seed)
        found |= {"top_eigenvalue": ("rank", pairs.values), "top_residual": ("rank", pairs.residuals)}
        found["top_checked"] = ((), pairs.checked)
    if options.density_probes:
        curve = spectral_density(hessian, probes=options.density_probes, seed=options.seed).dataset()
        found |= {name: curve[name].variable for name in ("eigenvalue_grid", "density", "density_se")}
    if options.layer_probes:
        layers = layer_traces(hessian, probes=options.layer_probes, seed=options.seed)
        found["layer"] = ("layer", list(layers))
        found["layer_trace"] = ("layer", [layer.value for layer in layers.values()])
        found["layer_trace_se"] = ("layer", [layer.standard_error for layer in layers.values()])
    if options.by:
        table = curvature_by_part(
            hessian.risk, options.by, max_products=options.max_products, seed=options.seed, hessian=hessian
        )
        found |= {str(name): table[name].variable for name in ("part", *table.data_vars)}
    return found


def _measures(risk: EmpiricalRisk, seed: int) -> dict[str, Any]:
    table = sharpness_table(risk, seed=seed)
    settings = ("samples", "batch_size", "apgd_steps", "draws", "mode")
    table["sharpness"].attrs.update({name: table.attrs[name] for name in settings})
    return {name: table[name].variable for name in ("measure", "sharpness", "sharpness_se", "rho", "winner")}


def _numbers(ends: SpectrumEnds, whole: ProbeEstimate, picture: PictureCurvature, sharp: Sharpness) -> dict[str, Any]:
    scalars: dict[str, float | bool] = {
        "lambda_max": ends.lambda_max,
        "lambda_max_converged": ends.converged_max,
        "lambda_min": ends.lambda_min,
        "lambda_min_converged": ends.converged_min,
        "lambda_min_bound": ends.bound_min,
        "filter_trace_spread": picture.trace.spread,
        "sam_sharpness": sharp.value,
    }
    causes, title = ", ".join(picture.causes), f"curvature of pictures at spacing {picture.spacing:g}"
    why = causes or "no kinks known: what a parabola misses"
    attrs = {"spacing": picture.spacing, "causes": causes, "units": "loss per squared normalized direction"}
    return {
        **{name: ((), value) for name, value in scalars.items()},
        **with_error("trace", whole),
        **with_error("filter_trace", picture.trace),
        **with_error("picture_curvature", picture.value, **attrs, long_name=title),
        **with_error("kinks", picture.kinks, **attrs, long_name=f"of that beyond the Hessian ({why})"),
    }
