"""Label noise that belongs to samples, not to subsets."""

from __future__ import annotations

import torch
from torch import Tensor

from lowland.core.errors import InputError
from lowland.core.seeds import generator


def symmetric_noise(target: Tensor, index: Tensor, *, fraction: float, classes: int, seed: int) -> Tensor:
    """Replace labels, each with the given probability, by a class drawn uniformly from all classes.

    The draw may hit the true class, so that a share ``fraction * (1 - 1 / classes)`` of the labels is wrong. What
    happens to a sample depends on (seed, sample id) alone: it is the same in every subset, and the labels replaced
    at a fraction stay replaced, by the same class, at every larger one.

    Args:
        target: Labels, int64, shape [n].
        index: Sample ids, shape [n], non-negative.
        fraction: Probability of replacement, in [0, 1].
        classes: Wrong labels are drawn from [0, classes).
        seed: Seed of the stream "label_noise".

    Returns:
        New labels, shape [n].

    Raises:
        InputError: If the fraction is outside [0, 1] or a label outside [0, classes).

    Example:
        >>> target = torch.zeros(5, dtype=torch.long)
        >>> symmetric_noise(target, torch.arange(5), fraction=0.0, classes=10, seed=0).tolist()
        [0, 0, 0, 0, 0]
    """
    if not 0.0 <= fraction <= 1.0:
        raise InputError("label_noise", "must be a fraction in [0, 1]", fraction)
    if target.numel() and not (int(target.min()) >= 0 and int(target.max()) < classes):
        raise InputError("target", f"must hold labels in [0, {classes})", (int(target.min()), int(target.max())))
    random = generator(seed, "label_noise")
    draws = random.random((int(index.max()) + 1, 2))[index.cpu().numpy()]
    replaced = torch.as_tensor(draws[:, 0] < fraction, device=target.device)
    drawn = torch.as_tensor((draws[:, 1] * classes).astype("int64"), device=target.device)
    return torch.where(replaced, drawn, target)
