"""The folder of a run, and files in it that are whole or absent even after a power cut."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from lowland.core.errors import InputError

__all__ = ["checksum", "open_run_folder", "write_atomic"]

_OURS = (
    ".checkpoints.lock",
    "spec.yaml",
    "metrics.csv",
    "checkpoints",
    "snapshots",
    "surfaces",
    "curvature",
    "figures",
    "report.html",
)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one.

    Args:
        path: Where to; its folder is made.
        data: The bytes.

    Raises:
        InputError: If the place cannot be written (read-only, full, no folder); the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError("folder", f"must be writable ({error.strerror or error})", str(path.parent)) from error


def checksum(data: bytes) -> str:
    """Return the SHA-256 of some bytes.

    Args:
        data: The bytes.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(data).hexdigest()


def open_run_folder(folder: Path) -> Path:
    """Check that a folder can hold a run, and make it.

    Args:
        folder: Absent, empty, or a run of Lowland.

    Returns:
        The folder.

    Raises:
        InputError: If it is a file, holds something else, or cannot be written.
    """
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError("folder", "must be a folder", str(folder), "choose another place")
        names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
        if names and not names & set(_OURS):
            raise InputError("folder", "must be empty or a run of Lowland", str(folder), "choose another place")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("folder", f"must be writable ({error.strerror or error})", str(folder)) from error
    if not os.access(folder, os.W_OK):
        raise InputError("folder", "must be writable", str(folder))
    return folder
