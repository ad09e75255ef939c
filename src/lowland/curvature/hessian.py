"""The Hessian of the empirical risk, by reverse-over-reverse.

Pearlmutter, "Fast exact multiplication by the Hessian", 1994: ``H v = d/dw (g(w) . v)``. Only the second backward pass
runs per product: the forward pass and the first backward pass are kept (see `risk_operator`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lowland.core.errors import InputError
from lowland.core.params import ParameterSpace
from lowland.core.types import Batch
from lowland.curvature.graph import check_finite, check_twice_differentiable
from lowland.curvature.risk_operator import AbstractRiskOperator, BatchGraph

__all__ = ["Hessian"]


class Hessian(AbstractRiskOperator):
    """The Hessian of a risk at the model's present weights, or the block of it that belongs to some modules.

    Exact for every batching, reduction, class weights and ``ignore_index``; unused and frozen parameters give zeros;
    fused attention and recurrent layers work. Arguments as in `AbstractRiskOperator`.

    Example:
        >>> from lowland.core.risk import EmpiricalRisk
        >>> data = [(torch.eye(2), torch.ones(2, 1))]
        >>> risk = EmpiricalRisk(torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss(), data)
        >>> Hessian(risk).dense().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    @override
    def build(self, batch: Batch, space: ParameterSpace) -> BatchGraph:
        loss, weight = self.risk.loss_terms(batch)
        active = [p for p in space.tensors if p.requires_grad]
        if not loss.requires_grad:
            return _HessianGraph(space.tensors, [], [], weight)
        if not self.built:
            check_twice_differentiable(loss)
        gradients = torch.autograd.grad(loss, active, create_graph=True, allow_unused=True)
        used = [(p, g) for p, g in zip(active, gradients, strict=True) if g is not None]
        if any(g.is_sparse for _, g in used):
            raise InputError("model", "must give dense gradients for curvature", "sparse",
                             "call functional.embedding with sparse=False")  # fmt: skip
        check_finite([g for _, g in used])
        curved = [(p, g) for p, g in used if g.requires_grad]
        return _HessianGraph(space.tensors, [p for p, _ in curved], [g for _, g in curved], weight)


@dataclass(slots=True)
class _HessianGraph:
    """Gradients with graph of those parameters whose gradient depends on parameters."""

    tensors: Sequence[Tensor]
    sources: Sequence[Tensor]
    roots: Sequence[Tensor]
    weight: Tensor

    def product(self, parts: Sequence[Tensor], *, keep: bool) -> Sequence[Tensor]:
        """Return the product with one vector; see `BatchGraph`."""
        if not self.roots:
            return [torch.zeros_like(p) for p in self.tensors]
        place = {id(p): part for p, part in zip(self.tensors, parts, strict=True)}
        active = [p for p in self.tensors if p.requires_grad]
        results = torch.autograd.grad(
            self.roots, active, [place[id(p)] for p in self.sources],
            retain_graph=keep, allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        found = {id(p): result for p, result in zip(active, results, strict=True)}
        return [found[id(p)] if id(p) in found else torch.zeros_like(p) for p in self.tensors]
