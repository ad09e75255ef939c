"""The batch that every room understands, and the callables that users hand in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils.rnn import PackedSequence

from lowland.core.batches import Batch, RawBatch, as_batch, is_sample_list, move

__all__ = ["Batch", "Evaluate", "Measured", "Metric", "RawBatch", "as_batch", "forward", "move"]

Measured: TypeAlias = Mapping[str, "Tensor | float | tuple[Tensor, Tensor | float]"]
"""What an `Evaluate` returns, by name, in one of four forms:

``values``             per-sample values, shape [n] or [n, ...]: each entry counts alike, and n samples are counted;
``(values, weights)``  per-sample numerators and denominators, both of shape [n]: the way for sample weights, (w v, w);
``mean``               a scalar: the mean over the samples of the batch (no standard error then);
``(sum, weight)``      two scalars, when only totals are known (no standard error then).

The measured number of a data set is the total of numerators over the total of denominators.
"""


class Evaluate(Protocol):
    """Measures a model on one batch; the one thing that everything in Lowland measures by."""

    def __call__(self, model: nn.Module, batch: Batch, /) -> Measured:
        """Return the measured values of one batch by name; see `Measured`."""


class Metric(Protocol):
    """Per-sample values of a metric from the output of the model; see `Measured` for the forms."""

    def __call__(self, output: Any, batch: Batch, /) -> Tensor | tuple[Tensor, Tensor | float]:
        """Return per-sample values, or numerators and denominators."""


def forward(model: nn.Module, batch: Batch) -> Any:
    """Call the model on a batch: a dict becomes keyword arguments, a tuple positional ones, samples stay a list."""
    value = batch.input
    if isinstance(value, Mapping):
        output = model(**value)
    elif isinstance(value, PackedSequence):
        output = model(value)
    elif isinstance(value, tuple | list) and not _is_one_argument(model, value, batch):
        output = model(*value)
    else:
        output = model(value)
    # What Hugging Face models return, and dicts like it; a distribution has `logits` too, and is the output itself.
    if isinstance(output, Distribution):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else _field(output)
    return output if logits is None else logits


def _is_one_argument(model: nn.Module, value: Any, batch: Batch) -> bool:
    samples = is_sample_list(value, batch.known_size, beside=batch.target)
    if samples is None:  # three images of three channels, or three inputs of three rows: as many as the model takes
        try:
            inspect.signature(model.forward).bind(*value)
        except (TypeError, ValueError):
            return True
    return bool(samples)


def _field(output: Any) -> Any:
    return getattr(output, "logits", None) if not isinstance(output, Tensor) else None
