"""``lowland line``: survey the loss on a line, in random directions or to another run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowland.cli.output import Output, command_arguments
from lowland.workflows import LineSpec, parse

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    spec, flags = parse(LineSpec, command_arguments(arguments, "run"), "lowland line", quiet=False, json=False)
    from lowland.results.geometry import barrier
    from lowland.workflows.measure import line_run

    output = Output(quiet=flags["quiet"], as_json=flags["json"])
    with output:
        found, path = line_run(spec, on_event=output.progress(f"line of {spec.label}"))
    outer = [dim for dim in found["loss"].dims if dim != "x"]
    names = [str(name) for name in found["split"].values] if "split" in outer else [spec.risk.split]
    loss = found["loss"].values.reshape(-1, len(names), found.sizes["x"])
    rows, result = [], {"path": str(path), "points": int(found["status"].size)}
    for place, name in enumerate(names):
        values = loss[:, place]
        row = {"lowest": float(np.nanmin(values)), "highest": float(np.nanmax(values))}
        if spec.other is not None:
            row["barrier"] = barrier(found["x"].values, values[0])
        result[name] = row
        rows.append([name, *(f"{value:.4g}" for value in row.values())])
    output.result(result, [f"Line: {path}"], [["split", *row], *rows])
    return 0
