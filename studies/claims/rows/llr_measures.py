"""What the rows of LLR measure beyond endpoints: controls, divergence, escape times, curvature, attacks, step times."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh

from lowland import curvature
from lowland.core.params import ParameterSpace
from lowland.core.seeds import generator
from lowland.losses import LLR, Multipliers, Replayed, ScaledDecay, Sech, learning_rate_factor
from lowland.robustness import median_perturbation
from lowland.study import read_endpoint
from lowland.training import fit
from lowland.workflows import (
    FitSpec,
    build_criterion,
    build_data,
    build_loss,
    build_model,
    build_optimizer,
    build_schedule,
    open_run,
)
from studies.claims.runs import Arm, RunCache

__all__ = [
    "controls",
    "escape_rates",
    "escape_steps",
    "median_attack",
    "reshaped_curvature",
    "seconds_per_step",
    "share_diverged",
]

RATES: Final = (0.3, 1.0, 3.0, 10.0, 30.0)
_LIMIT: Final = 30_000
"""Steps after which a particle that has not left counts as one that stays."""

_TIMED_STEPS: Final = 120
_WARM_UP: Final = 20


def controls(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
    """Train LLR and its three controls; the multipliers are those of the next seed, averaged over each epoch."""
    del runs
    (task,) = arms.values()
    other = _train(replace(task.spec, seed=seed + 1))[1]
    assert isinstance(other, LLR)
    record = other.multipliers
    return {
        "LLR": _train(replace(task.spec, seed=seed))[0],
        "multiplier on the gradient": _train(replace(task.spec, seed=seed), replayed=record)[0],
        "multiplier on the rate": _train(replace(task.spec, seed=seed), rate=record)[0],
        "LLR, decay scaled": _train(replace(task.spec, seed=seed), scale_decay=True)[0],
    }


def _train(
    spec: FitSpec, *, replayed: Multipliers | None = None, rate: Multipliers | None = None, scale_decay: bool = False
) -> tuple[float, Any]:
    splits = build_data(spec.data)
    model = build_model(spec.model, splits, seed=spec.seed)
    optimizer, schedule = build_optimizer(spec.optimizer, model), build_schedule(spec.schedule)
    loss: Any = build_loss(spec.loss, model, splits)
    planned: Any = schedule
    if replayed is not None:
        loss = Replayed(build_criterion(spec.loss), replayed)
    if rate is not None:
        loss, factor = build_criterion(spec.loss), learning_rate_factor(rate)
        planned = lambda progress, step, epochs: factor(int(progress)) * schedule(progress, step, epochs)  # ruff: ignore[lambda-assignment]
    if scale_decay:
        ScaledDecay(optimizer, loss)
    result = fit(
        model,
        optimizer,
        loss,
        splits,
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        seed=spec.seed,
        schedule=planned,
        accelerator=spec.accelerator,
    )
    return result.test["accuracy"], loss


def share_diverged(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
    """Count the learning rates whose run ends above the loss of a guess, or is not finite."""
    found = {}
    for name, one in arms.items():
        ends = []
        for rate in RATES:
            optimizer = replace(one.spec.optimizer, learning_rate=rate)
            path = runs.train(replace(one.spec, optimizer=optimizer, snapshots_every_epochs=None), seed)
            ends.append(read_endpoint(path, "train_loss"))
        found[name] = sum(not end <= math.log(10) for end in ends) / len(ends)
    return found


def seconds_per_step(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
    """Measure the processor time of a training step over that of plain SGD's, step by step in turns."""
    steps = {name: _steps(replace(runs.settled(one), seed=seed)) for name, one in arms.items()}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(_TIMED_STEPS):  # in turns, so that other load on the machine meets all alike
        for name, step in steps.items():
            started = time.process_time()
            next(step)
            times[name].append(time.process_time() - started)
    median = {name: float(np.median(taken[_WARM_UP:])) for name, taken in times.items()}
    return {"LLR": median["LLR"] / median["SGD"], "1.05 times SGD": 1.05}


def _steps(spec: FitSpec) -> Iterator[None]:
    """Yield after every training step, epoch after epoch."""
    splits = build_data(spec.data)
    model = build_model(spec.model, splits, seed=spec.seed)
    optimizer, loss = build_optimizer(spec.optimizer, model), build_loss(spec.loss, model, splits)
    while True:
        for batch in splits.train.batches(spec.batch_size):
            optimizer.zero_grad()
            loss(model(batch.input), batch.target).backward()
            optimizer.step()
            yield


