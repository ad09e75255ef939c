"""What the image data sets share: from bytes to normalized parts with ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowland.core.errors import InputError
from lowland.data.resident import TensorData
from lowland.data.splits import DataSplits, stratified_split, with_label_noise, with_subsample

__all__ = ["image_splits", "normalized"]


def normalized(pixels: NDArray[np.uint8], mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Scale bytes to [0, 1], then subtract the mean and divide by the deviation of each channel."""
    shape = (1, -1, 1, 1)
    images = torch.from_numpy(pixels.astype(np.float32, order="C")).div_(255.0)
    return images.sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))


def image_splits(
    name: str, train: tuple[NDArray[np.uint8], NDArray[Any]], test: tuple[NDArray[np.uint8], NDArray[Any]], *,
    classes: int, validation: int, mean: tuple[float, ...], std: tuple[float, ...], train_size: int | None,
    label_noise: float, seed: int, split_seed: int, recipe: Mapping[str, Any],
) -> DataSplits:  # fmt: skip
    """Make splits from a published training and test part; the validation part is cut out of the training part."""
    parts = []
    offset = 0
    for images, labels in (train, test):
        _check(images, labels, classes)
        target = torch.as_tensor(np.asarray(labels, dtype=np.int64))
        ids = torch.arange(offset, offset + len(target))
        parts.append(TensorData(normalized(images, mean, std), target, ids))
        offset += len(target)
    if not 1 <= validation < len(parts[0]):
        raise InputError("validation", f"must leave training samples of the {len(parts[0])}", validation)
    cut = stratified_split(parts[0].target, (len(parts[0]) - validation, validation), seed=split_seed)
    splits = DataSplits(
        name, parts[0].take(cut[0]), parts[0].take(cut[1]), parts[1], classes=classes,
        shape=tuple(parts[0].input.shape[1:]), mean=mean, std=std,
        recipe={"name": name, "validation": validation, "split_seed": split_seed, **recipe},
    )  # fmt: skip
    return with_label_noise(with_subsample(splits, train_size, seed=seed), label_noise, seed=seed)


def _check(images: NDArray[np.uint8], labels: NDArray[Any], classes: int) -> None:
    if images.ndim != 4 or len(images) != len(labels) or not len(images):
        raise InputError("folder", "must hold as many labels as images", (images.shape, len(labels)))
    low, high = int(np.min(labels)), int(np.max(labels))
    if low < 0 or high >= classes:
        raise InputError("folder", f"must hold labels in [0, {classes})", (low, high))
