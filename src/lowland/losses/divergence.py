"""The divergence between tempered outputs that SAF and MESA add to the loss."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowland.core.errors import InputError

_OF_ONE_NUMBER = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss)


def are_labels_binary(criterion: Any, output: Tensor, class_axis: int) -> bool:
    """Return whether every logit is a yes or no of its own (so that a softmax over them says nothing)."""
    if criterion is F.binary_cross_entropy_with_logits or isinstance(criterion, nn.BCEWithLogitsLoss):
        return True
    alone = output.ndim <= class_axis or output.shape[class_axis] == 1
    if alone and isinstance(criterion, _OF_ONE_NUMBER):
        rule = "must be logits of classes: the divergence compares what they say of the classes"
        got = f"one number per sample, and {type(criterion).__name__}"
        raise InputError("output", rule, got, "use the plain criterion for a regression")
    return alone


def check_class_axis(output: Tensor, target: Any, class_axis: int) -> None:
    """Refuse labels by position that stand along other axes than the logits, as those of tokens do by default."""
    if not isinstance(target, Tensor) or target.is_floating_point() or target.ndim != output.ndim - 1:
        return
    places = [axis for axis in range(1, output.ndim) if output.shape[:axis] + output.shape[axis + 1 :] == target.shape]
    if places and class_axis % output.ndim not in places:
        got = f"{class_axis} for outputs {list(output.shape)} and labels {list(target.shape)}"
        raise InputError("class_axis", "must be the axis of the classes", got, f"pass class_axis={places[0]}")


def mixes_two(target: Any, output: Tensor, class_axis: int) -> Tensor:
    """Tell whether most targets look mixed by hand: probabilities where two classes stand out and all others agree."""
    told = isinstance(target, Tensor) and target.is_floating_point() and target.shape == output.shape
    if not told or output.ndim <= class_axis or output.shape[class_axis] < 4:  # of three, one other always agrees
        return torch.tensor(False)
    ordered = target.detach().movedim(class_axis, -1).sort(dim=-1, descending=True).values
    spread = ordered - ordered[..., -1:]  # smoothing gives every class something
    two = (spread[..., 1] > 1e-3) & (spread[..., 2] <= 1e-3) & ((ordered.sum(-1) - 1).abs() < 1e-2)
    return torch.gt(two.double().mean(), 0.5)


def labeled_divergence(
    criterion: Any, target: Any, past: Tensor, output: Tensor, temperature: float, *, class_axis: int
) -> Tensor:
    """Return the divergence of every sample from a past output, over the positions whose label the criterion counts."""
    counted = None
    if isinstance(target, Tensor) and not target.is_floating_point() and 1 < target.ndim == output.ndim - 1:
        counted = target != getattr(criterion, "ignore_index", -100)  # padding must change nothing
    binary = are_labels_binary(criterion, output, class_axis)
    return tempered_divergence(past, output, temperature, class_axis=class_axis, binary=binary, counted=counted)


def tempered_divergence(
    target: Tensor,
    output: Tensor,
    temperature: float,
    *,
    class_axis: int = 1,
    binary: bool = False,
    counted: Tensor | None = None,
) -> Tensor:
    """Return ``KL(softmax(target / T) || softmax(output / T))`` of every sample, or that of its binary labels."""
    # Du et al. 2022, eq. 8 and 12: the target comes first and is detached. Computed in at least float32,
    # outside autocast. Its gradient shrinks as 1/T^2. One logit z stands for the two classes (z, 0).
    with outside_autocast(output.device):
        wide = torch.promote_types(torch.promote_types(output.dtype, target.dtype), torch.float32)
        past, now = target.detach().to(wide) / temperature, output.to(wide) / temperature
        if binary:
            terms = sum(_relative(F.logsigmoid(s * past), F.logsigmoid(s * now)) for s in (1, -1))
            assert isinstance(terms, Tensor)
            terms = terms.sum(class_axis) if terms.ndim > class_axis else terms
        else:
            terms = _relative(torch.log_softmax(past, class_axis), torch.log_softmax(now, class_axis)).sum(class_axis)
        if counted is None or counted.shape != terms.shape:
            return terms.reshape(terms.shape[0], -1).mean(1)
        places = tuple(range(1, terms.ndim))
        return torch.where(counted, terms, 0).sum(places) / counted.sum(places).clamp(min=1)


def _relative(past: Tensor, now: Tensor) -> Tensor:
    return past.exp() * (past - now)


def outside_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which operations keep the precision of what they are given."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
