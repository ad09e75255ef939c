"""The diagonal of an operator, and the trace of every tensor's block, from the same random probes.

Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", 2007: ``E z * (A z) = diag A`` for random
signs z. Summed over the entries of one tensor it is that tensor's trace, so that one product serves all layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowland.core.errors import InputError, require
from lowland.core.facts import ShowsFacts
from lowland.core.moments import wide_type
from lowland.curvature.counted import counted
from lowland.curvature.eigenvalues import Source, as_operator
from lowland.curvature.operator import AbstractOperator
from lowland.curvature.trace import ProbeEstimate, estimate, images, signs


@dataclass(repr=False, frozen=True, slots=True)
class DiagonalEstimate(ShowsFacts):
    """An estimated diagonal.

    Args:
        values: Shape [n], float64.
        standard_error: Of each entry over probes, shape [n].
        probes: Number of probes, one product each.
        seed: Seed of the probes.
    """

    values: Tensor
    standard_error: Tensor
    probes: int
    seed: int

    def _facts(self) -> dict[str, str]:
        return {"": f"{len(self.values)} entries", "probes": str(self.probes)}


def diagonal(
    source: Source, *, probes: int = 32, chunk: int = 8, seed: int = 0, progress: bool = False
) -> DiagonalEstimate:
    """Return the diagonal with a standard error for each entry.

    Memory: up to 3 sets of weights for each of `chunk` vectors, and a dozen more.

    Args:
        source: A risk (its Hessian) or an operator.
        probes: Number of probes, one product each; at least 2. Default 32.
        chunk: Vectors multiplied at once. Default 8.
        seed: Seed of the probes.
        progress: Show a bar, in a terminal or a notebook. Default False.

    Returns:
        The estimate; use ``operator.split`` for tensors by name.

    Example:
        >>> from lowland.curvature.operator import MatrixOperator
        >>> diagonal(MatrixOperator(torch.diag(torch.tensor([1.0, 2.0]))), probes=2).values.tolist()
        [1.0, 2.0]
    """
    operator = as_operator(source)
    mean = torch.zeros(operator.size, dtype=torch.float64, device=operator.device)
    spread = torch.zeros_like(mean)
    with counted(operator, progress, "diagonal", probes):
        for count, product in enumerate(_products(operator, probes, chunk, seed), 1):
            change = product - mean
            mean += change / count
            spread += change * (product - mean)
    return DiagonalEstimate(mean, (spread / (probes - 1) / probes).sqrt(), probes, seed)


def layer_traces(
    source: Source, *, probes: int = 32, chunk: int = 8, seed: int = 0, progress: bool = False
) -> dict[str, ProbeEstimate]:
    """Return the trace of every tensor's diagonal block by name; they add up to the trace. Arguments as in `diagonal`.

    Memory: up to 3 sets of weights for each of `chunk` vectors, and a dozen more.

    An operator without parameter names is refused.
    """
    operator = as_operator(source)
    if operator.shapes is None:
        raise InputError("source", "must have parameter names", type(operator).__name__)
    samples: dict[str, list[float]] = {name: [] for name in operator.shapes}
    with counted(operator, progress, "traces of layers", probes):
        for product in _products(operator, probes, chunk, seed):
            for name, part in operator.split(product).items():
                samples[name].append(float(part.sum()))
    return {name: estimate(np.asarray(found), probes, "hutchinson", seed) for name, found in samples.items()}


def _products(operator: AbstractOperator, probes: int, chunk: int, seed: int) -> Iterator[Tensor]:
    """Yield ``z * (A z)`` in float64 for each probe z."""
    require(probes >= 2, "probes", "must be at least 2", probes)
    wide = wide_type(operator.device)
    vectors = (signs(operator, seed, index) for index in range(probes))
    for vector, image in images(operator, vectors, chunk):
        yield vector.to(wide) * image.to(wide)
