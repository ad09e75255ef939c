"""Which items go out next: in their order, a lost chunk's items again but not for ever.

Nothing here knows what items are or where they are computed; the engines with workers share it.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

from lowland.engine.base import Result

AHEAD: Final = 2
"""Most chunks a worker has at a time: the one it computes and the next, so that it never waits for the driver. The
backlog is therefore at most twice the number of workers, whatever the number of items."""

RETRIES: Final = 3
"""How often an item is tried again after the worker that computed it died (as Ray's ``max_retries`` for tasks)."""


class Scheduler:
    """Keeps which items, by their place, are still to be computed."""

    # An item whose worker died goes out again alone, so that one that kills workers is found and costs no other
    # item more than one retry; after `RETRIES` it is given up.

    def __init__(self, count: int, chunk: int) -> None:
        self._chunk, self.unfinished = chunk, count
        self._ready = list(range(count))
        self._deaths: Counter[int] = Counter()
        self._suspects: set[int] = set()

    def take(self, workers: int = 1, held: Sequence[Sequence[int]] = (), idle: int = 0) -> list[int]:
        """Hand out the next chunk to a worker; so many others have none, and perhaps still start."""
        if held and len(self._ready) <= idle:  # few and long items: one for each, not two for the first that is ready
            return []
        if len(held) >= AHEAD or any(index in self._suspects for chunk in held for index in chunk):
            return []
        size = min(self._chunk, max(1, math.ceil(len(self._ready) / (AHEAD * workers)))) if workers > 1 else self._chunk
        part: list[int] = []
        while self._ready and len(part) < size:
            alone = self._ready[0] in self._suspects
            if alone and (part or held):
                break
            part.append(heapq.heappop(self._ready))
            if alone:
                break
        return part

    def finished(self, count: int) -> None:
        """Note how many items have their result."""
        self.unfinished -= count

    def returned(self, chunk: Sequence[int], *, suspect: bool = False) -> None:
        """Take back a chunk that no one began to compute."""
        for index in chunk:
            if suspect:
                self._suspects.add(index)
            heapq.heappush(self._ready, index)

    def lost(self, chunk: Sequence[int], reason: str, traceback: str = "") -> list[Result]:
        """Take back a chunk whose worker died while computing it."""
        given_up = []
        for index in chunk:
            self._deaths[index] += 1
            self._suspects.add(index)
            if self._deaths[index] > RETRIES:
                text = f"its worker {reason}, {self._deaths[index]} times"
                given_up.append(Result(index, error=text, traceback=traceback))
            else:
                heapq.heappush(self._ready, index)
        return given_up
