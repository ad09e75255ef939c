"""What the options of a command are: read from the signature of its function.

Of a positional argument that is a dataclass (what a file holds, whose weights, how finely) the fields are options of
their own; keyword-only ones nest with dots.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from lowland.core.names import SPEC

Command = Callable[..., Any]

HOOKS: Final = ("on_event", "progress", "live")
"""Arguments of a command by which its progress is seen, and which are no flags."""


def spec_of(command: Command) -> type[Any] | None:
    """Return the dataclass that says what a command is about, where there is one."""
    return command if dataclasses.is_dataclass(command) else next(iter(flat_arguments(command).values()), None)


def flat_arguments(command: Command) -> dict[str, type[Any]]:
    """Return the positional arguments that are dataclasses; of those, the fields are options."""
    if dataclasses.is_dataclass(command):
        return {}
    parameters = inspect.signature(command).parameters.values()
    found = {one.name: _dataclass(command, one.annotation) for one in parameters if one.kind is not one.KEYWORD_ONLY}
    return {name: kind for name, kind in found.items() if kind is not None}


def _dataclass(home: Any, annotation: Any) -> type[Any] | None:
    name = str(annotation).split(" | ")[0]
    found = vars(sys.modules[home.__module__]).get(name)
    return found if dataclasses.is_dataclass(found) else None  # type: ignore[return-value]


def options_of(command: Command, prefix: str = "") -> dict[str, inspect.Parameter]:
    """Return every option of a command by its dotted name."""
    found: dict[str, inspect.Parameter] = {}
    flat = flat_arguments(command)
    for name, parameter in inspect.signature(command).parameters.items():
        kind = _dataclass(command, parameter.annotation)
        if name in flat:
            found |= options_of(flat[name], prefix)
        elif name not in HOOKS:
            found |= {prefix + name: parameter} | ({} if kind is None else options_of(kind, f"{prefix}{name}."))
    return found


def typed(kind: Any) -> str:
    """Return what is typed for a type, in plain words."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    inner = " | ".join(dict.fromkeys(map(typed, parts))) if origin is not Literal else " | ".join(map(str, parts))
    if origin in (Union, UnionType, Literal):
        return inner
    if origin is tuple:
        return " x ".join(map(typed, parts))
    if origin is dict:
        return "{name: value}"
    if origin is list:
        return f"({inner}),..." if " | " in inner else f"{inner},..."
    return _TYPED.get(getattr(origin, "__name__", ""), "value")


_TYPED: Final = {
    "str": "text",
    "PathLike": "text",
    "int": "integer",
    "float": "number",
    "bool": "true | false",
    "NoneType": "none",
}


def typed_default(text: str) -> str:
    """Return a default as it is typed."""
    plain = {"null": "none", "[]": "none", "": '""', "True": "true", "False": "false"}
    if re.fullmatch(r"\(\d+, \d+\)", text):
        return text.strip("()").replace(", ", "x")
    return plain.get(text, re.sub(r"['\s]", "", text)[1:-1] if text.startswith("[") else text)


def type_of(option: inspect.Parameter) -> str:
    """Return the type of an option for a message."""
    return {"Options": "dict"}.get(kind := str(option.annotation), kind)


def is_nested(name: str, known: Mapping[str, Any]) -> bool:
    """Tell whether an option holds others."""
    return any(one.startswith(f"{name}.") for one in known)


def first_child(name: str, known: Mapping[str, inspect.Parameter]) -> tuple[str, inspect.Parameter]:
    """Return the first option that another one holds."""
    return next((one, option) for one, option in known.items() if one.startswith(f"{name}."))


def choices_of(option: inspect.Parameter) -> list[str]:
    """Return the words that an option can have; empty where it is no choice among words."""
    kind = str(option.annotation)
    return re.findall(r"[\"']([^\"']*)[\"']", kind) if "Literal" in kind else []


def is_known(name: str, known: Mapping[str, inspect.Parameter]) -> bool:
    """Tell whether a name is that of an option, or lies in one that holds values by any name."""
    above = [known.get(name.rsplit(".", i)[0]) for i in range(1, name.count(".") + 1)]
    kinds = [str(option.annotation) for option in above if option is not None]
    return name in known or any(kind.startswith(("dict", "Options", "Changes")) for kind in kinds)


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
    if option is not None and (words := choices_of(option)):
        return f"--{name} {words[0]}"
    if plain:
        return f"--{name} {default}"
    kinds = {"int": "3", "float": "0.5", "list[float": "1.0,2.0", "dict": "'{}'", "Options": "'{}'"}
    found = next((text for start, text in kinds.items() if kind.startswith(start)), None)
    return f"--{name} {found or _EXAMPLES.get(name.rpartition('.')[2], 'VALUE')}"


_EXAMPLES: Final = {
    "run": "runs/sam",
    "runs": "runs/sam",
    "results": "runs/sam/surfaces/plane.zarr",
    "trajectories": "runs/sam/trajectory.zarr",
    "config": SPEC,
    "splits": "train,test",
    "probes": "gradient,convexity",
    "metrics": "accuracy",
    "augment": "crop,flip",
    "kinds": "models,data",
    "parts": "rounding,noise",
    "measures": "surface,curvature",
    "bits": "8,4",
    "budgets": "epochs,compute",
    "methods": "sgd,sam",
    "checkpoints": "a.pth,b.pth",
    "others": "runs/sam",
}
