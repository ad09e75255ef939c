"""Progress of curvature and of batches as events."""

from __future__ import annotations

import math

from lowland.core.pace import Clock, OnEvent


class Ticker:
    """Turns a count of products into events; where the total is a bound nothing is said of the time left."""

    def __init__(self, on_event: OnEvent | None, total: int, *, bound: bool = False) -> None:
        self._clock, self._done, self._total = Clock(math.inf if bound else total, 0, on_event), 0, total
        self._clock.tell("started", 0, total=total)

    def __call__(self, done: int) -> None:
        """Tell how many products are done."""
        self._done = done
        self._clock.tell("progress", done, total=max(done, self._total))

    def finish(self) -> None:
        """Tell that it is done."""
        self._clock.tell("done", self._done, total=self._done)
