"""Robustness of a trained classifier: adversarial attacks by foolbox, and noise.

Attacks work on inputs in [0, 1]; normalization happens inside the attacked model, so that epsilon is a distance between
images. FGSM (Goodfellow et al. 2015), PGD on the cross entropy (Madry et al. 2018), and PGD on the margin between the
best wrong score and the right one (Carlini and Wagner 2017, equation 6 without a threshold) with random restarts, since
cross entropy alone overrates models whose gradients vanish (Croce and Hein 2020).

The protocol of LLR is the default: L-infinity, epsilon 3, 5 and 8 over 255, step 0.01, 40 iterations. Deviations:

1. What an attack finds inside a smaller ball counts for every larger one, where it is allowed as well.
2. What PGD finds counts for the margin attack, which tries PGD's end points as further starts.
3. Inputs are scaled back to [0, 1] and normalized inside the attacked model; the original hands images in [0, 1] to a
   network trained on normalized ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowland.core.contexts import evaluation_mode, forked_rng, gradients_aside
from lowland.core.errors import InputError, optional_import
from lowland.core.seeds import generator, normal, torch_seed
from lowland.data import DataSplits, TensorData

__all__ = ["LLR_EPSILONS", "Robustness", "adversarial", "median_perturbation", "noise", "telling_epsilon"]

LLR_EPSILONS = (3 / 255, 5 / 255, 8 / 255)
"""Radii of LLR's protocol."""


@dataclass(frozen=True)
class Robustness:
    """Accuracy under one disturbance.

    Args:
        attack: ``"clean"``, ``"fgsm"``, ``"pgd"``, ``"margin"``, ``"worst"`` (each sample's worst of the three) or
            ``"noise"``.
        size: Radius in units of inputs in [0, 1], or standard deviation of the noise.
        accuracy: Share of samples still classified rightly.
        standard_error: Binomial standard error of that share.
        samples: Number of samples.
    """

    attack: str
    size: float
    accuracy: float
    standard_error: float
    samples: int


