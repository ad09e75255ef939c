"""``lowland report``: one self-contained page about runs, or a site with a page for each."""

from __future__ import annotations

from pathlib import Path

from lowland.cli.output import Shown
from lowland.core.errors import InputError, require
from lowland.workflows.parse import Call


def report(
    runs: list[str],
    *,
    output: str | None = None,
    site: str | None = None,
    title: str = "Lowland report",
    baseline: str | None = None,
    allow_mixed: bool = False,
) -> tuple[Path, int]:
    """Write one self-contained page about finished runs, or a site with a page for each.

    Args:
        runs: Folders of the runs, or of folders with runs in them.
        output: File to write; none writes report.html.
        site: Folder for a site instead: an index that compares the runs, and a page for each of them.
        title: Heading of the page.
        baseline: Method that differences and ratios are against, as the first column of the comparison calls it; none
            takes that of the first run.
        allow_mixed: Accept runs of different data or loss, and mark the page.

    Returns:
        The page, or the index of the site; and the number of runs.
    """
    require(site is None or output is None, "site", "stands in place of output", site)
    for run in runs:
        if not Path(run).is_dir():
            raise InputError("runs", "must be folders that runs have written", run, "make one with `lowland fit`")
    from lowland import report as room
    from lowland.opening import open_runs
    from lowland.results.folders import find_runs

    found = open_runs([one for folder in runs for one in list(find_runs(Path(folder))) or [Path(folder)]])
    if site is not None:
        return room.write_site(found, site, title=title, baseline=baseline, allow_mixed=allow_mixed), len(found)
    page = Path(output or "report.html")
    made = room.build(found, title=title, baseline=baseline, allow_mixed=allow_mixed)
    page.parent.mkdir(parents=True, exist_ok=True)
    return room.write(made, page), len(found)


def show_report(found: tuple[Path, int], call: Call) -> Shown:
    """Say where the page is."""
    page, count = found
    return Shown({"report": str(page), "runs": count}, [f"Report: {page}"])
