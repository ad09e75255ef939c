"""Progress of training and of curvature as events, so that no room below shows bars."""

from __future__ import annotations

from lowland.core.pace import Clock, OnEvent
from lowland.training import FitState, Hook


class Announce(Hook):
    """Tells the progress of training."""

    def __init__(self, on_event: OnEvent | None) -> None:
        self._on_event, self._clock = on_event, Clock(0)

    def on_fit_start(self, run: FitState) -> None:
        """Start the clock."""
        self._clock = Clock(run.epochs * run.steps_per_epoch, run.step, self._on_event)
        self._clock.tell("started", run.step)

    def on_epoch_end(self, run: FitState) -> None:
        """Tell how far it is."""
        self._clock.tell("progress", run.step)

    def on_fit_end(self, run: FitState) -> None:
        """Tell that it is done."""
        self._clock.tell("done", run.step)


class Ticker:
    """Turns a count of products into events."""

    def __init__(self, on_event: OnEvent | None, total: int) -> None:
        self._clock, self._done = Clock(total, 0, on_event), 0
        self._clock.tell("started", 0)

    def __call__(self, done: int) -> None:
        """Tell how many products are done."""
        self._done = done
        self._clock.tell("progress", done, total=max(done, round(self._clock.total)))

    def finish(self) -> None:
        """Tell that it is done."""
        self._clock.tell("done", self._done, total=self._done)
