"""The engine for one process: a plain loop, the default and the debugger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Final

from lowland.engine.base import Engine, Function, Result, Setup, Workers, run_chunk


class Serial(Engine):
    """Computes one chunk after the other in this process.

    Example:
        >>> from contextlib import nullcontext
        >>> [result.value for result in Serial().map(nullcontext, lambda _, numbers: [2 * n for n in numbers], [1, 2])]
        [2, 4]
    """

    name: Final = "serial"

    def open(self, setup: Setup, *, device: object = "cpu") -> Workers:
        """Return this process."""
        return _Here(setup)


class _Here(Workers):
    """This process as the only worker."""

    def __init__(self, setup: Setup) -> None:
        self._setup, self._stack, self._entered = setup, ExitStack(), False
        self._context: Any = None

    def results(self, function: Function, items: Sequence[Any], chunk: int) -> Iterator[list[Result]]:
        for start in range(0, len(items), chunk):
            if not self._entered:
                self._context, self._entered = self._stack.enter_context(self._setup()), True
            part = [(index, items[index]) for index in range(start, min(start + chunk, len(items)))]
            yield run_chunk(function, self._context, part)

    def __exit__(self, *error: Any) -> None:
        self._entered = False
        self._stack.__exit__(*error)
