"""Ctrl-C that waits until what is being written is whole."""

from __future__ import annotations

# `signal` wraps this and tries to make an enum of each handler, which takes longer than copies of a small network
import _signal  # type: ignore[import-not-found]
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def held_interrupts() -> Generator[None, None, None]:
    """Hold SIGINT back while weights are being written, and deliver it afterwards."""
    # Only the main thread receives signals, so that elsewhere this does nothing.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[tuple[int, FrameType | None]] = []
    previous = _signal.getsignal(_signal.SIGINT)
    if previous is None:  # installed by a C library: it cannot be put back from Python
        yield
        return
    _signal.signal(_signal.SIGINT, lambda number, frame: caught.append((number, frame)))
    try:
        yield
    finally:
        _signal.signal(_signal.SIGINT, previous)
        if caught:
            previous(*caught[0]) if callable(previous) else _signal.raise_signal(_signal.SIGINT)
