"""Entry point of ``lowland``: finds the command, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed inside, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final

import lowland
from lowland.core.errors import LowlandError, LowlandWarning

__all__ = ["COMMANDS", "main"]

COMMANDS: Final = {
    "demo": "train six methods on digits, survey them and write a report",
    "fit": "train one network into a run folder",
    "surface": "survey the loss on a plane around the weights of a run",
    "line": "survey the loss on a line, in random directions or to another run",
    "trajectory": "project the training path of a run",
    "curvature": "measure the Hessian at the weights of a run",
    "report": "write one self-contained page about runs",
    "figure": "draw stored results in any style, without computing again",
    "list": "show the known models, data sets, methods and recipes",
    "study": "compare methods over seeds by a rule declared before",
    "recommend": "find out which method helps on your model and data",
    "doctor": "show versions, devices, extras and what could be set better",
}
"""Every command and what it does; ``lowland.cli.COMMAND`` holds it."""

_DISK = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT)


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
        return _complain("lowland", f"`command` must be one of {', '.join(COMMANDS)} (got {words[0]!r})")
    if os.getcwd() not in sys.path:  # module:callable may name a file of the user's; last, so that it shadows nothing
        sys.path.append(os.getcwd())
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return _guarded(words[0], words[1:])


def _guarded(command: str, arguments: Sequence[str]) -> int:
    program = f"lowland {command}"
    try:
        code: int = importlib.import_module(f"lowland.cli.{command}").main(arguments)
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted; the same command goes on from what is stored", file=sys.stderr)
        return 130
    except (LowlandError, LowlandWarning) as error:
        return _complain(program, str(error))
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
    return code


def _complain(program: str, text: str) -> int:
    print(f"{program}: error: {' '.join(text.split())}", file=sys.stderr)
    return 2


def _help() -> str:
    lines = ["usage: lowland COMMAND [options]", "", lowland.__doc__.split("\n")[0] if lowland.__doc__ else "", ""]
    lines += [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    lines += ["", "`lowland COMMAND --help` shows every option with its unit and default."]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
