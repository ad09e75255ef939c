"""Small networks and data on which every operator must agree with its dense twin; a new case is one function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowland.testing.networks import Recurrent, Tied


@dataclass
class Case:
    model: nn.Module
    loss: Any
    batches: list[Any]
    batch_norm: str = "running"
    reference_loss: Any = None
    unfrozen_only: bool = field(default=True)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True)
        self.embed, self.encoder, self.head = (
            nn.Linear(2, 4),
            nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 4)

    def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(tokens)).mean(1) * scale[:, None])


def _split(x: Any, y: Tensor, sizes: tuple[int, ...]) -> list[Any]:
    parts, start = [], 0
    for size in sizes:
        cut = slice(start, start + size)
        parts.append(({k: v[cut] for k, v in x.items()} if isinstance(x, dict) else x[cut], y[cut]))
        start += size
    return parts


def _labels(n: int, classes: int = 3) -> Tensor:
    return torch.randint(0, classes, (n,))


def mlp() -> Case:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return Case(net, nn.CrossEntropyLoss(), _split(torch.randn(11, 4), _labels(11), (4, 4, 3)))


def one_batch() -> Case:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return Case(net, nn.CrossEntropyLoss(label_smoothing=0.1), _split(torch.randn(7, 4), _labels(7), (7,)))


def sum_reduction() -> Case:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    data = _split(torch.randn(9, 4), torch.randn(9, 2), (8, 1))
    return Case(net, nn.MSELoss(reduction="sum"), data, reference_loss=nn.MSELoss())


def none_reduction() -> Case:
    net = nn.Sequential(nn.Linear(4, 3), nn.Softplus(), nn.Linear(3, 3))
    data = _split(torch.randn(9, 4), _labels(9), (5, 4))
    return Case(net, nn.CrossEntropyLoss(reduction="none"), data, reference_loss=nn.CrossEntropyLoss())


def weighted_and_ignored() -> Case:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    target = _labels(11)
    target[[1, 6]] = -100
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]))
    return Case(net, loss, _split(torch.randn(11, 4), target, (6, 5)))


def plain_function() -> Case:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    return Case(net, nn.functional.cross_entropy, _split(torch.randn(8, 3), _labels(8), (3, 5)))


def _convolution() -> nn.Module:
    norm = nn.BatchNorm2d(2)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return net


def convolution_running() -> Case:
    return Case(_convolution(), nn.CrossEntropyLoss(), _split(torch.randn(9, 1, 4, 4), _labels(9), (5, 4)))


def convolution_batch() -> Case:
    data = _split(torch.randn(9, 1, 4, 4), _labels(9), (5, 4))
    return Case(_convolution(), nn.CrossEntropyLoss(), data, batch_norm="batch")


def transformer() -> Case:
    return Case(Attention(), nn.CrossEntropyLoss(), _split(torch.randn(5, 3, 2), _labels(5), (3, 2)))


def recurrent() -> Case:
    return Case(Recurrent(3), nn.CrossEntropyLoss(), _split(torch.randn(6, 4, 2), _labels(6), (4, 2)))


def tied_and_unused() -> Case:
    net = Tied(4, 3)
    net.spare = nn.Parameter(torch.ones(2))
    return Case(net, nn.CrossEntropyLoss(), _split(torch.randn(7, 4), _labels(7), (4, 3)))


def dictionary() -> Case:
    x = {"tokens": torch.randint(0, 5, (7, 3)), "scale": torch.rand(7) + 0.5}
    return Case(Tokens(), nn.CrossEntropyLoss(), _split(x, _labels(7, 4), (4, 3)))


_FUNCTIONS = (
    *(mlp, one_batch, sum_reduction, none_reduction, weighted_and_ignored, plain_function),
    *(convolution_running, convolution_batch, transformer, recurrent, tied_and_unused, dictionary),
)
CASES: dict[str, Callable[[], Case]] = {function.__name__: function for function in _FUNCTIONS}


def _double(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _double(v) for k, v in value.items()}
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def make(name: str) -> Case:
    """Build a case in float64, with its model in training mode as a user would leave it."""
    torch.manual_seed(0)
    case = CASES[name]()
    case.model.double().train()
    case.batches = [(_double(x), _double(y)) for x, y in case.batches]
    if isinstance(case.loss, nn.Module):
        case.loss = case.loss.double()
    case.reference_loss = case.reference_loss or case.loss
    return case


def reference_mode(case: Case) -> None:
    """Put the model into the mode in which the risk measures it, for a twin that takes the model as it is."""
    case.model.eval()
    if case.batch_norm == "batch":
        for module in case.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
