"""Adversarial attacks by foolbox on inputs in [0, 1]; epsilon is a distance between images.

FGSM (Goodfellow et al. 2015), PGD on the cross entropy (Madry et al. 2018), and PGD on the margin between the best
wrong score and the right one (Carlini and Wagner 2017, equation 6 without a threshold) with random restarts, since
cross entropy alone overrates models whose gradients vanish (Croce and Hein 2020).

The protocol of LLR is the default: L-infinity, epsilon 3, 5 and 8 over 255, step 0.01, 40 iterations. Deviations:

1. What an attack finds inside a smaller ball counts for every larger one, where it is allowed as well, and so do
   samples that are wrong without any; what is broken already is not attacked again.
2. What PGD finds counts for the margin attack, which tries PGD's end points as further starts.
3. Inputs are scaled back to [0, 1] and normalized by foolbox inside the attacked model; the original hands images in
   [0, 1] to a network trained on normalized ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core.errors import InputError, optional_import, require
from lowland.data import DataSplits
from lowland.robustness.pixels import Robustness, constants, resting, row, test_part, to_pixels

LLR_EPSILONS = (3 / 255, 5 / 255, 8 / 255)
"""Radii of LLR's protocol."""

Target = Callable[[Tensor], Tensor]


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
        MissingExtra: If foolbox is not installed.
    """
    radii = _checked(epsilons, step, iterations, restarts)
    attacks = attack_library().attacks

    def descent(*, random_start: bool = False) -> Any:
        return attacks.LinfPGD(abs_stepsize=step, steps=iterations, random_start=random_start)

    tried = {"fgsm": attacks.LinfFastGradientAttack(random_start=False), "pgd": descent()}
    margins = [_on_margin(descent(random_start=number > 0)) for number in range(restarts)]
    broken = {name: torch.zeros(len(radii), dtype=torch.int64) for name in (*tried, "margin", "worst")}
    wrong = 0
    with attacked(model, data, samples, batch_size, seed) as (target, batches, count):
        for x, y in batches:
            missed = target(x).argmax(1) != y
            wrong += int(missed.sum())
            plain = missed.expand(len(radii), -1)
            found = {name: _broken(attack, target, x, y, radii, plain) for name, attack in tried.items()}
            found["margin"] = found["pgd"]
            for attack in margins:
                found["margin"] = _broken(attack, target, x, y, radii, found["margin"])
            found["worst"] = found["fgsm"] | found["margin"]
            for name, hit in found.items():
                broken[name] += hit.sum(1).cpu()
    rows = [row("clean", 0.0, count - wrong, count)]
    for name, hits in broken.items():
        rows += [_against(rows[0], row(name, e, count - int(b), count)) for e, b in zip(radii, hits, strict=True)]
    return rows


def attack_library() -> ModuleType:
    """Import foolbox, or say how to install it."""
    return optional_import("foolbox", extra="robust", needed_for="adversarial robustness")


def _against(clean: Robustness, attacked: Robustness) -> Robustness:
    # an attack leaves wrong answers wrong, so that samples change in one direction alone
    lost = clean.accuracy - attacked.accuracy
    return replace(attacked, change_error=math.sqrt(lost * (1 - lost) / attacked.samples))


@contextmanager
def attacked(
    model: nn.Module, data: DataSplits, samples: int | None, batch_size: int, seed: int
) -> Generator[tuple[Target, Iterator[tuple[Tensor, Tensor]], int]]:
    """Yield foolbox's view of a model on pixels, normalization inside, the batches of pixels, and how many samples."""
    foolbox = optional_import("foolbox", extra="robust", needed_for="adversarial robustness")
    part = test_part(data, samples, seed)
    with resting(model, seed) as device, torch.enable_grad():
        mean, std = constants(data, part.input[:1].to(device))
        target = foolbox.PyTorchModel(model, bounds=(0, 1), device=device, preprocessing={"mean": mean, "std": std})
        # rounding may have left the bounds by one unit
        pixels = (
            (to_pixels(b.input.to(device), data).clamp(0, 1), b.target.to(device)) for b in part.batches(batch_size)
        )
        yield target, pixels, len(part)


def _checked(epsilons: Sequence[float], step: float, iterations: int, restarts: int) -> list[float]:
    if not epsilons or any(not 0 < e <= 1 for e in epsilons):
        raise InputError("epsilons", "must hold radii in (0, 1]", list(epsilons))
    require(0 < step <= 1, "step", "must be in (0, 1]", step)
    for name, value in (("iterations", iterations), ("restarts", restarts)):
        require(value >= 1, name, "must be at least 1", value)
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


def _broken(attack: Any, target: Any, x: Tensor, y: Tensor, radii: Sequence[float], known: Tensor) -> Tensor:
    # which samples are broken within each ascending radius, shape [radii, n]; those that are known to be are left alone
    found = known.clone()
    for number, radius in enumerate(radii):
        left = torch.nonzero(~found[number]).flatten()
        if left.numel():
            _, _, (hit,) = attack(target, x[left], y[left], epsilons=[radius])
            found[number:, left] |= hit  # smaller balls lie inside larger ones
    return found
