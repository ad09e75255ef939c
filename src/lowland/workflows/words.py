"""From what a user typed, and what a file of any version holds, to the form that the parser reads."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from lowland.core.errors import InputError, refused, require
from lowland.core.names import LOSSES, OPTIMIZERS, nearest_name
from lowland.workflows.checks import check_version
from lowland.workflows.options import Command, example_of, first_child, is_known, is_nested, options_of, outer_names

_RENAMED: Final = {"colour_map": "color_map", "probe": "probes"}
"""Name of an option in version 0.1.0 -> its name now."""

_SHORT: Final = {"lr": "learning_rate", "rho": "options.rho"}
"""What is typed out of habit -> the option of the optimizer that it stands for."""


_SWITCHED: Final = ("true", "false", "yes", "no", "on", "off")
"""What may follow a switch; any other word is no part of it."""


def named(arguments: Sequence[str], positional: str) -> list[str]:
    """Let the words before the first flag stand for an option: ``surface runs/a`` is ``surface --run runs/a``."""
    words = list(arguments)
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    if count == 0 or not positional:
        return words
    if positional.endswith("s"):
        return [f"--{positional}", json.dumps(words[:count]), *words[count:]]
    return [f"--{positional}", *words]


def tidy_words(
    command: Command, words: Sequence[str], further: Mapping[str, Any], program: str, positional: str
) -> Iterator[str]:
    """Yield the words in the parser's own form: known names, lists in brackets, switches with a value, files read."""
    known, queue = options_of(command), list(words)
    while queue:
        word = queue.pop(0)
        if not word.startswith("-"):
            raise _stray(word, words, program, positional)
        if not word.startswith("--") or word == "--help" or word.startswith("--print_config"):
            yield word
            continue
        name, given, value = word[2:].partition("=")
        name = _known(name, known, further, program)
        if name in further:
            yield word
            if isinstance(further[name], tuple) and not given and queue:  # a choice, and no switch
                yield queue.pop(0)
            continue
        option = known.get(name)
        bare = not queue or queue[0].startswith("--")
        switch = option is not None and str(option.annotation) == "bool"
        if not given and switch and (bare or queue[0].lower() not in _SWITCHED):
            value = "true"
        elif not given:
            if bare:
                raise InputError(f"--{name}", "must be given a value", advice=f"such as {example_of(name, option)}")
            value = queue.pop(0)
        name, option = _of_a_word(name, value, known)
        if name == "version" and "version" not in known:
            check_version(yaml.safe_load(value) if value.isdigit() else value)
        elif option is not None and is_nested(name, known) and not _holds_values(value):
            raise InputError(
                name, "must hold names with values", value, f"such as {example_of(*first_child(name, known))}"
            )
        elif name == "config":
            text = value if "\n" in value else read_text(Path(value))  # a file's name, or YAML itself
            yield from ("--config", yaml.safe_dump(tidy_values(command, text), sort_keys=False))
        else:
            yield f"--{name}={value if option is None else as_list(option, value)}"


def _of_a_word(name: str, value: str, known: Mapping[str, inspect.Parameter]) -> tuple[str, inspect.Parameter | None]:
    """Return the option that a word alone stands for: ``--data digits`` is its name, ``--optimizer sam`` its method."""
    if is_nested(name, known) and re.fullmatch(r"[A-Za-z_][\w.:-]*", value) and not _holds_values(value):
        wraps = (name == "optimizer" and value.lower() in OPTIMIZERS) or (name == "loss" and value.lower() in LOSSES)
        inner = f"{name}.{'method' if wraps else 'name'}"
        name = inner if inner in known else name
    return name, known.get(name)


def _stray(word: str, words: Sequence[str], program: str, positional: str) -> InputError:
    """Return what is wrong with a word that belongs to no flag."""
    if not positional or words[0] == f"--{positional}":
        return InputError(
            "arguments", "must each belong to a flag", word, f"a list is one word, such as a,b; see {program} --help"
        )
    advice = f"write {program} {word} {words[0]} ...; a list is one word, such as a,b"
    return InputError(positional, "must go before the flags", word, advice)


