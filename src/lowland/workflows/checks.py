"""Checks that several commands share; none needs torch, so that bad input is answered at once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from lowland.core.errors import InputError
from lowland.core.names import SPEC, unknown

VERSION: Final = 1
"""Version of all specs."""

ENGINES: Final = {
    "serial": "serial",
    "processes:N": r"processes:\d+",
    "ray": "ray",
    "ray:N": r"ray:\d+",
    "ray://HOST:PORT": "ray://.*",
}
"""Form of an engine's name as documented -> its pattern; those of `lowland.engine.ENGINES`."""


def check_positive(**values: float | None) -> None:
    """Check that numbers are positive; None passes."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise InputError(name, "must be positive", value)


def check_version(version: Any) -> None:
    """Check the version of a spec."""
    if type(version) is not int or version != VERSION:
        raise InputError("version", f"must be {VERSION}, the version of specs that this Lowland reads", version)


def check_name(name: str) -> None:
    """Check that a name is usable as a file's name in a run folder."""
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise InputError("name", "must be a plain file name", name)


def check_engine(engine: str) -> None:
    """Check the name of an engine as `lowland.engine.select` does, without what it imports."""
    if not any(re.fullmatch(pattern, engine, re.ASCII) for pattern in ENGINES.values()):
        raise unknown("engine", engine, ENGINES)


def check_run(run: str | Path) -> Path:
    """Check that a path is the folder of a run."""
    path = Path(run)
    if not path.is_dir():
        raise InputError("run", "must be the folder of a run", str(run), "make one with `lowland fit`")
    if not (path / SPEC).is_file():
        raise InputError("run", "must hold the spec.yaml of a run", str(run), "make one with `lowland fit`")
    return path
