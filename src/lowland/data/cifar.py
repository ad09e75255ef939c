"""CIFAR-10, CIFAR-100 and SVHN from the standard local files; never downloaded.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; Netzer et al., "Reading Digits in Natural
Images with Unsupervised Feature Learning", 2011. Read are the published archives, or the files inside them. The pickles
of the Python versions are read by an unpickler that builds nothing but arrays.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from lowland.core.errors import DAMAGED, InputError, refused
from lowland.data.images import Published, image_splits
from lowland.data.local import data_folder, read_archive_member, read_checked, read_plain_pickle
from lowland.data.splits import DataSplits, Selection

NORMALIZATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}
"""Per-channel mean and deviation of all pixels of the published training images in [0, 1]."""

_TEN = {
    "archive": ("cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"),
    "binary": ("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin"),
}
_HUNDRED = {
    "archive": ("cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"),
    "binary": ("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary"),
}
_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
}


def cifar10(
    *,
    folder: str | Path | None = None,
    train_size: int | None = None,
    label_noise: float = 0.0,
    seed: int = 0,
    split_seed: int = 0,
    validation: int = 5000,
    verify: bool = True,
) -> DataSplits:
    """Load CIFAR-10: 45,000 training, 5,000 validation and 10,000 test images of 32x32 pixels.

    Args:
        folder: Holds ``cifar-10-python.tar.gz`` or ``cifar-10-binary.tar.gz``, or what is inside (the Python files
            ``data_batch_1`` ... or the binary ones ``data_batch_1.bin`` ...); see `lowland.data.local.data_folder`.
        train_size: Keep that many training images; None keeps all.
        label_noise: Probability that a training or validation label is replaced by one drawn from all classes.
        seed: Chooses the images kept and the labels replaced.
        split_seed: Chooses the validation part.
        validation: Training images that are held out for it.
        verify: Check published checksums; False also reads cut-down files. Unpacked binary files have none published:
            their sizes and labels are checked.

    Returns:
        Resident splits; inputs [3, 32, 32], normalized.

    Raises:
        InputError: If files are missing, damaged or hold other labels, or an argument is out of range.
    """
    place = data_folder("cifar10", folder)
    train_names, test_names = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]
    parts = [_cifar(place, names, _TEN, b"labels", 1, verify) for names in (train_names, test_names)]
    return _splits("cifar10", parts, Selection(train_size, label_noise, seed, split_seed), validation)


def cifar100(
    *,
    folder: str | Path | None = None,
    train_size: int | None = None,
    label_noise: float = 0.0,
    seed: int = 0,
    split_seed: int = 0,
    validation: int = 5000,
    verify: bool = True,
) -> DataSplits:
    """Load CIFAR-100 with its fine labels; parts and arguments are those of `cifar10`, files named after 100."""
    place = data_folder("cifar100", folder)
    parts = [_cifar(place, [name], _HUNDRED, b"fine_labels", 2, verify) for name in ("train", "test")]
    return _splits("cifar100", parts, Selection(train_size, label_noise, seed, split_seed), validation)


def svhn(
    *,
    folder: str | Path | None = None,
    train_size: int | None = None,
    label_noise: float = 0.0,
    seed: int = 0,
    split_seed: int = 0,
    validation: int = 6000,
    verify: bool = True,
) -> DataSplits:
    """Load SVHN's digits (67,257 / 6,000 / 26,032) from ``{train,test}_32x32.mat``; the arguments are `cifar10`'s."""
    from scipy.io import loadmat

    place = data_folder("svhn", folder)
    parts: list[Published] = []
    for name in ("train_32x32.mat", "test_32x32.mat"):
        data = read_checked(place / name, _MD5[name] if verify else None)
        # SciPy raises whatever its parser meets in a damaged file
        with refused(Exception, "folder", f"must hold a whole {name}", str(place)):
            content = loadmat(io.BytesIO(data), variable_names=["X", "y"])  # type: ignore[arg-type]
            images, labels = content["X"].transpose(3, 2, 0, 1), content["y"].reshape(-1).astype(np.int64)
        parts.append((images.astype(np.uint8), np.where(labels == 10, 0, labels)))
    return _splits("svhn", parts, Selection(train_size, label_noise, seed, split_seed), validation)


def _splits(name: str, parts: list[Published], selection: Selection, validation: int) -> DataSplits:
    classes, constants = 100 if name == "cifar100" else 10, NORMALIZATION[name]
    return image_splits(name, parts, selection, classes=classes, validation=validation, constants=constants)


def _cifar(
    place: Path, names: list[str], layout: dict[str, tuple[str, str, str]], key: bytes, label_bytes: int, verify: bool
) -> Published:
    # whatever is there, in this order: Python files, Python archive, binary files, binary archive
    for kind, suffix in (("archive", ""), ("binary", ".bin")):
        packed, md5, inner = layout[kind]
        size = (50_000 if names[0] == "train" else 10_000) * (label_bytes + 3072) if verify else None
        folder = next((f for f in (place, place / inner) if (f / f"{names[0]}{suffix}").exists()), None)
        if folder is not None:
            known = _MD5 if verify and kind == "archive" else {}
            files = [read_checked(folder / f"{name}{suffix}", known.get(name)) for name in names]
        elif (place / packed).exists():
            member, size = f"{inner}/{{}}{suffix}", None
            files = [read_archive_member(place / packed, member.format(n), md5 if verify else None) for n in names]
        else:
            continue
        named = zip(files, names, strict=True)
        if kind == "archive":
            return _joined([_from_pickle(data, name, key) for data, name in named])
        return _joined([_from_binary(data, name, label_bytes, size) for data, name in named])
    archives = f"{layout['archive'][0]}, {layout['binary'][0]}"
    raise InputError("folder", f"must hold {archives} or what is inside (looked for {names[0]})", str(place))


def _from_pickle(data: bytes, name: str, key: bytes) -> Published:
    content = read_plain_pickle(data, name)
    with refused(DAMAGED, "folder", f"must hold images of 3 x 32 x 32 bytes and labels in {name}"):
        images = np.asarray(content[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        return images, np.asarray(content[key], dtype=np.int64)


def _from_binary(data: bytes, name: str, label_bytes: int, size: int | None) -> Published:
    row = label_bytes + 3072
    if not data or len(data) % row or (size is not None and len(data) != size):
        rule = f"must hold a whole {name}.bin ({size or f'a multiple of {row}'} bytes)"
        raise InputError("folder", rule, len(data), "the file is damaged or incomplete: get it again")
    table = np.frombuffer(data, dtype=np.uint8).reshape(-1, row)
    return table[:, label_bytes:].reshape(-1, 3, 32, 32), table[:, label_bytes - 1].astype(np.int64)


def _joined(parts: list[Published]) -> Published:
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])
