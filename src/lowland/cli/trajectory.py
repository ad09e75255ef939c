"""``lowland trajectory``: project the training path of a run on its principal directions."""

from __future__ import annotations

from collections.abc import Sequence

from lowland.cli.output import Output, command_arguments
from lowland.workflows import TrajectorySpec, parse

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    words = command_arguments(arguments, "run")
    spec, flags = parse(TrajectorySpec, words, "lowland trajectory", quiet=False, json=False)
    from lowland.workflows.measure import trajectory_run

    output = Output(quiet=flags["quiet"], as_json=flags["json"])
    with output:
        found, path = trajectory_run(spec, on_event=output.progress(f"path of {spec.run}"))
    shares = [[float(v) for v in found[name]] for name in ("variance_share", "null_share")]
    rows = [[f"{i + 1}", f"{100 * a:.1f} %", f"{100 * b:.1f} %"] for i, (a, b) in enumerate(zip(*shares, strict=True))]
    rows.append(["together", *(f"{100 * sum(share):.1f} %" for share in shares)])
    result = {
        "path": str(path), "snapshots": found.sizes["snapshot"],
        "variance_share": shares[0], "null_share": shares[1],
    }  # fmt: skip
    table = [["axis", "share of the path", "share of a random walk with the same steps"], *rows]
    output.result(result, [f"{found.sizes['snapshot']} snapshots", f"Trajectory: {path}"], table)
    return 0
