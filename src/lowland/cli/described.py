"""What one method, model or data set takes: options, defaults and sources, read from signature and docstring."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_ASIDE: Final = ("base", "model", "criterion", "args", "kwargs", "options", "parts", "params")
"""What a user hands over in Python, and no option of a file."""
_WIDTH: Final = 79
_YEAR: Final = re.compile(r"\b(19|20)\d\d\b")


@dataclass(frozen=True)
class Option:
    """One option."""

    name: str
    default: str
    meaning: str  # With the origin of the default


@dataclass(frozen=True)
class Description:
    """What a name means, where it was published, what it takes."""

    name: str
    what: str
    source: str
    options: list[Option]
    shared: list[Option]  # What every two-pass method takes too
    typed: str  # How it is asked for on the command line


def describe(kind: str, name: str, build: Callable[..., Any]) -> Description:
    """Describe what a name of a registry stands for."""
    thing = getattr(build, "func", build)
    text = inspect.getdoc(thing) or ""
    meanings = _meanings(thing)
    options = [
        Option(parameter.name, _default(parameter), meanings.get(parameter.name, ""))
        for parameter in inspect.signature(build).parameters.values()
        if parameter.name not in _ASIDE and parameter.kind is not parameter.POSITIONAL_ONLY
    ]
    example = next((f"{o.name} {o.default}" for o in options if o.default not in ("", "none")), "")
    typed = _TYPED.get(kind, "").format(name=name, option=example)
    typed = re.sub(r" --\w+\.options\.$", "", typed)  # nothing has a default to show
    return Description(name, text.split("\n")[0], _source(text), options, _shared(thing), typed)


def rows_of(found: Sequence[Description]) -> list[list[str]]:
    """Return rows of option, default and meaning that fit 80 columns."""
    every = [option for entry in found for option in (*entry.options, *entry.shared)]
    name = max([6, *(len(option.name) for option in every)])
    default = min(max([7, *(len(option.default) for option in every)]), 16)
    room = _WIDTH - name - default - 6
    rows: list[list[str]] = []
    for entry in found:
        rows += [[entry.name, "", ""]] * (len(found) > 1)
        for heading, options in (("", entry.options), ("as every two-pass method:", entry.shared)):
            rows += [["", "", ""], ["", "", heading]] if heading and options else []
            rows += [[o.name, textwrap.fill(o.default, default), textwrap.fill(o.meaning, room)] for o in options]
    return [["option", "default", textwrap.fill("meaning, and where the default comes from", room)], *rows]


def wrapped(text: str) -> str:
    """Return text in lines of at most 80 columns."""
    return textwrap.fill(text, _WIDTH)


def _shared(thing: Any) -> list[Option]:
    if not getattr(thing, "__module__", "").startswith("lowland.optim"):
        return []
    from lowland.optim.options import AscentOptions, takes_ascent

    if not takes_ascent(thing):
        return []
    own, meanings = set(inspect.signature(thing).parameters), _arguments(inspect.getdoc(AscentOptions) or "")
    parameters = inspect.signature(AscentOptions).parameters.values()
    return [Option(p.name, _default(p), meanings.get(p.name, "")) for p in parameters if p.name not in own]


def _meanings(thing: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for base in reversed(inspect.getmro(thing) if inspect.isclass(thing) else [thing]):
        found |= _arguments(inspect.cleandoc(base.__doc__ or "") if base is not object else "")
    return found


def _arguments(text: str) -> dict[str, str]:
    """Return what a docstring says of each argument."""
    found = re.search(r"^Args:\n((?:[ ]+.*\n|\n)*)", text + "\n", re.MULTILINE)
    entries = re.split(r"^ {4}(?=\S)", found[1] if found else "", flags=re.MULTILINE)[1:]
    pairs = (entry.partition(":") for entry in entries)
    return {name.strip().lstrip("*"): " ".join(words.replace("``", "").split()) for name, _, words in pairs}


def _source(text: str) -> str:
    """Return the paragraph of a docstring that names what was published."""
    before = text.partition("\nArgs:")[0]
    paragraphs = [" ".join(part.split()) for part in before.split("\n\n")[1:]]
    return next((part for part in paragraphs if _YEAR.search(part) and not part.startswith(".. math")), "")


def _default(parameter: inspect.Parameter) -> str:
    value = parameter.default
    if value is parameter.empty:
        return ""
    if value is None:
        return "none"
    plain = isinstance(value, str | bool | int | float | tuple | list)
    return str(value).lower() if isinstance(value, bool) else str(value) if plain else type(value).__name__


_TYPED: Final[Mapping[str, str]] = {
    "optimizers": "--optimizer.method {name} --optimizer.options.{option}",
    "torch-optimizers": "--optimizer.name {name} --optimizer.options.{option}",
    "losses": "--loss.method {name} --loss.options.{option}",
    "models": "--model.name {name} --model.options.{option}",
    "data": "--data.name {name} --data.options.{option}",
    "augmentations": "--augment {name}",
    "reshapers": "--loss.method llr --loss.options.reshaper {name}",
    "criteria": "--loss.name {name}",
    "probes": "--probes {name}",
}
"""Kind -> the flags by which a name of it is asked for."""
