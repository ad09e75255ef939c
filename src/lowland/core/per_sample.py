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
from typing import Any, Final, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowland.core.batches import Batch
from lowland.core.errors import InputError
from lowland.core.provenance import fingerprint

__all__ = [
    "Estimate",
    "Loss",
    "accuracy",
    "all_moments",
    "loss_settings",
    "measured_pair",
    "merged",
    "moments",
    "per_sample_loss",
]

Loss: TypeAlias = "nn.Module | Callable[[Any, Any], Tensor]"
"""A torch loss module, a function with a ``reduction`` argument, or any callable ``(output, target) -> Tensor``."""

_CLASSIFIERS: Final = (nn.CrossEntropyLoss, nn.NLLLoss)
_PER_SAMPLE_MEAN: Final = (nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss)
_SAME_SHAPE: Final = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss, nn.SoftMarginLoss,
                      nn.KLDivLoss)  # fmt: skip
_SAME_SHAPE_FUNCTIONS: Final = (
    functional.mse_loss, functional.l1_loss, functional.smooth_l1_loss, functional.huber_loss,
    functional.poisson_nll_loss, functional.soft_margin_loss, functional.kl_div,
)  # fmt: skip
_N_MOMENTS: Final = 10
_LANES: Final = 16
"""Numbers of 32 bits in the widest vector register of common processors."""


def per_sample_loss(
    loss: Loss, output: Any, target: Any, *, batch: Batch | None = None
) -> tuple[Tensor, Tensor | float | None]:
    """Return per-sample numerators and denominators of a loss, with graph."""
    # The loss of any set of samples, as ``reduction="mean"`` defines it, is the total of the numerators over
    # the total of the denominators, whatever the module's own reduction. Class weights and ``ignore_index``
    # enter the denominators as in torch. A callable without a ``reduction`` may return per-sample values, or
    # (values, weights); a scalar is taken as the mean over the samples of the batch (no per-sample values are
    # known then: both results have shape []).
    elements, known = _elementwise(loss, output, target)
    if isinstance(elements, tuple):
        return measured_pair("loss", elements, batch)
    if not known:
        return measured_pair("loss", elements, Batch(output, target) if batch is None else batch)
    size = _batch_size(output, target)
    if elements.ndim == 0 and size != 1:
        raise InputError("loss", 'must give one entry per sample under reduction="none"', "a scalar",
                         "pass a callable without a `reduction`: its scalar is taken as the mean")  # fmt: skip
    if elements.ndim == 0 or elements.shape[0] != size:
        raise InputError("loss", "must return a scalar or one entry per sample", tuple(elements.shape))
    values = elements.reshape(size, -1).sum(1)
    return values, _denominators(loss, output, target, elements)


def measured_pair(name: str, value: Any, batch: Batch | None = None) -> tuple[Tensor, Tensor | float | None]:
    """Return what was measured as numerators and denominators, one of each per sample, or two totals."""
    if isinstance(value, tuple) and len(value) == 2:
        first, weights = _tensor(name, value[0]), value[1]
        if first.ndim == 0 and isinstance(weights, Tensor) and weights.ndim:
            raise InputError(name, "must have per-sample values with per-sample weights", tuple(weights.shape))
        if isinstance(weights, Tensor) and weights.ndim > 1:
            weights = weights.reshape(weights.shape[0], -1).sum(1)
        if isinstance(weights, Tensor) and weights.ndim and weights.shape[0] != first.shape[0]:
            got = (tuple(first.shape), tuple(weights.shape))
            raise InputError(name, "must have one weight per sample", got)
        if first.ndim > 1:
            if not (isinstance(weights, Tensor) and weights.ndim):
                weights = (1.0 if weights is None else weights) * (first.numel() / first.shape[0])
            first = first.reshape(first.shape[0], -1).sum(1)
        return first, weights
    values = _tensor(name, value)
    if values.ndim == 0:
        if batch is None:
            raise InputError(name, "must be measured as per-sample values or (sum, weight)", "a scalar")
        return values * batch.size, float(batch.size)
    size = None if batch is None else batch.known_size
    if size is not None and values.shape[0] != size:
        raise InputError(
            name, f"must have one entry per sample (the batch holds {size}), or be their mean",
            tuple(values.shape), "sum over what belongs to a sample, return (sum, weight), or give samples_of=",
        )  # fmt: skip
    return (values, None) if values.ndim == 1 else (values.reshape(values.shape[0], -1).sum(1), _entries(values))


