"""From flags and YAML to the arguments of a command, and back to YAML; every wrong value becomes one clear line.

A command is a function: its arguments are its flags, their words stand in its docstring. Of a positional argument that
is a dataclass (what a file holds, whose weights) the fields are flags of their own; keyword-only ones nest with dots.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from lowland.core.errors import InputError
from lowland.core.names import nearest_name
from lowland.workflows.checks import check_version

__all__ = ["HOOKS", "Call", "call", "from_text", "from_yaml", "named", "parse", "parser_of", "to_yaml"]

Spec = TypeVar("Spec")
Command = Callable[..., Any]

HOOKS: Final = ("on_event", "live")
"""Arguments of a command that receive its progress, and are no flags."""

_RENAMED: Final = {"colour_map": "color_map", "probe": "probes"}
"""Name of an option in version 0.1.0 -> its name now."""


@dataclass(frozen=True)
class Call:
    """A command with its arguments, all checked."""

    command: Command
    spec: Any  # The dataclass whose fields are flags, where there is one
    options: dict[str, Any]  # All others
    flags: dict[str, Any]  # Values of the further flags

    def __call__(self, **hooks: Any) -> Any:
        """Call the command."""
        flat = _flat(self.command)
        return self.command(**({} if flat is None else {flat[0]: self.spec}), **self.options, **hooks)

    @property
    def values(self) -> dict[str, Any]:
        """Every option by name, as plain values."""
        spec = {} if self.spec is None else dataclasses.asdict(self.spec)
        nested = {n: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for n, v in self.options.items()}  # type: ignore[arg-type]
        return {**spec, **nested}


def spec_of(command: Command) -> type[Any] | None:
    """Return the dataclass whose fields are flags of a command, where there is one."""
    if dataclasses.is_dataclass(command):
        return command
    flat = _flat(command)
    return None if flat is None else flat[1]


def _flat(command: Command) -> tuple[str, type[Any]] | None:
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
    flat = None if dataclasses.is_dataclass(command) else _flat(command)
    for name, parameter in inspect.signature(command).parameters.items():
        kind = _dataclass(command, parameter.annotation)
        if flat is not None and name == flat[0]:
            found |= options_of(flat[1], prefix)
        elif name not in HOOKS:
            found |= {prefix + name: parameter} | ({} if kind is None else options_of(kind, f"{prefix}{name}."))
    return found


class _Help(DefaultHelpFormatter):
    """Leaves the example in one line."""

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
        prog=program, usage=f"{program}{takes} [--config FILE] [--OPTION VALUE ...]", description=about,
        epilog=said + (f"Example: {example}" if example else ""), exit_on_error=False, formatter_class=_Help,
    )  # fmt: skip
    parser.add_argument("--config", action="config", help="YAML file with values of these options; flags after it win.")
    if spec is not None:
        parser.add_class_arguments(spec, as_group=False)
    if command is not spec:
        parser.add_class_arguments(_arguments_of(command), as_group=False)
    return parser


def _arguments_of(command: Command) -> type[Any]:
    """Return the arguments of a function that are flags by themselves, as a dataclass."""
    # a function's other annotations name what only type checkers import, which the parser would import to read them
    flat, fields = _flat(command), []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in HOOKS and (flat is None or name != flat[0]):
            kind = eval(parameter.annotation, vars(sys.modules[command.__module__]))
            needed = parameter.default is parameter.empty
            fields.append((name, kind, dataclasses.field() if needed else _default(parameter.default)))
    made = dataclasses.make_dataclass("Arguments", fields, kw_only=True)
    made.__doc__ = command.__doc__
    return made


def _default(value: Any) -> Any:
    return dataclasses.field(default_factory=lambda: value)


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
    command: Command, arguments: Sequence[str], program: str = "lowland", *, positional: str = "", example: str = "",
    flags: Mapping[str, bool | tuple[str, ...]] | None = None,
) -> Call:  # fmt: skip
    """Turn flags and YAML into the call of a command."""
    # flags are further ones, which the command does not see: False for a switch, words for a choice, its default first
    parser = parser_of(command, program, positional=positional, example=example)
    for flag, choice in (flags or {}).items():
        kind: dict[str, Any] = {"action": "store_true"}
        if isinstance(choice, tuple):
            kind = {"choices": choice, "default": choice[0]}
        parser.add_argument(f"--{flag}", help=_FLAGS[flag], **kind)
    words = list(_tidy(command, named(arguments, positional), set(flags or {}), program))
    return _made(command, parser, lambda: parser.parse_args(words), flags or {})


_FLAGS: Final = {
    "quiet": "Print nothing but errors.",
    "json": "Print the result as one JSON document; numbers that are not finite are null.",
    "scale": "small: the run of --config by a rule (lowland.workflows.recipe.small) for two CPU cores.",
}


def named(arguments: Sequence[str], positional: str) -> list[str]:
    """Let the words before the first flag stand for an option: ``surface runs/a`` is ``surface --run runs/a``."""
    words = list(arguments)
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    if count == 0 or not positional:
        return words
    if positional.endswith("s"):
        return [f"--{positional}", json.dumps(words[:count]), *words[count:]]
    return [f"--{positional}", *words]


def _tidy(command: Command, words: Sequence[str], further: set[str], program: str) -> Iterator[str]:
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
                raise InputError(f"--{name}", "must be given a value", advice=f"such as {_example(name, option)}")
            value = queue.pop(0)
        if name == "version" and "version" not in known:
            check_version(yaml.safe_load(value) if value.isdigit() else value)
        elif option is not None and _nested(name, known) and not _holds_values(value):
            raise InputError(name, "must hold names with values", value, f"such as {_example(*_child(name, known))}")
        elif name == "config":
            yield from ("--config", yaml.safe_dump(_of_file(command, value), sort_keys=False))
        else:
            yield f"--{name}={value if option is None else _listed(option, value)}"


def _known(name: str, known: Mapping[str, Any], further: set[str], program: str) -> str:
    """Return a flag's name as it is now, or say which is near."""
    plain = name.removesuffix("+")
    plain = _RENAMED.get(plain, plain)
    tried = [plain, plain.replace("-", "_")]
    for candidate in tried:
        above = [candidate.rsplit(".", i)[0] for i in range(1, candidate.count(".") + 1)]
        free = any(part in known and _is_free(known[part]) for part in above)
        if candidate in known or candidate in further or candidate in ("config", "version") or free:
            return candidate + "+" * name.endswith("+")
    near = nearest_name(plain, [*known, *further, "config"])
    hint = f"did you mean --{near}? " if near else ""
    raise InputError(f"--{name}", f"is no flag of `{program}`", advice=f"{hint}see {program} --help")


