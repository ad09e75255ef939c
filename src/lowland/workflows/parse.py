"""From flags and YAML to a spec, and from a spec to YAML; every wrong value becomes one clear line."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser

from lowland.core.errors import InputError

__all__ = ["from_text", "from_yaml", "parse", "parser_of", "to_yaml"]

Spec = TypeVar("Spec")


def parser_of(spec: type[Any], program: str) -> ArgumentParser:
    """Return the parser of a spec: one flag per field, nested fields with dots, and ``--config FILE``."""
    parser = ArgumentParser(
        prog=program, description=(spec.__doc__ or "").split("\n")[0], exit_on_error=False, add_help=True
    )
    parser.add_argument("--config", action="config", help="YAML file with values of this spec; flags after it win.")
    parser.add_class_arguments(spec, as_group=False)
    return parser


def parse(
    spec: type[Spec], arguments: Sequence[str], program: str = "lowland", **flags: bool | tuple[str, ...]
) -> tuple[Spec, dict[str, Any]]:
    """Turn flags and YAML into a spec.

    Args:
        spec: A spec class.
        arguments: What stood on the command line.
        program: How the command is called, for the help.
        **flags: Further flags of the command by name: False for a switch, words for a choice that begins at the first.

    Returns:
        The spec, checked, and the flags' values.

    Raises:
        InputError: If a flag is unknown or a value breaks a rule.

    Example:
        >>> from lowland.workflows import FitSpec
        >>> parse(FitSpec, ["--epochs", "3", "--optimizer.method", "sam"])[0].epochs
        3
    """
    parser = parser_of(spec, program)
    for flag, words in flags.items():
        if isinstance(words, tuple):
            parser.add_argument(f"--{flag}", choices=words, default=words[0], help=_FLAGS[flag])
        else:
            parser.add_argument(f"--{flag}", action="store_true", help=_FLAGS[flag])
    made, found = _made(spec, parser, lambda: parser.parse_args(list(arguments)))
    return made, {flag: found[flag] for flag in flags}


def _made(spec: type[Spec], parser: ArgumentParser, read: Callable[[], Any]) -> tuple[Spec, Any]:
    """Return the spec that a parser reads, and all it found."""
    try:
        found = read()
        for field in dataclasses.fields(spec):  # type: ignore[arg-type]
            if str(field.type).endswith("Spec") and isinstance(found[field.name], str | int | float | bool | list):
                raise InputError(field.name, "must hold names with values", found[field.name])
        made = parser.instantiate(found)
    except InputError:
        raise
    except (argparse.ArgumentError, TypeError, ValueError, KeyError, yaml.YAMLError) as error:
        raise _one_line(error) from error
    result = spec(**{field.name: made[field.name] for field in dataclasses.fields(spec)})  # type: ignore[arg-type]
    _no_holes(result, "")
    return result, found


def _no_holes(made: Any, prefix: str) -> None:
    """Refuse null where a value is needed; the parser reads it as "not given"."""
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        if value is None and "None" not in str(field.type):
            raise InputError(prefix + field.name, f"must be of the type {field.type}", value)
        if dataclasses.is_dataclass(value):
            _no_holes(value, f"{prefix}{field.name}.")


_FLAGS = {
    "quiet": "Print nothing but errors.",
    "json": "Print the result as one JSON document.",
    "scale": "small: the run of --config by a rule (lowland.workflows.recipe.small) for two CPU cores.",
}


def _one_line(error: Exception) -> InputError:
    """Return the parser's complaint in our own form: argument, rule, value."""
    cause: BaseException | None = error
    while cause is not None:  # our own checks run inside the parser
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    found = re.search(r'[Pp]arser key "([^"]+)":? (.*)', text)
    argument, rest = (found.group(1), found.group(2)) if found else ("arguments", text)
    expected = re.search(r"Expected an? (.+?)\. Got value: (.+)$", rest)
    if expected:
        kind = re.sub(r"<class '([^']+)'>|typing\.", r"\1", expected.group(1))
        return InputError(argument, f"must be of the type {kind}", expected.group(2))
    missing = re.search(r'(?:Key|Option) "([^"]+)" is required|required: (?:--)?([\w.]+)', text)
    if missing:
        return InputError(missing.group(1) or missing.group(2), "must be given")
    return InputError(argument, f"cannot be read: {rest.rstrip('.')}", advice="see --help")


def to_yaml(spec: Any) -> str:
    """Write a spec as YAML.

    Args:
        spec: A spec.

    Returns:
        Text that `from_yaml` reads back to an equal spec.
    """
    return yaml.safe_dump(_plain(dataclasses.asdict(spec)), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value


def from_yaml(spec: type[Spec], path: Path) -> Spec:
    """Read a spec from a YAML file."""
    if not path.is_file():
        raise InputError("config", "must be a YAML file", str(path))
    try:
        return from_text(spec, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("config", f"must be a readable YAML file ({error})", str(path)) from error


def from_text(spec: type[Spec], text: str) -> Spec:
    """Read a spec from YAML."""
    kind: Any = spec  # mypy takes no class with an equality of its own for hashable
    made: Spec = copy.deepcopy(_read(kind, text))  # a spec can be changed; what is kept must not
    return made


@functools.lru_cache(maxsize=256)
def _read(spec: type[Any], text: str) -> Any:
    # parsing takes a tenth of a second, and a study reads the specs of its runs again and again
    parser = parser_of(spec, "lowland")
    return _made(spec, parser, lambda: parser.parse_string(text))[0]
