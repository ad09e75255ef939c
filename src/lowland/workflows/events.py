"""Progress of training and of curvature as events, so that no room below shows bars."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lowland.core.pace import Clock
from lowland.engine import Event
from lowland.training import FitState, Hook

__all__ = ["Announce", "Ticker"]


class Announce(Hook):
    """Tells the progress of training."""

    def __init__(self, on_event: Callable[[Event], None] | None) -> None:
        self._receive = on_event or (lambda event: None)
        self._clock = Clock(0)

    def on_fit_start(self, run: FitState) -> None:
        """Start the clock."""
        self._clock = Clock(run.epochs * run.steps_per_epoch, run.step)
        self._receive(Event("started", run.step, run.epochs * run.steps_per_epoch))

    def on_epoch_end(self, run: FitState) -> None:
        """Tell how far it is."""
        self._tell("rows", run)

    def on_fit_end(self, run: FitState) -> None:
        """Tell that it is done."""
        self._tell("done", run)

    def _tell(self, kind: Any, run: FitState) -> None:
        pace = self._clock.at(run.step)
        total = run.epochs * run.steps_per_epoch
        self._receive(Event(kind, run.step, total, pace.elapsed, pace.remaining, pace.rate))


class Ticker:
    """Turns a count of products into events."""

    def __init__(self, on_event: Callable[[Event], None] | None, total: int) -> None:
        self._receive, self._total, self._done = on_event or (lambda event: None), total, 0
        self._clock = Clock(total)
        self._receive(Event("started", 0, total))

    def __call__(self, done: int) -> None:
        """Tell how many products are done."""
        self._done = done
        pace = self._clock.at(done)
        self._receive(Event("rows", done, max(done, self._total), pace.elapsed, pace.remaining, pace.rate))

    def finish(self) -> None:
        """Tell that it is done."""
        self._receive(Event("done", self._done, self._done, self._clock.at(self._done).elapsed))
