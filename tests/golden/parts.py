"""A net, data and settings so small that everything about them is recomputed in seconds, on any processor.

Weights and data come from NumPy's Philox and are rounded, so that no processor starts from other bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

import lowland as ll

CLASSES = 3
BATCH = 16


def drawn(seed: int, *shape: int) -> Tensor:
    values = np.random.Generator(np.random.Philox(seed)).standard_normal(shape)
    return torch.tensor(np.round(values, 3))


def net(*, classes: int = CLASSES, width: int = 4) -> nn.Sequential:
    """A convolution with batch norm and two linear layers; weights depend on torch's seed by one integer alone."""
    model = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),  # before batch norm its gradient would be rounding alone
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, 8),
        nn.Tanh(),
        nn.Linear(8, classes),
    )
    first = int(torch.randint(1000, (1,)))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            fan = max(1, parameter[0].numel()) if parameter.ndim > 1 else 100
            parameter.copy_(drawn(100 * first + number, *parameter.shape) / fan**0.5)
        model[1].weight += 1
    return model


def other_net(*, classes: int = CLASSES) -> nn.Sequential:
    """Another architecture."""
    return net(classes=classes, width=3)


def tiny_data(*, size: int = 48) -> ll.data.DataSplits:
    """Three noisy shapes of 6 x 6 pixels."""
    shapes = drawn(7, CLASSES, 1, 6, 6)
    parts, start = [], 0
    for seed, count in enumerate((size, 24, 48)):
        target = torch.arange(count) % CLASSES
        inputs = shapes[target] + 1.2 * drawn(seed, count, 1, 6, 6)
        target = torch.where(drawn(50 + seed, count) > 1.2, (target + 1) % CLASSES, target)  # some wrong labels
        parts.append(ll.data.TensorData(inputs.float(), target, torch.arange(start, start + count)))
        start += count
    recipe = {"size": size}
    return ll.data.DataSplits("tiny", *parts, classes=CLASSES, shape=(1, 6, 6), recipe=recipe)


def seeded(seed: int, dtype: torch.dtype, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return net(width=width).to(dtype)


def batches(dtype: torch.dtype, epoch: int = 0) -> list[ll.Batch]:
    """The training part in the order of an epoch."""
    data = tiny_data().train
    order = np.random.Generator(np.random.Philox(1000 + epoch)).permutation(len(data))
    rows = torch.tensor(order).split(BATCH)
    return [ll.Batch(data.input[r].to(dtype), data.target[r], data.index[r]) for r in rows]


def steps(dtype: torch.dtype, count: int) -> Iterator[ll.Batch]:
    epoch = 0
    while count > 0:
        for batch in batches(dtype, epoch)[:count]:
            yield batch
            count -= 1
        epoch += 1


def trained(dtype: torch.dtype, *, seed: int = 0, count: int = 24, snapshots: list[object] | None = None) -> nn.Module:
    """Return the net after some steps of SGD, and keep its path where a list is given."""
    model = seeded(seed, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.8)
    for number, batch in enumerate(steps(dtype, count)):
        if snapshots is not None and number % 4 == 0:
            snapshots.append((number, {name: p.detach().clone() for name, p in model.named_parameters()}))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch.input), batch.target).backward()
        optimizer.step()
    if snapshots is not None:
        snapshots.append((count, {name: p.detach().clone() for name, p in model.named_parameters()}))
    with torch.no_grad():  # rounded, so that every processor goes on from the same bits
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(tensor.double().mul(1e6).round().div(1e6))
    return model.eval()
