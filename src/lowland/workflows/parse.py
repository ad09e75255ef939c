"""From flags and YAML to the arguments of a command, and back to YAML; every wrong value becomes one clear line.

A command is a function: its arguments are its flags, their words stand in its docstring (`lowland.workflows.options`).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Any, Final, TypeVar

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from lowland.core.errors import InputError
from lowland.core.names import nearest_name
from lowland.workflows.options import (
    Command,
    choices_of,
    example_of,
    flat_arguments,
    options_of,
    outer_names,
    spec_of,
    type_of,
    typed,
    typed_default,
)
from lowland.workflows.words import named, read_text, tidy_values, tidy_words

Spec = TypeVar("Spec")


@dataclass(frozen=True)
class Call:
    """A command with its arguments, all checked."""

    command: Command
    arguments: dict[str, Any]  # By name; dataclasses where their fields are flags
    flags: dict[str, Any]  # Values of the further flags

    def __call__(self, **hooks: Any) -> Any:
        """Call the command."""
        return self.command(**self.arguments, **hooks)

    @property
    def spec(self) -> Any:
        """What the command is about: its first dataclass."""
        return next(value for value in self.arguments.values() if dataclasses.is_dataclass(value))

    @property
    def values(self) -> dict[str, Any]:
        """Every option by name, as plain values."""
        return values_of(self.command, self.arguments)


def values_of(command: Command, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as options by name, as plain values."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
        found |= plain if name in flat_arguments(command) or command is type(value) else {name: plain}
    return found


class _Help(DefaultHelpFormatter):
    """Shows types and defaults as they are typed, and leaves the example in one line."""

    def _get_type_str(self, action: argparse.Action) -> str | None:
        found = super()._get_type_str(action)
        return None if found is None else typed(getattr(action, "_typehint", action.type))

    def _expand_help(self, action: argparse.Action) -> str:
        found = super()._expand_help(action)
        return re.sub(r"(?<=default: )([^:]*)(?=\)$)", lambda default: typed_default(default[1]), found)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = super()._fill_text
        return "\n".join(
            line if line.startswith("Example") else filled(line, width, indent) for line in text.split("\n")
        )


def parser_of(command: Command, program: str, *, positional: str = "", example: str = "") -> ArgumentParser:
    """Return the parser of a command: one flag per option, nested ones with dots, and ``--config FILE``."""
    takes = f" [{positional.upper()}{' ...' if positional.endswith('s') else ''}]" if positional else ""
    about = (inspect.getdoc(command) or "").split("\n")[0]
    spec = spec_of(command)
    if not about and spec is not None:
        about = (inspect.getdoc(spec) or "").split("\n")[0]
    said = f"{positional.upper()} is short for --{positional}.\n" if positional else ""
    parser = ArgumentParser(
        prog=program,
        usage=f"{program}{takes} [--config FILE] [--OPTION VALUE ...]",
        description=about,
        epilog=said + (f"Example: {example}" if example else ""),
        exit_on_error=False,
        formatter_class=_Help,
    )
    parser.add_argument("--config", action="config", help="YAML file with values of these options; flags after it win.")
    own = [] if command is spec else [_arguments_of(command)]
    for kind in [command] if command is spec else [*flat_arguments(command).values(), *own]:
        parser.add_class_arguments(kind, as_group=False)
    return parser


def _arguments_of(command: Command) -> type[Any]:
    """Return the arguments of a function that are flags by themselves, as a dataclass."""
    # a function's other annotations name what only type checkers import, which the parser would import to read them
    fields: list[Any] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in options_of(command) and name not in flat_arguments(command):
            kind = eval(parameter.annotation, vars(sys.modules[command.__module__]))
            needed = parameter.default is parameter.empty
            default = functools.partial(copy.copy, parameter.default)
            fields.append((name, kind, dataclasses.field() if needed else dataclasses.field(default_factory=default)))
    made = dataclasses.make_dataclass("Arguments", fields, kw_only=True)
    made.__doc__ = command.__doc__
    return made


def parse(spec: type[Spec], arguments: Sequence[str]) -> Spec:
    """Turn flags and YAML into a spec.

    Args:
        spec: A spec class.
        arguments: What stood on the command line.

    Returns:
        The spec, checked.

    Raises:
        InputError: If a flag is unknown or a value breaks a rule.

    Example:
        >>> from lowland.workflows import FitSpec
        >>> parse(FitSpec, ["--epochs", "3", "--optimizer.method", "sam"]).epochs
        3
    """
    made: Spec = call(spec, arguments).spec
    return made


def call(
    command: Command,
    arguments: Sequence[str],
    program: str = "lowland",
    *,
    positional: str = "",
    example: str = "",
    flags: Mapping[str, bool | tuple[str, ...]] | None = None,
) -> Call:
    """Turn flags and YAML into the call of a command."""
    # flags are further ones, which the command does not see: False for a switch, words for a choice, its default first
    parser = _parser(command, program, positional, example, tuple((flags or {}).items()), get_ident())
    words = list(tidy_words(command, named(arguments, positional), flags or {}, program, positional))
    return _made(command, parser, lambda: parser.parse_args(words), flags or {})


@functools.lru_cache(maxsize=64)
def _parser(command: Command, program: str, positional: str, example: str, flags: Any, thread: int) -> ArgumentParser:
    # made from signatures and docstrings, which takes twice as long as to parse; one for each thread, since a parser
    # keeps state while it parses
    parser = parser_of(command, program, positional=positional, example=example)
    for flag, choice in flags:
        kind: dict[str, Any] = {"action": "store_true"}
        if isinstance(choice, tuple):
            kind = {"choices": choice, "default": choice[0]}
        parser.add_argument(f"--{flag}", help=_FLAGS[flag], **kind)
    return parser


_FLAGS: Final = {
    "quiet": "Print nothing but errors.",
    "json": "Print the result as one JSON document; numbers that are not finite are null.",
    "scale": "small: the run of --config by a rule (lowland.workflows.recipe.small) for two CPU cores.",
}


def _made(command: Command, parser: ArgumentParser, read: Callable[[], Any], flags: Mapping[str, Any]) -> Call:
    """Return the call that a parser reads."""
    known = options_of(command)
    try:
        found = read()
        made = parser.instantiate(found)
    except InputError:
        raise
    except (argparse.ArgumentError, TypeError, ValueError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise _one_line(error, known) from error
    top = {name: made[name] for name in outer_names(known)}
    _no_holes(known, top)
    kinds = {"spec": command} if dataclasses.is_dataclass(command) else flat_arguments(command)
    arguments: dict[str, Any] = {}
    for name, kind in kinds.items():
        arguments[name] = kind(**{field.name: top.pop(field.name) for field in dataclasses.fields(kind)})
    return Call(command, arguments | top, {flag: found[flag] for flag in flags})


def _no_holes(known: Mapping[str, inspect.Parameter], values: Mapping[str, Any]) -> None:
    """Refuse null where a value is needed; the parser reads it as "not given"."""
    for name, option in known.items():
        value: Any = values
        for part in name.split("."):
            value = value[part] if isinstance(value, Mapping) else getattr(value, part)
        if value is None and "None" not in str(option.annotation):
            if option.default is inspect.Parameter.empty:
                raise InputError(name, "must be given", advice=f"such as {example_of(name, option)}")
            rule = f"must be of the type {type_of(option)}"
            raise InputError(name, rule, value, f"such as {example_of(name, option)}")


def _one_line(error: Exception, known: Mapping[str, inspect.Parameter]) -> InputError:
    """Return the parser's complaint in our own form: argument, rule, value, an example that works."""
    cause: BaseException | None = error
    while cause is not None:  # our own checks run inside the parser
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    found = re.search(r'[Pp]arser key "([^"]+)":? (.*)', text) or re.search(r"argument --([\w.]+)(?:/\S+)?: (.*)", text)
    argument, rest = (found.group(1), found.group(2)) if found else ("arguments", text)
    missing = re.search(r'(?:Key|Option) "([^"]+)" is required|required: (?:--)?([\w.]+)', text)
    if missing:
        name = missing.group(1) or missing.group(2)
        return InputError(name, "must be given", advice=f"such as {example_of(name, known.get(name))}")
    choice = re.fullmatch(r"invalid choice: '(.*)' \(choose from (.*)\)\.?", rest)
    if choice:
        return InputError(argument, f"must be one of {choice.group(2).replace(chr(39), '')}", choice.group(1))
    option = known.get(argument)
    advice = f"such as {example_of(argument, option)}" if option is not None else "see --help"
    expected = re.findall(r"(?:Got|Given) value: (.+?)(?= - Expected | Given value|$)", rest)  # of a union, several
    if option is not None and expected:
        words = choices_of(option)
        rule = f"must be one of {', '.join(words)}" if words else f"must be of the type {type_of(option)}"
        near = nearest_name(expected[-1].strip("'\""), words)
        return InputError(argument, rule, _value(expected[-1]), f"did you mean {near}?" if near else advice)
    return InputError(argument, f"cannot be read: {rest.rstrip('.')}", advice=advice)


