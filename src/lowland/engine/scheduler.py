"""Which points go out next: in the grid's order, parents before children, a lost chunk's points again but not for ever.

Nothing here knows where points are computed; the engines with workers share it.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Final

from lowland.engine.base import Point, Row

__all__ = ["AHEAD", "RETRIES", "Scheduler"]

AHEAD: Final = 2
"""Most chunks a worker has at a time: the one it computes and the next, so that it never waits for the driver. The
backlog is therefore at most twice the number of workers, whatever the size of the survey."""

RETRIES: Final = 3
"""How often a point is tried again after the worker that computed it died (as Ray's ``max_retries`` for tasks)."""


class Scheduler:
    """Keeps what is still to be computed."""

    # A point whose worker died goes out again alone, so that one that kills workers is found and costs no other
    # point more than one retry; after `RETRIES` it is given up.

    def __init__(self, points: Sequence[Point], known: dict[int, Row], chunk: int) -> None:
        self.known = known
        self._chunk = chunk
        self._points, self._place = points, {point.index: place for place, point in enumerate(points)}
        self._children: Counter[int] = Counter(point.parent for point in points if point.parent is not None)
        self._waiting: defaultdict[int, list[int]] = defaultdict(list)
        self._ready: list[int] = []
        self._deaths: Counter[int] = Counter()
        self._suspects: set[int] = set()
        self.unfinished = len(points)
        for place, point in enumerate(points):
            if point.parent is None or point.parent in known:
                self._ready.append(place)
            else:
                self._waiting[point.parent].append(place)
        heapq.heapify(self._ready)

    @property
    def ready(self) -> bool:
        """Whether a point can go out now."""
        return bool(self._ready)

    def take(self, workers: int = 1, held: Sequence[Sequence[Point]] = ()) -> list[Point]:
        """Hand out the next chunk to a worker."""
        if len(held) >= AHEAD or any(point.index in self._suspects for chunk in held for point in chunk):
            return []
        size = min(self._chunk, max(1, math.ceil(len(self._ready) / (AHEAD * workers)))) if workers > 1 else self._chunk
        part: list[Point] = []
        while self._ready and len(part) < size:
            alone = self._points[self._ready[0]].index in self._suspects
            if alone and (part or held):
                break
            part.append(self._points[heapq.heappop(self._ready)])
            if alone:
                break
        return part

    def parents(self, chunk: Sequence[Point]) -> dict[int, Row]:
        """Return what a worker needs to know to compute a chunk."""
        return {point.parent: self.known[point.parent] for point in chunk if point.parent is not None}

    def finished(self, rows: Sequence[Row]) -> None:
        """Note rows: their children become ready, and parents that no one needs any more are forgotten."""
        for row in rows:
            self.unfinished -= 1
            if self._children[row.index]:
                self.known[row.index] = row
            for place in self._waiting.pop(row.index, ()):
                heapq.heappush(self._ready, place)
            parent = self._points[self._place[row.index]].parent
            if parent is not None:
                self._children[parent] -= 1
                if not self._children[parent]:
                    self.known.pop(parent, None)

    def returned(self, chunk: Sequence[Point], *, suspect: bool = False) -> None:
        """Take back a chunk that no one began to compute."""
        for point in chunk:
            if suspect:
                self._suspects.add(point.index)
            heapq.heappush(self._ready, self._place[point.index])

    def lost(self, chunk: Sequence[Point], reason: str, traceback: str = "") -> list[Row]:
        """Take back a chunk whose worker died while computing it."""
        given_up = []
        for point in chunk:
            self._deaths[point.index] += 1
            self._suspects.add(point.index)
            if self._deaths[point.index] > RETRIES:
                text = f"its worker {reason}, {self._deaths[point.index]} times"
                given_up.append(Row(point.index, {}, error=text, traceback=traceback))
            else:
                heapq.heappush(self._ready, self._place[point.index])
        return given_up
