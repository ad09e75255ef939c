"""Which folders hold a run, and which are fit for a new one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lowland.core.errors import InputError, refused, require
from lowland.core.names import SPEC
from lowland.results.run import PARTS, Run

_DEPTH: Final = 4
"""Levels below a folder in which its runs are looked for; those of a study lie three deep."""


def is_run(folder: Path) -> bool:
    """Tell whether a folder holds anything that a run writes."""
    return any((folder / name).exists() for name in PARTS)


def has_result(folder: Path) -> bool:
    """Tell whether a run has ended, and its result can be read."""
    try:
        return bool(Run(folder).result)
    except InputError:
        return False


def find_runs(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Yield the folders of runs below a folder, by name; nothing inside a run is looked at."""
    if is_run(folder):
        yield folder
        return
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return
    for path in below if depth else ():
        if path.suffix != ".zarr":
            yield from find_runs(path, depth - 1)


def open_run_folder(folder: Path, *, new: bool = False) -> Path:
    """Check that a folder can hold a run, and make it."""
    with refused(OSError, "folder", "must be writable", str(folder)):
        if folder.exists() and not folder.is_dir():
            raise InputError("folder", "must be a folder", str(folder), "choose another place")
        names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
        if new and any(SPEC not in name for name in names):
            raise InputError("folder", "must be new, empty or the folder of this run", str(folder))
        if names and not new and not names & {*PARTS, ".checkpoints.lock", "figures", "report.html"}:
            raise InputError("folder", "must be empty or a run of Lowland", str(folder), "choose another place")
        folder.mkdir(parents=True, exist_ok=True)
    require(os.access(folder, os.W_OK), "folder", "must be writable", str(folder))
    return folder
