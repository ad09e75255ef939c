"""Runs handed to an engine: finished ones are left alone, interrupted ones go on, failed ones are kept as failed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lowland.core.pace import Clock, Event, EventKind, OnEvent
from lowland.engine import Result, select
from lowland.results.files import write_atomically
from lowland.results.run import Run
from lowland.study.plan import Job
from lowland.workflows.fitting import create_run, fit

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
        if failure is not None:
            self._known[key] = failure
        elif self._known.pop(key, None) is None:
            return
        if not self._known:
            self.path.unlink(missing_ok=True)
            return
        content = {key: asdict(known) for key, known in sorted(self._known.items())}
        write_atomically(self.path, (json.dumps(content, indent=2) + "\n").encode())


class _Fit:
    """Trains jobs, numbered so that events can say whose they are; only in the driver's process are there receivers."""

    def __init__(self, on_event: Callable[[int, Event], None]) -> None:
        self._on_event: Callable[[int, Event], None] | None = on_event

    def __getstate__(self) -> dict[str, Any]:
        return {"_on_event": None}

    def __call__(self, context: None, jobs: Sequence[tuple[int, Job]]) -> list[None]:
        for index, job in jobs:
            fit(job.spec, on_event=None if self._on_event is None else partial(self._on_event, index))
        return [None] * len(jobs)


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
    clock = _Progress(jobs, open_jobs, on_event)
    for job in jobs:
        if job not in open_jobs:
            failures.put(job.key, None)
            announce(job, None)
    clock.tell("started")
    for result in select(engine).map(nullcontext, _Fit(clock.inside), list(enumerate(open_jobs))):
        job, failure = open_jobs[result.index], Failure(result.error, result.traceback) if result.failed else None
        failures.put(job.key, failure)
        clock.finish(result)
        announce(job, failure)
    clock.tell("done")


class _Progress:
    """Counts epochs over all runs and turns them into events with the time left."""

    def __init__(self, jobs: Sequence[Job], open_jobs: Sequence[Job], on_event: OnEvent | None) -> None:
        self._epochs = [job.spec.epochs for job in open_jobs]
        total = sum(job.spec.epochs for job in jobs)
        self._before = total - sum(self._epochs)
        self._done: dict[int, float] = {}
        self._clock = Clock(total, self._before, on_event)

    def inside(self, index: int, event: Event) -> None:
        share = event.done / event.total if event.total else 0.0
        if event.kind == "started":  # what an interrupted run had done before is no work of this session
            self._clock.before += share * self._epochs[index]
        self._done[index] = share * self._epochs[index]
        self.tell("progress")

    def finish(self, result: Result) -> None:
        self._done[result.index] = self._epochs[result.index]
        if result.failed:
            self.tell("failed", message=result.error, traceback=result.traceback)
        self.tell("progress")

    def tell(self, kind: EventKind, **words: Any) -> None:
        self._clock.tell(kind, self._before + sum(self._done.values()), **words)
