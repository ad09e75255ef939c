"""Exact sums and weights of any loss, and the moments from which values and standard errors follow.

A torch loss with ``reduction="mean"`` divides by something that depends on the batch: the number of elements, or the
class weights met, or the targets not ignored. Averaging such means over batches is wrong as soon as batches differ.
Here every loss becomes per-sample numerators and denominators instead; their totals are the same for every batching.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lowland.core.batches import Batch
from lowland.core.errors import InputError, require
from lowland.core.moments import wide_type
from lowland.core.provenance import fingerprint

Loss: TypeAlias = "nn.Module | Callable[[Any, Any], Tensor]"
"""A torch loss module, a function with a ``reduction`` argument, or any callable ``(output, target) -> Tensor``."""

_CLASSIFIERS: Final = (nn.CrossEntropyLoss, nn.NLLLoss)
_PER_SAMPLE_MEAN: Final = (nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.MultiLabelSoftMarginLoss)
_SAME_SHAPE: Final = {
    nn.MSELoss: functional.mse_loss,
    nn.L1Loss: functional.l1_loss,
    nn.SmoothL1Loss: functional.smooth_l1_loss,
    nn.HuberLoss: functional.huber_loss,
    nn.PoissonNLLLoss: functional.poisson_nll_loss,
    nn.SoftMarginLoss: functional.soft_margin_loss,
    nn.KLDivLoss: functional.kl_div,
    nn.HingeEmbeddingLoss: functional.hinge_embedding_loss,
    nn.MultiLabelSoftMarginLoss: functional.multilabel_soft_margin_loss,
}
"""Losses, as a class and as a function, that would compare ``[n, 1]`` and ``[n]`` all with all."""
_MODULES: Final = nn.MSELoss.__module__
_FUNCTIONS: Final = functional.__name__
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
        advice = "pass a callable without a `reduction`: its scalar is taken as the mean"
        raise InputError("loss", 'must give one entry per sample under reduction="none"', "a scalar", advice)
    if elements.ndim == 0 or elements.shape[0] != size:
        advice = "keep samples as the first axis; for the mean over tokens return (losses, counts), each [n, tokens]"
        raise InputError("loss", "must return a scalar or one entry per sample", tuple(elements.shape), advice)
    return _per_sample(elements), _denominators(loss, output, target, elements)


def measured_pair(name: str, value: Any, batch: Batch | None = None) -> tuple[Tensor, Tensor | float | None]:
    """Return what was measured as numerators and denominators, one of each per sample, or two totals."""
    if isinstance(value, tuple) and len(value) == 2 and not hasattr(value, "_fields"):
        first, weights = _tensor(name, value[0]), value[1]
        if not isinstance(weights, Tensor | int | float | np.number | None):
            advice = "return the values alone, and measure the rest as metrics"
            raise InputError(name, "must have numbers as its weights", type(weights).__name__, advice)
        if first.ndim == 0 and isinstance(weights, Tensor) and weights.ndim:
            raise InputError(name, "must have per-sample values with per-sample weights", tuple(weights.shape))
        if isinstance(weights, Tensor) and weights.requires_grad:
            advice = "detach them, or return values that are weighted by themselves"
            raise InputError(name, "must have weights that do not follow the parameters", "a graph", advice)
        if isinstance(weights, Tensor) and weights.ndim > 1:
            weights = _per_sample(weights)
        if isinstance(weights, Tensor) and weights.ndim and weights.shape[0] != first.shape[0]:
            got = (tuple(first.shape), tuple(weights.shape))
            raise InputError(name, "must have one weight per sample", got)
        if first.ndim > 1:
            if not (isinstance(weights, Tensor) and weights.ndim):
                weights = (1.0 if weights is None else weights) * (first.numel() / first.shape[0])
            first = _per_sample(first)
        return first, weights
    values = _tensor(name, value)
    if values.ndim == 0:
        if batch is None:
            raise InputError(name, "must be measured as per-sample values or (sum, weight)", "a scalar")
        return values.to(torch.promote_types(values.dtype, torch.float32)) * batch.size, float(batch.size)
    size = None if batch is None else batch.known_size
    if size is not None and values.shape[0] != size:
        rule = f"must have one entry per sample (the batch holds {size}), or be their mean"
        advice = "sum over what belongs to a sample, return (sum, weight), or give samples_of="
        raise InputError(name, rule, tuple(values.shape), advice)
    return (values, None) if values.ndim == 1 else (_per_sample(values), _entries(values))


def _entries(values: Tensor) -> Tensor | None:
    each = values.numel() // max(values.shape[0], 1)
    kind = wide_type(values.device)
    return None if each == 1 else torch.full((values.shape[0],), float(each), dtype=kind, device=values.device)


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        if value.is_complex():
            raise InputError(name, "must be real", str(value.dtype), "take .abs() or .real in the loss")
        return value.float() if value.dtype == torch.bool else value
    if isinstance(value, int | float | np.number | np.ndarray):
        return torch.as_tensor(value, dtype=torch.float64, device="cpu")
    rule = "must be measured as per-sample values, a mean, (values, weights) or (sum, weight)"
    raise InputError(name, rule, type(value).__name__)


def _elementwise(loss: Loss, output: Any, target: Any) -> tuple[Any, bool]:
    """Return the unreduced loss and whether it is known to be unreduced."""
    if _few_classes(loss, output, target):
        return _by_class(loss, output, target), True
    if not has_reduction(loss):
        result = _called(loss, output, target)
        require(isinstance(result, Tensor | tuple), "loss", "must return a tensor", type(result).__name__)
        return result, False
    if not isinstance(output, Tensor):
        advice = "give loss=lambda output, target: ..., which takes what the model returns"
        raise InputError("model", "must return one tensor for a loss of torch", type(output).__name__, advice)
    if not isinstance(loss, nn.Module):
        return _of_torch(functools.partial(cast("Any", loss), reduction="none"), loss, output, target), True
    unreduced: Any = copy.copy(loss)
    unreduced.reduction = "none"
    return _of_torch(unreduced, loss, output, target), True


def _called(loss: Loss, output: Any, target: Any) -> Any:
    try:
        return loss(output, target)
    except (AttributeError, IndexError) as error:
        text = str(error)
        named = ("'Tensor' object has no attribute", "valid indices", "too many indices")  # o.loss, o["loss"]
        if isinstance(output, Tensor) and any(words in text for words in named):
            rule = "must take the tensor that the model returns, or the `logits` of what it returns"
            raise InputError("loss", rule, text, "give evaluate=, which gets the model itself") from error
        raise


def _of_torch(call: Callable[[Any, Any], Tensor], loss: Loss, output: Tensor, target: Any) -> Tensor:
    """Call an unreduced loss; one of torch's own says in our words what does not fit it."""
    # a class of the user's that replaces forward compares as it likes
    kind: Any = next((k for k in type(loss).__mro__ if k.__module__ == _MODULES), nn.Module)
    function = _function(loss)
    if getattr(type(loss), "forward", None) is not kind.forward and getattr(function, "__module__", "") != _FUNCTIONS:
        return call(output, target)
    got: Any = tuple(
        (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
        for value in (output, target)
    )
    advice = "give loss=lambda output, target: ..., which takes them as they are"
    if not isinstance(target, Tensor):
        raise InputError("batches", "must hold a tensor as the target for a loss of torch", got[1], advice)
    if (kind in _SAME_SHAPE or function in _SAME_SHAPE.values()) and target.shape != output.shape:
        shapes = (tuple(output.shape), tuple(target.shape))
        raise InputError("loss", "must compare an output and a target of one shape", shapes, "squeeze one of the two")
    try:
        return call(output, target)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
            raise
        raise InputError("loss", f"must fit output and target ({str(error).splitlines()[0]})", got, advice) from error


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


def has_reduction(loss: Loss) -> bool:
    """Tell whether a loss can be had unreduced."""
    return hasattr(loss, "reduction") if isinstance(loss, nn.Module) else _takes_reduction(loss)


def of_torch(loss: Loss) -> bool:
    """Tell whether a loss is one of torch's own, as it stands."""
    found = _function(loss)
    return getattr(type(found) if isinstance(found, nn.Module) else found, "__module__", "").startswith("torch.")


@functools.lru_cache(maxsize=64)
def _takes_reduction(function: Callable[..., Any]) -> bool:
    try:
        return "reduction" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _denominators(loss: Loss, output: Tensor, target: Any, elements: Tensor) -> Tensor | None:
    if _classifies(loss):
        return _class_weights(loss, output, target, elements)
    per_sample = isinstance(loss, _PER_SAMPLE_MEAN) or _option(loss, "reduction", "") == "batchmean"
    return None if per_sample else _entries(elements)


def _classifies(loss: Any) -> bool:
    return isinstance(loss, _CLASSIFIERS) or _function(loss) in (functional.cross_entropy, functional.nll_loss)


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
    return _per_sample(counts)


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


def accuracy(output: Any, target: Any, loss: Any = None) -> tuple[Tensor, Tensor] | None:
    """Return per-sample hits and counts of a classifier, or None where the pair is no classification."""
    classes = target_classes(output, target, loss)
    if classes is None:
        return None
    right, kept = hits_of(chosen_classes(output), classes, loss)
    return _per_sample(right.float()), _per_sample(kept.float())


def target_classes(output: Any, target: Any, loss: Any = None) -> Tensor | None:
    """Return the class of every target, or None where the pair is no classification."""
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or output.ndim < 2 or output.shape[1] < 2:
        return None
    if output.ndim > 2 and output.shape[1] == output.shape[2] and not _classifies(loss):
        return None  # classes could be either axis: as many tokens as words
    if target.is_floating_point():
        return target.argmax(1) if target.shape == output.shape and _probabilities(target) else None
    return target if target.shape == output.shape[:1] + output.shape[2:] else None


def chosen_classes(output: Tensor) -> Tensor:
    """Return the classes that outputs choose."""
    return output.max(1).indices  # two to three times faster than argmax on a processor


def hits_of(chosen: Tensor, classes: Tensor, loss: Any) -> tuple[Tensor, Tensor]:
    """Return which choices are right, and which targets count at all."""
    kept = classes != _option(loss, "ignore_index", -100)
    return (chosen == classes) & kept, kept


def _per_sample(entries: Tensor) -> Tensor:
    if entries.ndim == 1:
        return entries
    half = entries.dtype in (torch.float16, torch.bfloat16)  # whose sums overflow
    return entries.reshape(entries.shape[0], -1).sum(1, dtype=torch.float32 if half else None)


def _probabilities(target: Tensor) -> bool:
    return bool(((target.sum(1) - 1).abs() < 1e-3).all() and (target >= 0).all())
