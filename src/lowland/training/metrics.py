"""The numbers of a run: one row per epoch in metrics.csv, the outcome in result.json."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lowland.results.files import write_atomically

Row = dict[str, float]

COLUMNS: Final = (
    "epoch",  # epochs done
    "step",  # optimizer steps done
    "seconds",  # spent in training steps so far; evaluation, hooks and checkpoints are not in it
    "passes",  # forward-backward passes of training so far
    "evaluation_passes",  # forward passes over evaluation batches so far
    "train_loss",  # mean over the epoch's batches as they were trained on, of the plain loss
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "learning_rate",  # of the first group at the epoch's last step
)
"""Columns of metrics.csv, in this order; what losses and hooks log stands behind them."""

_WHOLE = frozenset({"epoch", "step", "passes", "evaluation_passes", "products"})


def write_metrics(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write all rows anew, so that the file never holds half a row or rows of a lost epoch."""
    write_rows(path, [*COLUMNS, *sorted({name for row in rows for name in row} - set(COLUMNS))], rows)


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, float]]) -> None:
    """Write rows of numbers as CSV; what a row lacks is left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _shown(name, value) for name, value in row.items()})
    write_atomically(path, text.getvalue().encode())


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write the outcome of a run as JSON."""
    write_atomically(path, (json.dumps(_plain(result), indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def better(row: Mapping[str, float], best: Mapping[str, float] | None) -> bool:
    """Tell whether an epoch beats the best so far by the one rule that all methods share."""
    # The higher validation accuracy wins; without accuracies the lower validation loss; ties go to the earlier
    # epoch and numbers that are not finite never win.
    name, sign = ("validation_accuracy", 1.0) if "validation_accuracy" in row else ("validation_loss", -1.0)
    value = sign * row.get(name, math.nan)
    if best is None:
        return True
    previous = sign * best.get(name, math.nan)
    return math.isfinite(value) and (not math.isfinite(previous) or value > previous)


def chosen_row(rows: Sequence[Row], select: str) -> Row:
    """Return the row of the epoch whose weights count."""
    best = rows[0]
    for row in rows[1:]:
        best = row if better(row, best) else best
    return rows[-1] if select == "last" else best


def _shown(name: str, value: float) -> str:
    return str(int(value)) if name in _WHOLE else repr(float(value))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
