"""A report of many runs as a static site: an index that compares them, and a page for each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from lowland.core.errors import InputError, require
from lowland.report.build import build, check_runs, footer, limits_section
from lowland.report.comparison import comparison_section
from lowland.report.curvature import curvature_section
from lowland.report.dynamics import training_section
from lowland.report.html import render
from lowland.report.marks import told
from lowland.report.sections import Report, Section, Table
from lowland.report.statistics import show
from lowland.results.files import write_atomically
from lowland.results.run import Run
from lowland.viz.plotly import script

_SCRIPT: Final = "plotly.js"
_OURS: Final = '<meta name="generator" content="Lowland">'


def write_site(
    runs: Sequence[Run],
    folder: str | Path,
    *,
    title: str = "Lowland report",
    baseline: str | None = None,
    allow_mixed: bool = False,
    date: str | None = None,
) -> Path:
    """Write ``index.html``, which compares the runs, and a page for each run, into one folder; all open offline.

    Args:
        runs: The runs, with different names.
        folder: New or empty, or a site that was written before, whose pages are renewed.
        title: Heading of the index.
        baseline: Method that differences and ratios are against; None takes the first run's.
        allow_mixed: Accept runs of different data or loss, and mark the index.
        date: Date in the footers; None for today, "" for none.

    Returns:
        The index.

    Raises:
        InputError: If the folder holds something else, or the runs do not fit together; nothing is written.
    """
    place, names = Path(folder), _file_names([run.name for run in runs])
    mixed = check_runs(runs, allow_mixed=allow_mixed, baseline=baseline)
    _check_folder(place)
    sections = [
        comparison_section(runs, baseline=baseline),
        _runs_section(runs, names),
        training_section(runs),
        curvature_section(runs),
        limits_section(runs, mixed),
    ]
    index = Report(title, (), tuple(section for section in sections if section is not None), (), footer(date))
    pages = {"index.html": render(index, plotly=_SCRIPT)}
    for number, (run, name) in enumerate(zip(runs, names, strict=True)):
        links = {"All runs": "index.html"}
        links |= {f"← {runs[number - 1].name}": quote(names[number - 1])} if number else {}
        links |= {f"{runs[number + 1].name} →": quote(names[number + 1])} if number + 1 < len(runs) else {}
        pages[name] = render(build([run], title=run.name, date=date), plotly=_SCRIPT, links=links)
    place.mkdir(parents=True, exist_ok=True)
    write_atomically(place / _SCRIPT, script().encode("utf-8"))
    for name, text in reversed(pages.items()):  # the index last: what it leads to is there
        write_atomically(place / name, text.encode("utf-8"))
    return place / "index.html"


def _check_folder(place: Path) -> None:
    if not place.exists():
        return
    require(place.is_dir(), "site", "must be a folder", str(place))
    index = place / "index.html"
    ours = index.is_file() and _OURS in index.read_text(encoding="utf-8", errors="replace")[:4000]
    if any(place.iterdir()) and not ours:
        raise InputError("site", "must be new, empty or a site of Lowland", str(place), "choose another folder")


def _file_names(names: Sequence[str]) -> list[str]:
    taken = {"index.html", _SCRIPT}
    found = []
    for name in names:
        plain = re.sub(r"[^\w.-]+", "-", name).strip("-.")[:80] or "run"
        tries = itertools.chain([f"{plain}.html"], (f"{plain}-{n}.html" for n in itertools.count(2)))
        found.append(next(file for file in tries if file.lower() not in taken))
        taken.add(found[-1].lower())
    return found


def _runs_section(runs: Sequence[Run], names: Sequence[str]) -> Section:
    rows = [
        {
            "run": run.name,
            "method": run.method or "–",
            "seed": "–" if run.seed is None else str(run.seed),
            "weights that count": told(run, "best") if run.finished else "unfinished",
            "test accuracy": show(run.number("test_accuracy")),
            "train loss": show(run.number("train_loss")),
            "measured": ", ".join(_measured(run)) or "–",
        }
        for run in runs
    ]
    links = dict(zip((run.name for run in runs), map(quote, names), strict=True))
    return Section("Runs", (Table.of(rows, "Each run has a page of its own", links=links),))


def _measured(run: Run) -> list[str]:
    counts = {"surface": len(run.surfaces), "curvature": len(run.curvature), "card": len(run.cards)}
    found = [
        f"{count} {name}{'s' if count > 1 and name != 'curvature' else ''}" for name, count in counts.items() if count
    ]
    return found + (["path"] if run.trajectory is not None else [])
