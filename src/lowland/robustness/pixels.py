"""What attacks and noise share: test inputs as pixels in [0, 1], and the rows that are reported."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowland.core.contexts import evaluation_mode, forked_rng, gradients_aside
from lowland.core.errors import InputError, require
from lowland.core.seeds import generator, torch_seed
from lowland.data import DataSplits, TensorData


@dataclass(frozen=True)
class Robustness:
    """Accuracy under one disturbance.

    Args:
        attack: ``"clean"``, ``"fgsm"``, ``"pgd"``, ``"margin"``, ``"worst"`` (each sample's worst of the three) or
            ``"noise"``.
        size: Radius in units of inputs in [0, 1], or standard deviation of the noise.
        accuracy: Share of samples still classified rightly.
        standard_error: Binomial standard error of that share.
        samples: How many samples the share is of.
        change_error: Standard error of the difference to the accuracy on clean inputs, sample by sample.
    """

    attack: str
    size: float
    accuracy: float
    standard_error: float
    samples: int
    change_error: float = math.nan


def row(attack: str, size: float, hits: int, count: int) -> Robustness:
    """Return the share of hits with its binomial standard error."""
    share = hits / count
    return Robustness(attack, size, share, math.sqrt(share * (1 - share) / count), count)


def test_part(data: DataSplits, samples: int | None, seed: int, *, images: bool = True) -> TensorData:
    """Return the test part, or a fixed random subset of it, checked to be classes (of images)."""
    part = data.test
    if not isinstance(part, TensorData) or part.target.ndim != 1 or part.target.is_floating_point():
        raise InputError("data", "must be resident with class labels", data.name)
    require(not images or scaled(data), "data", "must be images scaled from [0, 1]", data.name)
    if samples is None:
        return part
    require(1 <= samples <= len(part), "samples", f"must be in [1, {len(part)}]", samples)
    rows = generator(seed, "subsample", "attack").choice(len(part), samples, replace=False)
    return part.take(torch.as_tensor(rows).sort().values)


def scaled(data: DataSplits) -> bool:
    """Return whether the data are images that were scaled from [0, 1]."""
    return len(data.shape) == 3 and len(data.mean) == data.shape[0]


def constants(data: DataSplits, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, shaped for a batch; 0 and 1 where the data were not normalized."""

    def shaped(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, *(1,) * (like.ndim - 2))

    return shaped(data.mean or (0.0,)), shaped(data.std or (1.0,))


def to_pixels(x: Tensor, data: DataSplits) -> Tensor:
    """Undo the normalization."""
    mean, std = constants(data, x)
    return x * std + mean


@contextmanager
def resting(model: nn.Module, seed: int) -> Generator[torch.device]:
    """Hold a model in evaluation mode with frozen weights, and yield its device; everything is restored."""
    first = next(model.parameters(), None)
    with evaluation_mode(model), gradients_aside(model), forked_rng(torch_seed(seed, "probe", "attack")):
        for parameter in model.parameters():
            parameter.requires_grad_(False)  # gradients of the weights would cost half of every attack
        yield torch.device("cpu") if first is None else first.device
