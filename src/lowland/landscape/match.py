"""Weight matching: the order of hidden units of one model brought in line with another's before they share a line.

Ainsworth, Hayase and Srinivasa 2023 (Git Re-Basin), Section 3.2, Algorithm 1: coordinate descent over groups of units
that are permuted together; each step is a linear assignment that maximizes the inner product with the first model.

Deviations from the paper:
1. Which units belong together is found by tracing the model instead of being written down per architecture. Tensors
   whose channels meet in an addition share a group; whatever the tracer does not know stays in its order.
2. After matching the outputs are compared with those before: a permutation must not change the function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowland.core.contexts import evaluation_mode, measuring
from lowland.core.errors import InputError
from lowland.core.params import copied, unwrap
from lowland.core.seeds import generator
from lowland.core.types import RawBatch, as_batch, forward
from lowland.landscape.checkpoints import Weights, as_model
from lowland.landscape.groups import Member, unit_groups


@dataclass(frozen=True, slots=True)
class Matching:
    """What weight matching found.

    Args:
        model: A copy of the second model with its units in the new order; the same function.
        permutations: New order of each group of units; entry i is the old place of the unit now at i.
        similarity_before: Cosine between the two models' weights before.
        similarity_after: And after.
        sweeps: Sweeps over all groups until nothing changed.
    """

    model: nn.Module
    permutations: tuple[np.ndarray[tuple[int], np.dtype[np.int64]], ...]
    similarity_before: float
    similarity_after: float
    sweeps: int


def match_weights(
    model: nn.Module, other: Weights, example: RawBatch, *, seed: int = 0, max_sweeps: int = 100
) -> Matching:
    """Return a model with its hidden units in the order in which its weights resemble another's as far as possible.

    Args:
        model: The model to be matched.
        other: The model whose units are reordered (a network, a state dict or the path of a checkpoint); it is not
            changed.
        example: A batch the models can run on; used to trace them, and to check that the function stays the same.
        seed: Seed of the order in which groups are visited.
        max_sweeps: Most sweeps over all groups. Default 100; a handful are needed.

    Raises:
        InputError: If the architectures differ, the model cannot be traced, or no group of units can be permuted.
    """
    matched = copied(as_model(model, other, "other"))
    with measuring(), torch.no_grad():
        return _matched(unwrap(model), matched, example, seed, max_sweeps)


def _matched(model: nn.Module, matched: nn.Module, example: RawBatch, seed: int, max_sweeps: int) -> Matching:
    ours, theirs = _state(model), _state(matched)
    if {n: t.shape for n, t in ours.items()} != {n: t.shape for n, t in theirs.items()}:
        raise InputError("other", "must have the architecture of the first model", type(matched).__name__)
    batch = as_batch(example)
    with evaluation_mode(model):  # tracing runs it, which would renew statistics
        groups = unit_groups(model, batch)
    before = _similarity(ours, theirs)
    with evaluation_mode(matched):
        expected = forward(matched, batch)
    orders = [np.arange(size) for size, _ in groups]
    stream = generator(seed, "order", "matching")
    sweeps, changed = 0, True
    while changed and sweeps < max_sweeps:
        sweeps, changed = sweeps + 1, False
        for number in stream.permutation(len(groups)):
            size, members = groups[number]
            found = _assignment(ours, theirs, size, members)
            if not np.array_equal(found, np.arange(size)):
                changed = True
                orders[number] = orders[number][found]
                _permute(theirs, members, found)
    with evaluation_mode(matched):
        _check_function(expected, forward(matched, batch))
    return Matching(matched, tuple(orders), before, _similarity(ours, theirs), sweeps)


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, tied ones under each of theirs; the tensors themselves."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _similarity(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    once = {id(t): name for name, t in reversed(list(ours.items())) if isinstance(t, nn.Parameter)}.values()
    names = [name for name in ours if name in set(once)]
    first = torch.cat([ours[name].double().reshape(-1) for name in names])
    second = torch.cat([theirs[name].double().reshape(-1) for name in names])
    return float(first @ second / (first.norm() * second.norm()))


def _assignment(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], size: int, members: list[Member]) -> Any:
    """Return the order of a group's units that maximizes the inner product, all other groups as they are."""
    from scipy.optimize import linear_sum_assignment  # slow to import; most workers do without

    gain = torch.zeros(size, size, dtype=torch.float64, device="cpu")
    for member in members:
        if isinstance(ours[member.name], nn.Parameter):
            gain += member.rows(ours[member.name], size) @ member.rows(theirs[member.name], size).T
    present = gain.diagonal().sum()
    rows, columns = linear_sum_assignment(gain.numpy(), maximize=True)
    better = gain[rows, columns].sum() > present * (1 + 1e-12) + 1e-12  # ties must not make it go on for ever
    return columns if bool(better) else np.arange(size)


def _permute(state: Mapping[str, Tensor], members: list[Member], order: Any) -> None:
    for member in members:
        tensor = state[member.name]
        tensor.copy_(member.reordered(tensor, torch.as_tensor(order, device="cpu")))


def _check_function(expected: Any, found: Any) -> None:
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return
    error = float((found - expected).abs().max())
    scale = float(expected.abs().max()) + 1e-12
    if not error <= 1e-3 * scale:
        rule = f"must be one whose units can be traced (reordering them changed the output by {error:.2g})"
        advice = "match it by hand, or draw the line without matching"
        raise InputError("model", rule, advice=advice)
