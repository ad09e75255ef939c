"""``lowland surface``: survey the loss on a plane around the weights of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lowland.cli.output import Output, command_arguments
from lowland.core.schema import STATUS_FAILED
from lowland.workflows import SurfaceSpec, parse

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    spec, flags = parse(SurfaceSpec, command_arguments(arguments, "run"), "lowland surface", quiet=False, json=False)
    from lowland.workflows.measure import surface_run

    output = Output(quiet=flags["quiet"], as_json=flags["json"])
    with output:
        surface, path = surface_run(spec, on_event=output.progress(f"surface of {spec.label}"))
    failed = int((surface["status"] == STATUS_FAILED).sum())
    splits = [str(name) for name in surface["split"].values] if "split" in surface.dims else [spec.risk.split]
    result: dict[str, Any] = {"path": str(path), "points": int(surface["status"].size), "failed": failed}
    rows = []
    for name in splits:
        loss = surface["loss"].sel(split=name) if "split" in surface.dims else surface["loss"]
        center = float(loss.sel(x=0.0, y=0.0, method="nearest"))
        values = {"center": center, "lowest": float(np.nanmin(loss)), "highest": float(np.nanmax(loss))}
        result |= values if len(splits) == 1 else {name: values}
        rows.append([name, str(result["points"]), str(failed), *(f"{value:.4g}" for value in values.values())])
    head = ["split", "points", "failed", "loss at the center", "lowest", "highest"]
    output.result(result, [f"Surface: {path}"], [head, *rows])
    return 0
