"""What a user's own module may hold: a network, and data in every form that `--data` takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lowland.data import DataSplits, TensorData


def net(*, width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


def pairs(count: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, generator=random), torch.randint(3, (count,), generator=random)


def dataset() -> TensorDataset:
    return TensorDataset(*pairs())


def shuffled() -> DataLoader[Any]:
    return DataLoader(dataset(), batch_size=7, shuffle=True)


def batches() -> list[tuple[Tensor, Tensor]]:
    inputs, targets = pairs()
    return [(inputs[:10], targets[:10]), (inputs[10:], targets[10:])]


def by_part() -> dict[str, Any]:
    return {"train": dataset(), "test": TensorDataset(*pairs(8, seed=1))}


def splits() -> DataSplits:
    inputs, targets = pairs()
    part = TensorData(inputs, targets, torch.arange(len(targets)))
    return DataSplits("made up", part, part, part, classes=3, shape=(4,))


def tokens() -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(13, (4, 5), generator=random), "labels": torch.randint(3, (4,), generator=random)}
        for _ in range(2)
    ]


def number() -> int:
    return 3


def smooth(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target, label_smoothing=0.1, reduction="none")
