"""How fast something goes and when it will be done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Clock", "Pace"]


@dataclass(frozen=True, slots=True)
class Pace:
    """How far something is."""

    elapsed: float  # Time since it began (seconds)
    remaining: float | None  # Estimated time left (seconds); None while nothing is known
    rate: float  # Steps per second; 0 before the first

    @classmethod
    def of(cls, done: float, total: float, elapsed: float) -> Pace:
        """Return the pace of what has been done in a time."""
        rate = max(done, 0.0) / elapsed if elapsed > 0 else 0.0
        return cls(elapsed, max(total - done, 0.0) / rate if rate > 0 else None, rate)


class Clock:
    """Measures a pace from the moment it is made."""

    def __init__(self, total: float, before: float = 0.0, *, now: Callable[[], float] = time.monotonic) -> None:
        self.total, self.before, self._now = total, before, now
        self._started = now()

    def at(self, done: float) -> Pace:
        """Return the pace now."""
        return Pace.of(done - self.before, self.total - self.before, self._now() - self._started)
