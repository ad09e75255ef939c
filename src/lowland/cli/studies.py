"""``lowland study``, ``recommend`` and ``demo``: methods x seeds, compared by a rule declared before."""

from __future__ import annotations

import functools
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn
from rich.table import Table

from lowland.cli.output import Output, Shown
from lowland.workflows.changes import METHOD_KEYS, apply_changes, check_methods
from lowland.workflows.parse import Call
from lowland.workflows.specs import DemoSpec
from lowland.workflows.study import RecommendSpec, StudySpec

if TYPE_CHECKING:
    from lowland.report.study import StudyRow
    from lowland.study import DemoResult
    from lowland.study.plan import Job
    from lowland.study.recommend import Recommendation
    from lowland.study.work import Failure


def study(spec: StudySpec, *, live: LiveOutput) -> tuple[list[StudyRow], Path, list[str]]:
    """Train methods x seeds alike, and answer one question that is fixed before anything runs."""
    check_methods(spec)  # says before anything is loaded what is wrong
    live.note("loading torch")
    from lowland.study.compare import compare_methods, write_report
    from lowland.study.run import run_study

    live.endpoint = spec.endpoint
    notes: list[str] = []

    def on_note(line: str) -> None:
        notes.append(line)
        live.note(line)

    done = run_study(spec, progress=live.progress, on_run=live.on_run, on_note=on_note)
    return compare_methods(done), write_report(done), notes


def show_study(found: tuple[list[StudyRow], Path, list[str]], call: Call) -> Shown:
    """Show the rule and one row per method."""
    from lowland.study.compare import rule_of

    (rows, page, notes), rule = found, rule_of(call.spec)
    result = {"report": str(page), "rule": rule, "instrument": notes, "rows": [row_values(row) for row in rows]}
    blind = [f"{row.method}: {row.reason}." for row in rows if row.verdict == "not measurable here"]
    return Shown(result, [f"Rule: {rule}", *blind, f"Report: {page}"], shown_rows(rows, call.spec.endpoint))


def recommend(spec: RecommendSpec, *, live: LiveOutput) -> Recommendation:
    """Find out on a model and data which methods help, and confirm the winner on fresh seeds."""
    for name, changes in spec.methods.items():
        apply_changes(spec.base, changes, f"methods.{name}", METHOD_KEYS)
    live.note("loading torch")
    from lowland.study.recommend import recommend as run

    return run(spec, progress=live.progress, on_run=live.on_run, on_study=live.begin, on_note=live.note)


def show_recommend(found: Recommendation, call: Call) -> Shown:
    """Show the honest lines, and one row per method."""
    from lowland.study.recommend import screening

    parts = {name: [row_values(row) for row in getattr(found, name)] for name in ("screen", "confirm")}
    reports = [str(page) for page in found.reports]
    result = {"winner": found.winner, "lines": list(found.lines), "reports": reports, **parts}
    lines = [*found.lines, *(f"Report: {page}" for page in reports)]
    return Shown(result, lines, _looks(found, screening(call.spec).endpoint))


def _looks(found: Recommendation, endpoint: str) -> list[list[str]]:
    """Return one table of both looks, each row with the part of the data that it was measured on."""
    head: list[str] = []
    table: list[list[str]] = []
    parts = {"first look": (found.screen, "validation"), "confirmation": (found.confirm, "test")}
    for name, (rows, part) in parts.items():
        own, *cells = shown_rows(rows, endpoint.removeprefix("validation_")) or [[]]
        head = head or ["look", "part of the data", *own]
        table += [[name, part, *row] for row in cells]
    return [head, *table] if table else []


def demo(spec: DemoSpec, *, live: Output) -> tuple[DemoResult, float]:
    """Train methods from the same initial weights on digits, survey them, and write a report."""
    live.note("loading torch")
    started = time.monotonic()
    from lowland.study import demo as run

    def say(page: Path) -> None:
        seconds = time.monotonic() - started
        live.note(f"First page: {page} ({seconds:.0f} s); going on to all methods and seeds, Ctrl-C keeps it")

    return run(spec, live.progress, say), time.monotonic() - started


