"""From the engine's name to the engine."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from lowland.core.errors import InputError
from lowland.core.names import unknown
from lowland.engine.base import Engine
from lowland.engine.processes import Processes
from lowland.engine.ray import Ray
from lowland.engine.serial import Serial

__all__ = ["ENGINES", "select"]


ENGINES: Final[Mapping[str, tuple[str, Callable[[re.Match[str]], Engine]]]] = {
    "serial": ("serial", lambda found: Serial()),
    "processes:N": (r"processes:(\d+)", lambda found: Processes(int(found[1]))),
    "ray": ("ray", lambda found: Ray()),
    "ray:N": (r"ray:(\d+)", lambda found: Ray(workers=int(found[1]))),
    "ray://HOST:PORT": ("(ray://.*)", lambda found: Ray(found[1])),
}
"""Form of the name as documented -> its pattern, and how to make the engine from what the pattern found."""


def select(engine: str | Engine) -> Engine:
    """Return the engine of a name, or the engine that was given.

    Args:
        engine: ``"serial"``, ``"processes:N"`` with a number of workers, ``"ray"`` (all of a cluster), ``"ray:N"``,
            ``"ray://HOST:PORT"``, or an engine.

    Returns:
        The engine.

    Raises:
        InputError: If nothing has that name.

    Example:
        >>> select("serial").name, select("processes:2").workers
        ('serial', 2)
    """
    if isinstance(engine, Engine):
        return engine
    if not isinstance(engine, str):
        raise InputError("engine", "must be a name or an Engine", type(engine).__name__)
    for pattern, make in ENGINES.values():
        if found := re.fullmatch(pattern, engine, re.ASCII):
            return make(found)
    error: InputError = unknown("engine", engine, ENGINES)
    raise error
