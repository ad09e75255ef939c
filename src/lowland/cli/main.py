"""Entry point of ``lowland``: reads the words of a command, calls its function, and turns errors into an exit code.

Exit codes: 0 done, 1 failed inside, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import inspect
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, Final

import lowland
from lowland.cli.commands import COMMANDS
from lowland.core.errors import LowlandError, LowlandWarning
from lowland.core.names import nearest_name

_DISK = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.ENAMETOOLONG, errno.ENOTDIR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] != ["doctor"]:  # which shows what is set outside
        # OpenMP teams that spin while waiting slow each other down many times; torch reads this when it is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"lowland {lowland.__version__}")
        return 0
    if words[0] not in COMMANDS:
        near = nearest_name(words[0], COMMANDS)
        hint = f"; did you mean {near!r}?" if near else ""
        return _complain("lowland", f"`command` must be one of {', '.join(COMMANDS)} (got {words[0]!r}){hint}")
    if os.getcwd() not in sys.path:  # module:callable may name a file of the user's; last, so that it shadows nothing
        sys.path.append(os.getcwd())
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal's encoding lacks is no reason to fail
        sys.stdout.reconfigure(errors="replace")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return _guarded(words[0], words[1:])


def _run(name: str, arguments: Sequence[str]) -> None:
    """Read the words of a command, call its function, show what it returns."""
    from lowland.workflows.parse import call  # the parser is heavier than all else that is imported here
    from lowland.workflows.words import named

    command = COMMANDS[name]
    function = _load(command.function)
    words = named(arguments, command.positional)
    if command.prepare:
        words = _load(command.prepare)(words)
    flags: dict[str, bool | tuple[str, ...]] = {"quiet": False, "json": False, **command.flags}
    made = call(function, words, f"lowland {name}", positional=command.positional, example=command.example, flags=flags)
    output = _load(command.output)(quiet=made.flags["quiet"], as_json=made.flags["json"])
    values = made.values
    subject = values.get(command.positional) or values.get("checkpoint") or values.get("model") or ""
    hooks = {"live": output, "on_event": output.progress(f"{command.label or name} {subject}".strip())}
    taken = inspect.signature(function).parameters
    with output:
        found = made(**{hook: receiver for hook, receiver in hooks.items() if hook in taken})
        _leave()
    output.result(_load(command.show)(found, made))


def _load(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _leave() -> None:
    if "torch" in sys.modules:
        from lowland.workflows.fitting import leave_processes

        leave_processes()


_AS_FLAGS: Final = {"another store": "another --name where there is one", "`path` must end in": "`output` must end in"}
"""What Python's arguments are called -> what the flags for them are."""


def _guarded(command: str, arguments: Sequence[str]) -> int:
    program = f"lowland {command}"
    try:
        _run(command, arguments)
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted; the same command goes on from what is stored", file=sys.stderr)
        return 130
    except (LowlandError, LowlandWarning) as error:
        text = str(error)
        for there, here in _AS_FLAGS.items():
            text = text.replace(there, here)
        return _complain(program, text)
    except BrokenPipeError:  # the reader of our output has left
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno not in _DISK:
            traceback.print_exc()
            return 1
        where = f" {error.filename!r}" if error.filename else ""
        return _complain(program, f"cannot write{where}: {error.strerror}; what was finished before is kept")
    except Exception:
        traceback.print_exc()
        print(f"{program}: failed inside; please report the lines above", file=sys.stderr)
        return 1
    return 0


def _complain(program: str, text: str) -> int:
    print(f"{program}: error: {' '.join(text.split())}", file=sys.stderr)
    return 2


def _help() -> str:
    lines = ["usage: lowland COMMAND [options]", "", lowland.__doc__.split("\n")[0] if lowland.__doc__ else "", ""]
    lines += [f"  {name:<12}{command.about}" for name, command in COMMANDS.items()]
    lines += ["", "`lowland COMMAND --help` shows every option with its unit and default."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
