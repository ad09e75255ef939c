"""Flat-LoRA's noise: its formula, the frozen weights' bits, and random numbers of its own."""

import math

import pytest
import torch
from torch import nn

from lowland import optim
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.optim.flat_lora import noise_like


class Adapted(nn.Module):
    def __init__(self, inputs, outputs, dtype=torch.float32):
        super().__init__()
        self.base_layer = nn.Linear(inputs, outputs, dtype=dtype).requires_grad_(False)
        self.a = nn.Parameter(torch.randn(2, inputs, dtype=dtype) / 4)
        self.b = nn.Parameter(torch.randn(outputs, 2, dtype=dtype) / 4)

    def get_delta_weight(self, adapter):
        assert adapter == "default"
        return self.b @ self.a

    def forward(self, x):
        return self.base_layer(x) + x @ (self.b @ self.a).T


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(Adapted(6, 5, dtype), nn.Tanh(), Adapted(5, 3, dtype))


def noise_of(model, **options):
    with torch.no_grad():
        before = [layer.base_layer.weight.clone() for layer in (model[0], model[2])]
        with optim.lora_noise(model, **options):
            return [layer.base_layer.weight - old for layer, old in zip((model[0], model[2]), before, strict=True)]


def twin(model, sigma, share, normals):
    """Row by row, entry by entry."""
    found = []
    for layer, z in zip((model[0], model[2]), normals, strict=True):
        merged = (layer.base_layer.weight + layer.b @ layer.a).detach()
        rows = []
        for row, numbers in zip(merged, z, strict=True):
            length = math.sqrt(sum(float(v) ** 2 for v in row))
            deviation = sigma * 0.5 * (1 - math.cos(math.pi * share)) * length / math.sqrt(len(row))
            rows.append([deviation * float(number) for number in numbers])
        found.append(torch.tensor(rows))
    return found


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_noise_is_that_of_the_formula(share):
    model = network()
    drawn = noise_of(model, progress=1.0, step=3, sigma=1.0)
    weights = [layer.base_layer.weight + layer.b @ layer.a for layer in (model[0], model[2])]
    lengths = [torch.linalg.vector_norm(w, dim=1, keepdim=True) / math.sqrt(w.shape[1]) for w in weights]
    unit = [noise / length for noise, length in zip(drawn, lengths, strict=True)]
    for found, expected in zip(
        noise_of(model, progress=share, step=3, sigma=0.2), twin(model, 0.2, share, unit), strict=True
    ):
        assert torch.allclose(found, expected, atol=2e-6)


def test_outputs_get_the_relative_variance():
    torch.manual_seed(1)
    weight = torch.randn(200, 300)
    noise = noise_like(weight, 0.05, torch.Generator().manual_seed(0))
    ratios = (noise**2).sum(1) / (weight**2).sum(1)
    assert ratios.mean() == pytest.approx(0.05**2, rel=0.02)
    large = nn.Sequential(Adapted(300, 200), nn.Tanh(), Adapted(200, 300))
    for noise, layer in zip(noise_of(large, progress=1.0, step=0, sigma=0.05), (large[0], large[2]), strict=True):
        merged = (layer.base_layer.weight + layer.b @ layer.a).detach()  # at the end of the schedule the noise is whole
        assert ((noise**2).sum(1) / (merged**2).sum(1)).mean() == pytest.approx(0.05**2, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frozen_weights_keep_their_bits_and_dropout_its_numbers(dtype):
    model = network(dtype)
    frozen = [layer.base_layer.weight.clone() for layer in (model[0], model[2])]
    torch.manual_seed(5)
    plain = torch.rand(3)
    torch.manual_seed(5)
    for step in range(3):
        with optim.lora_noise(model, progress=0.9, step=step, sigma=0.3):
            model(torch.ones(2, 6, dtype=dtype)).sum().backward()
    assert torch.equal(plain, torch.rand(3))
    with pytest.raises(KeyError), optim.lora_noise(model, progress=0.9, step=0, sigma=0.3):
        raise KeyError
    assert same_bits(frozen, [layer.base_layer.weight for layer in (model[0], model[2])])
    assert model[0].base_layer.weight.grad is None and model[0].a.grad is not None


def test_every_step_has_noise_of_its_own_which_comes_again():
    model = network()
    first, again, other = (noise_of(model, progress=1.0, step=step) for step in (4, 4, 5))
    assert same_bits(first, again) and not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], noise_of(model, progress=1.0, step=4, seed=1)[0])


def test_it_goes_around_both_passes_of_sam():
    model = network()
    optimizer = optim.SAM(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(4, 6)).square().mean()
        loss.backward()
        return loss

    with optim.lora_noise(model, progress=0.5, step=0):
        optimizer.step(closure)
    assert optimizer.steps == 1


def test_what_cannot_carry_noise_is_refused():
    model = network()
    for options, rule in (({"progress": 1.5}, "progress"), ({"progress": 0.5, "sigma": -1.0}, "sigma")):
        with pytest.raises(InputError, match=rule), optim.lora_noise(model, step=0, **options):
            pass
    with pytest.raises(InputError, match="adapted"), optim.lora_noise(nn.Linear(2, 2), progress=0.5, step=0):
        pass
    model[0].base_layer.weight = nn.Parameter(torch.ones(5, 6, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="quantize"), optim.lora_noise(model, progress=0.5, step=0):
        pass