def _nested(name: str, known: Mapping[str, Any]) -> bool:
    return any(one.startswith(f"{name}.") for one in known)


def _child(name: str, known: Mapping[str, inspect.Parameter]) -> tuple[str, inspect.Parameter]:
    return next((one, option) for one, option in known.items() if one.startswith(f"{name}."))


def _holds_values(text: str) -> bool:
    try:
        return Path(text).is_file() or isinstance(yaml.safe_load(text), dict)
    except (yaml.YAMLError, ValueError, OSError):
        return False


def _is_free(option: inspect.Parameter) -> bool:
    return str(option.annotation).startswith(("dict", "Options", "Changes"))


def _listed(option: inspect.Parameter, value: str) -> str:
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
    file, text = Path(path), path
    if "\n" not in path:
        if not file.is_file():
            raise InputError("config", "must be a YAML file", path)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("config", f"must be a readable YAML file ({error})", path) from error
    return _tidy_values(command, text)


def _tidy_values(command: Command, text: str) -> dict[str, Any]:
    """Return the values of a YAML text with names as they are now and lists in full."""
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise InputError("config", f"must be YAML ({' '.join(str(error).split())})") from error
    if not isinstance(found, dict):
        raise InputError("config", "must be a YAML mapping", found)
    return _renamed(found, options_of(command), "")


def _renamed(values: Mapping[Any, Any], known: Mapping[str, inspect.Parameter], prefix: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + _RENAMED.get(str(key), str(key))
        if name == "version" and name not in known:
            check_version(value)
            continue
        option = known.get(name)
        if option is None:
            if not any(name.startswith(f"{part}.") and part in known for part in _above(name)):
                near = nearest_name(name, known)
                hint = f"did you mean {near}? " if near else ""
                raise InputError(name, "is no known option", value, f"{hint}Known: {', '.join(_top(known))}")
        elif _nested(name, known):
            if not isinstance(value, dict):
                raise InputError(name, "must hold names with values", value)
            value = _renamed(value, known, f"{name}.")
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            listed = _listed(option, str(value))
            value = yaml.safe_load(listed) if listed != str(value) else value
        made[name[len(prefix) :]] = value
    return made


def _above(name: str) -> list[str]:
    return [name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)]


