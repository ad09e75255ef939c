"""Outputs whose backward pass has not come: a second one of the same samples before it is another head's."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor


class Unanswered:
    """The last output whose gradient has not come yet, and what it was an output of."""

    def __init__(self) -> None:
        self._kept: tuple[weakref.ref[Tensor], Any] | None = None

    def __reduce__(self) -> Any:
        return Unanswered, ()  # a copy has given no output yet

    def keep(self, output: Tensor, given: Any) -> None:
        """Keep an output, without keeping it alive, until its gradient comes."""
        self._kept = weakref.ref(output), given
        output.register_hook(self.forget)  # type: ignore[no-untyped-call]

    def take(self) -> tuple[Tensor | None, Any] | None:
        """Return what is kept, if anything, and forget it."""
        kept, self._kept = self._kept, None
        return None if kept is None else (kept[0](), kept[1])

    def forget(self, gradient: Tensor | None = None) -> None:
        """Forget what is kept."""
        del gradient
        self._kept = None
