"""What filter-normalized surfaces are invariant under, and what they are not: both are shown."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lowland.core.risk import EmpiricalRisk
from lowland.landscape import evaluate, grid, lora_plane, random_plane


def surface(model, batches, make=random_plane):
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), batches)
    return evaluate(risk, make(model, 0), grid(5, 5, extent=1.5), paired=False).loss.values


def same_function(first, second, x):
    torch.testing.assert_close(first.eval()(x), second.eval()(x), rtol=1e-9, atol=1e-9)


def relu_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x = torch.randn(40, 6, dtype=torch.float64)
    return model, [(x, torch.randint(3, (40,)))]


def change(first, second):
    return float(np.abs(second / first - 1).max())


@torch.no_grad()
def test_whole_relu_layers_may_be_rescaled():
    model, batches = relu_network()
    scaled = copy.deepcopy(model)
    scaled[0].weight.mul_(5)
    scaled[0].bias.mul_(5)
    scaled[2].weight.div_(5)
    same_function(model, scaled, batches[0][0])
    assert change(surface(model, batches), surface(scaled, batches)) < 1e-12
    plain = [random_plane(m, 0, normalization="none") for m in (model, scaled)]
    risks = [EmpiricalRisk(m, nn.CrossEntropyLoss(), batches) for m in (model, scaled)]
    raw = [evaluate(r, p, grid(5, 5)).loss.values for r, p in zip(risks, plain, strict=True)]
    assert change(*raw) > 0.05  # which is why directions are normalized


@torch.no_grad()
def test_single_relu_units_may_not():
    model, batches = relu_network()
    scaled = copy.deepcopy(model)
    scaled[0].weight[2].mul_(10)
    scaled[0].bias[2].mul_(10)
    scaled[2].weight[:, 2].div_(10)
    same_function(model, scaled, batches[0][0])
    assert 0.02 < change(surface(model, batches), surface(scaled, batches)) < 10


@torch.no_grad()
@pytest.mark.parametrize(("eps", "below", "above"), [(1e-5, 1e-3, 1e-9), (1e-13, 1e-10, -1)])
def test_single_filters_before_batch_norm_may_as_far_as_eps_lets_them(eps, below, above):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4, eps=eps), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double()
    x = torch.randn(30, 2, 6, 6, dtype=torch.float64)
    batches = [(x, torch.randint(3, (30,)))]
    model.train()(x)
    scaled = copy.deepcopy(model)
    scaled[0].weight[1].mul_(7)
    scaled[1].running_mean[1].mul_(7)
    scaled[1].running_var[1].mul_(49)
    found = change(surface(model, batches), surface(scaled, batches))
    assert above < found < below


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        found = nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        return self.head(found.mean(1))


@torch.no_grad()
def test_changes_between_query_and_key_may_not():
    torch.manual_seed(0)
    model = Attention().double()
    x = torch.randn(30, 5, 6, dtype=torch.float64) * 2
    batches = [(x, torch.randint(3, (30,)))]
    mix = torch.randn(6, 6, dtype=torch.float64)
    mixed = copy.deepcopy(model)
    mixed.query.weight.copy_(mix @ model.query.weight)
    mixed.key.weight.copy_(torch.linalg.inv(mix).T @ model.key.weight)
    same_function(model, mixed, x)
    assert change(surface(model, batches), surface(mixed, batches)) > 0.005


class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(6, 6, bias=False).requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)

    def get_delta_weight(self, adapter):
        return self.lora_B.weight @ self.lora_A.weight

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


@torch.no_grad()
def test_changes_between_lora_factors_may_not_in_factor_space_but_may_in_the_space_of_weights():
    torch.manual_seed(0)
    model = nn.Sequential(Adapted(), nn.ReLU(), nn.Linear(6, 3)).double()
    x = torch.randn(30, 6, dtype=torch.float64)
    batches = [(x, torch.randint(3, (30,)))]
    mix = torch.randn(2, 2, dtype=torch.float64)
    mixed = copy.deepcopy(model)
    mixed[0].lora_B.weight.copy_(model[0].lora_B.weight @ mix)
    mixed[0].lora_A.weight.copy_(torch.linalg.inv(mix) @ model[0].lora_A.weight)
    same_function(model, mixed, x)
    assert change(surface(model, batches), surface(mixed, batches)) > 0.005
    assert change(surface(model, batches, lora_plane), surface(mixed, batches, lora_plane)) < 1e-10