def _entries(values: Tensor) -> Tensor | None:
    each = values.numel() // max(values.shape[0], 1)
    return None if each == 1 else torch.full((values.shape[0],), float(each), dtype=_wide(values.device),
                                             device=values.device)  # fmt: skip


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        if value.is_complex():
            raise InputError(name, "must be real", str(value.dtype), "take .abs() or .real in the loss")
        return value
    if isinstance(value, int | float | np.number | np.ndarray):
        return torch.as_tensor(value, dtype=torch.float64)
    rule = "must be measured as per-sample values, a mean, (values, weights) or (sum, weight)"
    raise InputError(name, rule, type(value).__name__)


def _elementwise(loss: Loss, output: Any, target: Any) -> tuple[Any, bool]:
    """Return the unreduced loss and whether it is known to be unreduced."""
    if _few_classes(loss, output, target):
        return _by_class(loss, output, target), True
    module = isinstance(loss, nn.Module) and hasattr(loss, "reduction")
    if module or (not isinstance(loss, nn.Module) and _takes_reduction(loss)):
        if not isinstance(output, Tensor):
            raise InputError(
                "model", "must return one tensor for a loss of torch", type(output).__name__,
                "give loss=lambda output, target: ..., which takes what the model returns",
            )  # fmt: skip
        if module:
            unreduced: Any = copy.copy(loss)
            unreduced.reduction = "none"
            return _unbroadcast(unreduced, loss, output, target), True
        return _unbroadcast(functools.partial(cast("Any", loss), reduction="none"), loss, output, target), True
    result = loss(output, target)
    if not isinstance(result, Tensor | tuple):
        raise InputError("loss", "must return a tensor", type(result).__name__)
    return result, False


def _unbroadcast(call: Callable[[Any, Any], Tensor], loss: Loss, output: Tensor, target: Any) -> Tensor:
    # [n, 1] against [n] would be compared all with all
    # (a class of the user's that replaces forward compares as it likes)
    same = type(loss) in _SAME_SHAPE or _function(loss) in _SAME_SHAPE_FUNCTIONS
    if same and isinstance(target, Tensor) and target.shape != output.shape:
        got = (tuple(output.shape), tuple(target.shape))
        raise InputError("loss", "must compare an output and a target of one shape", got, "squeeze one of the two")
    return call(output, target)


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
    return torch.full((elements.shape[0],), float(entries), dtype=_wide(elements.device), device=elements.device)


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
        return None if positions == 1 else _entries(elements)
    weight, ignored = _option(loss, "weight", None), _option(loss, "ignore_index", -100)
    kept = target != ignored
    counts = kept.to(torch.promote_types(elements.dtype, torch.float32))  # half types cannot count beyond 256
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
    """Return totals and moments of per-sample numerators v and denominators w of a batch, in float64."""
    # The ten numbers ``n, sum v, sum w`` and the sums of ``uu, uw, ww, uuu, uuw, uww, www`` with the residuals
    # ``u = v - (sum v / sum w) w`` of the batch carry everything that a ratio estimate needs: its value, its
    # standard error and the skewness of its residuals. Residuals, since sums of powers of v cancel where its
    # values lie far from 0. When only totals are known (scalars), n is 0 and all beyond the first order is NaN.
    # Rows of several batches are collected by `merged`; `Estimate.of` joins them.
    return all_moments({"": (values, weights)})[""]


