"""The number that decides, and what it cost: read from what a finished run has stored, never measured again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from lowland.core.errors import InputError
from lowland.core.names import unknown
from lowland.results.run import Run

__all__ = ["ENDPOINTS", "Cost", "check_endpoint", "cost_of", "equal_cost_epochs", "read_endpoint"]

FORWARD: Final = 1 / 3
"""Cost of a forward pass over that of forward and backward; backward takes twice the products of forward."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run cost.

    Args:
        passes: Forward-backward passes over a batch; forward passes of validation and teachers count a third each.
        training: The same without validation: what a step costs.
        seconds: Time in training steps.
        epochs: Length of the run.
    """

    passes: float
    training: float
    seconds: float
    epochs: int


def cost_of(path: str | Path) -> Cost:
    """Read what a run cost, every pass counted.

    Args:
        path: Folder of a finished run.

    Returns:
        The cost.
    """
    result, rows = _finished(path)
    steps = [row["step"] - before for row, before in zip(rows, [0.0, *(row["step"] for row in rows)], strict=False)]
    teacher = sum(count for row, count in zip(rows, steps, strict=True) if "loss_mesa_kl" in row)
    training = float(result["passes"]) + FORWARD * teacher
    return Cost(training + FORWARD * float(result["evaluation_passes"]), training, float(result["seconds"]), len(rows))


def equal_cost_epochs(epochs: Mapping[str, int], passes: Mapping[str, float]) -> dict[str, int]:
    """Return how long each method may train for the passes that the dearest one's epochs cost; never shorter than now.

    Args:
        epochs: Length of each method's run.
        passes: Mean passes of an epoch of each method; NaN where none has finished, which leaves its length as it is.

    Returns:
        Epochs of each method.

    Example:
        >>> equal_cost_epochs({"SGD": 30, "SAM": 30}, {"SGD": 10.0, "SAM": 20.0})
        {'SGD': 60, 'SAM': 30}
    """
    dearest = max((cost for cost in passes.values() if math.isfinite(cost)), default=math.nan)
    return {
        method: max(count, round(count * dearest / passes[method])) if math.isfinite(passes[method]) else count
        for method, count in epochs.items()
    }


def read_endpoint(path: str | Path, name: str) -> float:
    """Read one number of a finished run; it was stored when training ended and is never measured again.

    ``test_*`` is measured once, at the epoch that validation chose; ``train_*`` is the last epoch's; ``gap`` is test
    minus train loss; ``steps_to_loss:L`` counts optimizer steps until an epoch's train loss is at most L,
    ``passes_to_loss:L`` the passes, and a run that never gets there has none; ``restricted_steps_to_loss:L`` counts
    such a run with all its steps (the mean is the restricted mean time, Royston and Parmar 2013), ``reached_loss:L`` is
    1 or 0; ``loss_spikes:F`` counts epochs whose loss exceeds F times the one before; ``largest_drop`` and
    ``mean_square_drop`` are of the train loss from one epoch to the next.

    Args:
        path: Folder of the run.
        name: Name of the endpoint, as above.

    Returns:
        The number; NaN where the run has none.

    Raises:
        InputError: If the name is unknown or the run is not finished.
    """
    check_endpoint(name)
    kind, _, threshold = name.partition(":")
    value = ENDPOINTS[kind](*_finished(path), float(threshold or "nan"))
    return value if isinstance(value, float) else float(value)


def _finished(path: str | Path) -> tuple[Mapping[str, Any], Sequence[Mapping[str, float]]]:
    run = Run(path)
    if not run.result or not run.metrics:
        raise InputError("run", "must hold its result and its metrics", str(path), "train it anew")
    return run.result, run.metrics


def check_endpoint(name: str) -> None:
    """Check the name of an endpoint."""
    kind, _, threshold = name.partition(":")
    if kind not in ENDPOINTS:
        raise unknown("endpoint", name, ENDPOINTS)
    try:
        given = math.isfinite(float(threshold)) if threshold else False
    except ValueError:
        given = False
    if given != (kind in _WITH_THRESHOLD):
        raise InputError("endpoint", "must have a number after its colon" if kind in _WITH_THRESHOLD else
                         "must have no threshold", name)  # fmt: skip


Rows = Sequence[Mapping[str, float]]


def _test(key: str, sign: float = 1.0, offset: float = 0.0) -> Callable[[Mapping[str, Any], Rows, float], float]:
    return lambda result, rows, threshold: offset + sign * float(result["test"].get(key, math.nan))


def _chosen(key: str) -> Callable[[Mapping[str, Any], Rows, float], float]:
    return lambda result, rows, threshold: float(result["chosen"].get(key, math.nan))


def _last(key: str) -> Callable[[Mapping[str, Any], Rows, float], float]:
    return lambda result, rows, threshold: float(rows[-1].get(key, math.nan))


def _reaches(key: str) -> Callable[[Mapping[str, Any], Rows, float], float]:
    def first(result: Mapping[str, Any], rows: Rows, threshold: float) -> float:
        return next((float(row[key]) for row in rows if row["train_loss"] <= threshold), math.nan)

    return first


def _restricted(result: Mapping[str, Any], rows: Rows, threshold: float) -> float:
    found = _reaches("step")(result, rows, threshold)
    return found if math.isfinite(found) else float(rows[-1]["step"])


def _reached(result: Mapping[str, Any], rows: Rows, threshold: float) -> float:
    return float(math.isfinite(_reaches("step")(result, rows, threshold)))


def _gap(result: Mapping[str, Any], rows: Rows, threshold: float) -> float:
    return float(result["test"]["loss"]) - float(result["chosen"]["train_loss"])


def _spikes(result: Mapping[str, Any], rows: Rows, threshold: float) -> float:
    losses = [row["train_loss"] for row in rows]
    return float(sum(not after <= threshold * before for before, after in pairwise(losses)))


def _drop(result: Mapping[str, Any], rows: Rows, threshold: float) -> float:
    losses = [row["train_loss"] for row in rows]
    return max((before - after for before, after in pairwise(losses)), default=math.nan)


def _mean_square_drop(result: Mapping[str, Any], rows: Rows, threshold: float) -> float:
    losses = [row["train_loss"] for row in rows]
    drops = [(before - after) ** 2 for before, after in pairwise(losses)]
    return sum(drops) / len(drops) if drops else math.nan


ENDPOINTS: Final[dict[str, Callable[[Mapping[str, Any], Rows, float], float]]] = {
    "test_accuracy": _test("accuracy"),
    "test_error": _test("accuracy", -1.0, 1.0),
    "test_loss": _test("loss"),
    "validation_accuracy": _chosen("validation_accuracy"),
    "validation_loss": _chosen("validation_loss"),
    "train_loss": _last("train_loss"),
    "train_accuracy": _last("train_accuracy"),
    "gap": _gap,
    "seconds": lambda result, rows, threshold: float(result["seconds"]),
    "steps_to_loss": _reaches("step"),
    "passes_to_loss": _reaches("passes"),
    "restricted_steps_to_loss": _restricted,
    "reached_loss": _reached,
    "loss_spikes": _spikes,
    "largest_drop": _drop,
    "mean_square_drop": _mean_square_drop,
}
"""Endpoint -> how to read it; `read_endpoint` says what each means."""

_WITH_THRESHOLD: Final = (
    "steps_to_loss", "passes_to_loss", "restricted_steps_to_loss", "reached_loss", "loss_spikes",
)  # fmt: skip
