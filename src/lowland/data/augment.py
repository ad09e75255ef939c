"""Augmentations of image batches on tensors, with random numbers that belong to (seed, epoch, sample id).

An augmentation takes a batch and its `Draws` and returns a new batch. Join several by `Compose`; mixing ones (`Mixup`,
`CutMix`) come last. Deterministic, wherever it runs: a sample gets the same crop in every batching. What a mixed sample
is mixed with depends on its batch, as it must; the share of the mixture belongs to the sample.

Sources: padded crop and flip, Lee et al. 2015 and He et al. 2016, section 4.2; cutout, DeVries and Taylor 2017; mixup,
Zhang et al. 2018, equation 1; CutMix, Yun et al. 2019, equation 2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lowland.core.errors import InputError, require
from lowland.core.names import unknown
from lowland.core.types import Batch
from lowland.data.draws import Draws
from lowland.data.resident import Augment


@dataclass(frozen=True)
class Compose:
    """Apply augmentations one after the other.

    Args:
        *parts: The augmentations, in order.
    """

    parts: tuple[Augment, ...]

    def __init__(self, *parts: Augment) -> None:
        object.__setattr__(self, "parts", parts)

    def __call__(self, batch: Batch, draws: Draws, /) -> Batch:
        """Return the augmented batch."""
        for part in self.parts:
            batch = part(batch, draws)
        return batch


@dataclass(frozen=True)
class RandomCrop:
    """Shift each image by up to `padding` pixels each way; what comes in is `fill`, or the image mirrored at its edge.

    Args:
        padding: Largest shift in pixels. Default 4 (He et al. 2016, for 32x32 images).
        fill: Value of the pixels outside. Default 0, the mean of normalized inputs.
        mode: ``"constant"`` takes `fill`, ``"reflect"`` mirrors the image (SALA's settings). Default ``"constant"``.

    Raises:
        InputError: If the padding is negative or the mode unknown.
    """

    padding: int = 4
    fill: float = 0.0
    mode: Literal["constant", "reflect"] = "constant"

    def __post_init__(self) -> None:
        require(self.padding >= 0, "padding", "must not be negative", self.padding)
        if self.mode not in ("constant", "reflect"):
            raise unknown("mode", self.mode, ("constant", "reflect"))

    def __call__(self, batch: Batch, draws: Draws, /) -> Batch:
        """Return the batch with every image shifted."""
        x = images_of(batch)
        n, channels, height, width = x.shape
        if self.mode == "reflect" and self.padding >= min(height, width):
            raise InputError(
                "padding", f"must be below {min(height, width)}, the image's side, to reflect", self.padding
            )
        rows = draws.integers(2 * self.padding + 1).view(n, 1, 1) + torch.arange(height, device=x.device).view(1, -1, 1)
        columns = draws.integers(2 * self.padding + 1).view(n, 1, 1) + torch.arange(width, device=x.device)
        fill = self.fill if self.mode == "constant" else None
        padded = F.pad(x, (self.padding,) * 4, mode=self.mode, value=fill)
        flat = (rows * padded.shape[3] + columns).view(n, 1, -1).expand(n, channels, -1)
        return replace(batch, input=padded.flatten(2).gather(2, flat).view(n, channels, height, width))


@dataclass(frozen=True)
class Flip:
    """Mirror each image left to right with a probability.

    Args:
        probability: That an image is mirrored. Default 0.5.

    Raises:
        InputError: If it is not in [0, 1].
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self.probability)

    def __call__(self, batch: Batch, draws: Draws, /) -> Batch:
        """Return the batch with some images mirrored."""
        x = images_of(batch)
        turned = draws.uniform() < self.probability
        return replace(batch, input=torch.where(turned.view(-1, 1, 1, 1), x.flip(3), x))


@dataclass(frozen=True)
class Cutout:
    """Blank a square around a random pixel; it may reach over the edge.

    Args:
        size: Pixels of its side. Default 16 (DeVries and Taylor 2017, for CIFAR-10; LLR's settings).
        probability: Of doing so. Default 1; LLR's settings use 0.5.
        fill: Value inside. Default 0, the mean of normalized inputs.

    Raises:
        InputError: If a value is out of range.
    """

    size: int = 16
    probability: float = 1.0
    fill: float = 0.0

    def __post_init__(self) -> None:
        _check_probability(self.probability)
        require(self.size >= 1, "size", "must be at least 1", self.size)

    def __call__(self, batch: Batch, draws: Draws, /) -> Batch:
        """Return the batch with squares blanked."""
        x = images_of(batch)
        n, _, height, width = x.shape
        inside = _square(draws, n, height, width, torch.full((n,), self.size, device=x.device))
        inside &= (draws.uniform() < self.probability).view(-1, 1, 1)
        return replace(batch, input=x.masked_fill(inside.unsqueeze(1), self.fill))


