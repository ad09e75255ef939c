"""Images in folders, one folder per class, as ImageNet is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lowland.core.errors import InputError, optional_import, refused, require
from lowland.data.images import normalized
from lowland.data.indexed import Indexed
from lowland.data.local import data_folder
from lowland.data.resident import numbered
from lowland.data.splits import DataSplits, Selection, stratified_split

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""The constants that nearly all ImageNet code uses (from torchvision's and fb.resnet.torch's training images)."""

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".webp")


class ImageFolder(Dataset[Any]):
    """The images below a folder, decoded when they are asked for.

    Args:
        samples: Paths and labels.
        size: Pixels of a side: the shorter side is scaled to it and the middle cut out. None takes images as they are.
        mean: Per-channel mean that is subtracted.
        std: Per-channel deviation that is divided by.
    """

    def __init__(
        self, samples: list[tuple[Path, int]], size: int | None, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self.samples, self.size, self.mean, self.std = samples, size, mean, std

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        path, label = self.samples[position]
        return normalized(self._pixels(path)[None], self.mean, self.std)[0], label

    def _pixels(self, path: Path) -> Any:
        pillow = optional_import("PIL.Image", extra="data", needed_for="reading images from folders")
        kinds, rule = (OSError, ValueError, SyntaxError), "must hold readable images"
        with refused(kinds, "folder", rule, str(path)), pillow.open(path) as opened:
            image = opened.convert("RGB")
        if self.size is not None:
            scale = self.size / min(image.size)
            width, height = (max(self.size, round(side * scale)) for side in image.size)
            left, top = (width - self.size) // 2, (height - self.size) // 2
            image = image.resize((width, height), pillow.Resampling.BILINEAR)
            image = image.crop((left, top, left + self.size, top + self.size))
        return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)


def folders(
    *,
    folder: str | Path | None = None,
    size: int | None = None,
    resident_bytes: int = 2**31,
    batch_size: int = 128,
    workers: int = 2,
    train_size: int | None = None,
    label_noise: float = 0.0,
    seed: int = 0,
    split_seed: int = 0,
) -> DataSplits:
    """Load images from ``train/CLASS/*``, ``val/CLASS/*`` and, if there is one, ``test/CLASS/*``.

    Without a test folder the images of ``val`` are the test part (as ImageNet is used) and a tenth of the training
    images, stratified, is held out for validation; without ``val`` as well it is an error.

    Args:
        folder: Holds ``train`` and ``val`` or ``test``; see `lowland.data.local.data_folder`.
        size: Pixels of a side: the shorter side is scaled to it and the middle cut out. None takes images as they are,
            and all must have one size.
        resident_bytes: Parts that take less are decoded once and stay in memory; larger ones become loaders.
        batch_size: Samples per batch of loaders.
        workers: Processes that decode for a loader.
        train_size: Keep that many training images; resident data only.
        label_noise: Probability that a training or validation label is replaced; resident data only.
        seed: Seed of subsampling and label noise.
        split_seed: Seed of a validation part that is cut out.

    Returns:
        Splits; inputs [3, size, size], normalized by ImageNet's constants.

    Raises:
        InputError: If folders, classes or images are missing or of other sizes, or an argument is out of range.
    """
    root = data_folder("folders", folder)
    require((root / "train").is_dir(), "folder", "must hold a folder train/ with one folder per class", str(root))
    names = sorted(entry.name for entry in (root / "train").iterdir() if entry.is_dir())
    found = {part: _samples(root / part, names) for part in ("train", "val", "test") if (root / part).is_dir()}
    require(len(found) != 1 and names, "folder", "must hold val/ or test/ besides train/, and classes in it", str(root))
    if len(found) == 2:
        test = found["test" if "test" in found else "val"]
        labels = torch.tensor([label for _, label in found["train"]])
        held = max(1, len(labels) // 10)
        cut = stratified_split(labels, (len(labels) - held, held), seed=split_seed)
        train, validation = ([found["train"][i] for i in part] for part in cut)
    else:
        train, validation, test = found["train"], found["val"], found["test"]
    parts = [ImageFolder(samples, size, IMAGENET_MEAN, IMAGENET_STD) for samples in (train, validation, test)]
    shape = tuple(parts[0][0][0].shape)
    recipe = {"name": "folders", "folder": str(root), "size": size, "split_seed": split_seed, "class_names": names}
    if sum(map(len, parts)) * 4 * int(np.prod(shape)) > resident_bytes:
        if train_size is not None or label_noise:
            raise InputError("train_size, label_noise", "must be left out for data that do not fit `resident_bytes`")
        require(size is not None, "size", "must be given for data that do not fit `resident_bytes`", size)
        made: list[Any] = [
            DataLoader(Indexed(part), batch_size, shuffle=part is parts[0], num_workers=workers) for part in parts
        ]
    else:
        made = list(numbered(_decoded(part, shape) for part in parts))
    constants: dict[str, Any] = {"shape": shape, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    splits = DataSplits("folders", made[0], made[1], made[2], classes=len(names), recipe=recipe, **constants)
    return Selection(train_size, label_noise, seed).of(splits)


def _samples(part: Path, names: list[str]) -> list[tuple[Path, int]]:
    samples: list[tuple[Path, int]] = []
    unknown = {entry.name for entry in part.iterdir() if entry.is_dir()} - set(names)
    require(not unknown, "folder", f"must hold the classes of train/ in {part.name}/", sorted(unknown))
    for label, name in enumerate(names):
        images = sorted(p for p in (part / name).rglob("*") if p.suffix.lower() in _SUFFIXES)
        if part.name == "train" and not images:
            raise InputError("folder", f"must hold images of every class in train/ ({', '.join(_SUFFIXES)})", name)
        samples += [(path, label) for path in images]
    require(samples, "folder", f"must hold images in {part.name}/", str(part))
    return samples


def _decoded(part: ImageFolder, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    images = torch.empty(len(part), *shape)
    for row in range(len(part)):
        image = part[row][0]
        if tuple(image.shape) != shape:
            rule = f"must hold images of one size, {shape[2]} x {shape[1]} ({part.samples[row][0].name} differs)"
            raise InputError("folder", rule, (image.shape[2], image.shape[1]), "give `size` to scale them")
        images[row] = image
    return images, torch.tensor([label for _, label in part.samples], dtype=torch.int64)
