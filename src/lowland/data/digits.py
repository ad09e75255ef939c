"""The handwritten digits of scikit-learn: 1,797 real images of 8x8 pixels, there offline.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998 (its
test part).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lowland.core.errors import optional_import
from lowland.data.resident import TensorData
from lowland.data.splits import DataSplits, Selection, stratified_split

DIGITS_MEAN = 0.305260
DIGITS_STD = 0.376049
"""Mean and standard deviation of all pixels of the 1,797 images scaled to [0, 1]; computed from the data."""


def digits(
    *, train_size: int | None = None, label_noise: float = 0.0, seed: int = 0, split_seed: int = 0
) -> DataSplits:
    """Load the digits in fixed, stratified parts of 897 training, 300 validation and 600 test images.

    Args:
        train_size: Keep that many training images (stratified, nested); None keeps all 897.
        label_noise: Probability that a training or validation label is replaced by one drawn from all ten classes.
        seed: Seed of subsampling and label noise.
        split_seed: Seed of the parts; leave it at 0 to compare with others.

    Returns:
        Resident splits; inputs [1, 8, 8], normalized.

    Raises:
        MissingExtra: If scikit-learn is not installed.
        InputError: If `train_size` or `label_noise` is out of range.

    Example:
        >>> splits = digits(train_size=100)
        >>> len(splits.train), len(splits.validation), len(splits.test)
        (100, 300, 600)
    """
    rows = torch.as_tensor(_rows())
    images, target = rows[:, :64].to(torch.float32).reshape(-1, 1, 8, 8) / 16.0, rows[:, 64].to(torch.int64)
    everything = TensorData((images - DIGITS_MEAN) / DIGITS_STD, target, torch.arange(len(target)))
    cut = stratified_split(target, (897, 300, 600), seed=split_seed)
    train, validation, test = (everything.take(part) for part in cut)
    mean, std, recipe = (DIGITS_MEAN,), (DIGITS_STD,), {"name": "digits", "split_seed": split_seed}
    splits = DataSplits(
        "digits", train, validation, test, classes=10, shape=(1, 8, 8), mean=mean, std=std, recipe=recipe
    )
    return Selection(train_size, label_noise, seed).of(splits)


def _rows() -> NDArray[np.float64]:
    """Return 64 pixels and a label per image, from scikit-learn's file: to import it takes a second and more."""
    found = find_spec("sklearn")
    for place in (found and found.submodule_search_locations) or ():
        if (file := Path(place) / "datasets" / "data" / "digits.csv.gz").is_file():
            return np.loadtxt(file, delimiter=",")
    raw = optional_import("sklearn.datasets", extra="data", needed_for="the data set digits").load_digits()
    return np.column_stack([raw.data, raw.target])
