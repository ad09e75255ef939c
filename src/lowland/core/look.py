"""What a risk looks at once, at its first batch and beside the measurement: nothing that is silent may be wrong.

Samples that are broadcast against each other, ``(output - target)`` of ``[n, 1]`` and ``[n]``: torch compares such a
pair all with all. We look at what the tensors of a batch, the model's output and what keeps their shape are combined
with: two of them of different numbers of axes, each with n > 1 samples on its first, meet with a sample axis against
another one, always. Who wants all pairs writes ``output[:, None]`` and ``target[None]``, other tensors, which pass.

Data or outputs that are written to; a scalar that is no mean over samples; a loss whose own mean is another one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lowland.core.batches import Batch, batch_tensors, take
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError

_BROADCASTING: Final = re.compile(
    r"_*[ri]?(add|sub|mul|div|truediv|pow|and|or)_*|rsub|subtract|multiply|divide|true_divide|float_power|lerp|addcmul"
    r"|_*(eq|ne|lt|le|gt|ge)_*|where|maximum|minimum|fmax|fmin|xlogy|logaddexp|atan2|hypot|isclose|cosine_similarity"
    r"|(bitwise|logical)_(and|or)|(mse|l1|smooth_l1|huber|poisson_nll|soft_margin|gaussian_nll|hinge_embedding"
    r"|multilabel_soft_margin)_loss|kl_div"
)
_MOVING: Final = re.compile(r"transpose|permute|movedim|swap(axes|dims)|_*r?i?matmul_*|t|adjoint|b?mm|einsum|__get__")
"""What may put another axis first in a result of the same shape; ``__get__`` reads an attribute, such as ``T``."""


class _Watch(TorchFunctionMode):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.known: dict[int, Tensor] = {}  # held, so that no id is given twice

    def mark(self, value: Any) -> None:
        for tensor in _tensors(value):
            if not tensor.is_nested and tensor.ndim and tensor.shape[0] == self.count:
                self.known[id(tensor)] = tensor

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = [value for value in (*args, *(kwargs or {}).values()) if id(value) in self.known]
        name = getattr(func, "__name__", "")
        if not found:
            return func(*args, **(kwargs or {}))
        if len({value.ndim for value in found}) > 1 and _BROADCASTING.fullmatch(name):
            rule = f"must not combine samples all with all, as `{name.strip('_')}` of these shapes does"
            advice = "squeeze one of the two, or write a[:, None] and b[None] where pairs are meant"
            raise InputError("loss", rule, [tuple(value.shape) for value in found], advice)
        result = func(*args, **(kwargs or {}))
        if (
            not _MOVING.fullmatch(name)
            and isinstance(result, Tensor)
            and any(result.shape == value.shape for value in found)
        ):
            self.known[id(result)] = result
        return result


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for entry in value.values() for tensor in _tensors(entry)]
    if isinstance(value, tuple | list):
        return [tensor for entry in value for tensor in _tensors(entry)]
    return [entry for entry in getattr(value, "__dict__", {}).values() if isinstance(entry, Tensor)]


def compiler_loaded() -> bool:
    """Tell whether anything can be compiled: the first call of ``torch.compile`` imports the compiler."""
    return "torch._dynamo" in sys.modules


@contextmanager
def watched(model: nn.Module, batch: Batch) -> Generator[_Watch, None, None]:
    """Watch everything that is done inside with the tensors of a batch and with what the model returns."""
    watch = _Watch(batch.known_size or 0)
    watch.mark([batch.input, batch.target])
    data = [tensor for tensor in batch_tensors(batch) if not tensor.is_inference()]
    kept = [tensor.detach().clone() for tensor in data]
    scripted = isinstance(model, torch.jit.ScriptModule)
    handle = None if scripted else model.register_forward_hook(lambda *call: watch.mark(call[-1]))
    # to ask for it imports the compiler, which takes as long as torch itself, in every process of a survey
    eager = torch.compiler.set_stance("force_eager") if compiler_loaded() else nullcontext()
    try:
        with eager, watch:
            yield watch
    finally:
        if handle is not None:
            handle.remove()
        changed = not same_bits(data, kept)
        if changed:
            with torch.no_grad():
                for tensor, value in zip(data, kept, strict=True):
                    tensor.copy_(value)
    if changed:
        advice = "make a copy first (x = x - mean instead of x -= mean)"
        raise InputError("batches", "must not be written to by the model or the loss", advice=advice)


def check_own_mean(loss: Any, output: Any, target: Any, found: tuple[Tensor, Tensor | float | None]) -> None:
    """Refuse a loss of the user's own whose mean is not that of its entries."""
    if getattr(loss, "reduction", "") != "mean" or type(loss).__module__.startswith("torch."):
        return
    own, values = loss(output, target), found[0].double().sum()
    total = found[0].numel() if found[1] is None else torch.as_tensor(found[1], device=values.device).double().sum()
    if isinstance(own, Tensor) and own.ndim == 0 and _apart(own, values / total, values / total, found[0].dtype):
        advice = "give a callable without a `reduction` that returns (values, weights)"
        got = (float(own), float(values / total))
        raise InputError("loss", 'must have the mean of its entries under reduction="none" as its "mean"', got, advice)


