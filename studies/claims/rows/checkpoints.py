"""Rows about what newer papers claim: late SAM with its anneal, averages, and what a checkpoint's flatness is good for.

All are declared with instrument and power before they run. The rows on forgetting, rounding and noise look at SGD's and
SAM's solutions at equal train loss and measure the effect itself, not a curvature that would predict it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import torch

from lowland.core.risk import EmpiricalRisk
from lowland.core.seeds import normal
from studies.claims.claim import Claim
from studies.claims.readers import log_lambda_max
from studies.claims.rows.instruments import ACCURACY, log_measure
from studies.claims.rows.sam import SAM
from studies.claims.rows.tasks import Size, arm, digits, endpoint, matched, signals

__all__ = ["checkpoint_claims"]

_TASK: Final = "test accuracy at the end of training, MNIST-1D with 30 % label noise"
_PILOT: Final = (0.0107, "SAM against SGD in sam-equal-epochs")
_SOLUTIONS: Final = "of SGD's and SAM's weights where the paths have the same train loss, digits"
_GROUP: Final = "Newer claims"
_REVISION: Final = "revision ea5887751d62 is ab543f7 before it was rebased"


def checkpoint_claims(size: Size) -> list[Claim]:
    """Return the rows."""
    return [*_training(size), *_solutions(size)]


def _training(size: Size) -> list[Claim]:
    run = replace(signals(size), select="last")
    per_epoch = -(-size.samples // run.batch_size)
    flat: dict[str, Any] = {"schedule.kind": "constant"}

    def tail(rho: float, share: float) -> dict[str, Any]:
        options = {"rho": rho, "share": share, "total": run.epochs * per_epoch}
        return {**flat, "optimizer.method": "late_sam", "optimizer.options": options}

    average = {"start": run.epochs * per_epoch // 2, "interval": per_epoch}
    friendly = {"optimizer.method": "fsam", "optimizer.options": {"rho": 0.1, "sigma": 1.0, "decay": 0.6}}
    return [
        Claim(
            "late-sam-anneal",
            _GROUP,
            "SAM over a late phase with its own anneal generalizes better than SGD with the same anneal.",
            "2410.10373, temperon (2609.17575): the last 57 % as good as SAM all along, at 35 % less time",
            f"{_TASK}; constant rate, then linear to 0 over the last 30 %",
            0.01,
            (("SAM in the anneal", "SGD"), ("SAM in the anneal", "SAM all along")),
            endpoint("test_accuracy"),
            {
                "SGD": arm(run, tail(0.0, 0.3)),
                "SAM in the anneal": arm(run, tail(0.1, 0.3)),
                "SAM all along": arm(run, SAM),
            },
            seeds=size.seeds,
            seconds=21,
            note="SGD takes SAM's second pass with radius 0 in the tail; SAM all along has the cosine schedule",
            instrument=ACCURACY,
            spread=_PILOT,
        ),
        Claim(
            "average-against-decay",
            _GROUP,
            "An average of weights at a constant rate generalizes better than a decayed schedule, at equal passes.",
            "Kaddour 2022 and others: close, and dependent on task and network",
            f"{_TASK}; recalibration of batch norm counted",
            0.01,
            (("average", "decay"),),
            endpoint("test_accuracy"),
            {
                "decay": arm(run),
                "average": arm(run, {**flat, "optimizer.method": "swa", "optimizer.options": average}),
            },
            seeds=size.seeds,
            seconds=10,
            instrument=ACCURACY,
            spread=_PILOT,
        ),
        Claim(
            "friendly-sam-noise",
            _GROUP,
            "F-SAM generalizes better than SAM with label noise.",
            "2403.12350: its tables could not be read",
            _TASK,
            0.01,
            (("F-SAM", "SAM"),),
            endpoint("test_accuracy"),
            {"SAM": arm(run, SAM), "F-SAM": arm(run, friendly)},
            seeds=size.seeds,
            seconds=9,
            after=("late-sam-anneal",),
            note="both at radius 0.1, untuned",
            instrument=ACCURACY,
            spread=_PILOT,
        ),
    ]


def _solutions(size: Size) -> list[Claim]:
    pair = {"SGD": arm(digits(size)), "SAM": arm(digits(size), SAM)}
    decayed = {name: arm(one.run, {**one.changes, "optimizer.weight_decay": 5e-3}) for name, one in pair.items()}

    def row(name: str, statement: str, published: str, what: str, read: Any, **options: Any) -> Claim:
        settings: dict[str, Any] = {
            "higher": False,
            "seeds": 2 * size.seeds,
            "seconds": 4,
            "instrument": log_measure(-6.0),
        }
        endpoint_of = f"log10 of {what} {_SOLUTIONS}"
        options.setdefault("note", _REVISION)
        arms = options.pop("arms", pair)
        return Claim(
            name, _GROUP, statement, published, endpoint_of, 0.1, (("SAM", "SGD"),), matched(read), arms,
            **{**settings, **options},
        )  # fmt: skip

    return [
        row(
            "sam-rounding",
            "SAM's solutions lose less when they are rounded to four bits.",
            "2605.02105: 40 % less at four bits; 2604.15167: collapse at four bits in flat minima, after convergence",
            "the rise of the train loss (nats) when every row of every weight is rounded to four bits",
            rise_by_rounding,
        ),
        row(
            "sam-noise",
            "SAM's solutions lose less when noise is added to the weights.",
            "2605.02105; no number taken over",
            "the mean rise of the train loss (nats) over 20 draws of Gaussian noise of 5 % of each weight's norm",
            rise_by_noise,
            after=("sam-rounding",),
        ),
        row(
            "sam-forgetting",
            "SAM's solutions forget less when they are trained on something else.",
            "2605.02105: up to 80 % less forgetting at matched fine-tuning loss; 31 % for 1B parameters",
            "the rise of the train loss (nats) after training on the images turned upside down until their loss is 1.0",
            rise_by_training,
            after=("sam-rounding",),
        ),
        row(
            "sam-sharper",
            "SAM can end sharper than SGD.",
            "2510.12451: with regularization, sharper minima that generalize better",
            "the largest Hessian eigenvalue, weight decay 5e-3,",
            log_lambda_max,
            arms=decayed,
            higher=True,
            seeds=size.seeds,
            spread=(0.1028, "SAM against SGD in sam-curvature"),
            instrument=log_measure(-300.0),
        ),
    ]


def _log_rise(before: float, after: float) -> float:
    return math.log10(max(after - before, 1e-6))


def _weights(risk: EmpiricalRisk) -> list[torch.nn.Parameter]:
    return [parameter for parameter in risk.model.parameters() if parameter.ndim > 1]


@contextmanager
def _weights_kept(parameters: Sequence[torch.nn.Parameter]) -> Generator[list[torch.Tensor], None, None]:
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        yield kept
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


@torch.no_grad()
def rise_by_rounding(risk: EmpiricalRisk, *, bits: int = 4) -> float:
    """Return log10 of the rise of the loss when each row of each weight is rounded to so many bits, symmetrically."""
    before, levels = risk.evaluate()["loss"].value, 2 ** (bits - 1) - 1
    with _weights_kept(_weights(risk)) as kept:
        for parameter, value in zip(_weights(risk), kept, strict=True):
            rows = value.flatten(1)
            scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / levels
            parameter.copy_((torch.round(rows / scale) * scale).view_as(parameter))
        return _log_rise(before, risk.evaluate()["loss"].value)


@torch.no_grad()
def rise_by_noise(risk: EmpiricalRisk, *, share: float = 0.05, draws: int = 20) -> float:
    """Return log10 of the mean rise of the loss over draws of noise whose norm is a share of each weight's."""
    before, after = risk.evaluate()["loss"].value, 0.0
    with _weights_kept(_weights(risk)) as kept:
        for draw in range(draws):
            for place, (parameter, value) in enumerate(zip(_weights(risk), kept, strict=True)):
                noise = normal(value, draw, "probe", "weights", place)
                parameter.copy_(value + share * value.norm() / math.sqrt(value.numel()) * noise)
            after += risk.evaluate()["loss"].value / draws
    return _log_rise(before, after)


def rise_by_training(risk: EmpiricalRisk, *, until: float = 1.0, steps: int = 300, rate: float = 0.01) -> float:
    """Return log10 of the rise of the loss after plain gradient descent on the images turned upside down."""
    # Batch-norm statistics stay as they were, so that the weights alone forget.
    before, model = risk.evaluate()["loss"].value, copy.deepcopy(risk.model).eval()
    batches = [(batch.input.flip(-2), batch.target) for batch in risk.batches()]
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.stack([torch.nn.functional.cross_entropy(model(x), y) for x, y in batches]).mean()
        if float(loss.detach()) <= until:
            break
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad(), _weights_kept([*risk.model.parameters()]):
        for parameter, value in zip(risk.model.parameters(), model.parameters(), strict=True):
            parameter.copy_(value)
        return _log_rise(before, risk.evaluate()["loss"].value)