@dataclass(frozen=True)
class Mixup:
    """Average each sample with a partner of its batch: share w of itself, 1 - w of the partner.

    w = max(v, 1 - v) with v from Beta(alpha, alpha), so that a sample stays the larger part of itself; targets become
    class probabilities mixed in the same shares.

    Args:
        classes: Length of the mixed targets; a batch may come with class numbers or with class probabilities.
        alpha: Shape of the Beta distribution. Default 1; Zhang et al. 2018 use 1 for CIFAR and 0.2 for ImageNet.

    Raises:
        InputError: If a value is not positive.
    """

    classes: int
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_mixing(self.classes, self.alpha)

    def __call__(self, batch: Batch, draws: Draws, /) -> Batch:
        """Return the mixed batch; its `partner` and `share` say what was mixed."""
        x = images_of(batch)
        share = _beta(draws, self.alpha)
        share = torch.maximum(share, 1 - share).float()
        other = _partners(draws)
        w = share.to(x.dtype).view(-1, 1, 1, 1)
        return _mixed(batch, w * x + (1 - w) * x[other], other, share, self.classes)


@dataclass(frozen=True)
class CutMix:
    """Paste a rectangle of a partner's image; targets are mixed by the area that was really pasted.

    Args:
        classes: Length of the mixed targets; a batch may come with class numbers or with class probabilities.
        alpha: Shape of the Beta distribution of the share that stays. Default 1 (Yun et al. 2019).

    Raises:
        InputError: If a value is not positive.
    """

    classes: int
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_mixing(self.classes, self.alpha)

    def __call__(self, batch: Batch, draws: Draws, /) -> Batch:
        """Return the mixed batch; its `partner` and `share` say what was mixed."""
        x = images_of(batch)
        n, _, height, width = x.shape
        cut = (1 - _beta(draws, self.alpha)).sqrt().float()
        inside = _square(draws, n, height, width, cut * height, cut * width)
        other = _partners(draws)
        share = 1 - inside.flatten(1).float().mean(1)
        return _mixed(batch, torch.where(inside.unsqueeze(1), x[other], x), other, share, self.classes)


def standard(*, padding: int = 4, flip: bool = True, cutout: int | None = None) -> Compose:
    """Return what is usual for small images: padded crop, flip (not for digits), and cutout where its side is given."""
    parts: list[Augment] = [RandomCrop(padding)]
    if flip:
        parts.append(Flip())
    if cutout is not None:
        parts.append(Cutout(cutout))
    return Compose(*parts)


def images_of(batch: Batch) -> Tensor:
    """Return the images of a batch."""
    if not isinstance(batch.input, Tensor) or batch.input.ndim != 4:
        got = tuple(batch.input.shape) if isinstance(batch.input, Tensor) else type(batch.input).__name__
        raise InputError("augment", "must be given images [n, channels, h, w]", got)
    return batch.input


def _square(draws: Draws, n: int, height: int, width: int, tall: Tensor, wide: Tensor | None = None) -> Tensor:
    # True inside a rectangle around a random pixel, clipped at the edges; shape [n, height, width]
    wide = tall if wide is None else wide
    device = draws.index.device
    masks = []
    for length, extent in ((height, tall), (width, wide)):
        center = draws.integers(length)
        low = center - torch.div(extent.floor().long(), 2, rounding_mode="floor")
        at = torch.arange(length, device=device)
        masks.append((at >= low[:, None]) & (at < (low + extent.floor().long())[:, None]))
    return masks[0][:, :, None] & masks[1][:, None, :]


def _partners(draws: Draws) -> Tensor:
    # a permutation of the batch, by random keys of the samples
    order = torch.argsort(draws.uniform(), stable=True)
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other


def _beta(draws: Draws, alpha: float) -> Tensor:
    # Johnk (1964): U^(1/a) / (U^(1/a) + V^(1/a)) given that the sum is at most 1; 64 tries leave alpha <= 2 without a
    # miss that matters (a try succeeds with probability 1/6 at alpha 2). In logarithms, since U^(1/a) underflows.
    if alpha == 1.0:
        return draws.uniform().double()
    u, v = (draws.uniform(64).clamp_min(2.0**-25).double().log() / alpha for _ in range(2))
    accepted = torch.logaddexp(u, v) <= 0
    first = accepted.float().argmax(1, keepdim=True)
    chosen = (u - torch.logaddexp(u, v)).gather(1, first).squeeze(1).exp()
    return torch.where(accepted.any(1), chosen, 0.5)


def _mixed(batch: Batch, images: Tensor, other: Tensor, share: Tensor, classes: int) -> Batch:
    target = batch.target
    if not target.is_floating_point():
        target = F.one_hot(target, classes).to(images.dtype)
    w = share.to(target.dtype).unsqueeze(1)
    partner = None if batch.index is None else batch.index[other]
    mixed = w * target + (1 - w) * target[other]
    return replace(batch, input=images, target=mixed, partner=partner, share=share)


def _check_probability(probability: float) -> None:
    require(0.0 <= probability <= 1.0, "probability", "must be in [0, 1]", probability)


def _check_mixing(classes: int, alpha: float) -> None:
    require(classes >= 2, "classes", "must be at least 2", classes)
    require(0.0 < alpha <= 2.0, "alpha", "must be in (0, 2]", alpha)
