"""Where `torch.compile` looks away: calls of an optimizer, which move weights by Python that is no tensor code."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import ParamSpec, TypeVar, final

import torch

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def untraced(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Let a compiled function break its graph at a call of this one, once, instead of at each thing inside."""
    # As torch does for its own `zero_grad`. The public `torch.compiler.disable` would import the compiler with the
    # package, which takes a second; this one imports it at the first call, as the constructor of any optimizer does.
    hidden: Callable[_Arguments, _Result] = torch._disable_dynamo(function)  # type: ignore[attr-defined]
    return hidden


@final
class Untraced(AbstractContextManager[None]):
    """A context whose beginning and end are not traced; what runs inside may be compiled."""

    def __init__(self, context: AbstractContextManager[None]) -> None:
        self._context = context

    @untraced
    def __enter__(self) -> None:
        """Enter the context."""
        self._context.__enter__()

    @untraced
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """Leave the context."""
        return self._context.__exit__(kind, error, trace)
