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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from lowland.core.errors import InputError, require
from lowland.core.params import ParameterSpace
from lowland.core.per_sample import loss_settings, per_sample_loss
from lowland.core.risk import EmpiricalRisk
from lowland.core.seeds import generator
from lowland.core.types import Batch, forward
from lowland.curvature.graph import check_finite, check_twice_differentiable, kinked
from lowland.curvature.risk_operator import AbstractRiskOperator, BatchGraph
from lowland.curvature.trace import ProbeEstimate, estimate


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
            self.check_reached()
            return BatchGraph(space.tensors, weight.sum().detach())
        if not self.built:
            check_twice_differentiable(values.sum())
            self.kinks = kinked([values, output])
        (slope,) = torch.autograd.grad(values.sum(), inner, create_graph=True)
        active = [p for p in space.tensors if p.requires_grad]
        dummy = torch.zeros_like(output, requires_grad=True)
        pulled = torch.autograd.grad(output, active, dummy, create_graph=True, allow_unused=True)
        check_finite([output, slope])
        used = {p: g for p, g in zip(active, pulled, strict=True) if g is not None and g.requires_grad}
        sources, roots = (list(used), [slope, *used.values()]) if slope.requires_grad else ([], [])

        def along(parts: Sequence[Tensor]) -> Sequence[Tensor]:
            pushed = torch.autograd.grad(roots[1:], dummy, parts, retain_graph=True)[0]
            return torch.autograd.grad(slope, inner, pushed, retain_graph=True, materialize_grads=True)

        return BatchGraph(space.tensors, weight.sum().detach(), sources, [output], [output, *roots], along)


def gauss_newton_trace(
    risk: EmpiricalRisk, *, draws: int = 16, modules: Sequence[str] | None = None, seed: int = 0
) -> ProbeEstimate:
    """Return the trace of the Gauss-Newton matrix of a cross entropy by backward passes alone.

    For cross entropy the curvature by outputs is ``diag p - p p^T = E (p - e_y)(p - e_y)^T`` with labels y drawn from
    the network's own probabilities p (Fisher information), so that the trace is ``E ||sum_i s_i J_i^T (p_i -
    e_y_i)||^2`` with random signs s. A draw costs a forward and a backward pass, and holds nothing larger than the
    logits: no matrix of logits by classes, however large the vocabulary.

    Args:
        risk: A risk made from `torch.nn.CrossEntropyLoss` or its function, without label smoothing.
        draws: Draws of labels and signs, at least 2. Default 16.
        modules: Names of submodules whose parameters count; None takes all.
        seed: Seed of labels and signs.

    Raises:
        InputError: If the loss is another one, or the model returns no single tensor.

    Example:
        >>> from lowland.core.risk import EmpiricalRisk
        >>> data = [(torch.eye(3), torch.arange(3))]
        >>> risk = EmpiricalRisk(torch.nn.Linear(3, 3), torch.nn.CrossEntropyLoss(), data)
        >>> gauss_newton_trace(risk).value > 0
        True
    """
    require(draws >= 2, "draws", "must be at least 2", draws)
    loss = risk.loss
    settings = loss_settings(loss) if loss is not None else {}
    plain = isinstance(loss, nn.CrossEntropyLoss) or loss is nn.functional.cross_entropy
    if not plain or settings.get("label_smoothing", 0.0):
        rule = "must be made from torch.nn.CrossEntropyLoss without label smoothing"
        raise InputError("risk", rule, type(loss).__name__, "trace(GaussNewton(risk)) takes any loss")
    samples = []
    with risk.prepared():
        risk.recalibrate()
        space = ParameterSpace(risk.model, modules=modules)
        for index in range(draws):
            sums, weight = space.zeros(), 0.0
            with risk.ranks.together():
                for batch in risk.batches():
                    weight += _add_slopes(risk, batch, space, sums, (seed, index, risk.ranks.number))
            risk.ranks.sum(sums)
            total = sum(risk.ranks.gather(weight))
            samples.append(sum(float(part.double().square().sum()) for part in sums) / total)
    return estimate(np.asarray(samples), 0, "labels drawn from the model", seed)


def _add_slopes(
    risk: EmpiricalRisk, batch: Batch, space: ParameterSpace, sums: list[Tensor], key: tuple[int, int, int]
) -> float:
    """Add the slopes along ``s_i sqrt(w_i) (p_i - e_y_i)`` of a batch, and return the total of its weights w."""
    logits: Any = forward(risk.model, batch)
    if not isinstance(logits, Tensor) or logits.ndim < 2:
        raise InputError("model", "must return one tensor of logits", type(logits).__name__)
    drawn = generator(key[0], "probe", "labels", key[1], key[2], batch.number or 0)
    flat = torch.softmax(logits.detach().to(torch.promote_types(logits.dtype, torch.float32)), 1).movedim(1, -1)
    shape, flat = flat.shape, flat.reshape(-1, logits.shape[1])
    uniform = torch.as_tensor(drawn.random(len(flat)), device="cpu").to(flat)
    labels = torch.searchsorted(flat.cumsum(1), uniform[:, None]).clamp(max=flat.shape[1] - 1)
    flips = torch.as_tensor(drawn.integers(0, 2, len(flat)) * 2.0 - 1.0, device="cpu").to(flat)
    each = _weights(risk.loss, batch.target, flat)
    slope = flat.scatter_add(1, labels, flat.new_full(labels.shape, -1.0)) * (each.sqrt() * flips)[:, None]
    slope = slope.reshape(shape).movedim(-1, 1).to(logits)
    parts = torch.autograd.grad(logits, space.tensors, slope, allow_unused=True, materialize_grads=True)
    torch._foreach_add_(sums, [part.to_dense() if part.is_sparse else part for part in parts])
    return float(risk.loss_terms(batch)[1])


def _weights(loss: Any, target: Tensor, flat: Tensor) -> Tensor:
    """Return what each output counts in the sum of a cross entropy: class weights, and 0 where it is ignored."""
    classes = getattr(loss, "weight", None)
    classes = flat.new_ones(flat.shape[1]) if classes is None else classes.to(flat)
    if target.is_floating_point():  # probabilities of classes
        return target.movedim(1, -1).reshape(-1, flat.shape[1]).to(flat) @ classes
    labels = target.reshape(-1)
    ignored = labels == getattr(loss, "ignore_index", -100)
    return torch.where(ignored, 0.0, classes[labels.masked_fill(ignored, 0)])
