"""Normalization against a slow twin, for every kind of layer; zero filters; the other methods; layouts."""

import pytest
import torch
from tests.reference.filter_normalize import filter_normalize
from torch import nn

from lowland.core.errors import InputError
from lowland.core.units import UnitRule, unit_rules
from lowland.landscape import normalize

LAYERS = {
    "linear": lambda: nn.Linear(5, 3),
    "conv1d": lambda: nn.Conv1d(4, 6, 3, groups=2),
    "conv2d": lambda: nn.Conv2d(3, 4, 3),
    "conv3d": lambda: nn.Conv3d(2, 3, 2),
    "transposed1d": lambda: nn.ConvTranspose1d(4, 6, 3),
    "transposed2d": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "transposed3d": lambda: nn.ConvTranspose3d(2, 3, 2),
    "embedding": lambda: nn.Embedding(7, 4),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "lstm": lambda: nn.LSTM(3, 4),
    "batch_norm": lambda: nn.BatchNorm2d(3),
    "layer_norm": lambda: nn.LayerNorm(4),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_filters_agree_with_the_slow_twin(kind):
    module = LAYERS[kind]().double()
    owners = {n: module.out_proj if n.startswith("out_proj.") else module for n, _ in module.named_parameters()}
    for name, parameter in module.named_parameters():
        direction = torch.randn_like(parameter)
        found = normalize(direction, parameter, unit_rules(module)[name])
        expected = filter_normalize(owners[name], name, direction, parameter)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_zero_filters_and_zero_directions_do_not_move():
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 1.0]])
    direction = torch.tensor([[0.6, 0.8], [1.0, 1.0], [0.0, 0.0]])
    found = normalize(direction, weight, UnitRule("filter"))
    torch.testing.assert_close(found, torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]))


def test_a_scalar_parameter_is_left_alone_or_one_unit():
    weight, direction = torch.tensor(-3.0), torch.tensor(0.5)
    assert normalize(direction, weight, UnitRule("fixed")) == 0.0
    assert normalize(direction, weight, UnitRule("fixed"), move_fixed=True) == 3.0


def test_layer_weight_and_none():
    weight, direction = torch.randn(4, 3), torch.randn(4, 3)
    rule = UnitRule("filter")
    assert normalize(direction, weight, rule, "layer").norm() == pytest.approx(weight.norm().item(), rel=1e-6)
    assert torch.equal(normalize(direction, weight, rule, "weight"), direction * weight)
    assert torch.equal(normalize(direction, weight, rule, "none"), direction)
    assert (normalize(direction[0], weight[0], UnitRule("fixed"), "none") == 0).all()
    with pytest.raises(InputError, match="filter, layer, weight, none"):
        normalize(direction, weight, rule, "fliter")


def test_the_weights_type_and_layout_are_kept():
    weight = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    found = normalize(torch.randn(4, 3, 3, 3), weight, UnitRule("filter"))
    assert found.stride() == weight.stride()
    half = normalize(torch.randn(4, 3), torch.randn(4, 3, dtype=torch.bfloat16), UnitRule("filter"))
    assert half.dtype == torch.bfloat16 and torch.isfinite(half).all()
    learned = torch.randn(4, 3, requires_grad=True)
    assert not normalize(learned, torch.randn(4, 3), UnitRule("filter")).requires_grad
