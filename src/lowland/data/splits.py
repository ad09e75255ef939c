"""Train, validation and test parts of a data set, and how they are cut."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowland.core.errors import InputError, require
from lowland.core.facts import ShowsFacts
from lowland.core.seeds import generator
from lowland.data.resident import TensorData


@dataclass(repr=False, frozen=True)
class DataSplits(ShowsFacts):
    """A data set in three parts that never overlap.

    Args:
        name: As in `load`; part of the fingerprint.
        train: Samples to train on: `TensorData`, or a loader (any iterable of raw batches).
        validation: Samples that choose the epoch and the settings.
        test: Samples that are looked at once, at the end.
        classes: Number of classes (of tokens for language).
        shape: Of one input, without the axis of samples.
        mean: Per-channel mean that was subtracted from inputs in [0, 1]; empty when they were not normalized.
        std: Per-channel standard deviation that they were divided by.
        recipe: Plain JSON values that make the same data again.

    Example:
        >>> import torch
        >>> part = TensorData(torch.zeros(2, 1), torch.zeros(2), torch.arange(2))
        >>> DataSplits("zeros", part, part, part, classes=2, shape=(1,)).recipe
        {}
    """

    name: str
    train: Any
    validation: Any
    test: Any
    classes: int
    shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def _facts(self) -> dict[str, str]:
        parts = {name: _size(getattr(self, name)) for name in ("train", "validation", "test")}
        shape = f"[{', '.join(map(str, self.shape))}]"
        return {"": self.name, **parts, "classes": str(self.classes), "shape": shape}

    @property
    def fingerprint(self) -> str:
        """Hash of the recipe and of all resident samples; equal data have equal fingerprints."""
        parts = [
            part.fingerprint() if isinstance(part, TensorData) else type(part).__name__
            for part in (self.train, self.validation, self.test)
        ]
        text = json.dumps([self.name, self.classes, list(self.shape), dict(self.recipe), parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _size(part: Any) -> str:
    return str(len(part)) if isinstance(part, TensorData) else type(part).__name__


def stratified_split(target: Tensor, sizes: Sequence[int], *, seed: int) -> list[NDArray[np.int64]]:
    """Cut samples into parts in which every class has its share; a pure function of labels and seed.

    The samples of each class are shuffled and then interleaved with the others evenly, so that every prefix of the
    resulting order is stratified to within one sample per class; the parts are consecutive pieces of it.

    Args:
        target: Labels, shape [n].
        sizes: Samples in each part; their sum is at most n.
        seed: Seed of the stream "split".

    Returns:
        Positions of each part, ascending.

    Raises:
        InputError: If a size is not positive or the parts ask for more than there is.

    Example:
        >>> import torch
        >>> target = torch.tensor([0, 0, 1, 1])
        >>> [sorted(target[part].tolist()) for part in stratified_split(target, [2, 2], seed=0)]
        [[0, 1], [0, 1]]
    """
    if any(size < 1 for size in sizes) or sum(sizes) > len(target):
        raise InputError("sizes", f"must be positive and sum to at most {len(target)}", list(sizes))
    order = _interleaved(target, generator(seed, "split"))
    stops = np.cumsum(sizes)
    return [np.sort(part) for part in np.split(order[: stops[-1]], stops[:-1])]


@dataclass(frozen=True, slots=True)
class Selection:
    """What is drawn from a published set."""

    train_size: int | None = None
    label_noise: float = 0.0
    seed: int = 0
    split_seed: int = 0

    def of(self, splits: DataSplits) -> DataSplits:
        """Return the splits with fewer training samples and with wrong labels, as wanted."""
        fewer = with_subsample(splits, self.train_size, seed=self.seed)
        return with_label_noise(fewer, self.label_noise, seed=self.seed)


def symmetric_noise(target: Tensor, index: Tensor, *, fraction: float, classes: int, seed: int) -> Tensor:
    """Replace labels, each with the given probability, by a class drawn uniformly from all classes.

    The draw may hit the true class, so that a share ``fraction * (1 - 1 / classes)`` of the labels is wrong. What
    happens to a sample depends on (seed, sample id) alone: it is the same in every subset, and the labels replaced
    at a fraction stay replaced, by the same class, at every larger one.

    Args:
        target: Labels, int64, shape [n].
        index: Sample ids, shape [n], non-negative.
        fraction: Probability of replacement, in [0, 1].
        classes: Wrong labels are drawn from [0, classes).
        seed: Seed of the stream "label_noise".

    Returns:
        New labels, shape [n].

    Raises:
        InputError: If the fraction is outside [0, 1] or a label outside [0, classes).

    Example:
        >>> target = torch.zeros(5, dtype=torch.long)
        >>> symmetric_noise(target, torch.arange(5), fraction=0.0, classes=10, seed=0).tolist()
        [0, 0, 0, 0, 0]
    """
    require(0.0 <= fraction <= 1.0, "label_noise", "must be a fraction in [0, 1]", fraction)
    if target.numel() and not (int(target.min()) >= 0 and int(target.max()) < classes):
        raise InputError("target", f"must hold labels in [0, {classes})", (int(target.min()), int(target.max())))
    random = generator(seed, "label_noise")
    draws = random.random((int(index.max()) + 1, 2))[index.cpu().numpy()]
    replaced = torch.as_tensor(draws[:, 0] < fraction, device=target.device)
    drawn = torch.as_tensor((draws[:, 1] * classes).astype("int64"), device=target.device)
    return torch.where(replaced, drawn, target)


def with_label_noise(splits: DataSplits, fraction: float, *, seed: int) -> DataSplits:
    """Replace training and validation labels as `symmetric_noise` does; the recipe says what share changed."""
    if fraction == 0.0:
        return splits
    parts: list[TensorData] = []
    changed: dict[str, float] = {}
    for name in ("train", "validation"):
        part: TensorData = getattr(splits, name)
        noisy = symmetric_noise(part.target, part.index, fraction=fraction, classes=splits.classes, seed=seed)
        changed[name] = round(float((noisy != part.target).double().mean()), 6)
        parts.append(replace(part, target=noisy))
    recipe = {**splits.recipe, "label_noise": fraction, "label_noise_seed": seed, "labels_changed": changed}
    return replace(splits, train=parts[0], validation=parts[1], recipe=recipe)


def with_subsample(splits: DataSplits, size: int | None, *, seed: int) -> DataSplits:
    """Keep `size` training samples (None: all), stratified by class labels; smaller subsets lie in larger ones."""
    if size is None:
        return splits
    train: TensorData = splits.train
    require(1 <= size <= len(train), "train_size", f"must be in [1, {len(train)}]", size)
    classes = train.target.ndim == 1 and not train.target.is_floating_point()
    labels = train.target if classes else torch.zeros(len(train), dtype=torch.int64)
    keep = np.sort(_interleaved(labels, generator(seed, "subsample"))[:size])
    recipe = {**splits.recipe, "train_size": size, "train_size_seed": seed}
    return replace(splits, train=train.take(keep), recipe=recipe)


def _interleaved(target: Tensor, random: np.random.Generator) -> NDArray[np.int64]:
    labels = target.cpu().numpy()
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        place[rows] = (np.arange(len(rows)) + random.random()) / len(rows)
    return np.argsort(place, kind="stable").astype(np.int64)
