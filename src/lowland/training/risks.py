"""What hooks measure of a run: the plain criterion on a fixed subset of its training data."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader

from lowland.core.contexts import BatchNormMode
from lowland.core.errors import InputError, require
from lowland.core.loaders import fixed_batches
from lowland.core.risk import EmpiricalRisk
from lowland.core.types import as_batch
from lowland.data import TensorData
from lowland.training.evaluation import plain_loss
from lowland.training.hooks import FitState

_BATCH = 128
"""Samples per batch of resident data, whose graph is built at once before the subset is taken."""


def check_survey(batch_norm: str, **counts: int | None) -> None:
    """Check what hooks that measure are given."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InputError(name, "must be at least 1", value)
    require(batch_norm in ("running", "batch"), "batch_norm", 'must be "running" or "batch"', batch_norm)


def training_risk(run: FitState, *, samples: int, seed: int, batch_norm: BatchNormMode) -> EmpiricalRisk:
    """Return the risk of a run's plain criterion on a fixed subset of its training data."""
    if run.loss is None:
        advice = "pass the criterion on (output, target) as loss=..."
        raise InputError("loss", "must be known to survey the model", None, advice)
    train: Any = run.data.train
    if isinstance(train, DataLoader):  # whatever part of it this process trains on
        batches, count = fixed_batches(train, None, seed, whole=True), len(train.dataset)  # type: ignore[arg-type]
    else:
        batches = list(train.batches(_BATCH) if isinstance(train, TensorData) else train)
        count = sum(as_batch(raw).size for raw in batches)
    kept = min(samples, count)
    return EmpiricalRisk(run.model, plain_loss(run.loss), batches, samples=kept, seed=seed, batch_norm=batch_norm)
