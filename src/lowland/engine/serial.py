"""The engine for one process: a plain loop, the default and the debugger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

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

    def _rows(self, task: Task, points: Sequence[Point], chunk: int, known: dict[int, Row]) -> Iterator[list[Row]]:
        parents = {point.parent for point in points if point.parent is not None}
        with task.placed() as context:
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
