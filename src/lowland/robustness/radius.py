"""The radius at which a classifier breaks, found for every sample by halving with PGD."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lowland.core.errors import InputError, require
from lowland.data import DataSplits
from lowland.robustness.attacks import Target, attacked


def telling_epsilon(
    model: nn.Module,
    data: DataSplits,
    *,
    keep: float = 0.5,
    largest: float = 0.5,
    resolution: int = 12,
    iterations: int = 20,
    samples: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> float:
    """Return the radius, inputs in [0, 1], at which a baseline keeps half of its accuracy: it tells methods apart.

    At radii where nearly all or nearly no samples survive, every comparison is a tie; 30 to 70 % is best.

    Args:
        model: What the methods are compared with; takes normalized inputs and is restored bit for bit.
        data: Resident splits of images in [0, 1] before normalization.
        keep: Share of all samples that shall survive PGD.
        largest: Largest radius considered.
        resolution: Halvings of the radius.
        iterations: Steps of PGD, each a quarter of the radius.
        samples: Attack a fixed random subset of that many test samples; None attacks all.
        batch_size: Samples attacked together; the radius does not depend on it.
        seed: Chooses the subset.

    Raises:
        InputError: If the model's clean accuracy is not above `keep`, or an argument is out of range.
        MissingExtra: If foolbox is not installed.
    """
    require(0.0 < keep < 1.0, "keep", "must be a share in (0, 1)", keep)
    _check(largest, resolution, iterations)
    with attacked(model, data, samples, batch_size, seed) as (target, batches, _):
        smallest = torch.cat([_radii(target, x, y, largest, resolution, iterations) for x, y in batches])
    surviving = torch.sort(smallest, descending=True).values  # the k-th largest: k samples survive below it
    radius = float(surviving[math.ceil(keep * len(surviving)) - 1])
    if radius == 0.0:
        clean = float((smallest > 0).double().mean())
        raise InputError("keep", f"must be below the clean accuracy {clean:.3f}", keep)
    return radius


def median_perturbation(
    model: nn.Module,
    data: DataSplits,
    *,
    largest: float = 0.5,
    resolution: int = 12,
    iterations: int = 20,
    samples: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> float:
    """Return the median over samples of the smallest L-infinity perturbation that changes the answer, in [0, 1].

    Each sample's radius is found by halving, with PGD at each trial, and is right to ``largest / 2**resolution``;
    samples answered wrongly count as 0, samples that survive `largest` as `largest`. Arguments as in `telling_epsilon`.
    """
    _check(largest, resolution, iterations)
    with attacked(model, data, samples, batch_size, seed) as (target, batches, _):
        return float(torch.cat([_radii(target, x, y, largest, resolution, iterations) for x, y in batches]).median())


def _check(largest: float, resolution: int, iterations: int) -> None:
    require(0 < largest <= 1, "largest", "must be in (0, 1]", largest)
    least = min(resolution, iterations)
    require(least >= 1, "resolution, iterations", "must be at least 1", (resolution, iterations))


def _radii(target: Target, x: Tensor, y: Tensor, largest: float, resolution: int, iterations: int) -> Tensor:
    """Return the radius of every sample of a batch by halving; 0 where the answer is wrong as it is."""
    low, high = torch.zeros(len(y), device=x.device), torch.full((len(y),), largest, device=x.device)
    for _ in range(resolution):
        middle = (low + high) / 2
        survived = _survives(target, x, y, middle, iterations)
        low, high = torch.where(survived, middle, low), torch.where(survived, high, middle)
    return torch.where(target(x).argmax(1) != y, 0.0, high).cpu()


def _survives(target: Target, x: Tensor, y: Tensor, radius: Tensor, iterations: int) -> Tensor:
    # PGD with a radius of its own for every sample, which foolbox does not have
    ball = radius.view(-1, *(1,) * (x.ndim - 1))
    moved = x.clone()
    survived: Tensor = target(x).argmax(1) == y
    for _ in range(iterations):
        at = moved.detach().requires_grad_()
        loss = nn.functional.cross_entropy(target(at), y, reduction="sum")
        gradient = torch.autograd.grad(loss, at)[0]
        moved = (moved + ball / 4 * gradient.sign()).clamp(min=x - ball, max=x + ball).clamp(0, 1)
        survived &= target(moved).argmax(1) == y
    return survived
