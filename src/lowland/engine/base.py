"""The contract between what is computed and where: tasks, points, rows, events, and the abstract engine.

A task is placed once per worker and then turns points into rows. An engine decides where that happens and in which
order; it never changes what a row holds. The contract is meant for a process pool and a cluster as much as for the
loop in `lowland.engine.serial`: tasks, points and rows can be pickled, and rows hold plain numbers and arrays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from traceback import format_exception
from typing import Any, Literal, Protocol, TypeAlias

from lowland.core.errors import InputError
from lowland.core.pace import Clock

__all__ = ["Engine", "Event", "OnEvent", "Point", "Row", "Task", "failed_row", "run_chunk"]


@dataclass(frozen=True, slots=True)
class Point:
    """One thing to compute.

    Args:
        index: Its number in the whole survey; rows carry it back.
        coordinates: Where it lies, one number per axis.
        group: Which of several planes or lines it belongs to. Default 0.
        parent: Index of the point whose row is handed to it as a warm start, or None. It is fixed by the grid, never
            by who finishes first.
    """

    index: int
    coordinates: tuple[float, ...]
    group: int = 0
    parent: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """What one point gave.

    Args:
        index: The point's number.
        values: Measured numbers by name.
        carry: Arrays by name that its children get as a warm start.
        error: Why it failed, or ``""``; values are empty then.
        traceback: Where it failed, as Python prints it, or ``""``.
    """

    index: int
    values: Mapping[str, float]
    carry: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    traceback: str = ""

    @property
    def failed(self) -> bool:
        """Whether the point could not be computed."""
        return self.error != ""


class Task(Protocol):
    """What an engine runs; it can be pickled."""

    def placed(self) -> AbstractContextManager[Any]:
        """Set up whatever the points share; entered once per worker, left when its work is done or broken off."""

    def __call__(self, context: Any, points: Sequence[Point], parents: Sequence[Row | None], /) -> Sequence[Row]:
        """Compute points.

        Args:
            context: What `placed` yielded.
            points: The points, computed together.
            parents: The row of each point's parent; None where it has none or its parent failed.

        Returns:
            One row per point, in their order.
        """


@dataclass(frozen=True, slots=True)
class Event:
    """What an engine tells while it runs; the CLI turns it into a progress bar.

    Args:
        kind: ``"started"`` once, ``"rows"`` after finished points, ``"failed"`` for each that failed, ``"done"`` once.
        done: Points finished so far, failed ones and those of earlier runs among them.
        total: Points of the whole survey.
        elapsed: Seconds since the start of this run.
        remaining: Estimated seconds left; None while nothing is known.
        rate: Points per second of this run; 0 before the first.
        message: Why a point failed, or ``""``.
        traceback: Where it failed, as Python prints it, or ``""``.

    Example:
        >>> Event("rows", done=5, total=10, elapsed=2.0, remaining=2.0, rate=2.5).total
        10
    """

    kind: Literal["started", "rows", "failed", "done"]
    done: int
    total: int
    elapsed: float = 0.0
    remaining: float | None = None
    rate: float = 0.0
    message: str = ""
    traceback: str = ""


OnEvent: TypeAlias = Callable[[Event], None]
"""Receives every event, in the process of the driver."""


class Engine(ABC):
    """Runs a task over points."""

    name: str
    """As the user typed it, such as ``"serial"``."""

    workers: int = 1
    """How many points are computed at the same time."""

    @property
    def worker_threads(self) -> int:
        """Threads with which each point is computed; at another number the last bits differ."""
        import torch

        return torch.get_num_threads()

    @contextmanager
    def session(self) -> Generator[None]:
        """Keep what was set up for a task (workers, say) between several runs of it inside.

        Yields:
            Nothing.
        """
        yield

    def run(
        self,
        task: Task,
        points: Sequence[Point],
        *,
        chunk: int = 1,
        known: Mapping[int, Row] | None = None,
        seconds_per_point: float | None = None,
        on_event: OnEvent | None = None,
    ) -> Generator[list[Row]]:
        """Compute all points and yield rows as they finish.

        A point that raises gives a failed row with the text of the error and leaves the others alone;
        `KeyboardInterrupt` passes through after the task has put back what it changed.

        Args:
            task: What to do.
            points: The points still to be computed; a parent stands before its children or in ``known``.
            chunk: Most points handed out together.
            known: Rows of an earlier run by index.
            seconds_per_point: What a point is expected to take, for the first estimate of the time left.
            on_event: Called with every event.

        Yields:
            Finished rows; each point once.

        Raises:
            InputError: If ``chunk`` is below 1 or a parent is neither known nor stands before its child.
        """
        known = dict(known or {})
        _check(points, chunk, known)
        tell = on_event or (lambda event: None)
        done, total = len(known), len(points) + len(known)
        clock = Clock(total, done)
        guess = None if seconds_per_point is None else seconds_per_point * len(points) / self.workers
        tell(Event("started", done, total, 0.0, guess))
        for rows in self._rows(task, points, chunk, known):
            yield rows  # the reader has stored them before they are announced
            done += len(rows)
            pace = clock.at(done)
            state = (done, total, pace.elapsed, pace.remaining, pace.rate)
            for row in rows:
                if row.failed:
                    tell(Event("failed", *state, row.error, row.traceback))
            tell(Event("rows", *state))
        pace = clock.at(done)
        tell(Event("done", done, total, pace.elapsed, 0.0, pace.rate))

    @abstractmethod
    def _rows(self, task: Task, points: Sequence[Point], chunk: int, known: dict[int, Row]) -> Iterator[list[Row]]:
        """Yield the rows of all points; ``known`` may be extended with finished rows that are parents."""


def run_chunk(task: Task, context: Any, points: Sequence[Point], known: Mapping[int, Row]) -> list[Row]:
    """Compute one chunk; when it raises, compute its points one by one to find those that fail."""
    parents = [_parent(point, known) for point in points]
    try:
        return list(task(context, points, parents))
    except Exception as error:  # whatever the user's own metric raises: it belongs to the point, not to the survey
        if len(points) == 1:
            return [failed_row(points[0], error)]
    return [row for point in points for row in run_chunk(task, context, [point], known)]


def failed_row(point: Point, error: BaseException) -> Row:
    """Return the row of a point that failed."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return Row(point.index, {}, error=text[:200], traceback="".join(format_exception(error)))


def _parent(point: Point, known: Mapping[int, Row]) -> Row | None:
    row = None if point.parent is None else known.get(point.parent)
    return None if row is None or row.failed else row


def _check(points: Sequence[Point], chunk: int, known: Mapping[int, Row]) -> None:
    if chunk < 1:
        raise InputError("chunk", "must be at least 1", chunk)
    seen = set(known)
    for point in points:
        if point.parent is not None and point.parent not in seen:
            raise InputError("points", "must name a parent after it has been computed", point)
        if point.index in seen:
            raise InputError("points", "must name every index once", point.index)
        seen.add(point.index)
