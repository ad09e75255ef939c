"""The number that decides, and what it cost: read from what a finished run has stored, never measured again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from lowland.core.errors import InputError, require
from lowland.core.names import unknown
from lowland.results.run import Run, passes_by_epoch

Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run cost.

    Args:
        passes: Passes, each forward and backward over a batch; a forward pass alone (evaluation, recalibration, a
            teacher) counts a third.
        training: The same without evaluation and recalibration: what a step costs.
        seconds: Time in training steps.
        epochs: Length of the run.
    """

    passes: float
    training: float
    seconds: float
    epochs: int


def cost_of(path: str | Path) -> Cost:
    """Read what a run cost, all passes counted.

    Args:
        path: Folder of a finished run.

    Returns:
        The cost.
    """
    result, rows = _finished(path)
    every, training = passes_by_epoch(rows)[-1], passes_by_epoch(rows, evaluation=False)[-1]
    return Cost(every, training, float(result["seconds"]), len(rows))


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
    ``passes_to_loss:L`` the passes (a teacher's and evaluation too), and a run that never gets there has none;
    ``restricted_steps_to_loss:L`` counts such a run with all its steps (the mean is the restricted mean time, Royston
    and Parmar 2013), ``reached_loss:L`` is 1 or 0; ``loss_spikes:F`` counts epochs whose loss exceeds F times the one
    before; ``largest_drop`` and ``mean_square_drop`` are of the train loss from one epoch to the next, and with ``:E``
    from epoch E on (``largest_drop_from:4``); ``climb`` is the sum of all rises of the natural logarithm of the train
    loss.

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
    result, rows = _finished(path)
    return float(_WITH_THRESHOLD[kind](rows, float(threshold)) if threshold else _PLAIN[kind](result, rows))


def _finished(path: str | Path) -> tuple[Mapping[str, Any], Rows]:
    run = Run(path)
    require(run.result and run.metrics, "run", "must hold its result and its metrics", str(path), "train it anew")
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
        rule = "must have a number after its colon" if kind in _WITH_THRESHOLD else "must have no threshold"
        raise InputError("endpoint", rule, name)


def _first(key: str, rows: Rows, loss: float, otherwise: float = math.nan) -> float:
    """Return a number of the first epoch whose train loss is at most so much."""
    return next((row[key] for row in rows if row["train_loss"] <= loss), otherwise)


def _pairs(rows: Rows) -> Iterable[tuple[float, float]]:
    """Return the train losses of each epoch and the next one."""
    return pairwise(row["train_loss"] for row in rows)


def _largest(rows: Rows) -> float:
    return max((a - b for a, b in _pairs(rows)), default=math.nan)


def _mean_square(rows: Rows) -> float:
    return fmean([(a - b) ** 2 for a, b in _pairs(rows)] or [math.nan])


def _climb(rows: Rows) -> float:
    return sum(max(0.0, math.log(max(b, 1e-300) / max(a, 1e-300))) for a, b in _pairs(rows))


def _acted(rows: Rows) -> list[bool]:
    """Tell for each epoch whether a second pass was taken, or a loss method added something."""
    found, steps, passes = [], 0.0, 0.0
    for row in rows:
        second = row["passes"] - passes > row["step"] - steps
        steps, passes = row["step"], row["passes"]
        added = any(name.startswith(("loss_saf_", "loss_mesa_")) for name in row)
        found.append(second or added or abs(row.get("loss_llr_multiplier", 1.0) - 1.0) > 1e-6)
    return found


def read_reach(path: str | Path, step: float | None = None) -> float:
    """Read in which share of the epochs up to some weights a two-pass step or a loss method acted.

    Args:
        path: Folder of a finished run.
        step: Step of the weights; None takes the chosen epoch, whose weights endpoints are measured at.

    Returns:
        A share; NaN where the run shows neither, as with an average of weights.
    """
    result, rows = _finished(path)
    last, acted = result["chosen"]["step"] if step is None else step, _acted(rows)
    before = [one for one, row in zip(acted, rows, strict=True) if row["step"] <= last]
    return fmean(before) if any(acted) and before else math.nan


def _from(rows: Rows, first: float) -> Rows:
    return [row for row in rows if row["epoch"] >= first]


def _passes(rows: Rows) -> Rows:
    """Return the passes and the train loss of every epoch."""
    return [{**row, "passes": passes} for row, passes in zip(rows, passes_by_epoch(rows), strict=True)]


_PLAIN: Final[dict[str, Callable[[Mapping[str, Any], Rows], float]]] = {
    "test_accuracy": lambda result, rows: result["test"].get("accuracy", math.nan),
    "test_error": lambda result, rows: 1.0 - result["test"].get("accuracy", math.nan),
    "test_loss": lambda result, rows: result["test"].get("loss", math.nan),
    "validation_accuracy": lambda result, rows: result["chosen"].get("validation_accuracy", math.nan),
    "validation_loss": lambda result, rows: result["chosen"].get("validation_loss", math.nan),
    "train_loss": lambda result, rows: rows[-1].get("train_loss", math.nan),
    "train_accuracy": lambda result, rows: rows[-1].get("train_accuracy", math.nan),
    "gap": lambda result, rows: result["test"]["loss"] - result["chosen"]["train_loss"],
    "seconds": lambda result, rows: result["seconds"],
    "largest_drop": lambda result, rows: _largest(rows),
    "mean_square_drop": lambda result, rows: _mean_square(rows),
    "climb": lambda result, rows: _climb(rows),
}

_WITH_THRESHOLD: Final[dict[str, Callable[[Rows, float], float]]] = {
    "steps_to_loss": lambda rows, loss: _first("step", rows, loss),
    "passes_to_loss": lambda rows, loss: _first("passes", _passes(rows), loss),
    "restricted_steps_to_loss": lambda rows, loss: _first("step", rows, loss, rows[-1]["step"]),
    "reached_loss": lambda rows, loss: math.isfinite(_first("step", rows, loss)),
    "largest_drop_from": lambda rows, first: _largest(_from(rows, first)),
    "mean_square_drop_from": lambda rows, first: _mean_square(_from(rows, first)),
    "loss_spikes": lambda rows, factor: sum(not after <= factor * before for before, after in _pairs(rows)),
}

ENDPOINTS: Final = (*_PLAIN, *_WITH_THRESHOLD)
"""The endpoints; `read_endpoint` says what each means."""