def median_attack(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
    """Measure the median perturbation that changes the answer."""
    found = {}
    for name, one in arms.items():
        run = open_run(runs.train(runs.settled(one), seed))
        splits = run.data()
        found[name] = float(median_perturbation(run.model("last"), splits, samples=200))
    return found


def reshaped_curvature(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
    """Measure the largest eigenvalue of the reshaped loss at the end of plain training, beside the plain one's."""
    # The reshaped loss of the whole training part, L0 f(L / L0), has the Hessian f' H + f'' / L0 g g^T; L0 is
    # the initial loss.
    run = open_run(runs.train(runs.settled(arms["SGD"]), seed))
    risk, start = run.risk(weights="last"), run.risk(weights="initial")
    initial, loss = start.evaluate()["loss"].value, risk.evaluate()["loss"].value
    first, second = _slopes(Sech(), loss / initial)
    gradient = ParameterSpace(risk.model).flatten(risk.gradient()).double().numpy()
    top = math.log10(max(curvature.extreme_eigenvalues(risk).lambda_max, 1e-300))
    with curvature.Hessian(risk) as hessian:

        def product(vector: NDArray[np.float64]) -> NDArray[np.float64]:
            flat = torch.as_tensor(vector.reshape(-1), dtype=torch.float32)
            plain = (hessian @ flat).double().numpy()
            result: NDArray[np.float64] = first * plain + second / initial * gradient * (gradient @ vector.reshape(-1))
            return result

        operator = LinearOperator((len(gradient), len(gradient)), matvec=product, dtype=np.float64)
        start_vector = generator(seed, "krylov", "reshaped").standard_normal(len(gradient))
        value = float(eigsh(operator, k=1, which="LA", tol=1e-3, v0=start_vector, return_eigenvectors=False)[0])
    return {"plain": top, "reshaped": math.log10(max(value, 1e-300))}


def _slopes(reshaper: Sech, u: float) -> tuple[float, float]:
    point = torch.tensor(u, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(reshaper.value(point), point, create_graph=True)
    (second,) = torch.autograd.grad(first, point)
    return float(first.detach()), float(second)


def escape_steps(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
    """Simulate noisy gradient descent in a loss with a sharp and a wide minimum."""
    # Count steps until the sharp is left.
    # L(x) = 0.1 + 0.5 (1 - (x / w)^2)^2, w = 0.3 for x < 0 and 1 for x >= 0. 200 particles begin in the sharp
    # minimum; a step is x - 0.01 f'(L / 4) (L' + 4.8 xi): the multiplier scales gradient and noise alike, as a
    # batch's does. The third arm has the constant rate that the reshaped particles had on average. Particles
    # that stay count the limit.
    del runs, arms
    return {name: math.log10(times.mean()) for name, times in _wells(seed).items()}


def escape_rates(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
    """Measure the steps that particles spend in the sharp well per escape, which those that stay do not bound."""
    # The estimate of a mean time to an event that comes at a constant rate, where some are cut off: all time over all
    # events (Epstein and Sobel 1953). Without any event it is the whole time.
    del runs, arms
    return {name: math.log10(times.sum() / max((times < _LIMIT).sum(), 1)) for name, times in _wells(seed).items()}


def _wells(seed: int) -> dict[str, NDArray[np.float64]]:
    reshaper = Sech()
    reshaped, mean = _escape(seed, lambda u: reshaper.slope(torch.as_tensor(u)).numpy())
    plain, _ = _escape(seed, np.ones_like)
    scaled, _ = _escape(seed, lambda u: np.full_like(u, mean))
    return {"LLR": reshaped, "plain": plain, "plain at LLR's mean rate": scaled}


def _escape(seed: int, slope: Any, *, particles: int = 200, limit: int = _LIMIT) -> tuple[NDArray[np.float64], float]:
    """Return the steps of every particle, and the mean factor."""
    random = generator(seed, "probe", "two wells")
    x, left = np.full(particles, -0.3), np.full(particles, float(limit))
    total, count = 0.0, 0
    for step in range(limit):
        inside = left == limit
        if not inside.any():
            break
        width = np.where(x < 0, 0.3, 1.0)
        rest = 1 - (x / width) ** 2
        factor = slope((0.1 + 0.5 * rest**2) / 4)
        total, count = total + float(factor[inside].sum()), count + int(inside.sum())
        noise = 4.8 * random.standard_normal(particles)
        x = x - 0.01 * factor * (-2 * x / width**2 * rest + noise)
        x = np.clip(x, -0.6, 2.0)  # a step from a steep wall must not throw a particle out of the landscape
        left = np.where(inside & (x > 0), step + 1.0, left)
    return left, total / count
