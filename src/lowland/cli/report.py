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
        output: File to write; none writes report.html, and renews one that is there if all its runs are shown again.
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
    from lowland.report.html import runs_of
    from lowland.results.folders import find_runs

    folders: list[Path] = []
    for run in runs:
        below = list(find_runs(Path(run)))
        if not below:
            advice = "it holds none; make one with `lowland fit`"
            raise InputError("runs", "must be folders of runs, or hold such folders", run, advice)
        folders += below
    found = open_runs(folders)
    if site is not None:
        return room.write_site(found, site, title=title, baseline=baseline, allow_mixed=allow_mixed), len(found)
    page = Path(output or "report.html")
    if output is None and page.exists():
        shown, here = runs_of(page), {run.folder.resolve() for run in found}
        if shown is None or not {Path(place).resolve() for place in shown} <= here:
            advice = "name another, such as --output page.html; --output report.html replaces it"
            raise InputError("output", "must be given where report.html is not of these runs", str(page), advice)
    made = room.build(found, title=title, baseline=baseline, allow_mixed=allow_mixed)
    page.parent.mkdir(parents=True, exist_ok=True)
    return room.write(made, page), len(found)


def show_report(found: tuple[Path, int], call: Call) -> Shown:
    """Say where the page is."""
    page, count = found
    return Shown({"report": str(page), "runs": count}, [f"Report: {page}"])
