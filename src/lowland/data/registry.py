"""From a data set's name to its splits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lowland.core.errors import InputError
from lowland.core.names import check_options, find
from lowland.data.digits import digits
from lowland.data.splits import DataSplits

__all__ = ["DATASETS", "load"]

DATASETS: dict[str, Callable[..., DataSplits]] = {"digits": digits}
"""Every data set by name; a new one joins by a line here and one in the contract suite."""


def load(name: str, **options: Any) -> DataSplits:
    """Load a data set by name or by import path.

    Args:
        name: A key of `DATASETS`, or ``"module:callable"`` for any callable that returns `DataSplits`.
        **options: Keyword arguments of the data set's function.

    Returns:
        Its parts.

    Raises:
        InputError: If the name or an option is unknown, or the callable returns something else.

    Example:
        >>> load("digits", train_size=50).classes
        10
    """
    build = find("data", name, DATASETS)
    check_options("data set", name, build, options)
    splits = build(**options)
    if not isinstance(splits, DataSplits):
        raise InputError("data", "must return lowland.data.DataSplits", type(splits).__name__)
    return splits