def _known(name: str, known: Mapping[str, Any], further: Iterable[str], program: str) -> str:
    """Return a flag's name as it is now, or say which is near."""
    plain = name.removesuffix("+")
    plain = _RENAMED.get(plain, plain)
    for candidate in (plain, plain.replace("-", "_")):
        if is_known(candidate, known) or candidate in further or candidate in ("config", "version"):
            return candidate + "+" * name.endswith("+")
    hint = _hint(plain, known, {*further, "config"}, "--")
    raise InputError(f"--{name}", f"is no flag of `{program}`", advice=f"{hint}see {program} --help")


def _hint(name: str, known: Mapping[str, Any], further: Iterable[str], dashes: str = "") -> str:
    """Return which name is near, and what an option holds whose inner name is wrong."""
    outer, _, last = name.rpartition(".")
    inner = [one.removeprefix(f"{outer}.") for one in known if outer and one.startswith(f"{outer}.")]
    near = nearest_name(last, inner) if inner else nearest_name(name, [*known, *further])
    if last in _SHORT and ("optimizer.learning_rate" in known if not outer else outer.endswith("optimizer")):
        near = f"{'' if outer else 'optimizer.'}{_SHORT[last]}"
    hint = f"did you mean {dashes}{f'{outer}.' if inner else ''}{near}? " if near else ""
    return hint + (f"{dashes}{outer} holds {', '.join(inner)}; " if inner else "")


def _holds_values(text: str) -> bool:
    try:
        return Path(text).is_file() or isinstance(yaml.safe_load(text), dict)
    except (yaml.YAMLError, ValueError, OSError):
        return False


def as_list(option: inspect.Parameter, value: str) -> str:
    """Return a list in brackets, and none as null: ``51``, ``51x51`` are ``[51, 51]``; ``a,b`` is a list of words."""
    kind, text = str(option.annotation), value.strip()
    if text == "none" and "None" in kind:
        return "null"
    if not kind.startswith(("tuple", "list", "Sequence")) or text.startswith(("[", "{")) or "{" in text:
        return value
    if text in ("none", "null", ""):
        return "null" if "None" in kind else "[]"
    if re.fullmatch(r"[-+.\deE]+(?:\s*[x×,]\s*[-+.\deE]+)*", text):
        parts = re.split(r"\s*[x×,]\s*", text)
        size = kind.split("]")[0].count(",") + 1 if kind.startswith("tuple") else 1
        return f"[{', '.join(parts * size if len(parts) == 1 else parts)}]"
    return value if kind.startswith("tuple") else json.dumps([part.strip() for part in text.split(",")])


def read_text(path: Path) -> str:
    """Return what a YAML file holds."""
    require(path.is_file(), "config", "must be a YAML file", str(path))
    with refused((OSError, UnicodeDecodeError), "config", "must be a readable YAML file", str(path)):
        return path.read_text(encoding="utf-8")


def mapping_of(text: str, *, name: str | None = None) -> dict[Any, Any]:
    """Return the mapping of a YAML text; a complaint says the name of its file, or what was found."""
    try:
        found = yaml.safe_load(text)
        json.dumps(found, default=str, skipkeys=True)  # a mapping that holds itself ends nowhere
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that does not exist
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
            if not is_known(name, known):
                hint = f"{_hint(name, known, set())}Known: {', '.join(outer_names(known))}"
                raise InputError(name, "is no known option", value, hint)
        elif is_nested(name, known):
            inner, _ = _of_a_word(name, str(value), known) if isinstance(value, str) else (name, None)
            value = {inner.rpartition(".")[2]: value} if inner != name else value
            require(isinstance(value, dict), name, "must hold names with values", value)
            value = _renamed(value, known, f"{name}.")
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            listed = as_list(option, str(value))
            value = yaml.safe_load(listed) if listed != str(value) else value
        made[name[len(prefix) :]] = value
    return made
