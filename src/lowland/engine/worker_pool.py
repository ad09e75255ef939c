"""The loop that engines with workers share: hand out, collect, and keep workers while one task runs several times."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from lowland.engine.base import Engine, Point, Row, Task
from lowland.engine.scheduler import Scheduler

__all__ = ["WorkerPool", "PooledEngine"]


class WorkerPool(Protocol):
    """The workers on which a task has been placed, some of them perhaps dead."""

    def hand_out(self, handout: Scheduler) -> None:
        """Replace workers that died, and give everyone something to do."""

    def collect(self, handout: Scheduler) -> Iterator[list[Row]]:
        """Wait until someone reports, or a second; yield the rows that came."""

    def stop(self, *, at_once: bool) -> None:
        """End all workers within seconds; their tasks leave their contexts."""


class PooledEngine(Engine):
    """An engine with workers."""

    _keeping: bool = False
    _kept: tuple[Task, WorkerPool] | None = None

    @abstractmethod
    def _gather(self, task: Task) -> WorkerPool:
        """Start what the workers need and return them, as yet perhaps none."""

    def _rows(self, task: Task, points: Sequence[Point], chunk: int, known: dict[int, Row]) -> Iterator[list[Row]]:
        handout = Scheduler(points, known, chunk)
        crew = self._crew(task)
        try:
            while handout.unfinished:
                crew.hand_out(handout)
                for rows in crew.collect(handout):
                    handout.finished(rows)
                    yield rows
        except BaseException:
            self._kept = None
            crew.stop(at_once=True)
            raise
        if not self._keeping:
            crew.stop(at_once=False)

    def _crew(self, task: Task) -> WorkerPool:
        if self._kept is not None and self._kept[0] is task:
            return self._kept[1]
        self._release()
        crew = self._gather(task)
        if self._keeping:
            self._kept = (task, crew)
        return crew

    def _release(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept[1].stop(at_once=False)

    @contextmanager
    def session(self) -> Generator[None]:
        """Keep the workers between runs of the same task; see `Engine.session`."""
        if self._keeping:
            yield
            return
        self._keeping = True
        try:
            yield
        finally:
            self._keeping = False
            self._release()
