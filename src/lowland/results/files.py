"""Writing files so that a kill, a full disk or a read-only file system never damages what is there."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from lowland.core.errors import StoreError, reworded


def make_folder(folder: Path) -> None:
    """Make a folder with its parents."""
    with reworded(OSError, lambda why: StoreError(f"cannot make the folder {folder} ({why})")):
        folder.mkdir(parents=True, exist_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all, even where the power fails."""
    make_folder(path.parent)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def writing(path: Path, kept: str = "") -> AbstractContextManager[None]:
    """Say of what the operating system complains about which path could not be written, and what is kept."""
    return reworded(OSError, lambda why: StoreError(f"cannot write {path} ({why}){kept}"))


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Let a file be written under another name beside it, and rename it over the old one at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        with writing(path, "; what was there is kept"):
            yield temporary
            with temporary.open("rb") as file:  # its bytes must be on the disk before its name is
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def only_writer(path: Path) -> Generator[None]:
    """Hold an operating-system lock that ends with the process, so that a store has one writer."""
    # The lock belongs to the file ``.NAME.lock`` beside the store. It is advisory: readers need none.
    make_folder(path.parent)
    lock = path.with_name(f".{path.name}.lock")
    with reworded(OSError, lambda why: StoreError(f"cannot write beside {path} ({why})")):
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        held = f"{path} is being written by another run; wait for it, or choose another store"
        with reworded(OSError, lambda _: StoreError(held)):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)  # gives the lock back; the file stays, since removing it would race with the next writer