def merged(total: Tensor | None, part: Tensor) -> Tensor:
    """Return the rows of moments with those of one more batch, shape [batches, 10]."""
    return part[None] if total is None else torch.cat([total, part[None]])


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
        rows = _residual_sums([measured[name] for name in names])
        found |= dict(zip(names, rows.unbind(), strict=True))
    return {name: found[name] for name in measured}


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _totals(value: Tensor, weights: Tensor | float | None) -> Tensor:
    result = torch.full((_N_MOMENTS,), math.nan, dtype=_wide(value.device), device=value.device)
    total = 1.0 if weights is None else weights.detach() if isinstance(weights, Tensor) else float(weights)
    result[0], result[1], result[2] = 0.0, value.detach(), total
    return result


def _residual_sums(pairs: Sequence[tuple[Tensor, Tensor | float | None]]) -> Tensor:
    """Return the ten numbers of quantities of equally many samples, shape [quantities, 10]."""
    kind, size = _wide(pairs[0][0].device), pairs[0][0].numel()
    v = torch.stack([values.detach().reshape(-1) for values, _ in pairs]).to(kind)
    n, first = v.new_full((len(pairs),), float(size)), v.sum(1)
    if all(weights is None for _, weights in pairs):
        u = v - first[:, None] / size
        uu = u * u
        second, none = uu.sum(1), torch.zeros_like(n)
        return torch.stack([n, first, n, second, none, n, (uu * u).sum(1), second, none, n], 1)
    w = torch.stack([_row(weights, v[0]) for _, weights in pairs])
    total = w.sum(1)
    ratio = torch.nan_to_num(first / total, nan=0.0, posinf=0.0, neginf=0.0)
    u = torch.addcmul(v, w, ratio[:, None], value=-1)
    uu, uw, ww = u * u, u * w, w * w
    rest = torch.stack([uu, uw, ww, uu * u, uu * w, uw * w, ww * w]).sum(2)
    return torch.cat([torch.stack([n, first, total]), rest]).t()


def _row(weights: Tensor | float | None, like: Tensor) -> Tensor:
    if weights is None:
        return torch.ones_like(like)
    return torch.as_tensor(weights, dtype=like.dtype, device=like.device).detach().expand_as(like)


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
        """Return the estimate that belongs to `moments`, of one batch or in rows."""
        rows = np.atleast_2d(sums.detach().cpu().numpy()).astype(np.float64)
        n, v, w = (float(np.add.accumulate(rows[:, k])[-1]) for k in range(3))  # in the order of the batches
        if w == 0.0 or math.isnan(w):
            return cls(math.nan, math.nan, int(n), w, math.nan)
        ratio = v / w
        if n < 2 or np.isnan(rows[:, 3]).any() or not math.isfinite(ratio):
            return cls(ratio, math.nan, int(n), w, math.nan)
        uu, uw, ww, uuu, uuw, uww, www = rows[:, 3:].T
        # a residual of all data is that of the batch, moved by the difference of the ratios: v - R w = u + d w
        own = np.divide(rows[:, 1], rows[:, 2], out=np.zeros(len(rows)), where=rows[:, 2] != 0)
        d = np.where(rows[:, 2] != 0, own - ratio, -ratio) if len(rows) > 1 else np.zeros(1)
        square = max(0.0, float((uu + 2 * d * uw + d**2 * ww).sum()))
        cube = float((uuu + 3 * d * uuw + 3 * d**2 * uww + d**3 * www).sum())
        skewness = (cube / n) / (square / n) ** 1.5 if square > 0 else 0.0
        return cls(ratio, math.sqrt(n / (n - 1) * square) / abs(w), int(n), w, skewness)

    @property
    def reliable(self) -> bool:
        """Whether nothing in the sample speaks against a plain interval of two standard errors: n >= 25 skewness^2."""
        # It is no proof: a rare large loss that the sample does not hold shows in no moment of it.
        return self.samples >= 25 * self.skewness**2
