"""A task as bytes for another process, and the name of the attribute that cannot be packed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from traceback import format_exception
from typing import Any, Final

import cloudpickle

from lowland.core.errors import EngineError, InputError

__all__ = ["pack", "portable", "unpack"]

_DEEPEST: Final = 12
"""Attributes of attributes that are searched for the culprit."""


def pack(task: object) -> bytes:
    """Turn a task into bytes; functions and classes of a script or a notebook travel by value."""
    try:
        return bytes(cloudpickle.dumps(task))
    except Exception as error:  # every class may raise its own kind
        path, culprit = _culprit("task", task)
        rule = f"cannot be sent to another process ({type(error).__name__}: {str(error).splitlines()[0]})"
        advice = "create it when it is first used, remove it in __getstate__, or take engine='serial'"
        raise InputError(path, rule, type(culprit).__name__, advice) from error


def unpack(content: bytes) -> Any:
    """Turn bytes that this process or its driver packed into an object; never bytes of a file."""
    return cloudpickle.loads(content)


def _culprit(path: str, value: Any, seen: frozenset[int] = frozenset()) -> tuple[str, Any]:
    """Return the path and value of the innermost part that cannot be pickled by itself."""
    if len(seen) < _DEEPEST:
        for name, part in _parts(value):
            if id(part) not in seen and not _packs(part):
                return _culprit(path + name, part, seen | {id(value)})
    return path, value


def _packs(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", entry) for key, entry in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{place}]", entry) for place, entry in enumerate(value))
    for name, entry in vars(value).items() if hasattr(value, "__dict__") and not isinstance(value, type) else ():
        if name in ("_modules", "_parameters", "_buffers") and isinstance(entry, Mapping):
            yield from ((f".{key}", part) for key, part in entry.items())
        else:
            yield f".{name}", entry
    for name in getattr(type(value), "__slots__", ()):
        if hasattr(value, name):
            yield f".{name}", getattr(value, name)
    cells = getattr(value, "__closure__", None) or ()
    names = value.__code__.co_freevars if cells else ()
    for name, cell in zip(names, cells, strict=False):
        yield f"'s variable {name}", cell.cell_contents
    if hasattr(value, "__func__"):
        yield ".__self__", value.__self__


def portable(error: BaseException) -> BaseException:
    """Return an error that can be sent to the driver, with its traceback as a note."""
    note = "in a worker:\n" + "".join(format_exception(error))
    try:
        found: Any = cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:
        found = None
    if type(found) is not type(error):
        found = EngineError(f"{type(error).__name__}: {error}")
    found.add_note(note)
    assert isinstance(found, BaseException)
    return found
