"""``lowland report``: one self-contained page about runs."""

from __future__ import annotations

from pathlib import Path

from lowland.cli.output import Shown
from lowland.core.errors import InputError
from lowland.workflows.parse import Call


def report(
    runs: list[str], *, output: str = "report.html", title: str = "Lowland report", allow_mixed: bool = False
) -> Path:
    """Write one self-contained page about finished runs.

    Args:
        runs: Folders of the runs.
        output: File to write.
        title: Heading of the page.
        allow_mixed: Accept runs of different data or loss, and mark the page.

    Returns:
        The page.
    """
    for run in runs:
        if not Path(run).is_dir():
            raise InputError("run", "must be a folder that a run has written", run, "make one with `lowland fit`")
    from lowland import report as room
    from lowland.opening import open_runs

    page = Path(output)
    made = room.build(open_runs(runs), title=title, allow_mixed=allow_mixed)
    page.parent.mkdir(parents=True, exist_ok=True)
    room.write(made, page)
    return page


def show_report(page: Path, call: Call) -> Shown:
    """Say where the page is."""
    return Shown({"report": str(page), "runs": len(call.options["runs"])}, [f"Report: {page}"])