def _top(known: Mapping[str, Any]) -> list[str]:
    return [name for name in known if "." not in name]


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
    top = {name: made[name] for name in _top(known)}
    _no_holes(known, top)
    spec = spec_of(command)
    names = [] if spec is None else [field.name for field in dataclasses.fields(spec)]
    made_spec = None if spec is None else spec(**{name: top.pop(name) for name in names})
    return Call(command, made_spec, top, {flag: found[flag] for flag in flags})


def _no_holes(known: Mapping[str, inspect.Parameter], values: Mapping[str, Any]) -> None:
    """Refuse null where a value is needed; the parser reads it as "not given"."""
    for name, option in known.items():
        value: Any = values
        for part in name.split("."):
            value = value[part] if isinstance(value, Mapping) else getattr(value, part)
        if value is None and "None" not in str(option.annotation):
            if option.default is inspect.Parameter.empty:
                raise InputError(name, "must be given", advice=f"such as {_example(name, option)}")
            rule = f"must be of the type {option.annotation}"
            raise InputError(name, rule, value, f"such as {_example(name, option)}")


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
        return InputError(name, "must be given", advice=f"such as {_example(name, known.get(name))}")
    choice = re.fullmatch(r"invalid choice: '(.*)' \(choose from (.*)\)\.?", rest)
    if choice:
        return InputError(argument, f"must be one of {choice.group(2).replace(chr(39), '')}", choice.group(1))
    option = known.get(argument)
    advice = f"such as {_example(argument, option)}" if option is not None else "see --help"
    expected = re.search(r"Got value: (.+?)$", rest)
    if option is not None and expected:
        choices = (
            re.findall(r"'([^']*)'|\"([^\"]*)\"", str(option.annotation)) if "Literal" in str(option.annotation) else []
        )
        words = [one or two for one, two in choices]
        rule = f"must be one of {', '.join(words)}" if words else f"must be of the type {option.annotation}"
        near = nearest_name(expected.group(1).strip("'\""), words)
        return InputError(argument, rule, _value(expected.group(1)), f"did you mean {near}?" if near else advice)
    return InputError(argument, f"cannot be read: {rest.rstrip('.')}", advice=advice)


def _value(shown: str) -> Any:
    if shown == "None":
        return None
    try:
        return yaml.safe_load(shown) if not shown.startswith("'") else shown.strip("'")
    except yaml.YAMLError:
        return shown


def _example(name: str, option: inspect.Parameter | None) -> str:
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
    by_name = {"run": "runs/sam", "runs": "runs/sam", "results": "runs/sam/surfaces/plane.zarr", "config": "spec.yaml"}
    value = by_name.get(name) or next((text for start, text in kinds.items() if kind.startswith(start)), "VALUE")
    return f"--{name} {value}"


def to_yaml(spec: Any) -> str:
    """Write a spec, or options by name, as YAML.

    Args:
        spec: A spec, or a mapping.

    Returns:
        Text that `from_yaml` reads back to an equal spec.
    """
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
    if not path.is_file():
        raise InputError("config", "must be a YAML file", str(path))
    try:
        made: Spec = from_text(spec, path.read_text(encoding="utf-8")).spec
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("config", f"must be a readable YAML file ({error})", str(path)) from error
    return made


def from_text(command: Command, text: str) -> Call:
    """Read the arguments of a command from YAML."""
    kind: Any = command  # mypy takes no class with an equality of its own for hashable
    return copy.deepcopy(_read(kind, text))  # a spec can be changed; what is kept must not


@functools.lru_cache(maxsize=256)
def _read(command: Command, text: str) -> Call:
    # parsing takes a tenth of a second, and a study reads the specs of its runs again and again
    parser = parser_of(command, "lowland")
    tidy = yaml.safe_dump(_tidy_values(command, text), sort_keys=False)
    return _made(command, parser, lambda: parser.parse_string(tidy), {})
