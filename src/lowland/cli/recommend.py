"""``lowland recommend``: which method helps on this model and data, confirmed on fresh seeds."""

from __future__ import annotations

from collections.abc import Sequence

from lowland.cli.study import LiveOutput, row_values, shown_rows
from lowland.workflows import parse
from lowland.workflows.study import RecommendSpec

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    spec, flags = parse(RecommendSpec, arguments, "lowland recommend", quiet=False, json=False)
    output = LiveOutput(quiet=flags["quiet"], as_json=flags["json"])
    output.note("loading torch")
    from lowland.study.recommend import recommend, screening

    output.endpoint = screening(spec).endpoint
    with output:
        found = recommend(spec, progress=output.progress, on_run=output.on_run)
    rows = [*found.screen, *found.confirm]
    output.result(
        {
            "winner": found.winner, "lines": list(found.lines), "reports": [str(page) for page in found.reports],
            "screen": [row_values(row) for row in found.screen], "confirm": [row_values(row) for row in found.confirm],
        },
        [*found.lines, *(f"Report: {page}" for page in found.reports)],
        shown_rows(rows, output.endpoint),
    )  # fmt: skip
    return 0
