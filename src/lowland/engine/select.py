"""From the engine's name to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from lowland.core.errors import InputError
from lowland.core.names import unknown
from lowland.engine.base import Engine
from lowland.engine.serial import Serial

__all__ = ["ENGINES", "select"]

ENGINES: Final[Mapping[str, Callable[[], Engine]]] = {"serial": Serial}
"""Name -> how to make it."""


def select(engine: str | Engine) -> Engine:
    """Return the engine of a name, or the engine that was given.

    Args:
        engine: ``"serial"``, or an engine.

    Returns:
        The engine.

    Raises:
        InputError: If nothing has that name.

    Example:
        >>> select("serial").name
        'serial'
    """
    if isinstance(engine, Engine):
        return engine
    if not isinstance(engine, str):
        raise InputError("engine", "must be a name or an Engine", type(engine).__name__)
    if engine not in ENGINES:
        error: InputError = unknown("engine", engine, ENGINES)
        raise error
    return ENGINES[engine]()
