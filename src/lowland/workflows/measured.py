"""From a model, a loss and parts of data to the risks that surveys measure: of a run as of any other model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.workflows.build import build_metrics
from lowland.workflows.specs import RiskSpec

__all__ = ["PARTS", "risks_of"]

PARTS = ("train", "validation", "test")
"""Names of the parts of a data set."""


def risks_of(
    model: nn.Module, criterion: Any, parts: Mapping[str, Any], spec: RiskSpec, splits: Sequence[str]
) -> dict[str, EmpiricalRisk]:
    """Make the risks of several parts of the data, all of one model."""
    if not splits or len(set(splits)) < len(splits) or not {*splits, spec.split} <= set(parts):
        named = f"must name parts of the data, each once: {', '.join(parts)}"
        raise InputError("splits", named, list(splits) if {*splits} - set(parts) or not splits else spec.split)
    batches = {name: _batches(parts[name], spec.batch_size) for name in {*splits, spec.split}}
    metrics = build_metrics(spec.metrics)
    return {
        name: EmpiricalRisk(
            model, criterion, batches[name], batch_norm=spec.batch_norm, recalibration=batches[spec.split],
            samples=spec.samples, seed=spec.seed, metrics=metrics,
        )
        for name in splits
    }  # fmt: skip


def _batches(part: Any, size: int) -> Any:
    from lowland.data import TensorData

    if isinstance(part, TensorData):
        return list(part.batches(size))
    map_style = hasattr(part, "__getitem__") and hasattr(part, "__len__") and not isinstance(part, list | tuple)
    return DataLoader(part, batch_size=size) if map_style and not isinstance(part, DataLoader) else part