def _value(shown: str) -> Any:
    if shown == "None":
        return None
    try:
        return yaml.safe_load(shown) if not shown.startswith("'") else shown.strip("'")
    except yaml.YAMLError:
        return shown


def to_yaml(spec: Any) -> str:
    """Write a spec, or options by name, as YAML that `from_yaml` reads back to an equal spec."""
    values = spec if isinstance(spec, Mapping) else dataclasses.asdict(spec)
    return yaml.safe_dump(_plain(values), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value


def from_yaml(spec: type[Spec], path: Path) -> Spec:
    """Read a spec from a YAML file."""
    try:
        made: Spec = from_text(spec, read_text(path)).spec
    except InputError as error:  # what is wrong was not typed by whoever reads this
        raise InputError(error.argument, f"{error.rule} in {path}", error.got, error.advice) from error
    return made


def from_text(command: Command, text: str) -> Call:
    """Read the arguments of a command from YAML."""
    kind: Any = command  # mypy takes no class with an equality of its own for hashable
    return copy.deepcopy(_read(kind, text))  # a spec can be changed; what is kept must not


@functools.lru_cache(maxsize=256)
def _read(command: Command, text: str) -> Call:
    # parsing takes a tenth of a second, and a study reads the specs of its runs again and again
    parser = _parser(command, "lowland", "", "", (), get_ident())
    tidy = yaml.safe_dump(tidy_values(command, text), sort_keys=False)
    return _made(command, parser, lambda: parser.parse_string(tidy), {})
