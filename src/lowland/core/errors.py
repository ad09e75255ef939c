"""The errors and warnings of Lowland; no other room defines its own.

Every message that a user meets names the argument in backticks, the rule, the value got and what to try.
The CLI prints `InputError` (and its kin) as one line and exits with 2, everything else with 1.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Final

_ABSENT: Final = object()


class LowlandError(Exception):
    """Anything Lowland raises on purpose."""


class LowlandWarning(UserWarning):
    """Anything Lowland warns of on purpose; an error in our own tests."""


class InputError(LowlandError, ValueError):
    """An argument breaks a rule; nothing was changed and nothing was written.

    Args:
        argument: Name of the argument as the user typed it.
        rule: What must hold, as a full clause ("must be positive").
        got: The value received; shown with ``repr``, shortened. Omit it where there is no value.
        advice: What to try instead.

    Example:
        >>> print(InputError("rho", "must not be negative", -1.0, "use rho=0 to leave a group out"))
        `rho` must not be negative (got -1.0); use rho=0 to leave a group out
    """

    def __init__(self, argument: str, rule: str, got: object = _ABSENT, advice: str = "") -> None:
        self.argument, self.rule, self.got, self.advice = argument, rule, got, advice
        text = f"`{argument}` {rule}"
        if got is not _ABSENT:
            shown = repr(got)
            text += f" (got {shown if len(shown) <= 200 else shown[:197] + '...'})"
        if advice:
            text += f"; {advice}"
        super().__init__(text)


def require(holds: object, argument: str, rule: str, got: object = _ABSENT, advice: str = "") -> None:
    """Raise the `InputError` of an argument unless its rule holds."""
    if not holds:
        raise InputError(argument, rule, got, advice)


def check_positive(**values: float | None) -> None:
    """Check that numbers are positive; None passes."""
    for name, value in values.items():
        require(value is None or value > 0, name, "must be positive", value)


class NotFinite(InputError):
    """A loss, gradient or product is NaN or infinite at the present weights; what was asked does not exist there."""


class MissingPass(LowlandError, RuntimeError):
    """A step that wanted a second forward-backward pass was taken without one; nothing was changed."""


class NotDeterministic(LowlandError, RuntimeError):
    """Two passes over the same weights and data disagree, so no surface or spectrum of them can be trusted."""


class StoreError(LowlandError, RuntimeError):
    """A store is locked, damaged, foreign, of a newer schema, or holds another recipe; it was left as it was."""


class CheckpointError(LowlandError, RuntimeError):
    """A checkpoint is truncated, foreign or does not fit the run; nothing was loaded."""


class EngineError(LowlandError, RuntimeError):
    """Workers or a cluster cannot be reached, do not start, or do not fit; finished points are kept."""


class MissingExtra(LowlandError, ImportError):
    """An optional package is not installed."""


DAMAGED: Final = (OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What reading a file raises that is missing, cut off, or of another form; formats have errors of their own besides."""


@contextmanager
def reworded(
    kinds: type[Exception] | tuple[type[Exception], ...], make: Callable[[str], LowlandError]
) -> Generator[None]:
    """Say in our words what a library complains of; what Lowland itself raises passes as it is."""
    try:
        yield
    except LowlandError:
        raise
    except kinds as error:
        text = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise make(f"{type(error).__name__}: {text}" if kinds is Exception else text) from error


def refused(
    kinds: type[Exception] | tuple[type[Exception], ...],
    argument: str,
    rule: str,
    got: object = _ABSENT,
    advice: str = "",
) -> AbstractContextManager[None]:
    """Refuse an argument where a library complains of it, with what it says in brackets."""
    return reworded(kinds, lambda why: InputError(argument, f"{rule} ({why})", got, advice))


def optional_import(module: str, *, extra: str, needed_for: str) -> ModuleType:
    """Import an optional package that an extra of Lowland installs, or say how to install it and what needs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"{needed_for} needs the package `{module.split('.')[0]}`, which cannot be imported ({error}); "
            f'install it with: pip install "lowland[{extra}]"'
        ) from error
