"""The contract between what is computed and where: a setup, a function, items in, results out.

An engine decides where items are computed and in which order; it never changes what a result holds. It keeps nothing
between calls: what lives through several is the `Workers` object that `Engine.open` gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from traceback import format_exception
from typing import Any, Self, TypeAlias

from lowland.core.errors import require
from lowland.core.pace import Clock, OnEvent

Setup: TypeAlias = Callable[[], AbstractContextManager[Any]]
"""Gives what the items share; entered once per worker, left when its work is done or broken off."""

Function: TypeAlias = Callable[[Any, list[Any]], Sequence[Any]]
"""``(context, items of a chunk) -> one value per item``; the context is what the setup gave."""

Chunk: TypeAlias = Sequence[tuple[int, Any]]
"""Items that are computed together, each with its place among all."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one item gave.

    Args:
        index: The item's place among the items, from 0.
        value: What the function returned for it; None where it failed.
        error: Why it failed, or ``""``.
        traceback: Where it failed, as Python prints it, or ``""``.

    Example:
        >>> Result(3, error="ValueError: no").failed
        True
    """

    index: int
    value: Any = None
    error: str = ""
    traceback: str = ""

    @property
    def failed(self) -> bool:
        """Whether the item could not be computed."""
        return self.error != ""


class Workers(ABC):
    """Workers on which something was set up, for as many calls as are made before their ``with`` block ends.

    Nothing is started or set up before there is an item to compute.
    """

    size: int = 1
    """How many items are computed at the same time."""

    def map(
        self,
        function: Function,
        items: Sequence[Any],
        *,
        chunk: int = 1,
        seconds_per_item: float | None = None,
        on_event: OnEvent | None = None,
    ) -> Generator[Result]:
        """Compute all items and yield results as they finish.

        An item that raises gives a failed result with the text of the error and leaves the others alone;
        `KeyboardInterrupt` passes through after each worker has left its setup.

        Args:
            function: What is computed; it travels to each worker once.
            items: What it is computed from, anything that can be pickled. An item is taken from the sequence when it
                goes out to a worker, so that a sequence may make its items late.
            chunk: Most items handed out together.
            seconds_per_item: What an item is expected to take, for the first estimate of the time left.
            on_event: Called with every event.

        Yields:
            Results; each item once.

        Raises:
            InputError: If ``chunk`` is below 1, or something cannot be sent to a worker.
        """
        require(chunk >= 1, "chunk", "must be at least 1", chunk)
        clock, done = Clock(len(items), 0, on_event), 0
        guess = None if seconds_per_item is None else seconds_per_item * len(items) / self.size
        clock.tell("started", 0, guess=guess)
        for results in self.results(function, items, chunk):
            for result in results:
                yield result  # the reader has stored it before it is announced
                done += 1
                if result.failed:
                    clock.tell("failed", done, message=result.error, traceback=result.traceback)
                clock.tell("progress", done)
        clock.tell("done", done)

    @abstractmethod
    def results(self, function: Function, items: Sequence[Any], chunk: int) -> Iterator[list[Result]]:
        """Yield the results of all items, some at a time."""

    def __enter__(self) -> Self:
        """Begin; see the class."""
        return self

    @abstractmethod
    def __exit__(self, *error: Any) -> None:
        """Let each worker leave its setup; at once, whatever it is computing, where an exception passes."""


class Engine(ABC):
    """Where work is done."""

    name: str
    """As the user typed it, such as ``"serial"``."""

    workers: int = 1
    """How many items are computed at the same time."""

    @property
    def worker_threads(self) -> int:
        """Threads with which each item is computed; at another number the last bits differ."""
        import torch

        return torch.get_num_threads()

    @abstractmethod
    def open(self, setup: Setup, *, device: object = "cpu") -> Workers:
        """Return workers for several calls, to be used in a ``with`` block.

        Args:
            setup: A function that gives a context manager; each worker enters one, and its value is the first argument
                of the functions that are mapped.
            device: Where items are computed; says what kind of workers are needed. Default ``"cpu"``.

        Returns:
            The workers, none of which is started as yet.
        """

    def map(
        self,
        setup: Setup,
        function: Function,
        items: Sequence[Any],
        *,
        chunk: int = 1,
        device: object = "cpu",
        seconds_per_item: float | None = None,
        on_event: OnEvent | None = None,
    ) -> Generator[Result]:
        """Compute all items on workers that live for this call; see `open` and `Workers.map`."""
        with self.open(setup, device=device) as workers:
            yield from workers.map(function, items, chunk=chunk, seconds_per_item=seconds_per_item, on_event=on_event)


def run_chunk(function: Function, context: Any, chunk: Chunk) -> list[Result]:
    """Compute one chunk; when it raises, compute its items one by one to find those that fail."""
    try:
        values = function(context, [item for _, item in chunk])
        return [Result(index, value) for (index, _), value in zip(chunk, values, strict=True)]
    except Exception as error:  # whatever the user's own metric raises: it belongs to the item, not to the survey
        if len(chunk) == 1:
            return [failed_result(chunk[0][0], error)]
    return [result for one in chunk for result in run_chunk(function, context, [one])]


def failed_result(index: int, error: BaseException) -> Result:
    """Return the result of an item that failed."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return Result(index, error=text[:200], traceback="".join(format_exception(error)))
