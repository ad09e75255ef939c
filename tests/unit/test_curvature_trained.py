"""A trained network on real digits: both ends against long reference runs, in each batch-norm mode."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from lowland.core.risk import EmpiricalRisk
from lowland.curvature import Hessian, extreme_eigenvalues, trace
from lowland.models.registry import create

pytest.importorskip("sklearn")


@functools.cache
def trained() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    from lowland.data import digits

    train = digits(train_size=120).train
    net = create("resnet8", channels=1, width=8, seed=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    torch.manual_seed(0)
    for _ in range(20):
        for index in torch.randperm(120).split(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(train.input[index]), train.target[index]).backward()
            optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    return net, train.input, train.target


def risk_in(mode: str) -> EmpiricalRisk:
    net, x, y = trained()
    return EmpiricalRisk(net, nn.CrossEntropyLoss(), [(x[:60], y[:60]), (x[60:], y[60:])], batch_norm=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["running", "batch"])
def test_both_ends_of_a_trained_network_against_eighty_steps(mode: str) -> None:
    with Hessian(risk_in(mode)) as hessian:
        reference = extreme_eigenvalues(hessian, min_products=80, max_products=80, seed=100)
        for seed in range(2):
            found = extreme_eigenvalues(hessian, seed=seed)
            assert found.lambda_max == pytest.approx(reference.lambda_max, rel=1e-3) and found.converged_max
            assert found.bound_min >= abs(reference.lambda_min)
            if found.converged_min:
                assert found.lambda_min == pytest.approx(reference.lambda_min, rel=0.1)
            short = extreme_eigenvalues(hessian, seed=seed, min_products=12, max_products=12)
            assert short.converged_min is False or short.lambda_min == pytest.approx(reference.lambda_min, rel=0.1)
            assert short.bound_min >= abs(reference.lambda_min)


def test_the_two_modes_are_different_numbers() -> None:
    running, batch = (extreme_eigenvalues(risk_in(mode)).lambda_max for mode in ("running", "batch"))
    assert max(running, batch) > 1.5 * min(running, batch)


def test_the_trace_of_a_trained_network_by_two_methods() -> None:
    with Hessian(risk_in("running")) as hessian:
        better = trace(hessian, products=45)
        plain = trace(hessian, products=45, method="hutchinson", seed=1)
    assert abs(better.value - plain.value) < 4 * (better.standard_error**2 + plain.standard_error**2) ** 0.5
    assert better.standard_error < plain.standard_error
