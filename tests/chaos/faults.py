"""Faults at a chosen call: what a process does to files is counted by an audit hook, which can end it or refuse a call."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

CHANGES: Final = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
YEARS: Final = 3600.0 * 24 * 365


@dataclass
class Fault:
    """What goes wrong, and at which change of the files in a folder.

    kill: SIGKILL before the change. full: no file is opened for writing from there on. rename: that one rename is
    refused, as a network file system does. read-only: nothing changes from there on. clock: the time of day jumps ten
    years ahead and at the next change twenty back. none: changes are counted.
    """

    kind: str
    at: int = 0
    folder: str = "."
    count: int = 0

    def start(self) -> Fault:
        self.folder = os.path.abspath(self.folder)
        sys.addaudithook(self._on)
        return self

    def _on(self, event: str, args: tuple[Any, ...]) -> None:
        opens = event == "open" and _writes(args)
        if not (opens or event in CHANGES) or not self._inside(args[0]):
            return
        self.count += 1
        if self.count == self.at and self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count == self.at and self.kind == "clock":
            _shift(10 * YEARS)
        if self.count == self.at + 1 and self.kind == "clock":
            _shift(-10 * YEARS)
        if self.count < self.at:
            return
        if self.kind == "full" and (opens or event == "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), args[0])
        if self.kind == "read-only":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), args[0])
        if self.kind == "rename" and event == "os.rename":
            self.kind = "none"
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), args[0])

    def _inside(self, path: Any) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        return os.path.abspath(os.fsdecode(path)).startswith(self.folder)


def _writes(args: tuple[Any, ...]) -> bool:
    _, mode, flags = args
    return any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool(flags & WRITING)


def _shift(seconds: float, real: Any = time.time) -> None:
    time.time = lambda: real() + seconds


def flip(path: Path, place: int) -> None:
    """Turn one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << (place % 8)
    path.write_bytes(bytes(data))
