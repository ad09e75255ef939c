"""From what a user typed, and what a file of any version holds, to the form that the parser reads."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from lowland.core.errors import InputError
from lowland.core.names import nearest_name
from lowland.workflows.checks import check_version
from lowland.workflows.options import (
    Command,
    above,
    example_of,
    first_child,
    is_free,
    is_nested,
    options_of,
    outer_names,
)

_RENAMED: Final = {"colour_map": "color_map", "probe": "probes"}
"""Name of an option in version 0.1.0 -> its name now."""


def named(arguments: Sequence[str], positional: str) -> list[str]:
    """Let the words before the first flag stand for an option: ``surface runs/a`` is ``surface --run runs/a``."""
    words = list(arguments)
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    if count == 0 or not positional:
        return words
    if positional.endswith("s"):
        return [f"--{positional}", json.dumps(words[:count]), *words[count:]]
    return [f"--{positional}", *words]


def tidy_words(command: Command, words: Sequence[str], further: set[str], program: str) -> Iterator[str]:
    """Yield the words in the parser's own form: known names, lists in brackets, switches with a value, files read."""
    known, queue = options_of(command), list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("--") or word == "--help" or word.startswith("--print_config"):
            yield word
            continue
        name, given, value = word[2:].partition("=")
        name = _known(name, known, further, program)
        if name in further:
            yield word
            continue
        option = known.get(name)
        bare = not queue or queue[0].startswith("--")
        if not given and bare and option is not None and str(option.annotation) == "bool":
            value = "true"
        elif not given:
            if bare:
                raise InputError(f"--{name}", "must be given a value", advice=f"such as {example_of(name, option)}")
            value = queue.pop(0)
        if name == "version" and "version" not in known:
            check_version(yaml.safe_load(value) if value.isdigit() else value)
        elif option is not None and is_nested(name, known) and not _holds_values(value):
            raise InputError(
                name, "must hold names with values", value, f"such as {example_of(*first_child(name, known))}"
            )
        elif name == "config":
            yield from ("--config", yaml.safe_dump(_of_file(command, value), sort_keys=False))
        else:
            yield f"--{name}={value if option is None else as_list(option, value)}"


def _known(name: str, known: Mapping[str, Any], further: set[str], program: str) -> str:
    """Return a flag's name as it is now, or say which is near."""
    plain = name.removesuffix("+")
    plain = _RENAMED.get(plain, plain)
    for candidate in (plain, plain.replace("-", "_")):
        free = any(part in known and is_free(known[part]) for part in above(candidate))
        if candidate in known or candidate in further or candidate in ("config", "version") or free:
            return candidate + "+" * name.endswith("+")
    near = nearest_name(plain, [*known, *further, "config"])
    hint = f"did you mean --{near}? " if near else ""
    raise InputError(f"--{name}", f"is no flag of `{program}`", advice=f"{hint}see {program} --help")


def _holds_values(text: str) -> bool:
    try:
        return Path(text).is_file() or isinstance(yaml.safe_load(text), dict)
    except (yaml.YAMLError, ValueError, OSError):
        return False


def as_list(option: inspect.Parameter, value: str) -> str:
    """Return a list in brackets: ``51``, ``51x51``, ``51,51`` are ``[51, 51]``; ``train,test`` is a list of words."""
    kind, text = str(option.annotation), value.strip()
    if not kind.startswith(("tuple", "list", "Sequence")) or text.startswith(("[", "{")) or "{" in text:
        return value
    if text in ("none", "null", ""):
        return "null" if "None" in kind else "[]"
    if re.fullmatch(r"[-+.\deE]+(?:\s*[x×,]\s*[-+.\deE]+)*", text):
        parts = re.split(r"\s*[x×,]\s*", text)
        size = kind.split("]")[0].count(",") + 1 if kind.startswith("tuple") else 1
        return f"[{', '.join(parts * size if len(parts) == 1 else parts)}]"
    return value if kind.startswith("tuple") else json.dumps([part.strip() for part in text.split(",")])


def _of_file(command: Command, path: str) -> Any:
    """Return the values of a YAML file (or of YAML itself) in the parser's form."""
    return tidy_values(command, path if "\n" in path else read_text(Path(path)))


def read_text(path: Path) -> str:
    """Return what a YAML file holds."""
    if not path.is_file():
        raise InputError("config", "must be a YAML file", str(path))
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("config", f"must be a readable YAML file ({error})", str(path)) from error


def mapping_of(text: str, *, name: str | None = None) -> dict[Any, Any]:
    """Return the mapping of a YAML text; a complaint says the name of its file, or what was found."""
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        got = () if name is None else (name,)
        raise InputError("config", f"must be YAML ({' '.join(str(error).split())})", *got) from error
    if not isinstance(found, dict):
        raise InputError("config", "must be a YAML mapping", found if name is None else name)
    return found


def tidy_values(command: Command, text: str) -> dict[str, Any]:
    """Return the values of a YAML text with names as they are now and lists in full."""
    return _renamed(mapping_of(text), options_of(command), "")


def _renamed(values: Mapping[Any, Any], known: Mapping[str, inspect.Parameter], prefix: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + _RENAMED.get(str(key), str(key))
        if name == "version" and name not in known:
            check_version(value)
            continue
        option = known.get(name)
        if option is None:
            if not any(name.startswith(f"{part}.") and part in known for part in above(name)):
                near = nearest_name(name, known)
                hint = f"did you mean {near}? " if near else ""
                raise InputError(name, "is no known option", value, f"{hint}Known: {', '.join(outer_names(known))}")
        elif is_nested(name, known):
            if not isinstance(value, dict):
                raise InputError(name, "must hold names with values", value)
            value = _renamed(value, known, f"{name}.")
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            listed = as_list(option, str(value))
            value = yaml.safe_load(listed) if listed != str(value) else value
        made[name[len(prefix) :]] = value
    return made
