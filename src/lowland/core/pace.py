"""How fast something goes and when it will be done: the clock behind every event, and the event."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Clock", "Event", "EventKind", "OnEvent", "Pace"]

EventKind: TypeAlias = Literal["started", "progress", "failed", "done"]


@dataclass(frozen=True, slots=True)
class Event:
    """What a survey, a training or a curvature tells while it runs; the CLI turns it into a progress bar.

    Args:
        kind: ``"started"`` once, ``"progress"`` after finished steps, ``"failed"`` for each that failed, ``"done"``
            once.
        done: Steps (points, epochs, products) finished so far, failed ones and those of earlier runs among them.
        total: Steps of the whole.
        elapsed: Seconds since the start of this run.
        remaining: Estimated seconds left; None while nothing is known.
        rate: Steps per second of this run; 0 before the first.
        message: Why a step failed, or ``""``.
        traceback: Where it failed, as Python prints it, or ``""``.

    Example:
        >>> Event("progress", done=5, total=10, elapsed=2.0, remaining=2.0, rate=2.5).total
        10
    """

    kind: EventKind
    done: int
    total: int
    elapsed: float = 0.0
    remaining: float | None = None
    rate: float = 0.0
    message: str = ""
    traceback: str = ""


OnEvent: TypeAlias = Callable[[Event], None]
"""Receives every event, in the process of the driver."""


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
    """Measures a pace from the moment it is made, and tells it."""

    def __init__(
        self,
        total: float,
        before: float = 0.0,
        on_event: OnEvent | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.before, self._now = total, before, now
        self._receive = on_event or (lambda event: None)
        self._started = now()

    def at(self, done: float) -> Pace:
        """Return the pace now."""
        return Pace.of(done - self.before, self.total - self.before, self._now() - self._started)

    def tell(
        self,
        kind: EventKind,
        done: float,
        *,
        total: int | None = None,
        guess: float | None = None,
        message: str = "",
        traceback: str = "",
    ) -> None:
        """Send an event; a guess at the time left serves until there is a pace, a total differs where less is due."""
        pace, whole = self.at(done), round(self.total) if total is None else total
        left = guess if pace.remaining is None else pace.remaining
        if kind == "done":
            left = 0.0
        self._receive(Event(kind, round(done), whole, pace.elapsed, left, pace.rate, message, traceback))
