"""Setups, functions, items and results as bytes for another process; what cannot be packed is named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from traceback import format_exception
from typing import Any, Final

import cloudpickle

from lowland.core.errors import EngineError, InputError
from lowland.engine.base import Result, failed_result, run_chunk

_DEEPEST: Final = 12
"""Attributes of attributes that are searched for the culprit."""


def pack(value: object, name: str) -> bytes:
    """Turn a value into bytes; functions and classes of a script or a notebook travel by value."""
    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:  # every class may raise its own kind
        path, culprit = _culprit(name, value)
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
        yield "", value.__self__


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


class Remote:
    """The worker's side of a pool: what its setup gave, and the function it applies."""

    def __init__(self, context: Any) -> None:
        self._context, self._packed, self._function = context, b"", None

    def __call__(self, function: bytes, items: bytes) -> tuple[str, bytes]:
        """Compute a chunk and return a report; no function means the one of before."""
        try:
            if function and function != self._packed:
                self._packed, self._function = function, unpack(function)
            results = run_chunk(self._function, self._context, unpack(items))  # type: ignore[arg-type]
        except KeyboardInterrupt:
            return "interrupted", b""
        except Exception as error:  # a module is missing here, say: the same would happen in every worker
            return "broken", pack(portable(error), "error")
        try:
            return "results", pack(results, "results")
        except InputError:
            return "results", pack([_sendable(result) for result in results], "results")


def _sendable(result: Result) -> Result:
    try:
        pack(result.value, "value")
    except InputError as error:  # a value of a user's own function
        return failed_result(result.index, error)
    return result
