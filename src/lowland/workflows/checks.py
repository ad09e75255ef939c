"""Checks that several specs share."""

from __future__ import annotations

from typing import Final

from lowland.core.errors import InputError

__all__ = ["VERSION", "check_name", "check_positive", "check_version"]

VERSION: Final = 1
"""Version of all specs."""


def check_positive(**values: float | None) -> None:
    """Check that numbers are positive; None passes."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise InputError(name, "must be positive", value)


def check_version(version: int) -> None:
    """Check the version of a spec."""
    if version != VERSION:
        raise InputError("version", f"must be {VERSION}, the version of specs that this Lowland reads", version)


def check_name(name: str) -> None:
    """Check that a name is usable as a file's name in a run folder."""
    if not name or name.startswith(".") or "/" in name or "\\" in name:
        raise InputError("name", "must be a plain file name", name)
