"""``lowland surface``: survey the loss on a plane around the weights of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lowland.cli.output import Output, command_arguments
from lowland.spec import SurfaceSpec, parse

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Args:
        arguments: What stood after ``lowland surface``; the word before the first flag is the run.

    Returns:
        The exit code.
    """
    spec, flags = parse(SurfaceSpec, command_arguments(arguments, "run"), "lowland surface", quiet=False, json=False)
    from lowland.spec.runs import surface_run

    output = Output(quiet=flags["quiet"], as_json=flags["json"])
    with output:
        surface, path = surface_run(spec, on_event=output.progress(f"surface of {spec.run}"))
    loss = surface["loss"].sel(x=0.0, y=0.0, method="nearest")
    failed = int((surface["status"] == 3).sum())
    result = {
        "path": str(path), "points": int(surface["status"].size), "failed": failed, "center": float(loss),
        "lowest": float(np.nanmin(surface["loss"])), "highest": float(np.nanmax(surface["loss"])),
    }  # fmt: skip
    table = [
        ["points", "failed", "loss at the centre", "lowest", "highest"],
        [str(result["points"]), str(failed), *(f"{result[k]:.4g}" for k in ("center", "lowest", "highest"))],
    ]
    output.result(result, [f"Surface: {path}"], table)
    return 0
