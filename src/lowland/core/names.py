"""From a name that a user typed to the object it means: registries and import paths."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeVar

from lowland.core.errors import InputError

__all__ = ["SPEC", "check_options", "find", "import_path", "nearest_name", "unknown"]

T = TypeVar("T")

SPEC: Final = "spec.yaml"
"""The file that makes a run again; here, since commands look for it before anything heavy is imported."""


def unknown(argument: str, name: object, known: Iterable[str]) -> InputError:
    """Make the error for a name that nothing has, with the nearest known name."""
    names = sorted(known)
    near = nearest_name(name, names)
    hint = f"did you mean {near!r}? " if near else ""
    return InputError(argument, "must be a known name", name, f"{hint}Known: {', '.join(names)}")


def nearest_name(name: object, known: Iterable[str]) -> str:
    """Return the known name that is nearest to what was typed; "" where none is near."""
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)), "")


def find(argument: str, name: str, registry: Mapping[str, T]) -> T | Any:
    """Look a name up in a registry, or import it when it is a path ``module:callable``."""
    if name in registry:
        return registry[name]
    if ":" in name:
        return import_path(argument, name)
    raise unknown(argument, name, registry)


def import_path(argument: str, path: str) -> Any:
    """Import ``module:callable`` (dots after the colon reach into classes)."""
    module_name, _, attribute = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(argument, f"must be an importable `module:callable` ({error})", path) from error
    if not callable(found):
        raise InputError(argument, "must name something callable", path)
    return found


def check_options(kind: str, name: str, build: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check keyword arguments against a function before it is called."""
    try:
        signature = inspect.signature(build)
    except ValueError:  # a callable written in C has no signature; it complains by itself
        return
    try:
        signature.bind(**options)
    except TypeError as error:
        known = ", ".join(signature.parameters)
        rule = f"must fit the {kind} {name!r} ({error})"
        raise InputError("options", rule, dict(options), f"Known: {known}") from error
