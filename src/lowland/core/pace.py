"""How fast something goes and when it will be done: the clock behind every event, and the event."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

_SECONDS: Final = 1.0
"""A pace of less time is none: what comes first is often quicker or slower than the rest."""
_AGREE: Final = 2.0
"""Most by which the pace of all may differ from that without the first steps, where workers start and caches fill."""

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
        remaining: Estimated seconds left; None while that cannot be known: in the first second, while the pace still
            settles, and where the total is only a bound.
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

Labels: TypeAlias = Callable[[str], OnEvent]
"""Label -> receiver of events."""


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
        self._first: tuple[float, float] | None = None  # seconds and steps of this run, when the first ones were done

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
        elapsed, whole = self._now() - self._started, round(self.total) if total is None else total
        made = max(done - self.before, 0.0)  # of this run alone
        rate = made / elapsed if elapsed > 0 else 0.0
        left = guess if made == 0 else self._left(done, made, elapsed)
        left = 0.0 if kind == "done" else left
        self._receive(Event(kind, round(done), whole, elapsed, left, rate, message, traceback))

    def _left(self, done: float, made: float, elapsed: float) -> float | None:
        """Return the seconds left once the pace of all and the pace after the first steps agree."""
        if self._first is None:
            self._first = (elapsed, made)
        since, later = elapsed - self._first[0], made - self._first[1]
        if elapsed < _SECONDS or since <= 0 or later <= 0 or not math.isfinite(self.total):
            return None
        pace, settled = made / elapsed, later / since
        agree = 1 / _AGREE <= settled / pace <= _AGREE
        return max(self.total - done, 0.0) / settled if agree else None


class TimeLeft:
    """The time left as it can be said at any moment: counted down between events, nothing once it has proved wrong."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._until = now, math.nan

    def hear(self, event: Event) -> None:
        """Take note of an event."""
        known = event.remaining is not None and event.kind != "done"
        self._until = self._now() + event.remaining if known and event.remaining is not None else math.nan

    def __str__(self) -> str:
        left = self._until - self._now()
        if not left >= 0.5:
            return ""
        minutes, rest = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return (f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}") + " left"


@contextmanager
def shown(progress: bool, label: str, on_event: OnEvent | None = None) -> Generator[OnEvent | None]:
    """Give a receiver of events that shows them if asked to, and hands them on to the one that was given."""
    with labels(progress) as receivers:
        bar = None if receivers is None else receivers(label)

        def both(event: Event) -> None:
            if bar is not None:
                bar(event)
            if on_event is not None:
                on_event(event)

        yield on_event if bar is None else both


@contextmanager
def labels(progress: bool | Labels | None) -> Generator[Labels | None]:
    """Give receivers of events by label: those given, those of a new display, or none."""
    if progress is True:
        bars: Any = importlib.import_module("lowland.core.bars")  # heavy, and only for those who look
        with bars.display() as display:
            yield display.progress
    else:
        yield None if progress is False else progress
