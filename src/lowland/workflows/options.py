"""What the options of a command are: read from the signature of its function.

Of a positional argument that is a dataclass (what a file holds, whose weights) the fields are options of their own;
keyword-only ones nest with dots.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from lowland.core.names import SPEC

Command = Callable[..., Any]

HOOKS: Final = ("on_event", "live")
"""Arguments of a command that receive its progress, and are no flags."""


def spec_of(command: Command) -> type[Any] | None:
    """Return the dataclass whose fields are flags of a command, where there is one."""
    if dataclasses.is_dataclass(command):
        return command
    flat = flat_argument(command)
    return None if flat is None else flat[1]


def flat_argument(command: Command) -> tuple[str, type[Any]] | None:
    """Return name and class of the positional argument that is a dataclass."""
    for parameter in inspect.signature(command).parameters.values():
        kind = _dataclass(command, parameter.annotation)
        if kind is not None and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            return parameter.name, kind
    return None


def _dataclass(home: Any, annotation: Any) -> type[Any] | None:
    name = str(annotation).split(" | ")[0]
    found = vars(sys.modules[home.__module__]).get(name)
    return found if dataclasses.is_dataclass(found) else None  # type: ignore[return-value]


def options_of(command: Command, prefix: str = "") -> dict[str, inspect.Parameter]:
    """Return every option of a command by its dotted name."""
    found: dict[str, inspect.Parameter] = {}
    flat = None if dataclasses.is_dataclass(command) else flat_argument(command)
    for name, parameter in inspect.signature(command).parameters.items():
        kind = _dataclass(command, parameter.annotation)
        if flat is not None and name == flat[0]:
            found |= options_of(flat[1], prefix)
        elif name not in HOOKS:
            found |= {prefix + name: parameter} | ({} if kind is None else options_of(kind, f"{prefix}{name}."))
    return found


def is_nested(name: str, known: Mapping[str, Any]) -> bool:
    """Tell whether an option holds others."""
    return any(one.startswith(f"{name}.") for one in known)


def first_child(name: str, known: Mapping[str, inspect.Parameter]) -> tuple[str, inspect.Parameter]:
    """Return the first option that another one holds."""
    return next((one, option) for one, option in known.items() if one.startswith(f"{name}."))


def is_free(option: inspect.Parameter) -> bool:
    """Tell whether an option holds values by any name."""
    return str(option.annotation).startswith(("dict", "Options", "Changes"))


def above(name: str) -> list[str]:
    """Return the names of what an option lies in."""
    return [name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)]


def outer_names(known: Mapping[str, Any]) -> list[str]:
    """Return the options that lie in no other."""
    return [name for name in known if "." not in name]


def example_of(name: str, option: inspect.Parameter | None) -> str:
    """Return a flag with a value that works."""
    kind, default = ("", None) if option is None else (str(option.annotation), option.default)
    plain = isinstance(default, str | int | float) and not isinstance(default, bool) and default != ""
    if kind.startswith("tuple[int"):
        return f"--{name} 51x51"
    if kind.startswith("bool"):
        return f"--{name} true"
    if "Literal" in kind:
        words = re.findall(r"[\"']([^\"']*)[\"']", kind)
        return f"--{name} {words[0]}"
    if plain:
        return f"--{name} {default}"
    kinds = {"int": "3", "float": "0.5", "list[str": "train,test", "list[float": "1.0,2.0", "dict": "'{key: 1}'"}
    by_name = {"run": "runs/sam", "runs": "runs/sam", "results": "runs/sam/surfaces/plane.zarr", "config": SPEC}
    value = by_name.get(name) or next((text for start, text in kinds.items() if kind.startswith(start)), "VALUE")
    return f"--{name} {value}"
