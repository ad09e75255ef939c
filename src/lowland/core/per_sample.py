"""Exact sums and weights of any loss, and the moments from which values and standard errors follow.

A torch loss with ``reduction="mean"`` divides by something that depends on the batch: the number of elements, or the
class weights met, or the targets not ignored. Averaging such means over batches is wrong as soon as batches differ.
Here every loss becomes per-sample numerators and denominators instead; their totals are the same for every batching.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowland.core.errors import InputError
from lowland.core.provenance import fingerprint

__all__ = ["Estimate", "Loss", "accuracy", "all_moments", "loss_settings", "moments", "per_sample_loss"]

Loss: TypeAlias = "nn.Module | Callable[[Any, Any], Tensor]"
"""A torch loss module, a function with a ``reduction`` argument, or any callable ``(output, target) -> Tensor``."""

_CLASSIFIERS: Final = (nn.CrossEntropyLoss, nn.NLLLoss)
_PER_SAMPLE_MEAN: Final = (nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss)
_N_MOMENTS: Final = 10
_LANES: Final = 16
"""Numbers of 32 bits in the widest vector register of common processors."""


def per_sample_loss(loss: Loss, output: Any, target: Any) -> tuple[Tensor, Tensor | None]:
    """Return per-sample numerators and denominators of a loss, with graph."""
    # The loss of any set of samples, as ``reduction="mean"`` defines it, is the total of the numerators over
    # the total of the denominators, whatever the module's own reduction. Class weights and ``ignore_index``
    # enter the denominators as in torch. A callable without a ``reduction`` may return per-sample values; a
    # scalar is taken as the mean over the samples of the batch (no per-sample values are known then: both
    # results have shape []).
    elements, known = _elementwise(loss, output, target)
    if not known and elements.ndim == 0:
        size = _batch_size(output, target)
        return elements * size, torch.as_tensor(float(size), device=elements.device)
    size = _batch_size(output, target)
    if known and elements.ndim == 0 and size != 1:
        raise InputError("loss", 'must give one entry per sample under reduction="none"', "a scalar",
                         "pass a callable without a `reduction`: its scalar is taken as the mean")  # fmt: skip
    if elements.ndim == 0 or elements.shape[0] != size:
        raise InputError("loss", "must return a scalar or one entry per sample", tuple(elements.shape))
    values = elements.reshape(size, -1).sum(1)
    return values, _denominators(loss, output, target, elements)


def _elementwise(loss: Loss, output: Any, target: Any) -> tuple[Tensor, bool]:
    """Return the unreduced loss and whether it is known to be unreduced."""
    if _few_classes(loss, output, target):
        return _by_class(loss, output, target), True
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        unreduced: Any = copy.copy(loss)
        unreduced.reduction = "none"
        return unreduced(output, target), True
    if not isinstance(loss, nn.Module) and _takes_reduction(loss):
        return loss(output, target, reduction="none"), True  # type: ignore[call-arg]
    result = loss(output, target)
    if not isinstance(result, Tensor):
        raise InputError("loss", "must return a tensor", type(result).__name__)
    return result, False


def _few_classes(loss: Loss, output: Any, target: Any) -> bool:
    """Return whether a plain cross entropy is quicker along the classes: fewer of them than torch computes at once."""
    known = type(loss) is nn.CrossEntropyLoss or _function(loss) is functional.cross_entropy
    return bool(
        known
        and _option(loss, "label_smoothing", 0.0) == 0.0
        and isinstance(output, Tensor)
        and isinstance(target, Tensor)
        and output.device.type == target.device.type == "cpu"
        and (output.dtype == torch.float32 or _raised(output))
        and output.ndim == 2
        and target.ndim == 1
        and output.shape[1] < _LANES
        and not target.is_floating_point()
    )


def _raised(output: Tensor) -> bool:
    """Return whether torch's own cross entropy would compute in float32 under the present autocast."""
    return output.dtype == torch.bfloat16 and torch.is_autocast_enabled("cpu")


