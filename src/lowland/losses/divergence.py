"""The divergence between tempered outputs that SAF and MESA add to the loss."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["outside_autocast", "tempered_divergence"]


def tempered_divergence(target: Tensor, output: Tensor, temperature: float, *, class_axis: int = 1) -> Tensor:
    """Return ``KL(softmax(target / T) || softmax(output / T))`` of every sample."""
    # Du et al. 2022, eq. 8 and 12: the target comes first and is detached. Computed in at least float32,
    # outside autocast. Its gradient shrinks as 1/T^2.
    with outside_autocast(output.device):
        wide = torch.promote_types(torch.promote_types(output.dtype, target.dtype), torch.float32)
        past = torch.log_softmax(target.detach().to(wide) / temperature, dim=class_axis)
        now = torch.log_softmax(output.to(wide) / temperature, dim=class_axis)
        terms = (past.exp() * (past - now)).sum(class_axis)
        return terms.reshape(terms.shape[0], -1).mean(1)


def outside_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which operations keep the precision of what they are given."""
    known = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if known else nullcontext()