def adversarial(
    model: nn.Module, data: DataSplits, *, epsilons: Sequence[float] = LLR_EPSILONS, step: float = 0.01,
    iterations: int = 40, restarts: int = 3, samples: int | None = None, batch_size: int = 256, seed: int = 0,
) -> list[Robustness]:  # fmt: skip
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
        seed: Seed of the subset and of the random starts.

    Returns:
        Rows for "clean" (size 0), and for each attack and radius.

    Raises:
        InputError: If the data are not resident images in [0, 1] with class labels, or an argument is out of range.
        MissingExtra: If foolbox is not installed.
    """
    radii = _checked(epsilons, step, iterations, restarts)
    part = _test_part(data, samples, seed)
    names = ("fgsm", "pgd", "margin")
    broken = {name: torch.zeros(len(radii), dtype=torch.int64) for name in (*names, "worst")}
    wrong = 0
    with _attacked(model, data, seed) as (target_model, device):
        for batch in part.batches(batch_size):
            x, y = _pixels(batch.input.to(device), data), batch.target.to(device)
            wrong += int((target_model(x).argmax(1) != y).sum())
            found = {
                name: _broken(_attack(name, step, iterations, random_start=False), target_model, x, y, radii)
                for name in names
            }
            for _ in range(restarts - 1):
                again = _attack("margin", step, iterations, random_start=True)
                found["margin"] |= _broken(again, target_model, x, y, radii)
            found["margin"] |= found["pgd"]
            found["worst"] = found["fgsm"] | found["pgd"] | found["margin"]
            for name, hit in found.items():
                broken[name] += hit.sum(1).cpu()
    count = len(part)
    rows = [_row("clean", 0.0, count - wrong, count)]
    for name in (*names, "worst"):
        rows += [_row(name, e, count - int(b), count) for e, b in zip(radii, broken[name].tolist(), strict=True)]
    return rows


def telling_epsilon(
    model: nn.Module, data: DataSplits, *, keep: float = 0.5, largest: float = 0.5, resolution: int = 12,
    iterations: int = 20, samples: int | None = None, batch_size: int = 256, seed: int = 0,
) -> float:  # fmt: skip
    """Find the radius at which a baseline keeps about half of its accuracy, where methods can be told apart.

    At radii where nearly all or nearly no samples survive, every comparison is a tie; 30 to 70 % is best.

    Args:
        model: The baseline.
        data: As in `adversarial`.
        keep: Share of all samples that shall survive PGD.
        largest: Largest radius considered.
        resolution: Halvings of the radius.
        iterations: Steps of PGD, each a quarter of the radius.
        samples: As in `adversarial`.
        batch_size: Samples attacked together.
        seed: Seed of the subset.

    Returns:
        The radius, in units of inputs in [0, 1].

    Raises:
        InputError: If the model's clean accuracy is not above `keep`, or an argument is out of range.
        MissingExtra: If foolbox is not installed.
    """
    if not 0.0 < keep < 1.0:
        raise InputError("keep", "must be a share in (0, 1)", keep)
    smallest = _smallest_radii(model, data, largest, resolution, iterations, samples, batch_size, seed)
    surviving = torch.sort(smallest, descending=True).values  # the k-th largest: k samples survive below it
    wanted = math.ceil(keep * len(surviving))
    radius = float(surviving[wanted - 1])
    if radius == 0.0:
        clean = float((smallest > 0).double().mean())
        raise InputError("keep", f"must be below the clean accuracy {clean:.3f}", keep)
    return radius


def median_perturbation(
    model: nn.Module, data: DataSplits, *, largest: float = 0.5, resolution: int = 12, iterations: int = 20,
    samples: int | None = None, batch_size: int = 256, seed: int = 0,
) -> float:  # fmt: skip
    """Find the median over samples of the smallest L-infinity perturbation that changes the answer.

    Each sample's radius is found by halving, with PGD at each trial; samples answered wrongly count as 0, samples that
    survive `largest` as `largest`.

    Args:
        model: The classifier.
        data: As in `adversarial`.
        largest: Largest radius tried.
        resolution: Halvings; the radius of a sample is right to ``largest / 2**resolution``.
        iterations: Steps of PGD, each a quarter of the radius.
        samples: As in `adversarial`.
        batch_size: Samples attacked together.
        seed: Seed of the subset.

    Returns:
        The median, in units of inputs in [0, 1].

    Raises:
        InputError: If an argument is out of range.
        MissingExtra: If foolbox is not installed.
    """
    smallest = _smallest_radii(model, data, largest, resolution, iterations, samples, batch_size, seed)
    return float(smallest.median())


def noise(
    model: nn.Module, data: DataSplits, *, deviations: Sequence[float] = (0.05, 0.1, 0.2), samples: int | None = None,
    batch_size: int = 256, seed: int = 0,
) -> list[Robustness]:  # fmt: skip
    """Measure accuracy on test inputs with Gaussian noise; all deviations and models share the same random numbers.

    Args:
        model: Takes normalized inputs, returns logits; it is restored bit for bit.
        data: Resident splits with class labels.
        deviations: Standard deviations of the noise before normalization; the result is clipped to [0, 1] where the
            data were scaled from there.
        samples: Use a fixed random subset of that many test samples; None uses all.
        batch_size: Samples per batch.
        seed: Seed of the subset and the noise.

    Returns:
        One row per deviation.

    Raises:
        InputError: If an argument is out of range.
    """
    if not deviations or any(not (math.isfinite(d) and d >= 0) for d in deviations):
        raise InputError("deviations", "must hold finite numbers, at least 0", list(deviations))
    part = _test_part(data, samples, seed, images=False)
    drawn = normal(part.input, seed, "probe", "noise")
    hits = [0] * len(deviations)
    with _attacked(model, data, seed) as (pixel_model, device):
        for start in range(0, len(part), batch_size):
            rows = slice(start, start + batch_size)
            x, y = _pixels(part.input[rows].to(device), data, clip=False), part.target[rows].to(device)
            for number, deviation in enumerate(deviations):
                noisy = x + deviation * drawn[rows].to(device)
                noisy = noisy.clamp(0, 1) if _scaled(data) else noisy
                hits[number] += int((pixel_model(noisy).argmax(1) == y).sum())
    return [_row("noise", float(d), h, len(part)) for d, h in zip(deviations, hits, strict=True)]


def _checked(epsilons: Sequence[float], step: float, iterations: int, restarts: int) -> list[float]:
    if not epsilons or any(not 0 < e <= 1 for e in epsilons):
        raise InputError("epsilons", "must hold radii in (0, 1]", list(epsilons))
    if not 0 < step <= 1:
        raise InputError("step", "must be in (0, 1]", step)
    for name, value in (("iterations", iterations), ("restarts", restarts)):
        if value < 1:
            raise InputError(name, "must be at least 1", value)
    return sorted(float(e) for e in epsilons)


def _test_part(data: DataSplits, samples: int | None, seed: int, *, images: bool = True) -> TensorData:
    part = data.test
    if not isinstance(part, TensorData) or part.target.ndim != 1 or part.target.is_floating_point():
        raise InputError("data", "must be resident with class labels", data.name)
    if images and not _scaled(data):
        raise InputError("data", "must be images scaled from [0, 1]", data.name)
    if samples is None:
        return part
    if not 1 <= samples <= len(part):
        raise InputError("samples", f"must be in [1, {len(part)}]", samples)
    rows = generator(seed, "subsample", "attack").choice(len(part), samples, replace=False)
    return part.take(torch.as_tensor(rows).sort().values)


def _scaled(data: DataSplits) -> bool:
    return len(data.shape) == 3 and len(data.mean) == data.shape[0]


def _constants(data: DataSplits, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (1, -1) + (1,) * (like.ndim - 2)
    mean, std = (torch.tensor(v or default, device=like.device, dtype=like.dtype).view(shape)
                 for v, default in ((data.mean, (0.0,)), (data.std, (1.0,))))  # fmt: skip
    return mean, std


def _pixels(x: Tensor, data: DataSplits, *, clip: bool = True) -> Tensor:
    mean, std = _constants(data, x)
    pixels = x * std + mean
    return pixels.clamp(0, 1) if clip else pixels  # rounding may have left the bounds by one unit


class _OnPixels(nn.Module):
    # the model with its normalization inside
    def __init__(self, model: nn.Module, data: DataSplits) -> None:
        super().__init__()
        self.model, self.data = model, data

    def forward(self, pixels: Tensor) -> Any:
        mean, std = _constants(self.data, pixels)
        return self.model((pixels - mean) / std)


@contextmanager
def _attacked(model: nn.Module, data: DataSplits, seed: int) -> Generator[tuple[nn.Module, torch.device]]:
    first = next(model.parameters(), None)
    with evaluation_mode(model), gradients_aside(model), forked_rng(torch_seed(seed, "probe", "attack")):
        for parameter in model.parameters():
            parameter.requires_grad_(False)  # gradients of the weights would cost half of every attack
        yield _OnPixels(model, data).eval(), torch.device("cpu") if first is None else first.device


def _attack(name: str, step: float, iterations: int, *, random_start: bool) -> Any:
    foolbox = optional_import("foolbox", extra="robust", needed_for="adversarial robustness")
    if name == "fgsm":
        return foolbox.attacks.LinfFastGradientAttack(random_start=False)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=iterations, random_start=random_start)
    if name == "margin":
        attack.get_loss_fn = _margin
    return attack


def _margin(model: Any, labels: Any) -> Callable[[Any], Any]:
    eagerpy = optional_import("eagerpy", extra="robust", needed_for="adversarial robustness")

    def loss(inputs: Any) -> Any:
        scores, right = model(inputs).raw, labels.raw.unsqueeze(1)
        others = scores.scatter(1, right, -math.inf).amax(1)
        return eagerpy.astensor((others - scores.gather(1, right).squeeze(1)).sum())

    return loss


def _broken(attack: Any, model: nn.Module, x: Tensor, y: Tensor, radii: Sequence[float]) -> Tensor:
    # which samples the attack breaks within each radius, shape [radii, n]; smaller balls lie inside larger ones
    foolbox = optional_import("foolbox", extra="robust", needed_for="adversarial robustness")
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    with torch.enable_grad():
        _, _, hit = attack(wrapped, x, y, epsilons=list(radii))
    broken: Tensor = torch.stack(list(hit)).int().cummax(0).values.bool()
    return broken


def _smallest_radii(
    model: nn.Module, data: DataSplits, largest: float, resolution: int, iterations: int, samples: int | None,
    batch_size: int, seed: int,
) -> Tensor:  # fmt: skip
    if not 0 < largest <= 1:
        raise InputError("largest", "must be in (0, 1]", largest)
    if resolution < 1 or iterations < 1:
        raise InputError("resolution, iterations", "must be at least 1", (resolution, iterations))
    part = _test_part(data, samples, seed)
    results: list[Tensor] = []
    with _attacked(model, data, seed) as (pixel_model, device):
        for batch in part.batches(batch_size):
            x, y = _pixels(batch.input.to(device), data), batch.target.to(device)
            low, high = torch.zeros(len(y), device=device), torch.full((len(y),), largest, device=device)
            for _ in range(resolution):
                middle = (low + high) / 2
                survived = _survives(pixel_model, x, y, middle, iterations)
                low, high = torch.where(survived, middle, low), torch.where(survived, high, middle)
            wrong = pixel_model(x).argmax(1) != y
            results.append(torch.where(wrong, 0.0, high).cpu())
    return torch.cat(results)


def _survives(model: nn.Module, x: Tensor, y: Tensor, radius: Tensor, iterations: int) -> Tensor:
    # PGD with a radius of its own for every sample, which foolbox does not have
    ball = radius.view(-1, *(1,) * (x.ndim - 1))
    moved = x.clone()
    survived: Tensor = model(x).argmax(1) == y
    for _ in range(iterations):
        at = moved.detach().requires_grad_()
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(model(at), y, reduction="sum")
            gradient = torch.autograd.grad(loss, at)[0]
        moved = (moved + ball / 4 * gradient.sign()).clamp(min=x - ball, max=x + ball).clamp(0, 1)
        survived &= model(moved).argmax(1) == y
    return survived


def _row(attack: str, size: float, hits: int, count: int) -> Robustness:
    share = hits / count
    return Robustness(attack, size, share, math.sqrt(share * (1 - share) / count), count)
