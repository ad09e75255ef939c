"""From the engine's name to the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from lowland.core.errors import InputError
from lowland.core.names import check_engine
from lowland.engine.base import Engine
from lowland.engine.processes import Processes
from lowland.engine.ray import Ray
from lowland.engine.serial import Serial

_KINDS: Final[Mapping[str, Callable[..., Engine]]] = {"serial": Serial, "processes": Processes, "ray": Ray}


def select(engine: str | Engine) -> Engine:
    """Return the engine of a name, or the engine that was given.

    Args:
        engine: ``"serial"``, ``"processes:N"`` with a number of workers, ``"ray"`` (all of a cluster), ``"ray:N"``,
            ``"ray://HOST:PORT"``, or an engine.

    Example:
        >>> select("serial").name, select("processes:2").workers
        ('serial', 2)
    """
    if isinstance(engine, Engine):
        return engine
    if not isinstance(engine, str):
        raise InputError("engine", "must be a name or an Engine", type(engine).__name__)
    given = check_engine(engine).groupdict()
    return _KINDS[engine.partition(":")[0]](**{name: int(v) if name == "workers" else v for name, v in given.items()})
