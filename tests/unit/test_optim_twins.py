"""Each method against its slow twin: 50 steps in float64 on a small network with batch norm."""

import pytest
import torch
from tests.reference import sam as sam_twin
from torch import nn

import lowland.optim as optim

RATES = {"sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}, "adamw": {"lr": 0.01, "weight_decay": 1e-2}}
STEPS = 50


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3)).double()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(9, 5, generator=generator, dtype=torch.float64), torch.randint(0, 3, (9,), generator=generator))
        for _ in range(8)
    ]


def base_of(kind, parameters):
    return torch.optim.SGD(parameters, **RATES[kind]) if kind == "sgd" else torch.optim.AdamW(parameters, **RATES[kind])


def run(model, optimizer):
    loss_of, data, path = nn.CrossEntropyLoss(), batches(), []
    for step in range(STEPS):
        x, y = data[step % len(data)]

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
        path.append([p.detach().clone() for p in model.parameters()])
    return path


def options_of(kind):
    rates = RATES[kind]
    return {
        "lr": rates["lr"], "momentum": rates.get("momentum", 0.0), "weight_decay": rates["weight_decay"],
        "steps": STEPS, "adam": kind == "adamw",
    }  # fmt: skip


def assert_paths_agree(first, second, model, twin):
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a - b).abs().max() < 1e-12
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert (a - b).abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_sam(kind):
    model, twin = network(), network()
    path = run(model, optim.SAM(base_of(kind, model.parameters()), rho=0.05))
    slow = sam_twin.train(twin, batches(), nn.CrossEntropyLoss(), rho=0.05, **options_of(kind))
    assert_paths_agree(path, slow, model, twin)
