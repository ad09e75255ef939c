"""The generalized Gauss-Newton matrix of the empirical risk: the Hessian without the curvature of the network.

``G v = J^T (d^2 L / dz^2) (J v)`` with the outputs z and their Jacobian J (Schraudolph, "Fast curvature matrix-vector
products", 2002). For cross entropy and squared error it is positive semidefinite, and for cross entropy equal to the
Fisher information.

Deviations from the textbook:
1. ``J v`` is taken in reverse mode, as the derivative of ``J^T u`` by u, which is linear in u: forward mode fails on
   recurrent layers and on fused attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lowland.core.errors import InputError
from lowland.core.params import ParameterSpace
from lowland.core.per_sample import per_sample_loss
from lowland.core.types import Batch, forward
from lowland.curvature.graph import check_finite, check_twice_differentiable
from lowland.curvature.risk_operator import AbstractRiskOperator, BatchGraph

__all__ = ["GaussNewton"]


class GaussNewton(AbstractRiskOperator):
    """The Gauss-Newton matrix of a risk at the model's present weights. Arguments as in `AbstractRiskOperator`.

    The risk must be made from a loss: with ``evaluate`` there is no telling the output from the loss.

    Example:
        >>> from lowland.core.risk import EmpiricalRisk
        >>> data = [(torch.eye(2), torch.ones(2, 1))]
        >>> risk = EmpiricalRisk(torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss(), data)
        >>> GaussNewton(risk).dense().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    @override
    def build(self, batch: Batch, space: ParameterSpace) -> BatchGraph:
        if self.risk.loss is None:
            raise InputError("risk", "must be made from a loss, not from `evaluate`, for the Gauss-Newton matrix")
        output: Any = forward(self.risk.model, batch)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            raise InputError("model", "must return one tensor for the Gauss-Newton matrix", type(output).__name__)
        inner = output.detach().requires_grad_()
        values, weights = per_sample_loss(self.risk.loss, inner, batch.target, batch=batch)
        if weights is None or (values.ndim and not isinstance(weights, Tensor)):
            weights = float(values.numel()) * (1.0 if weights is None else weights)
        weight = torch.as_tensor(weights, device=output.device)
        if not values.requires_grad or not output.requires_grad:
            return _GaussNewtonGraph(space.tensors, output, inner, [], [], [], output, weight.sum().detach())
        if not self.built:
            check_twice_differentiable(values.sum())
        (slope,) = torch.autograd.grad(values.sum(), inner, create_graph=True)
        active = [p for p in space.tensors if p.requires_grad]
        dummy = torch.zeros_like(output, requires_grad=True)
        pulled = torch.autograd.grad(output, active, dummy, create_graph=True, allow_unused=True)
        used = [(p, g) for p, g in zip(active, pulled, strict=True) if g is not None and g.requires_grad]
        check_finite([output, slope])
        return _GaussNewtonGraph(
            space.tensors, output, inner, [slope] if slope.requires_grad else [],
            [p for p, _ in used], [g for _, g in used], dummy, weight.sum().detach(),
        )  # fmt: skip


@dataclass(slots=True)
class _GaussNewtonGraph:
    """Outputs, the loss's slope at them, and the pulled-back dummy, all with graph."""

    tensors: Sequence[Tensor]
    output: Tensor
    inner: Tensor
    slope: Sequence[Tensor]
    sources: Sequence[Tensor]
    pulled: Sequence[Tensor]
    dummy: Tensor
    weight: Tensor

    @property
    def roots(self) -> Sequence[Tensor]:
        """What the graph hangs on."""
        return [self.output, *self.slope, *self.pulled]

    def product(self, parts: Sequence[Tensor], *, keep: bool) -> Sequence[Tensor]:
        """Return the product with one vector; see `BatchGraph`."""
        if not self.pulled or not self.slope:
            return [torch.zeros_like(p) for p in self.tensors]
        place = {id(p): part for p, part in zip(self.tensors, parts, strict=True)}
        pushed = torch.autograd.grad(
            self.pulled, self.dummy, [place[id(p)] for p in self.sources], retain_graph=True
        )[0]  # fmt: skip
        bent = torch.autograd.grad(self.slope, self.inner, pushed, retain_graph=True, materialize_grads=True)[0]
        active = [p for p in self.tensors if p.requires_grad]
        results = torch.autograd.grad(
            self.output, active, bent, retain_graph=keep, allow_unused=True, materialize_grads=True
        )
        found = {id(p): result for p, result in zip(active, results, strict=True)}
        return [found[id(p)] if id(p) in found else torch.zeros_like(p) for p in self.tensors]
