"""Writers of tiny files in the formats of published data sets."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowland.data.cifar import NORMALIZATION
from lowland.data.folders import IMAGENET_MEAN, IMAGENET_STD

Images = NDArray[np.uint8]


def pixels(count: int, size: int, mean: tuple[float, ...], std: tuple[float, ...], seed: int) -> Images:
    random = np.random.default_rng(seed)
    shape = (1, len(mean), 1, 1)
    values = np.reshape(mean, shape) + np.reshape(std, shape) * random.standard_normal((count, len(mean), size, size))
    return (np.clip(values, 0, 1) * 255).round().astype(np.uint8)


def labels(count: int, classes: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(np.arange(count) % classes)


def cifar_parts(classes: int, count: int) -> dict[str, tuple[Images, NDArray[np.int64]]]:
    name = f"cifar{classes}"
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if classes == 10 else ["train", "test"]
    return {
        part: (pixels(count, 32, *NORMALIZATION[name], seed=i), labels(count, classes, i))
        for i, part in enumerate(names)
    }


def write_cifar_pickles(folder: Path, classes: int = 10, count: int = 40) -> Path:
    folder.mkdir(parents=True)
    key = b"labels" if classes == 10 else b"fine_labels"
    for name, (images, target) in cifar_parts(classes, count).items():
        content = {
            b"batch_label": b"x",
            key: target.tolist(),
            b"data": images.reshape(count, -1),
            b"filenames": [b"a"] * count,
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def write_cifar_binaries(folder: Path, classes: int = 10, count: int = 40) -> Path:
    folder.mkdir(parents=True)
    for name, (images, target) in cifar_parts(classes, count).items():
        coarse = [] if classes == 10 else [np.zeros((count, 1), np.uint8)]
        rows = np.concatenate([*coarse, target[:, None].astype(np.uint8), images.reshape(count, -1)], 1)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    return folder


def write_svhn(folder: Path, count: int = 200) -> Path:
    from scipy.io import savemat

    folder.mkdir(parents=True)
    for seed, name in enumerate(("train", "test")):
        images = pixels(count, 32, *NORMALIZATION["svhn"], seed=seed).transpose(2, 3, 1, 0)
        target = labels(count, 10, seed)
        savemat(folder / f"{name}_32x32.mat", {"X": images, "y": np.where(target == 0, 10, target)[:, None]})
    return folder


def write_idx(path: Path, array: NDArray[Any]) -> None:
    data = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_mnist(folder: Path, count: int = 240, suffix: str = "") -> Path:
    folder.mkdir(parents=True)
    for seed, name in enumerate(("train", "t10k")):
        images = pixels(count, 28, (0.1307,), (0.3081,), seed)[:, 0]
        write_idx(folder / f"{name}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte{suffix}", labels(count, 10, seed).astype(np.uint8))
    return folder


def write_folders(
    folder: Path, count: int = 30, parts: tuple[str, ...] = ("train", "val", "test"), size: int = 8
) -> Path:
    from PIL import Image

    for seed, part in enumerate(parts):
        for label, name in enumerate(("ant", "bee", "cat")):
            place = folder / part / name
            place.mkdir(parents=True)
            for i, image in enumerate(pixels(count, size, IMAGENET_MEAN, IMAGENET_STD, 10 * seed + label)):
                Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{i:03d}.png")
    return folder


def write_hugging_face(folder: Path, count: int = 60) -> Path:
    import datasets

    rows = {"text": [f"sample {i} of class {i % 3}" for i in range(count)], "label": [i % 3 for i in range(count)]}
    table = datasets.table.InMemoryTable.from_pydict(rows)
    # a given fingerprint, since datasets 5.2 cannot hash a table of its own under Python 3.11
    datasets.Dataset(table, fingerprint="tiny").save_to_disk(str(folder))
    return folder


def letters(texts: list[str], *, max_length: int, **_: Any) -> dict[str, Any]:
    """A tokenizer without files: one token per character."""
    import torch

    rows = [torch.tensor([ord(c) % 64 for c in text[:max_length]]) for text in texts]
    mask = [torch.ones_like(row) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return {"input_ids": pad(rows, batch_first=True), "attention_mask": pad(mask, batch_first=True)}
