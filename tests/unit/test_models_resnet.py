from __future__ import annotations

import pytest
import torch

from lowland import models

# He et al. 2016, section 4.2, Table 6: 0.27, 0.46, 0.66, 0.85, 1.7 million; the exact counts of option A by hand below.
PUBLISHED = {20: 0.27e6, 32: 0.46e6, 44: 0.66e6, 56: 0.85e6, 110: 1.7e6}


def by_hand(depth: int, width: int = 16, classes: int = 10, channels: int = 3) -> int:
    n = (depth - 2) // 6
    convolution = channels * width * 9
    previous = width
    for stage in (width, 2 * width, 4 * width):
        convolution += 9 * previous * stage + 9 * stage * stage * (2 * n - 1)
        previous = stage
    norms = 2 * width + 2 * 2 * n * (width + 2 * width + 4 * width)
    return convolution + norms + 4 * width * classes + classes


@pytest.mark.parametrize("depth", PUBLISHED)
@pytest.mark.parametrize("skip", [True, False])
def test_parameter_counts_are_the_published_ones(depth: int, skip: bool) -> None:
    count = sum(p.numel() for p in models.resnet(depth, skip=skip).parameters())
    assert count == by_hand(depth)
    assert count == pytest.approx(PUBLISHED[depth], rel=0.03)


def test_the_wide_network_has_k_times_the_filters() -> None:
    for skip in (True, False):  # WRN-56-2 of Li et al.
        model = models.resnet(56, width=32, skip=skip)
        assert sum(p.numel() for p in model.parameters()) == by_hand(56, width=32)
        assert model.conv1.out_channels == 32


def test_without_skip_no_shortcut_exists_and_with_it_the_input_passes_through() -> None:
    for skip in (True, False):
        model = models.resnet(20, skip=skip, width=4).eval()
        for stage in (model.layer1, model.layer2, model.layer3):
            for block in stage:
                torch.nn.init.zeros_(block.bn2.weight)  # silence every residual branch
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        spread = (model(x)[0] - model(x)[1]).abs().max()
        assert (spread > 0) == skip


def test_output_sizes_of_the_stages_are_those_of_the_paper() -> None:
    model = models.resnet(20).eval()
    x = model.layer1(torch.relu(model.conv1(torch.zeros(1, 3, 32, 32))))
    shapes = [tuple(x.shape), tuple((x := model.layer2(x)).shape), tuple(model.layer3(x).shape)]
    assert shapes == [(1, 16, 32, 32), (1, 32, 16, 16), (1, 64, 8, 8)]
