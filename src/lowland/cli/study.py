"""``lowland study``: methods x seeds, trained alike and compared by a rule that was declared before."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lowland.cli.output import Output, command_arguments
from lowland.workflows import parse
from lowland.workflows.study import StudySpec

if TYPE_CHECKING:
    from lowland.report.study import StudyRow
    from lowland.study.plan import Job
    from lowland.study.work import Failure

__all__ = ["LiveOutput", "main"]


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    words = command_arguments(arguments, "config")
    spec, flags = parse(StudySpec, words, "lowland study", quiet=False, json=False)
    output = LiveOutput(quiet=flags["quiet"], as_json=flags["json"])
    output.note("loading torch")
    from lowland.study.compare import compare_methods, rule_of, write_report
    from lowland.study.run import run_study

    output.endpoint = spec.endpoint
    with output:
        study = run_study(spec, progress=output.progress, on_run=output.on_run)
    rows = compare_methods(study)
    page = write_report(study)
    output.result(
        {"report": str(page), "rule": rule_of(spec), "rows": [row_values(row) for row in rows]},
        [f"Rule: {rule_of(spec)}", f"Report: {page}"],
        shown_rows(rows, spec.endpoint),
    )
    return 0


def row_values(row: StudyRow) -> dict[str, Any]:
    """Return a row as plain values for JSON."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    difference = row.difference
    interval = None if difference is None else [number(v) for v in (difference.mean, difference.low, difference.high)]
    return {
        "part": row.variant, "budget": row.budget, "method": row.method, "values": dict(row.values),
        "failed": dict(row.failed), "mean": number(row.interval.mean), "difference": interval, "answer": row.verdict,
        "reason": row.reason, "seeds_needed": row.seeds_needed, "p_holm": number(row.adjusted),
        "passes": number(row.passes), "seconds": number(row.seconds), "epochs": row.epochs, "settings": row.settings,
    }  # fmt: skip


def shown_rows(rows: Sequence[StudyRow], endpoint: str) -> list[list[str]]:
    """Return a table for people."""
    from lowland.report.statistics import show_interval

    factor, decimals = (100.0, 2) if endpoint.endswith(("accuracy", "error")) else (1.0, 4)
    head = [
        "compared at equal",
        "method",
        "seeds",
        "failed",
        endpoint.replace("_", " "),
        "difference",
        "answer",
        "passes",
    ]
    lines = [
        [
            " ".join(part for part in (row.budget, row.variant) if part), row.method, str(len(row.values)),
            str(len(row.failed)), show_interval(row.interval, factor=factor, decimals=decimals),
            show_interval(row.difference, factor=factor, sign=True, decimals=decimals), row.verdict or "baseline",
            f"{row.passes:.0f}",
        ]
        for row in rows
    ]  # fmt: skip
    return [head, *lines]


class LiveOutput(Output):
    """Output with a table that grows with every finished run, above the bars."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        super().__init__(quiet=quiet, as_json=as_json)
        self.endpoint = "test_accuracy"
        self._values: dict[str, list[float]] = {}
        self._failed: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> LiveOutput:
        if not self.quiet and self._console.is_terminal:
            self._progress = _Bars(self._table, console=self._console)
            self._progress.start()
        return self

    def on_run(self, job: Job, failure: Failure | None) -> None:
        """Take note of a run that has ended."""
        from lowland.study.endpoints import read_endpoint

        name = " ".join(part for part in (job.kind, job.variant, job.method) if part)
        value = math.nan if failure else read_endpoint(job.spec.folder, self.endpoint)
        with self._lock:
            self._values.setdefault(name, [])
            self._failed.setdefault(name, 0)
            if math.isfinite(value):
                self._values[name].append(value)
            else:
                self._failed[name] += 1
        if failure is not None:
            self.note(f"{job.key} failed: {failure.error}")
        elif self._progress is None:
            self.note(f"{job.key}: {self.endpoint} {value:.4g}")

    def _table(self) -> Table:
        table = Table("compared at equal, method", "runs", "failed", f"mean {self.endpoint}", show_edge=False)
        with self._lock:
            for name, values in self._values.items():
                mean = f"{sum(values) / len(values):.4f}" if values else "-"
                table.add_row(name, str(len(values)), str(self._failed[name]), mean)
        return table


class _Bars(Progress):
    """Bars below a table."""

    def __init__(self, table: Callable[[], Table], **options: Any) -> None:
        self._above = table
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   TextColumn("{task.fields[left]}"))  # fmt: skip
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return the table and the bars."""
        yield self._above()
        yield self.make_tasks_table(self.tasks)
