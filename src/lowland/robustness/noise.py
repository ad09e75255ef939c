"""Accuracy on test inputs with Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from lowland.core.errors import InputError
from lowland.core.seeds import normal
from lowland.data import DataSplits
from lowland.robustness.pixels import Robustness, constants, resting, row, scaled, test_part, to_pixels


def noise(
    model: nn.Module,
    data: DataSplits,
    *,
    deviations: Sequence[float] = (0.05, 0.1, 0.2),
    samples: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> list[Robustness]:
    """Return accuracy on test inputs with Gaussian noise by deviation; all of them and all models share random numbers.

    Args:
        model: Takes normalized inputs, returns logits; it is restored bit for bit.
        data: Resident splits with class labels.
        deviations: Standard deviations of the noise before normalization; the result is clipped to [0, 1] where the
            data were scaled from there.
        samples: Use a fixed random subset of that many test samples; None uses all.
        batch_size: Samples evaluated together; the numbers do not depend on it.
        seed: Chooses the subset and draws the noise.
    """
    if not deviations or any(not (math.isfinite(d) and d >= 0) for d in deviations):
        raise InputError("deviations", "must hold finite numbers, at least 0", list(deviations))
    part = test_part(data, samples, seed, images=False)
    drawn = normal(part.input, seed, "probe", "noise")
    mean, std = constants(data, part.input)
    hits, flips, cleanly = ([0] * len(deviations) for _ in range(3))
    with resting(model, seed) as device:
        for start in range(0, len(part), batch_size):
            rows = slice(start, start + batch_size)
            x, y = to_pixels(part.input[rows], data), part.target[rows].to(device)
            clean = model(part.input[rows].to(device)).argmax(1) == y
            for number, deviation in enumerate(deviations):
                noisy = x + deviation * drawn[rows]
                noisy = noisy.clamp(0, 1) if scaled(data) else noisy
                right = model(((noisy - mean) / std).to(device)).argmax(1) == y
                hits[number] += int(right.sum())
                flips[number] += int((right != clean).sum())
                cleanly[number] += int(clean.sum())
    found = [row("noise", float(d), h, len(part)) for d, h in zip(deviations, hits, strict=True)]
    pairs = zip(found, flips, hits, cleanly, strict=True)
    return [replace(one, change_error=_paired(flipped, hit - right, len(part))) for one, flipped, hit, right in pairs]


def _paired(flipped: int, change: int, count: int) -> float:
    # each sample changes by -1, 0 or 1
    return math.sqrt(max(flipped / count - (change / count) ** 2, 0.0) / count)
