"""Adversarial attacks by foolbox on inputs in [0, 1]; epsilon is a distance between images.

FGSM (Goodfellow et al. 2015), PGD on the cross entropy (Madry et al. 2018), and PGD on the margin between the best
wrong score and the right one (Carlini and Wagner 2017, equation 6 without a threshold) with random restarts, since
cross entropy alone overrates models whose gradients vanish (Croce and Hein 2020).

The protocol of LLR is the default: L-infinity, epsilon 3, 5 and 8 over 255, step 0.01, 40 iterations. Deviations:

1. What an attack finds inside a smaller ball counts for every larger one, where it is allowed as well.
2. What PGD finds counts for the margin attack, which tries PGD's end points as further starts.
3. Inputs are scaled back to [0, 1] and normalized by foolbox inside the attacked model; the original hands images in
   [0, 1] to a network trained on normalized ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core.errors import InputError, optional_import
from lowland.data import DataSplits, TensorData
from lowland.robustness.pixels import Robustness, constants, resting, row, test_part, to_pixels

__all__ = ["LLR_EPSILONS", "adversarial", "attacked"]

LLR_EPSILONS = (3 / 255, 5 / 255, 8 / 255)
"""Radii of LLR's protocol."""

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


def adversarial(
    model: nn.Module,
    data: DataSplits,
    *,
    epsilons: Sequence[float] = LLR_EPSILONS,
    step: float = 0.01,
    iterations: int = 40,
    restarts: int = 3,
    samples: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> list[Robustness]:
    """Attack a classifier on the test part with FGSM, PGD and the margin attack.

    Args:
        model: Takes normalized inputs, returns logits; it is restored bit for bit.
        data: Resident splits with `mean` and `std`, and inputs in [0, 1] before normalization.
        epsilons: L-infinity radii in units of inputs in [0, 1], positive.
        step: Step of PGD and of the margin attack, in the same unit. Default 0.01 (LLR).
        iterations: Their steps. Default 40 (LLR).
        restarts: Runs of the margin attack: one from the image itself, the others from random points of the ball.
        samples: Attack a fixed random subset of that many test samples; None attacks all.
        batch_size: Samples attacked together; the numbers do not depend on it but for the random starts.
        seed: Chooses the subset and draws the random starts.

    Returns:
        Rows for "clean" (size 0), and for each attack and radius.

    Raises:
        InputError: If the data are not resident images in [0, 1] with class labels, or an argument is out of range.
        MissingExtra: If foolbox is not installed.
    """
    radii = _checked(epsilons, step, iterations, restarts)
    part = test_part(data, samples, seed)
    attacks = optional_import("foolbox", extra="robust", needed_for="adversarial robustness").attacks

    def descent(*, random_start: bool = False) -> Any:
        return attacks.LinfPGD(abs_stepsize=step, steps=iterations, random_start=random_start)

    tried = {"fgsm": attacks.LinfFastGradientAttack(random_start=False), "pgd": descent()}
    margins = [_on_margin(descent(random_start=number > 0)) for number in range(restarts)]
    broken = {name: torch.zeros(len(radii), dtype=torch.int64) for name in (*tried, "margin", "worst")}
    wrong = 0
    with attacked(model, data, part, seed) as (target, batches):
        for x, y in batches(batch_size):
            wrong += int((target(x).argmax(1) != y).sum())
            found = {name: _broken(attack, target, x, y, radii) for name, attack in tried.items()}
            found["margin"] = found["pgd"].clone()
            for attack in margins:
                found["margin"] |= _broken(attack, target, x, y, radii)
            found["worst"] = found["fgsm"] | found["margin"]
            for name, hit in found.items():
                broken[name] += hit.sum(1).cpu()
    count = len(part)
    rows = [row("clean", 0.0, count - wrong, count)]
    for name, hits in broken.items():
        rows += [row(name, e, count - int(b), count) for e, b in zip(radii, hits.tolist(), strict=True)]
    return rows


@contextmanager
def attacked(
    model: nn.Module, data: DataSplits, part: TensorData, seed: int
) -> Generator[tuple[Callable[[Tensor], Tensor], Batches]]:
    """Yield foolbox's view of a model on pixels, with the normalization inside, and the batches of pixels."""
    foolbox = optional_import("foolbox", extra="robust", needed_for="adversarial robustness")
    with resting(model, seed) as device, torch.enable_grad():
        mean, std = constants(data, part.input[:1].to(device))
        normalization = {"mean": mean, "std": std}

        def batches(size: int) -> Iterator[tuple[Tensor, Tensor]]:
            for batch in part.batches(size):
                # rounding may have left the bounds by one unit
                yield to_pixels(batch.input.to(device), data).clamp(0, 1), batch.target.to(device)

        yield foolbox.PyTorchModel(model, bounds=(0, 1), device=device, preprocessing=normalization), batches


def _checked(epsilons: Sequence[float], step: float, iterations: int, restarts: int) -> list[float]:
    if not epsilons or any(not 0 < e <= 1 for e in epsilons):
        raise InputError("epsilons", "must hold radii in (0, 1]", list(epsilons))
    if not 0 < step <= 1:
        raise InputError("step", "must be in (0, 1]", step)
    for name, value in (("iterations", iterations), ("restarts", restarts)):
        if value < 1:
            raise InputError(name, "must be at least 1", value)
    return sorted(float(e) for e in epsilons)


def _on_margin(attack: Any) -> Any:
    # foolbox has no PGD on the margin; its attacks let the loss be replaced
    eagerpy = optional_import("eagerpy", extra="robust", needed_for="adversarial robustness")

    def get_loss(model: Any, labels: Any) -> Callable[[Any], Any]:
        def loss(inputs: Any) -> Any:
            scores, right = model(inputs).raw, labels.raw.unsqueeze(1)
            others = scores.scatter(1, right, -math.inf).amax(1)
            return eagerpy.astensor((others - scores.gather(1, right).squeeze(1)).sum())

        return loss

    attack.get_loss_fn = get_loss
    return attack


def _broken(attack: Any, target: Any, x: Tensor, y: Tensor, radii: Sequence[float]) -> Tensor:
    # which samples the attack breaks within each radius, shape [radii, n]; smaller balls lie inside larger ones
    _, _, hit = attack(target, x, y, epsilons=list(radii))
    return torch.stack(list(hit)).int().cummax(0).values.bool()