def uneven(
    name: str, measure: Callable[[Any, Batch], Any], output: Any, batch: Batch, again: Callable[[Batch], Any]
) -> tuple[float, float] | None:
    """Return a batch's scalar, or the mean of its entries, and that over two parts, where these are two numbers."""
    n = batch.known_size or 0
    if n < 2:
        return None
    counts = [max(1, n // 3), n - max(1, n // 3)]
    try:
        cuts = [take(replace(batch, count=n), rows) for rows in (range(counts[0]), range(counts[0], n))]
        parts = torch.split(output, counts) if isinstance(output, Tensor) else [again(cut) for cut in cuts]
        if not isinstance(output, Tensor) and not _same_rows(output, parts, n):
            return None  # of a model that lets samples of a batch see each other, or draws random numbers
        pairs = [(output, batch), (output, batch), *zip(parts, cuts, strict=True)]
        measured = [measure(*pair) for pair in pairs]
        found = [_scalars(value) for value in measured]
        if not found[0] and output is not None:  # what measures by itself may draw noise for each batch
            return _entangled([batch_tensors(value) for value in measured], n)
        if not found[0] or not all(map(torch.equal, found[0], found[1])):
            return None
        floats = [t.dtype for t in (*found[0], *batch_tensors(output)) if t.is_floating_point()]
        coarse = max(floats, key=lambda kind: torch.finfo(kind).eps)
        means = [_mean(numbers, counts, coarse) for numbers in zip(found[0], *found[2:], strict=True)]
    except Exception:  # what cannot be cut, or not be measured in parts, tells nothing
        return None
    if len(means) == 2:  # taken as (sum, weight): both of them means, of other values in each part
        if None not in means or found[2][1] == found[3][1]:
            return None
        advice = "return the first alone and measure the other as a metric, or return totals"
        raise InputError(name, "must be (sum, weight) where it is two numbers", "two means", advice)
    return means[0]


def _scalars(value: Any) -> list[Tensor]:
    """Return a scalar, or the two of a pair; nothing where it is something else."""
    parts = value if isinstance(value, tuple) and len(value) == 2 else (value,)
    found = [part.detach() if isinstance(part, Tensor) else torch.as_tensor(part, device="cpu") for part in parts]
    return found if not any(part.ndim for part in found) else []


def _mean(numbers: Sequence[Tensor], counts: Sequence[int], kind: torch.dtype) -> tuple[float, float] | None:
    """Return a number of a whole and the mean of those of its two parts, if they differ."""
    whole, one, two = numbers
    mean = (counts[0] * one.double() + counts[1] * two.double()) / sum(counts)
    scale = torch.stack([one.double().abs(), two.double().abs()]).max()
    return (float(whole), float(mean)) if _apart(whole, mean, scale, kind) else None


def _entangled(measured: Sequence[list[Tensor]], count: int) -> tuple[float, float] | None:
    """Return the mean of entries of a whole and of its two parts, if a sample's entry follows what it is beside."""
    for value, second, *parts in zip(*measured, strict=True):
        if not (value.ndim and value.shape[0] == count and torch.equal(value, second)):
            continue
        rounding = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
        joined, tolerance = torch.cat(parts).double(), min(max(1000 * rounding, 1e-9), 0.05)
        near = (value.double() - joined).abs() <= tolerance * value.double().abs().max() + 1e-12
        if bool(value.isfinite().all() and not near.all()):
            return float(value.double().mean()), float(joined.mean())
    return None


def _same_rows(output: Any, parts: Sequence[Any], count: int) -> bool:
    pieces = zip(batch_tensors(output), *map(batch_tensors, parts), strict=True)
    rows = [(whole, torch.cat(cut)) for whole, *cut in pieces if whole.ndim and whole.shape[0] == count]
    return all(torch.allclose(whole.double(), joined.double(), 1e-3, 1e-6) for whole, joined in rows)


def _apart(first: Tensor, second: Tensor, scale: Tensor, kind: torch.dtype) -> bool:
    tolerance = min(max(1000 * torch.finfo(kind).eps, 1e-9), 0.05)
    near = (first.double() - second).abs() <= tolerance * scale.abs() + 1e-12
    return bool(first.isfinite() and not near)  # a part without a value is no part of a mean
