"""Merging of checkpoints with the weights that stand for a decay of the learning rate."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lowland.core.errors import CheckpointError, require
from lowland.core.params import differing_shapes
from lowland.optim.options import check_count
from lowland.optim.rates import Decay, decay_of


def merge_weights(count: int, decay: Decay = "1-sqrt", *, floor: float = 0.0) -> list[float]:
    r"""Return the weights by which checkpoints under a constant rate become those of a decayed one.

    .. math:: \sum_j c_j \theta_j = \theta_0 + \sum_i D(i / n)\, (\theta_i - \theta_{i-1}), \qquad
        c_j = D(j / n) - D((j + 1) / n), \quad D(0) = 1, \ D(1) = 0

    so that every update counts as much as the decayed rate would let it. It is exact for these updates, and promises
    nothing about gradients at the weights of a decayed run. Tian et al., "WSM: Decay-Free Learning Rate Schedule via
    Checkpoint Merging for LLM Pre-training", ICLR 2026 (arXiv 2507.17634).

    Args:
        count: n: number of checkpoints, equally far apart.
        decay: D: ``"linear"`` (all weigh the same), ``"cosine"`` (the middle most), ``"1-sqrt"`` (the oldest), or a
            function of the share done, from 1 to 0; ``lambda x: 1 - b ** (n * (1 - x))`` is an exponential average.
            Default ``"1-sqrt"`` (paper: at least as good as the mean).
        floor: Where the decay ends, as a multiple. Default 0.

    Returns:
        One weight per checkpoint, oldest first; they add up to 1.

    Raises:
        InputError: If the decay rises anywhere, which would be a negative weight.

    Example:
        >>> merge_weights(4, "linear")
        [0.25, 0.25, 0.25, 0.25]
        >>> [round(weight, 3) for weight in merge_weights(4, "1-sqrt")]
        [0.5, 0.207, 0.159, 0.134]
    """
    check_count("count", count, 1)
    factor = decay_of(decay, floor)
    shares = [1.0, *(factor(i / count) for i in range(1, count)), 0.0]
    weights = [before - after for before, after in itertools.pairwise(shares)]
    require(min(weights) >= -1e-12, "decay", "must not rise, nor leave [0, 1]", shares)
    return weights


@torch.no_grad()
def merge(checkpoints: Iterable[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted sum of state dicts, which are read one at a time.

    Sums are in float32 at least, and end in the type of the last checkpoint; integers (counters) are the last one's.
    Batch-norm statistics are summed like weights, and want to be renewed: ``core.contexts.recalibrate``.

    Args:
        checkpoints: State dicts of one model, oldest first; a generator is fine.
        weights: One weight each, such as `merge_weights`.

    Returns:
        Name -> tensor.

    Raises:
        InputError: If there are more or fewer checkpoints than weights, or weights do not add up to 1.
        CheckpointError: If names or shapes differ.

    Example:
        >>> states = [{"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}]
        >>> merge(states, merge_weights(2, "linear"))
        {'w': tensor([0.5000])}
    """
    require(abs(sum(weights) - 1) < 1e-6, "weights", "must add up to 1", sum(weights))
    sums: dict[str, Tensor] = {}
    last: Mapping[str, Tensor] = {}
    seen = 0
    for seen, last in enumerate(checkpoints, 1):
        advice = "read files by models.read_weights"
        require(isinstance(last, Mapping), "checkpoints", "must be state dicts", type(last).__name__, advice)
        if sums and (table := differing_shapes(sums, last)):
            rule = f"checkpoint {seen} is of another model than those before"
            raise CheckpointError(f"{rule}; it differs at\n{table}")
        for name, tensor in last.items() if seen <= len(weights) else ():
            if tensor.is_floating_point() or tensor.is_complex():
                part = tensor.to(torch.promote_types(tensor.dtype, torch.float32)) * weights[seen - 1]
                sums[name] = part if seen == 1 else sums[name].add_(part)
            else:
                sums[name] = tensor
    require(seen == len(weights), "weights", f"must be as many as checkpoints, {seen}", len(weights))
    return {name: value.to(last[name].dtype, copy=True) for name, value in sums.items()}
