"""A network, data and studies so small that a run takes a fraction of a second."""

from dataclasses import replace

import torch
from torch import nn

from lowland.data import DataSplits, TensorData
from lowland.workflows import DataSpec, FitSpec, ModelSpec, OptimizerSpec, StudySpec


def tiny_model(*, classes=3, width=8):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, classes))


def tiny_data(*, spread=0.7, size=48, seed=0):
    """Three Gaussian clusters that overlap."""
    random = torch.Generator().manual_seed(seed)
    parts, start = [], 0
    for count in (size, 48, 96):
        target = torch.arange(count) % 3
        centers = torch.eye(3, 4)[target]
        inputs = centers + spread * torch.randn(count, 4, generator=random)
        parts.append(TensorData(inputs, target, torch.arange(start, start + count)))
        start += count
    return DataSplits("tiny", *parts, classes=3, shape=(4,), recipe={"spread": spread, "size": size, "seed": seed})


def loader_data():
    """The same as loaders, without sample ids."""
    splits = tiny_data()
    pairs = [(part.input, part.target) for part in (splits.train, splits.validation, splits.test)]
    loaders = [torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*pair), batch_size=16) for pair in pairs]
    return replace(splits, train=loaders[0], validation=loaders[1], test=loaders[2])


def measured_data():
    """The same inputs with a number to be predicted."""
    splits = tiny_data()
    parts = (splits.train, splits.validation, splits.test)
    return replace(
        splits,
        **{
            name: replace(part, target=part.input[:, :1] ** 2)
            for name, part in zip(("train", "validation", "test"), parts, strict=True)
        },
    )


def base_run(**options):
    return FitSpec(
        model=ModelSpec(name="tests.study_cases:tiny_model"),
        data=DataSpec(name="tests.study_cases:tiny_data"),
        optimizer=OptimizerSpec(learning_rate=0.1),
        epochs=3,
        batch_size=16,
        snapshots_every_epochs=None,
        threads=1,
        **options,
    )


METHODS = {"SGD": {}, "SAM": {"optimizer.method": "sam", "optimizer.options.rho": 0.1}}


def tiny_study(folder, **options):
    settings = {"methods": METHODS, "seeds": 4, **options}
    return StudySpec(folder=str(folder), base=settings.pop("base", base_run()), **settings)
