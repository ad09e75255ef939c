"""From names to data sets and to augmentations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lowland.core.errors import InputError, refused, require
from lowland.core.names import AUGMENTATIONS, DATASETS, check_options, find
from lowland.data.augment import Compose, CutMix, Mixup
from lowland.data.resident import Augment
from lowland.data.splits import DataSplits


def load(name: str, /, **options: Any) -> DataSplits:
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
        advice = (
            "return DataSplits(name, train, validation, test, classes=..., shape=...); each part may be a DataLoader"
        )
        raise InputError("data", "must return lowland.data.DataSplits", type(splits).__name__, advice)
    return splits


def augmentation(parts: Sequence[str | Mapping[str, Any]], *, classes: int) -> Augment | None:
    """Build augmentations by name, to be applied one after the other.

    Args:
        parts: Each a key of `AUGMENTATIONS` or an import path ``"module:callable"`` (of a callable that returns an
            augmentation), or a mapping of ``name`` and that callable's keyword arguments.
        classes: Number of classes, which mixing ones need.

    Returns:
        The augmentation; None where there are no parts.

    Raises:
        InputError: If a name or an option is unknown or out of range.

    Example:
        >>> augmentation(["crop", {"name": "cutout", "size": 8}], classes=10).parts[1].size
        8
    """
    made = [_one(part, classes) for part in parts]
    return Compose(*made) if made else None


def _one(part: str | Mapping[str, Any], classes: int) -> Augment:
    options: dict[str, Any] = dict(part) if isinstance(part, Mapping) else {"name": part}
    name = options.pop("name", None)
    require(isinstance(name, str), "augment", "must hold names, or mappings with a name", part)
    build = find("augment", name, AUGMENTATIONS)
    if build in (Mixup, CutMix):
        options.setdefault("classes", classes)
    check_options("augmentation", name, build, options)
    with refused((TypeError, ValueError), "augment", f"must fit the augmentation {name!r}", options):
        made: Augment = build(**options)
    require(callable(made), "augment", "must name what returns an augmentation", type(made).__name__)
    return made
