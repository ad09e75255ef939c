"""Parameter counts against published ones; networks are built without memory for their weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lowland import models

# exact counts: torchvision's ResNets (ImageNet), the counts printed by the authors' or the usual CIFAR code
EXACT: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ResNet-18, ImageNet": (lambda: models.imagenet_resnet(18, classes=1000, stem="imagenet"), 11_689_512),
    "ResNet-34, ImageNet": (lambda: models.imagenet_resnet(34, classes=1000, stem="imagenet"), 21_797_672),
    "ResNet-50, ImageNet": (lambda: models.imagenet_resnet(50, classes=1000, stem="imagenet"), 25_557_032),
    "ResNet-101, ImageNet": (lambda: models.imagenet_resnet(101, classes=1000, stem="imagenet"), 44_549_160),
    "ResNet-18, CIFAR-10": (lambda: models.imagenet_resnet(18), 11_173_962),
    "ResNet-34, CIFAR-10": (lambda: models.imagenet_resnet(34), 21_282_122),
    "ResNet-50, CIFAR-10": (lambda: models.imagenet_resnet(50), 23_520_842),
    "ResNet-18, CIFAR-100": (lambda: models.imagenet_resnet(18, classes=100), 11_220_132),
    "WRN-28-10": (lambda: models.wide_resnet(28, 10), 36_479_194),
    "WRN-28-10, CIFAR-100": (lambda: models.wide_resnet(28, 10, classes=100), 36_536_884),
    "DenseNet-BC-100": (lambda: models.densenet_bc100(), 769_162),
    "DenseNet-121, CIFAR stem": (lambda: models.densenet121(), 6_956_298),
    "ViT-Ti/16": (lambda: models.vit(size=224, patch=16, depth=12, classes=1000), 5_717_416),
    "ViT-S/16": (
        lambda: models.vit(size=224, patch=16, width=384, heads=6, depth=12, classes=1000),
        22_050_664,
    ),
    "GPT-2": (
        lambda: models.transformer(classes=50257, context=1024, width=768, depth=12, heads=12),
        124_439_808,
    ),
}
# rounded counts of the papers' tables: WRN Table 5 and 4, PyramidNet Table 4, DenseNet Table 2
ROUNDED: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "WRN-28-10": (lambda: models.wide_resnet(28, 10), 36.5e6),
    "WRN-16-4": (lambda: models.wide_resnet(16, 4), 2.7e6),
    "WRN-40-4": (lambda: models.wide_resnet(40, 4), 8.9e6),
    "PyramidNet-110, alpha 48": (lambda: models.pyramidnet(110, 48), 1.7e6),
    "PyramidNet-110, alpha 84": (lambda: models.pyramidnet(110, 84), 3.8e6),
    "PyramidNet-110, alpha 270": (lambda: models.pyramidnet(110, 270), 28.3e6),
    "DenseNet-BC-100": (lambda: models.densenet_bc100(), 0.8e6),
}


def count(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


@pytest.mark.parametrize("name", EXACT)
def test_parameter_counts_are_those_of_the_reference_code(name: str) -> None:
    build, expected = EXACT[name]
    assert count(build) == expected


@pytest.mark.parametrize("name", ROUNDED)
def test_parameter_counts_are_those_of_the_papers(name: str) -> None:
    build, expected = ROUNDED[name]
    assert count(build) == pytest.approx(expected, rel=0.04)


def test_vgg9_has_its_nine_layers_and_their_weights() -> None:
    widths = [3, 64, 64, 128, 128, 256, 256, 256]
    convolutions = sum(9 * a * b + b for a, b in zip(widths, widths[1:], strict=False)) + 2 * sum(widths[1:])
    linear = (256 * 4 * 4 * 256 + 256) + 2 * 256 + (256 * 10 + 10)
    assert count(lambda: models.vgg(9)) == convolutions + linear


def test_the_signal_network_has_the_weights_counted_by_hand() -> None:
    first = 5 * 16 + 2 * 16
    stages = 5 * (16 * 16 * 2 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 4 * (16 + 32 + 64)
    assert count(lambda: models.resnet1d(8)) == first + stages + 64 * 10 + 10


@pytest.mark.parametrize("name", ["resnet18", "wrn16_4", "pyramidnet110", "resnet1d"])
def test_without_skip_no_path_around_the_convolutions_is_left(name: str) -> None:
    small = {"wrn16_4": {"factor": 1}, "pyramidnet110": {"widening": 6}}.get(name, {"width": 4})
    for skip in (True, False):
        model = models.create(name, skip=skip, seed=0, **small).eval()
        # the first convolution of every block is silenced: what still reaches the output went around it
        for block in model.modules():
            if hasattr(block, "conv2"):
                nn.init.zeros_(block.conv1.weight)
        shape = (2, 1, 40) if name == "resnet1d" else (2, 3, 16, 16)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        assert bool((model(x)[0] - model(x)[1]).abs().max() > 0) == skip


def test_the_language_model_never_sees_the_future() -> None:
    model = models.create("transformer", classes=9, context=8, width=16, depth=2, heads=2, seed=0).eval()
    tokens = torch.randint(9, (1, 8), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[0, 5:] = (other[0, 5:] + 1) % 9
    same = (model(tokens) == model(other)).all(1)[0]
    assert same.tolist() == [True] * 5 + [False] * 3
    assert model.head.weight is model.token.weight


def test_attention_is_the_textbook_formula() -> None:
    from lowland.models.attention import Attention

    torch.manual_seed(0)
    attention = Attention(6, 2, causal=True).double()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    q, k, v = attention.qkv(x).split(6, -1)
    heads = []
    for h in range(2):
        part = slice(3 * h, 3 * h + 3)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 3**0.5
        scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
        heads.append(scores.softmax(-1) @ v[..., part])
    torch.testing.assert_close(attention(x), attention.out(torch.cat(heads, -1)))
