"""What the image data sets share: from bytes to normalized parts with ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowland.core.errors import require
from lowland.data.resident import numbered
from lowland.data.splits import DataSplits, Selection, stratified_split

Published = tuple[NDArray[np.uint8], NDArray[Any]]
"""Images [n, channels, h, w] and their labels."""


def normalized(pixels: NDArray[np.uint8], mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Scale bytes to [0, 1], then subtract the mean and divide by the deviation of each channel."""
    shape = (1, -1, 1, 1)
    images = torch.from_numpy(pixels.astype(np.float32, order="C")).div_(255.0)
    return images.sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))


def image_splits(
    name: str,
    published: Sequence[Published],
    selection: Selection,
    *,
    classes: int,
    validation: int,
    constants: tuple[tuple[float, ...], tuple[float, ...]],
    recipe: Mapping[str, Any] | None = None,
) -> DataSplits:
    """Make splits from a published training and test part; the validation part is cut out of the training part."""
    mean, std = constants
    for images, labels in published:
        same = images.ndim == 4 and len(images) == len(labels) > 0
        require(same, "folder", "must hold as many labels as images", (images.shape, len(labels)))
        low, high = int(np.min(labels)), int(np.max(labels))
        require(low >= 0 and high < classes, "folder", f"must hold labels in [0, {classes})", (low, high))
    pairs = ((normalized(x, mean, std), torch.as_tensor(np.asarray(y, dtype=np.int64))) for x, y in published)
    whole, testing = numbered(pairs)
    require(1 <= validation < len(whole), "validation", f"must leave training samples of the {len(whole)}", validation)
    sizes = (len(whole) - validation, validation)
    train, held = (whole.take(part) for part in stratified_split(whole.target, sizes, seed=selection.split_seed))
    shape, told = tuple(whole.input.shape[1:]), {"validation": validation, "split_seed": selection.split_seed}
    recipe = {"name": name, **told, **(recipe or {})}
    splits = DataSplits(name, train, held, testing, classes=classes, shape=shape, mean=mean, std=std, recipe=recipe)
    return selection.of(splits)
