"""The batch that every room understands, and the callables that users hand in."""

from __future__ import annotations

import functools
import inspect
import re
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils.rnn import PackedSequence

from lowland.core.batches import Batch as Batch
from lowland.core.batches import RawBatch as RawBatch
from lowland.core.batches import as_batch as as_batch
from lowland.core.batches import batch_tensors, is_sample_list
from lowland.core.batches import move as move
from lowland.core.errors import InputError, LowlandError

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


class FirstBatch(NamedTuple):
    """What a look at the first batch of a risk tells."""

    names: dict[str, bool]  # Measured quantities, and whether they are known per sample
    seconds: float  # Of one measurement
    samples: int | None


def forward(model: nn.Module, batch: Batch) -> Any:
    """Call the model on a batch: a dict becomes keyword arguments, a tuple positional ones, samples stay a list."""
    try:
        output = _output(model, batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        rule = "must hold more than one sample each where a norm layer takes its statistics over the batch"
        advice = "choose another batch size, or drop_last=True"
        raise InputError("batches", rule, batch.known_size, advice) from error
    if output.__class__ is Tensor:  # the common case, without asking further
        return output
    # What Hugging Face models return, and dicts like it; a distribution has `logits` too, and is the output itself.
    if isinstance(output, Distribution):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return output if logits is None else logits


def _output(model: nn.Module, batch: Batch) -> Any:
    value = batch.input
    if value.__class__ is Tensor:
        return model(value)
    if isinstance(value, Mapping):
        return model(**_arguments(model, value))
    if isinstance(value, PackedSequence):
        return model(value)
    if isinstance(value, tuple | list) and not _is_one_argument(model, value, batch):
        return model(*value)
    return model(value)


_FAULTS: Final = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)


@contextmanager
def fitting(argument: str, *parts: Any) -> Generator[None]:
    """Say of what a user's model or loss raises on the first batch that it does not fit these parts, and where."""
    # only there: what fails later, or for want of memory, is no matter of the argument
    try:
        yield
    except (LowlandError, Warning, torch.OutOfMemoryError):
        raise
    except _FAULTS as error:
        text = " ".join(str(error).split())
        if "does not require grad" in text or "memory" in text:
            raise
        shapes = " and ".join(str(tuple(tensor.shape)) for part in parts for tensor in batch_tensors(part)[:3])
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not _OURS.search(f.filename)]
        place = f"see {Path(frames[-1].filename).name}:{frames[-1].lineno}, {frames[-1].line}" if frames else ""
        rule = f"must fit the data: called on a batch of shape {shapes} it raises {type(error).__name__} ({text})"
        raise InputError(argument, rule, advice=place) from error


_OURS: Final = re.compile(r"[/\\](torch|lowland[/\\]core)[/\\]|contextlib\.py$|^<")
"""Files that say nothing to who reads where a model fails."""


def _arguments(model: nn.Module, value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entries that forward takes: labels may be for the loss alone, anything else must fit."""
    known = _keywords(getattr(model.forward, "__func__", model.forward))
    unknown = [] if known is None else [name for name in value if name not in known]
    if any(not name.startswith("label") for name in unknown):
        advice = "give adapt=, a function from what the loader yields to Batch(input, target)"
        raise InputError("batches", "must hold what the model's forward takes by name", unknown, advice)
    return {name: entry for name, entry in value.items() if name not in unknown} if unknown else value


@functools.lru_cache(maxsize=64)
def _keywords(function: Any) -> frozenset[str] | None:
    """Return the names of a function's arguments; None where it takes any, or does not tell."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return frozenset(parameters)


def _is_one_argument(model: nn.Module, value: Any, batch: Batch) -> bool:
    samples = is_sample_list(value, batch.known_size, beside=batch.target)
    if samples is None:  # three images of three channels, or three inputs of three rows: as many as the model takes
        try:
            inspect.signature(model.forward).bind(*value)
        except (TypeError, ValueError):
            return True
    return bool(samples)
