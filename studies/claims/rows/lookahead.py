"""Rows of SALA (Tan et al. 2024, "Sharpness-Aware Lookahead") and of Lookahead (Zhang et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from lowland.core.types import as_batch
from lowland.workflows import Changes, FitSpec, build_data, build_model
from studies.claims.claim import Claim
from studies.claims.readers import log_sharpness
from studies.claims.rows.instruments import ACCURACY, COSINE, DIGITS, EXACT, STEPS, log_measure
from studies.claims.rows.sam import RHO, SAM
from studies.claims.rows.tasks import ADAPTIVE, Size, arm, digits, endpoint, matched, passes_over, signals, steps_to
from studies.claims.runs import Arm, RunCache

__all__ = ["SALA", "lookahead_claims"]

SALA: Changes = {"optimizer.method": "sala", "optimizer.options": {"rho": 0.2, "period": 2, "alpha": 0.5}}
LOOKAHEAD: Changes = {"optimizer.method": "lookahead"}

_TASK = "test accuracy, MNIST-1D with 30 % label noise"


def lookahead_claims(size: Size) -> list[Claim]:
    """Return the rows."""
    return [*_sala_claims(size), *_lookahead_claims(size)]


def _sala_claims(size: Size) -> list[Claim]:
    """Return the rows of SALA."""
    run, small = signals(size), digits(size)
    rho = {"optimizer__options__rho": [0.1, 0.2, 0.4]}
    sgd, sam, sala = arm(run, tuned=True), arm(run, SAM, tuned=True, **RHO), arm(run, SALA, tuned=True, **rho)
    lookahead = arm(run, LOOKAHEAD, tuned=True)
    surveyed = {"SGD": arm(small), "SALA": arm(small, SALA), "SAM": arm(small, SAM)}
    return [
        Claim(
            "sala-keeps-sams-gain",
            "SALA",
            "SALA keeps SAM's gain.",
            "SALA matches SAM; tables not found",
            _TASK,
            0.005,
            (("SALA", "SAM", "SGD"),),
            endpoint("test_accuracy"),
            {"SGD": sgd, "SAM": sam, "SALA": sala},
            seeds=size.seeds,
            seconds=13,
            after=("sam-equal-epochs",),
            instrument=ACCURACY,
        ),
        Claim(
            "sala-cost",
            "SALA",
            "SALA costs about a quarter more than SGD.",
            "25 % overhead at period 2",
            "log2 of the training passes over SGD's, digits; the claim is below log2 1.3",
            0.05,
            (("SALA", "1.3 times SGD"),),
            sala_cost,
            surveyed,
            higher=False,
            seeds=size.seeds,
            seconds=2,
            instrument=EXACT,
        ),
        Claim(
            "sala-speed",
            "SALA",
            "SALA reaches a train loss in fewer steps than its base.",
            "faster convergence; numbers not found",
            "steps to a train loss of 1.0, digits with 30 % label noise",
            5.0,
            (("SALA", "SGD"),),
            steps_to(1.0),
            {"SGD": surveyed["SGD"], "SALA": surveyed["SALA"]},
            higher=False,
            seeds=size.seeds,
            seconds=1,
            instrument=STEPS,
        ),
        Claim(
            "sala-lookahead",
            "SALA",
            "SALA generalizes better than Lookahead.",
            "tables not found",
            _TASK,
            0.005,
            (("SALA", "Lookahead"),),
            endpoint("test_accuracy"),
            {"Lookahead": lookahead, "SALA": sala},
            seeds=size.seeds,
            seconds=1,
            after=("sala-keeps-sams-gain", "lookahead-sgd"),
            instrument=ACCURACY,
        ),
        Claim(
            "sala-sharpness",
            "SALA",
            "SALA finds flatter regions than SGD, at equal train loss.",
            "numbers not found",
            "log10 of SAM's sharpness (rho 0.05) where the paths have the same train loss, digits",
            0.1,
            (("SALA", "SGD"), ("SAM", "SGD")),
            matched(log_sharpness),
            surveyed,
            higher=False,
            seeds=size.seeds,
            seconds=2,
            instrument=log_measure(-12.0),
        ),
        Claim(
            "sala-direction",
            "SALA",
            "SALA's first-stage gradient is nearer to a SAM step than the plain gradient is.",
            "its direction approximates SAM's; no number published",
            "mean cosine with the gradient of a SAM step of the same length over 40 cycles from the initial weights, "
            "digits",
            0.01,
            (("first stage", "plain gradient"),),
            first_stage_cosines,
            {"task": arm(small)},
            seeds=size.seeds,
            seconds=2,
            instrument=COSINE,
        ),
    ]


def _lookahead_claims(size: Size) -> list[Claim]:
    """Return the rows of Lookahead."""
    run, small = signals(size), digits(size)
    sgd, lookahead = arm(run, tuned=True), arm(run, LOOKAHEAD, tuned=True)
    adam = {"optimizer.name": "adam", "optimizer.learning_rate": 1e-3, "optimizer.weight_decay": 0.0}
    rates = {**ADAPTIVE, "optimizer__weight_decay": [0.0, 1e-4]}  # coupled decay, unlike AdamW's
    return [
        Claim(
            "lookahead-sgd",
            "Lookahead",
            "Lookahead improves SGD.",
            "ResNet-18 on CIFAR-10, 200 epochs: 95.27 against 95.23",
            _TASK,
            0.005,
            (("Lookahead", "SGD"),),
            endpoint("test_accuracy"),
            {"SGD": sgd, "Lookahead": lookahead},
            seeds=size.seeds,
            seconds=8,
            after=("sam-equal-epochs",),
            instrument=ACCURACY,
        ),
        Claim(
            "lookahead-adam",
            "Lookahead",
            "Lookahead improves Adam.",
            "no comparable number taken over",
            _TASK,
            0.005,
            (("Lookahead(Adam)", "Adam"),),
            endpoint("test_accuracy"),
            {
                "Adam": arm(run, adam, tuned=True, **rates),
                "Lookahead(Adam)": arm(run, {**adam, **LOOKAHEAD}, tuned=True, **rates),
            },
            seeds=size.seeds,
            seconds=16,
            instrument=ACCURACY,
        ),
        Claim(
            "lookahead-sgd-digits",
            "Lookahead",
            "Lookahead improves SGD on few images.",
            "no number published",
            "test accuracy, digits with 30 % label noise",
            0.01,
            (("Lookahead", "SGD"),),
            endpoint("test_accuracy"),
            {"SGD": arm(small), "Lookahead": arm(small, LOOKAHEAD)},
            seeds=size.seeds,
            seconds=2,
            primary=False,
            instrument=DIGITS,
        ),
    ]


def sala_cost(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
    """Measure SALA's passes over SGD's beside the bound of the claim."""
    found = passes_over("SGD")(runs, {name: arms[name] for name in ("SGD", "SALA")}, seed)
    return {**found, "1.3 times SGD": 0.37851162325372983}


def first_stage_cosines(runs: RunCache, arms: Mapping[str, Arm], seed: int) -> dict[str, float]:
    """Compare the gradients that SALA's first stage and SGD would take with that of a SAM step from the same weights.

    Each cycle begins at slow weights; one fast step leads to the point where the first stage takes its gradient, on the
    next batch. SAM's ascent from the slow weights has the length of that step, on the same batch.

    Args:
        runs: Unused: nothing is kept.
        arms: One arm, the task.
        seed: The seed.

    Returns:
        Mean cosines.
    """
    del runs
    (task,) = arms.values()
    spec: FitSpec = replace(task.spec, seed=seed)
    splits = build_data(spec.data)
    model = build_model(spec.model, splits, seed=seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    batches = splits.train.batches(spec.batch_size, seed=seed, shuffle=True)
    found: dict[str, list[float]] = {"first stage": [], "plain gradient": []}
    epoch = 0
    while len(found["plain gradient"]) < 40:
        parts = [as_batch(raw) for raw in batches.batches(epoch)]
        epoch += 1
        for one, two in zip(parts[::2], parts[1::2], strict=False):
            slow = [p.detach().clone() for p in parameters]
            step = [-spec.optimizer.learning_rate * g for g in _gradient(model, parameters, one)]
            plain = _gradient(model, parameters, two)
            length = _norm(step) / max(_norm(plain), 1e-30)
            _move(parameters, slow, [length * g for g in plain])
            sam = _gradient(model, parameters, two)
            _move(parameters, slow, step)
            ahead = _gradient(model, parameters, two)
            found["first stage"].append(_cosine(ahead, sam))
            found["plain gradient"].append(_cosine(plain, sam))
            _move(
                parameters,
                slow,
                [0.5 * s - 0.5 * spec.optimizer.learning_rate * g for s, g in zip(step, ahead, strict=True)],
            )
    return {name: sum(values) / len(values) for name, values in found.items()}


def _gradient(model: nn.Module, parameters: list[nn.Parameter], batch: object) -> list[Tensor]:
    part = as_batch(batch)
    loss = nn.functional.cross_entropy(model.train()(part.input), part.target)
    return list(torch.autograd.grad(loss, parameters))


@torch.no_grad()
def _move(parameters: list[nn.Parameter], base: list[Tensor], step: list[Tensor]) -> None:
    for parameter, start, moved in zip(parameters, base, step, strict=True):
        parameter.copy_(start + moved)


def _norm(values: list[Tensor]) -> float:
    return float(
        torch.sqrt(sum((value.double().square().sum() for value in values), torch.zeros((), dtype=torch.float64)))
    )


def _cosine(one: list[Tensor], two: list[Tensor]) -> float:
    dot = sum((float((a.double() * b.double()).sum()) for a, b in zip(one, two, strict=True)), 0.0)
    return dot / max(_norm(one) * _norm(two), 1e-300)
