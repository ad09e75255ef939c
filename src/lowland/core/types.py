"""The batch that every room understands, and the callables that users hand in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from lowland.core.errors import InputError

__all__ = ["Batch", "Evaluate", "Measured", "Metric", "RawBatch", "as_batch", "forward", "move"]

RawBatch: TypeAlias = Any
"""What a loader yields: a `Batch`, a tuple ``(input, target)`` or ``(input, target, index)``, or a dict."""

Measured: TypeAlias = Mapping[str, "Tensor | tuple[Tensor, Tensor | float]"]
"""What an `Evaluate` returns, by name, in one of three forms:

``values``             per-sample values, shape [n], each of weight 1;
``(values, weights)``  per-sample numerators and denominators, both of shape [n];
``(sum, weight)``      two scalars, when only totals are known (no standard error then).

The measured number of a data set is the total of numerators over the total of denominators.
"""

_TARGET_KEYS = ("target", "targets", "label", "labels")
_INDEX_KEYS = ("index", "sample_id", "idx")


class Evaluate(Protocol):
    """Measures a model on one batch; the one thing that everything in Lowland measures by."""

    def __call__(self, model: nn.Module, batch: Batch, /) -> Measured:
        """Return the measured values of one batch by name; see `Measured`."""


class Metric(Protocol):
    """Per-sample values of a metric from the output of the model; see `Measured` for the forms."""

    def __call__(self, output: Any, batch: Batch, /) -> Tensor | tuple[Tensor, Tensor | float]:
        """Return per-sample values, or numerators and denominators."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of data.

    Args:
        input: What the model takes: a tensor, or a dict of keyword arguments (Hugging Face).
        target: What the loss takes, or None.
        index: Sample ids, int64, shape [n]; None where the data set gives none.
        partner: Ids of the samples mixed in by mixup or cutmix, int64, shape [n]; None where nothing is mixed.
        share: Share of the sample itself in each mixture, shape [n], in [0, 1].

    Example:
        >>> Batch(torch.zeros(2, 3), torch.tensor([0, 1])).size
        2
    """

    input: Any
    target: Any = None
    index: Tensor | None = None
    partner: Tensor | None = None
    share: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of samples: length of the first axis of the first tensor found."""
        for part in (self.target, self.index, self.input):
            tensor = _first_tensor(part)
            if tensor is not None and tensor.ndim > 0:
                return int(tensor.shape[0])
        return 1

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch on a device.

        Args:
            device: Where to.
            non_blocking: As in `torch.Tensor.to`.

        Returns:
            A new batch (tensors already there are shared).
        """
        return replace(
            self,
            input=move(self.input, device, non_blocking=non_blocking),
            target=move(self.target, device, non_blocking=non_blocking),
            index=move(self.index, device, non_blocking=non_blocking),
            partner=move(self.partner, device, non_blocking=non_blocking),
            share=move(self.share, device, non_blocking=non_blocking),
        )


def as_batch(raw: RawBatch) -> Batch:
    """Turn what a loader yields into a `Batch`."""
    # A dict keeps all its entries as ``input`` (the model takes them as keyword arguments) except a sample id
    # (``index``, ``sample_id`` or ``idx``); the target is looked up under ``target(s)`` or ``label(s)``. Keys
    # named ``label(s)`` stay in the input too, since Hugging Face models compute their loss from them.
    if isinstance(raw, Batch):
        return raw
    if isinstance(raw, Tensor):
        return Batch(raw)
    if isinstance(raw, Mapping):
        rest = dict(raw)
        index = next((rest.pop(key) for key in _INDEX_KEYS if key in rest), None)
        target_key = next((key for key in _TARGET_KEYS if key in rest), None)
        target = rest.get(target_key) if target_key else None
        if target_key is not None and target_key.startswith("target"):
            rest.pop(target_key)
        return Batch(rest, target, index)
    if isinstance(raw, tuple | list) and 1 <= len(raw) <= 3:
        return Batch(*raw)
    raise InputError(
        "batches",
        "must yield Batch, (input, target), (input, target, index) or a dict",
        type(raw).__name__ if not isinstance(raw, tuple | list) else f"{type(raw).__name__} of {len(raw)}",
    )


def forward(model: nn.Module, batch: Batch) -> Any:
    """Call the model on a batch: a dict becomes keyword arguments, a tuple positional ones."""
    if isinstance(batch.input, Mapping):
        output = model(**batch.input)
    elif isinstance(batch.input, tuple | list):
        output = model(*batch.input)
    else:
        output = model(batch.input)
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, Mapping):
        logits = output.get("logits")
    return output if logits is None else logits


def move(value: Any, device: torch.device | str, *, non_blocking: bool = False) -> Any:
    """Move every tensor in a nested structure to a device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, Mapping):
        return {key: move(entry, device, non_blocking=non_blocking) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(move(entry, device, non_blocking=non_blocking) for entry in value)
    return value


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    entries: Iterable[Any] = ()
    if isinstance(value, Mapping):
        entries = value.values()
    elif isinstance(value, tuple | list):
        entries = value
    return next((found for entry in entries if (found := _first_tensor(entry)) is not None), None)
