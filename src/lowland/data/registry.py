"""From a data set's name to its splits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lowland.core.errors import InputError
from lowland.core.names import check_options, find
from lowland.data.cifar import cifar10, cifar100, svhn
from lowland.data.digits import digits
from lowland.data.folders import folders
from lowland.data.huggingface import huggingface
from lowland.data.mnist import mnist
from lowland.data.mnist1d import mnist1d
from lowland.data.splits import DataSplits
from lowland.data.text import text, topics

__all__ = ["DATASETS", "load"]

DATASETS: dict[str, Callable[..., DataSplits]] = {
    "digits": digits,
    "mnist": mnist,
    "mnist1d": mnist1d,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "folders": folders,
    "text": text,
    "topics": topics,
    "huggingface": huggingface,
}
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