def show_demo(found: tuple[DemoResult, float], call: Call) -> Shown:
    """Show the comparison of the report."""
    made, seconds = found
    table = made.table
    rows = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    result = {"report": str(made.report), "methods": rows, "seconds": round(seconds, 1), "next": list(made.commands)}
    lines = [*table.notes, f"Report: {made.report} ({seconds:.0f} s)", "Try next:", *(f"  {c}" for c in made.commands)]
    return Shown(result, lines, [table.header, *table.rows])


def row_values(row: StudyRow) -> dict[str, Any]:
    """Return a row as plain values for JSON."""
    difference = row.difference
    same = ("budget", "method", "reason", "seeds_needed", "passes", "seconds", "epochs", "settings")
    return {name: getattr(row, name) for name in same} | {
        "part": row.variant,
        "values": dict(row.values),
        "failed": dict(row.failed),
        "mean": row.interval.mean,
        "difference": None if difference is None else [difference.mean, difference.low, difference.high],
        "answer": row.verdict,
        "instrument": list(row.instrument),
        "p_holm": row.adjusted,
    }


def shown_rows(rows: Sequence[StudyRow], endpoint: str) -> list[list[str]]:
    """Return a table for people."""
    from lowland.report.statistics import show_interval
    from lowland.results.run import COUNTED

    percent = endpoint.endswith(("accuracy", "error"))
    factor, decimals = (100.0, 2) if percent else (1.0, 4)
    table = [
        {
            "compared at equal": " ".join(part for part in (row.budget, row.variant) if part),
            "method": row.method,
            "seeds": str(len(row.values)),
            "failed": str(len(row.failed)),
            endpoint.replace("_", " ") + (" (%)" if percent else ""): show_interval(
                row.interval, factor=factor, decimals=decimals
            ),
            "difference" + (" (points)" if percent else ""): show_interval(
                row.difference, factor=factor, sign=True, decimals=decimals
            ),
            "answer": row.verdict or "baseline",
            COUNTED: f"{row.passes:.0f}",
        }
        for row in rows
    ]
    return [list(table[0]), *(list(row.values()) for row in table)] if table else []


class LiveOutput(Output):
    """Output with a table that grows with every finished run, above the bars."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        super().__init__(quiet=quiet, as_json=as_json)
        self.endpoint = "test_accuracy"
        self._values: dict[str, list[float]] = {}  # NaN for a run that failed
        self._lock = threading.Lock()
        self.bars.make = functools.partial(_Bars, self._table)

    def begin(self, study: StudySpec) -> None:
        """Start a new table: a confirmation has an endpoint and seeds of its own."""
        self.endpoint = study.endpoint
        with self._lock:
            self._values.clear()

    def on_run(self, job: Job, failure: Failure | None) -> None:
        """Take note of a run that has ended."""
        from lowland.study.endpoints import read_endpoint

        name = " ".join(part for part in (job.kind, job.variant, job.method) if part)
        value = math.nan if failure else read_endpoint(job.spec.folder, self.endpoint)
        with self._lock:
            self._values.setdefault(name, []).append(value)
        if failure is not None:
            self.note(f"{job.key} failed: {failure.error}")
        elif self.bars.drawn is None:
            self.note(f"{job.key}: {self.endpoint} {value:.4g}")

    def _table(self) -> Table:
        table = Table("compared at equal, method", "runs", "failed", f"mean {self.endpoint}", show_edge=False)
        with self._lock:
            for name, values in self._values.items():
                whole = list(filter(math.isfinite, values))
                mean = f"{statistics.fmean(whole):.4f}" if whole else "-"
                table.add_row(name, str(len(whole)), str(len(values) - len(whole)), mean)
        return table


class _Bars(Progress):
    """Bars below a table."""

    def __init__(self, table: Callable[[], Table], *columns: ProgressColumn, console: Console) -> None:
        self._above = table  # before the first rendering
        super().__init__(*columns, console=console)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the table and the bars."""
        yield self._above()
        yield self.make_tasks_table(self.tasks)
