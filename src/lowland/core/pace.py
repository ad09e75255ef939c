"""How fast something goes and when it will be done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Clock", "Pace"]


@dataclass(frozen=True, slots=True)
class Pace:
    """How far something is.

    Args:
        elapsed: Time since it began (seconds).
        remaining: Estimated time left (seconds); None while nothing is known.
        rate: Steps per second; 0 before the first.

    Example:
        >>> Pace.of(5, 10, 2.0)
        Pace(elapsed=2.0, remaining=2.0, rate=2.5)
    """

    elapsed: float
    remaining: float | None
    rate: float

    @classmethod
    def of(cls, done: float, total: float, elapsed: float) -> Pace:
        """Return the pace of what has been done in a time.

        Args:
            done: Steps done in that time.
            total: Steps there were to do at its beginning.
            elapsed: The time (seconds).

        Returns:
            The pace; more than the total is as good as all.
        """
        rate = max(done, 0.0) / elapsed if elapsed > 0 else 0.0
        return cls(elapsed, max(total - done, 0.0) / rate if rate > 0 else None, rate)


class Clock:
    """Measures a pace from the moment it is made.

    Args:
        total: Steps there are to do, of which those before it was made count as done.
        before: Steps that were done before.
        now: Tells the time (seconds).
    """

    def __init__(self, total: float, before: float = 0.0, *, now: Callable[[], float] = time.monotonic) -> None:
        self.total, self.before, self._now = total, before, now
        self._started = now()

    def at(self, done: float) -> Pace:
        """Return the pace now.

        Args:
            done: Steps done, those before it was made among them.

        Returns:
            The pace.
        """
        return Pace.of(done - self.before, self.total - self.before, self._now() - self._started)
