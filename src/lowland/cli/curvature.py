"""``lowland curvature``: measure the Hessian at the weights of a run."""

from __future__ import annotations

from collections.abc import Sequence

from lowland.cli.output import Output, command_arguments
from lowland.workflows import CurvatureSpec, parse

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    words = command_arguments(arguments, "run")
    spec, flags = parse(CurvatureSpec, words, "lowland curvature", quiet=False, json=False)
    from lowland.workflows.measure import curvature_run

    output = Output(quiet=flags["quiet"], as_json=flags["json"])
    with output:
        found, path = curvature_run(spec, on_event=output.progress(f"curvature of {spec.label}"))
    values = {str(name): float(found[name]) for name in found.data_vars if found[name].ndim == 0}
    shown = [
        ("lambda max", f"{values['lambda_max']:.4g}"),
        ("lambda min", _lowest(values)),
        ("trace", f"{values['trace']:.4g} +- {values['trace_se']:.2g}"),
        ("filter-weighted trace", f"{values['filter_trace']:.4g} +- {values['filter_trace_se']:.2g}"),
        ("SAM sharpness", f"{values['sam_sharpness']:.4g}"),
        ("train loss", f"{values['train_loss']:.4g}"),
        ("train accuracy", f"{100 * values['train_accuracy']:.2f} %"),
        ("norm of the weights", f"{values['weight_norm']:.4g}"),
    ]
    facts = {name: found.attrs[name] for name in ("samples", "batch_norm", "products")}
    said = f"{facts['samples']} samples, batch norm {facts['batch_norm']}, {facts['products']} products"
    result = {"path": str(path), **values, **facts}
    output.result(result, [said, f"Curvature: {path}"], [["measure", "value"], *map(list, shown)])
    return 0


def _lowest(values: dict[str, float]) -> str:
    if values["lambda_min_converged"]:
        return f"{values['lambda_min']:.4g}"
    return f"not converged, |lambda min| <= {values['lambda_min_bound']:.4g}"