def _by_class(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """Return the cross entropy of each sample with the samples in the inner dimension: same bits."""
    # Up to 9 times faster.
    # Torch computes a softmax in vectors only along rows that fill one; rows of ten numbers are done one by
    # one.
    logits = output.float() if _raised(output) else output
    logarithms = functional.log_softmax(logits.t().contiguous(), 0).t()
    weight, ignored = _option(loss, "weight", None), _option(loss, "ignore_index", -100)
    return functional.nll_loss(logarithms, target, weight, ignore_index=ignored, reduction="none")


@functools.lru_cache(maxsize=64)
def _takes_reduction(function: Callable[..., Any]) -> bool:
    try:
        return "reduction" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _denominators(loss: Loss, output: Tensor, target: Any, elements: Tensor) -> Tensor | None:
    classifier = isinstance(loss, _CLASSIFIERS) or _function(loss) in (
        functional.cross_entropy,
        functional.nll_loss,
    )
    if classifier:
        return _class_weights(loss, output, target, elements)
    per_sample = isinstance(loss, _PER_SAMPLE_MEAN) or getattr(loss, "reduction", "") == "batchmean"
    if per_sample or elements.ndim == 1:
        return None
    entries = elements.numel() // elements.shape[0]
    return torch.full((elements.shape[0],), float(entries), device=elements.device)


def _function(loss: Loss) -> Any:
    return loss.func if isinstance(loss, functools.partial) else loss


def _option(loss: Loss, name: str, default: Any) -> Any:
    if isinstance(loss, functools.partial):
        return loss.keywords.get(name, default)
    return getattr(loss, name, default)


def _class_weights(loss: Loss, output: Tensor, target: Tensor, elements: Tensor) -> Tensor | None:
    """Return what torch divides a classification loss by, per sample."""
    if target.is_floating_point():  # class probabilities: torch divides by the number of positions
        positions = elements.numel() // elements.shape[0]
        return None if positions == 1 else torch.full((elements.shape[0],), float(positions), device=elements.device)
    weight, ignored = _option(loss, "weight", None), _option(loss, "ignore_index", -100)
    kept = target != ignored
    counts = kept.to(elements.dtype if elements.is_floating_point() else torch.float32)
    if weight is not None:
        counts = counts * weight.to(counts)[target.clamp(min=0) * kept]
    result: Tensor = counts.reshape(counts.shape[0], -1).sum(1)
    return result


def _batch_size(output: Any, target: Any) -> int:
    for value in (target, output):
        if isinstance(value, Tensor) and value.ndim > 0:
            return int(value.shape[0])
    return 1


def loss_settings(loss: Any) -> dict[str, Any]:
    """Return what a loss was built with, so that two losses of one class can be told apart."""
    found: dict[str, Any] = {}
    if isinstance(loss, functools.partial):
        found = dict(loss.keywords)
    elif isinstance(loss, nn.Module):
        found = {name: value for name, value in vars(loss).items() if not name.startswith("_") and name != "training"}
        found |= dict(loss.named_buffers()) | dict(loss.named_parameters())
    plain = {name: fingerprint([value]) if isinstance(value, Tensor) else value for name, value in found.items()}
    return {n: v for n, v in plain.items() if n != "reduction" and isinstance(v, str | int | float | bool | None)}


def accuracy(output: Any, target: Any, *, ignore_index: int = -100) -> tuple[Tensor, Tensor] | None:
    """Return per-sample hits and counts of a classifier, or None where the pair is no classification."""
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or output.ndim < 2 or output.shape[1] < 2:
        return None
    if target.is_floating_point():
        if target.shape != output.shape or not _probabilities(target):
            return None
        target = target.argmax(1)
    elif target.shape != output.shape[:1] + output.shape[2:]:
        return None
    kept = target != ignore_index
    best = output.max(1).indices  # two to three times faster than argmax on a processor
    hits = ((best == target) & kept).float()
    size = hits.shape[0]
    return hits.reshape(size, -1).sum(1), kept.float().reshape(size, -1).sum(1)


def _probabilities(target: Tensor) -> bool:
    return bool(((target.sum(1) - 1).abs() < 1e-3).all() and (target >= 0).all())


def moments(values: Tensor, weights: Tensor | float | None = None) -> Tensor:
    """Return the power sums of per-sample numerators v and denominators w, in float64."""
    # The ten sums ``n, v, w, vv, vw, ww, vvv, vvw, vww, www`` add up over batches and carry everything that a
    # ratio estimate needs: its value, its standard error and the skewness of its residuals. When only totals
    # are known (scalars), n is 0 and the sums above the first order are NaN.
    return all_moments({"": (values, weights)})[""]


def all_moments(measured: Mapping[str, tuple[Tensor, Tensor | float | None]]) -> dict[str, Tensor]:
    """Return `moments` of several quantities at once, those of the same number of samples in common operations."""
    found: dict[str, Tensor] = {}
    together: dict[tuple[int, torch.device], list[str]] = {}
    for name, (values, weights) in measured.items():
        if values.ndim:
            together.setdefault((values.numel(), values.device), []).append(name)
        else:
            found[name] = _totals(values, weights)
    for names in together.values():
        rows = _power_sums([measured[name] for name in names])
        found |= dict(zip(names, rows.unbind(), strict=True))
    return {name: found[name] for name in measured}


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _totals(value: Tensor, weights: Tensor | float | None) -> Tensor:
    result = torch.full((_N_MOMENTS,), math.nan, dtype=_wide(value.device), device=value.device)
    total = 1.0 if weights is None else weights.detach() if isinstance(weights, Tensor) else float(weights)
    result[0], result[1], result[2] = 0.0, value.detach(), total
    return result


def _power_sums(pairs: Sequence[tuple[Tensor, Tensor | float | None]]) -> Tensor:
    """Return the ten sums of quantities of equally many samples, shape [quantities, 10]."""
    kind, size = _wide(pairs[0][0].device), pairs[0][0].numel()
    v = torch.stack([values.detach().reshape(-1) for values, _ in pairs]).to(kind)
    n = v.new_full((len(pairs),), float(size))
    vv = v * v
    if all(weights is None for _, weights in pairs):
        first, second, third = v.sum(1), vv.sum(1), (vv * v).sum(1)
        return torch.stack([n, first, n, second, first, n, third, second, first, n], 1)
    w = torch.stack([_row(weights, v[0]) for _, weights in pairs])
    ww = w * w
    parts = [v, w, vv, v * w, ww, vv * v, vv * w, v * ww, ww * w]
    return torch.stack([n, *(part.sum(1) for part in parts)], 1)


def _row(weights: Tensor | float | None, like: Tensor) -> Tensor:
    if weights is None:
        return torch.ones_like(like)
    return torch.as_tensor(weights, device=like.device).detach().to(like.dtype).expand_as(like)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured number with its uncertainty."""

    # The value is ``R = sum v / sum w``. As an estimate of a population it has the standard error of a ratio,
    # ``sqrt(n / (n - 1) * sum (v - R w)^2) / sum w`` (Cochran 1977, eq. 2.39 without the finite-population
    # factor).

    value: float  # The ratio
    standard_error: float  # NaN where only totals or a single sample are known
    samples: int  # Number of samples n (0 where only totals are known)
    weight: float  # Total of the denominators
    skewness: float  # Skewness of the residuals; the plain interval is unreliable for n < 25 skewness^2

    @classmethod
    def of(cls, sums: Tensor) -> Estimate:
        """Return the estimate that belongs to the sums of `moments`."""
        n, v, w, vv, vw, ww, vvv, vvw, vww, www = sums.tolist()
        if w == 0.0 or math.isnan(w):
            return cls(math.nan, math.nan, int(n), w, math.nan)
        ratio = v / w
        if n < 2 or math.isnan(vv) or not math.isfinite(ratio):
            return cls(ratio, math.nan, int(n), w, math.nan)
        square = max(0.0, vv - 2 * ratio * vw + ratio**2 * ww)
        cube = vvv - 3 * ratio * vvw + 3 * ratio**2 * vww - ratio**3 * www
        skewness = (cube / n) / (square / n) ** 1.5 if square > 0 else 0.0
        return cls(ratio, math.sqrt(n / (n - 1) * square) / abs(w), int(n), w, skewness)

    @property
    def reliable(self) -> bool:
        """Whether a plain interval of two standard errors may be trusted: n >= 25 skewness^2."""
        return self.samples >= 25 * self.skewness**2
