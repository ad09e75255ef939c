"""``lowland report``: one self-contained page about runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lowland.cli.output import Output, command_arguments
from lowland.workflows import ReportSpec, parse

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    spec, flags = parse(ReportSpec, command_arguments(arguments, "runs"), "lowland report", quiet=False, json=False)
    from lowland import report
    from lowland.opening import open_runs

    runs = open_runs(spec.runs)
    page = Path(spec.output)
    page.parent.mkdir(parents=True, exist_ok=True)
    report.write(report.build(runs, title=spec.title, allow_mixed=spec.allow_mixed), page)
    output = Output(quiet=flags["quiet"], as_json=flags["json"])
    output.result({"report": str(page), "runs": len(runs)}, [f"Report: {page}"])
    return 0
