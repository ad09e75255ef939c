"""The Hessian of the empirical risk, by reverse-over-reverse.

Pearlmutter, "Fast exact multiplication by the Hessian", 1994: ``H v = d/dw (g(w) . v)``. Only the second backward pass
runs per product: the forward pass and the first backward pass are kept (see `risk_operator`).
"""

from __future__ import annotations

import torch
from typing_extensions import override

from lowland.core.errors import InputError
from lowland.core.params import ParameterSpace
from lowland.core.types import Batch
from lowland.curvature.graph import check_finite, check_twice_differentiable, kinked
from lowland.curvature.risk_operator import AbstractRiskOperator, BatchGraph


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
            self.check_reached()
            return BatchGraph(space.tensors, weight)
        if not self.built:
            check_twice_differentiable(loss)
            self.kinks = kinked([loss])
        gradients = torch.autograd.grad(loss, active, create_graph=True, allow_unused=True)
        used = [(p, g) for p, g in zip(active, gradients, strict=True) if g is not None]
        if any(g.is_sparse for _, g in used):
            advice = "call functional.embedding with sparse=False"
            raise InputError("model", "must give dense gradients for curvature", "sparse", advice)
        check_finite([g for _, g in used])
        sources, curved = [p for p, g in used if g.requires_grad], [g for _, g in used if g.requires_grad]
        return BatchGraph(space.tensors, weight, sources, curved, curved)
