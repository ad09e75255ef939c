"""The engine for one process: a plain loop, the default and the debugger."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from lowland.engine.base import Engine, Point, Row, Task, run_chunk

__all__ = ["Serial"]


class Serial(Engine):
    """Computes one chunk after the other in this process.

    A chunk ends before a point whose parent is in it.

    Example:
        >>> Serial().name
        'serial'
    """

    name: Final = "serial"
    _session: ExitStack | None = None
    _kept: tuple[Task, Any] | None = None

    @contextmanager
    def session(self) -> Generator[None]:
        """Keep the task in place between runs inside; see `Engine.session`."""
        if self._session is not None:
            yield
            return
        try:
            with ExitStack() as self._session:
                yield
        finally:
            self._session = self._kept = None

    @contextmanager
    def _placed(self, task: Task) -> Generator[Any]:
        if self._session is None:
            with task.placed() as context:
                yield context
            return
        if self._kept is None or self._kept[0] is not task:
            self._kept = None
            self._session.close()
            self._kept = (task, self._session.enter_context(task.placed()))
        yield self._kept[1]

    def _rows(self, task: Task, points: Sequence[Point], chunk: int, known: dict[int, Row]) -> Iterator[list[Row]]:
        parents = {point.parent for point in points if point.parent is not None}
        with self._placed(task) as context:
            for part in _chunks(points, chunk):
                rows = run_chunk(task, context, part, known)
                known.update((row.index, row) for row in rows if row.index in parents)
                yield rows


def _chunks(points: Sequence[Point], size: int) -> Iterator[list[Point]]:
    part: list[Point] = []
    inside: set[int] = set()
    for point in points:
        if len(part) == size or point.parent in inside:
            yield part
            part, inside = [], set()
        part.append(point)
        inside.add(point.index)
    if part:
        yield part
