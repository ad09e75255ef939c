"""The small networks and data that rules are checked on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowland.core.contexts import same_bits
from lowland.testing.rulebook import demand

Pairs = list[tuple[Tensor, Tensor]]
T = TypeVar("T")


def seeded(seed: int, make: Callable[[], T]) -> T:
    """Make something from a seed of its own, and leave torch's random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def mlp(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Return a network of four layers of parameters."""
    return seeded(1, lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))).to(dtype)


def normed(momentum: float | None = 0.1) -> nn.Sequential:
    """Return a network with batch norm."""
    norm = nn.BatchNorm1d(8, momentum=momentum)
    return seeded(1, lambda: nn.Sequential(nn.Linear(6, 8), norm, nn.ReLU(), nn.Linear(8, 3)))


def small(seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor]:
    """Return a small regression network in evaluation mode, with data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
        return net, torch.randn(11, 4), torch.randn(11, 3)


class Tied(nn.Module):
    """Two layers that share a weight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, inputs), nn.Linear(inputs, inputs)
        self.head = nn.Linear(inputs, outputs)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return [samples, outputs]."""
        scores: Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
        return scores


class Attention(nn.Module):
    """Torch's own attention over series of vectors of two."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(2, 12), nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return [samples, outputs]."""
        q, k, v = self.embed(x).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])
        scores: Tensor = self.head(mixed[:, 0].mean(1))
        return scores


class Recurrent(nn.Module):
    """An LSTM over series of vectors of two."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return [samples, outputs]."""
        scores: Tensor = self.head(self.lstm(x)[0][:, -1])
        return scores


def split(x: Tensor, y: Tensor, sizes: Sequence[int]) -> Pairs:
    """Cut data into batches of given sizes."""
    return list(zip(torch.split(x, list(sizes)), torch.split(y, list(sizes)), strict=True))


def flat(tensors: nn.Module | Iterable[Tensor]) -> Tensor:
    """Return tensors, or a model's parameters, as one new vector."""
    if isinstance(tensors, nn.Module):
        tensors = tensors.parameters()
    return torch.cat([t.detach().reshape(-1) for t in tensors]).clone()


def bits(model: nn.Module) -> list[Tensor]:
    """Return copies of all parameters and buffers."""
    return [t.detach().clone() for t in (*model.parameters(), *model.buffers())]


@contextmanager
def unchanged(model: nn.Module, when: str) -> Generator[None, None, None]:
    """Demand that a model has the same bits afterwards: weights, statistics, modes, flags and gradients."""
    before, count = _state(model), len(list(model.parameters()))
    try:
        yield
    finally:
        after = _state(model)
        demand(same_bits(before[0][:count], after[0][:count]), f"weights are changed {when}")
        demand(same_bits(before[0][count:], after[0][count:]), f"batch-norm statistics are changed {when}")
        demand(before[1] == after[1], f"training mode is changed {when}")
        demand(before[2] == after[2], f"requires_grad is changed {when}")
        demand(before[3].keys() == after[3].keys(), f"gradients come or go {when}")
        demand(all(torch.equal(g, after[3][name]) for name, g in before[3].items()), f"gradients are changed {when}")


def _state(model: nn.Module) -> tuple[list[Tensor], list[bool], list[bool], dict[str, Tensor]]:
    named = dict(model.named_parameters())
    gradients = {name: p.grad.clone() for name, p in named.items() if p.grad is not None}
    return bits(model), [m.training for m in model.modules()], [p.requires_grad for p in named.values()], gradients
