"""Runs handed to an engine: finished ones are left alone, interrupted ones go on, failed ones are kept as failed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowland.core.pace import Clock
from lowland.engine import Event, OnEvent, Point, Row, select
from lowland.results.files import write_atomically
from lowland.results.run import Run
from lowland.study.plan import Job
from lowland.workflows.fitting import create_run, fit

__all__ = ["Failure", "Failures", "OnRun", "train"]

OnRun = Callable[[Job, "Failure | None"], None]
"""Called after each run, with what went wrong if it failed."""


@dataclass(frozen=True)
class Failure:
    """Why a run has no result."""

    error: str  # Its first line
    traceback: str = ""  # Where it failed


class Failures:
    """The failed runs of a study, on disk, so that none is ever forgotten."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "failures.json"
        known = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        self._known = {key: Failure(**value) for key, value in known.items()}

    def __getitem__(self, key: str) -> Failure | None:
        return self._known.get(key)

    def items(self) -> Iterable[tuple[str, Failure]]:
        """Return all failures."""
        return self._known.items()

    def put(self, key: str, failure: Failure | None) -> None:
        """Note how a run ended."""
        if failure is None and key not in self._known:
            return
        if failure is None:
            del self._known[key]
        else:
            self._known[key] = failure
        content = {key: {"error": f.error, "traceback": f.traceback} for key, f in sorted(self._known.items())}
        write_atomically(self.path, (json.dumps(content, indent=2) + "\n").encode())


class FitTask:
    """The task of an engine: point i trains job i."""

    def __init__(self, jobs: Sequence[Job], on_event: Callable[[int, Event], None] | None) -> None:
        self.jobs, self._on_event = list(jobs), on_event

    def __getstate__(self) -> dict[str, Any]:
        return {"jobs": self.jobs, "_on_event": None}

    def placed(self) -> AbstractContextManager[Any]:
        """Share nothing."""
        return nullcontext()

    def __call__(self, context: Any, points: Sequence[Point], parents: Sequence[Row | None], /) -> list[Row]:
        """Train the runs of some points."""
        return [self._one(point.index) for point in points]

    def _one(self, index: int) -> Row:
        tell = self._on_event
        run = fit(self.jobs[index].spec, on_event=None if tell is None else lambda event: tell(index, event))
        return Row(index, {"passes": float(run.result["passes"])})


def finished(job: Job) -> bool:
    """Tell whether a run has its result."""
    return Run(job.spec.folder).spec_path.is_file() and create_run(job.spec).finished


def train(
    jobs: Sequence[Job],
    failures: Failures,
    *,
    engine: str = "serial",
    on_event: OnEvent | None = None,
    on_run: OnRun | None = None,
) -> None:
    """Train what is not yet trained; an interrupted run goes on from its last epoch, a failed one is tried again."""
    announce = on_run or (lambda job, failure: None)
    open_jobs = [job for job in jobs if not finished(job)]
    clock = _Clock(jobs, open_jobs, on_event)
    for job in jobs:
        if job not in open_jobs:
            failures.put(job.key, None)
            announce(job, None)
    points = [Point(index, (float(job.seed),)) for index, job in enumerate(open_jobs)]
    clock.tell("started")
    if points:  # an engine starts its workers even for no work
        for rows in select(engine).run(FitTask(open_jobs, clock.inside), points):
            for row in rows:
                job, failure = open_jobs[row.index], Failure(row.error, row.traceback) if row.failed else None
                failures.put(job.key, failure)
                clock.finish(row)
                announce(job, failure)
    clock.tell("done")


class _Clock:
    """Counts epochs over all runs and turns them into events with the time left."""

    def __init__(self, jobs: Sequence[Job], open_jobs: Sequence[Job], on_event: OnEvent | None) -> None:
        self._receive = on_event or (lambda event: None)
        self._epochs = [job.spec.epochs for job in open_jobs]
        self._total = sum(job.spec.epochs for job in jobs)
        self._before = self._total - sum(self._epochs)
        self._done: dict[int, float] = {}
        self._clock = Clock(sum(self._epochs))

    def inside(self, index: int, event: Event) -> None:
        share = event.done / event.total if event.total else 0.0
        if event.kind == "started":  # what an interrupted run had done before is no work of this session
            self._clock.before += share * self._epochs[index]
        self._done[index] = share * self._epochs[index]
        self.tell("rows")

    def finish(self, row: Row) -> None:
        self._done[row.index] = self._epochs[row.index]
        if row.failed:
            self.tell("failed", row)
        self.tell("rows")

    def tell(self, kind: Any, row: Row | None = None) -> None:
        done, pace = sum(self._done.values()), self._clock.at(sum(self._done.values()))
        text = ("", "") if row is None else (row.error, row.traceback)
        state = (round(self._before + done), self._total, pace.elapsed, pace.remaining, pace.rate)
        self._receive(Event(kind, *state, *text))
