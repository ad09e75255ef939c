"""On which data sharpness is measured, in which metric, and on which outputs: the choices that decide the number.

Andriushchenko et al., "A modern look at the relationship between sharpness and generalization", 2023, section 3: 1,024
training samples, the maximum taken on batches of 128 each, evaluation mode, no augmentation; radii plain (c = 1) or
adaptive (c = |w|); outputs as they are or normalized (centered, length one), since cross entropy can be scaled away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Literal

import torch
from torch import Tensor

from lowland.core.batches import joined, take
from lowland.core.contexts import forked_rng
from lowland.core.errors import InputError, check_positive, require
from lowland.core.per_sample import per_sample_loss
from lowland.core.risk import EmpiricalRisk
from lowland.core.seeds import generator
from lowland.core.types import Batch, Measured, forward

Metric = Literal["plain", "adaptive", "keskar"]
"""Unit of length of every weight: 1, ``|w|``, or ``|w| + 1`` (the box of Keskar et al. 2017, equation 3)."""


_UNITS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "plain": torch.ones_like,
    "adaptive": torch.abs,
    "keskar": lambda w: w.abs() + 1,
}


def metric(base: Sequence[Tensor], kind: Metric) -> list[Tensor]:
    """Return the unit of length of every weight."""
    require(kind in _UNITS, "metric", 'must be "plain", "adaptive" or "keskar"', kind)
    return [_UNITS[kind](w) for w in base]


def protocol_risk(
    risk: EmpiricalRisk, *, samples: int | None = 1024, batch_size: int | None = 128, seed: int = 0
) -> EmpiricalRisk:
    """Return the risk on a fixed subset of its samples, in batches of a given size.

    Args:
        risk: A risk on training data.
        samples: Size of the subset; fewer if there are fewer; None takes all. Default 1024.
        batch_size: Samples per batch; None keeps one batch. Default 128.
        seed: Seed of the subset.
    """
    check_positive(samples=samples, batch_size=batch_size)
    require(risk.ranks.alone, "risk", "must not be shared by ranks where a fixed subset of its samples is taken")
    with forked_rng():  # a loader draws a seed each time it is read
        parts = list(risk.batches())
    total = sum(part.size for part in parts)
    count = total if samples is None else min(samples, total)
    chosen = torch.as_tensor(generator(seed, "subsample").choice(total, count, replace=False), device="cpu").sort()[0]
    picked = take(joined(parts), chosen)
    step = batch_size or count
    batches = [take(picked, range(start, min(start + step, count))) for start in range(0, count, step)]
    return risk.replaced(batches=[replace(batch, number=number) for number, batch in enumerate(batches)])


def logits_normalized(risk: EmpiricalRisk) -> EmpiricalRisk:
    """Return the risk on outputs that are centered and divided by their length, sample by sample.

    Args:
        risk: A risk made from a loss on outputs of shape [n, classes].

    Returns:
        A new risk of the same model, data and mode; only the loss is measured.

    Raises:
        InputError: If the risk is not made from a loss, or (when measured) the output has no classes.
    """
    loss = risk.loss
    if loss is None or risk.custom is not None:
        raise InputError("risk", "must be made from a loss, not from `evaluate`, to normalize outputs")

    def evaluate(model: torch.nn.Module, batch: Batch, /) -> Measured:
        output = forward(model, batch)
        if not isinstance(output, Tensor) or output.ndim < 2:
            raise InputError("model", "must return scores of shape [n, classes]", type(output).__name__)
        if output.shape[1] < 2:
            rule = "must have at least two scores per sample to be normalized"
            raise InputError("risk", rule, tuple(output.shape), "leave out the measures with normalized=True")
        centered = output - output.mean(1, keepdim=True)
        length = torch.linalg.vector_norm(centered, dim=1, keepdim=True)
        values, weights = per_sample_loss(loss, centered / length.clamp(min=1e-12), batch.target, batch=batch)
        return {"loss": values if weights is None else (values, weights)}

    return risk.replaced(evaluate=evaluate)
