"""The Fisher-Rao norm of the weights: how much the outputs' losses change as all weights grow alike.

Liang et al., "Fisher-Rao metric, geometry, and complexity of neural networks", 2019, definition 2:
``||w||_fr^2 = <w, I(w) w>`` with ``I(w) = E[grad l(w) grad l(w)^T]``, so that ``||w||_fr^2 = E[<w, grad l(w)>^2]``.
For nets that are homogeneous of degree k in their weights (k layers of ReLU without biases) this is theorem 3.1's sum
over the outputs, ``k^2 E[(sum_j dl/df_j f_j)^2]``; the directional derivative itself, taken here, is right everywhere.

Deviations:
1. The expectation is the risk's own: a sample of weight v counts v times, with the gradient of its loss per unit of v.
2. Parameters that are not trained are no part of w.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lowland.core.contexts import differentiable_kernels
from lowland.core.errors import require
from lowland.core.moments import Estimate, Tally, estimates
from lowland.core.risk import EmpiricalRisk
from lowland.core.types import Batch
from lowland.curvature.numbers import number
from lowland.curvature.perturbed_risk import PerturbedRisk, perturbed_risk


@number("Fisher-Rao norm", units="loss")
def fisher_rao_norm(risk: EmpiricalRisk) -> Estimate:
    """Return the Fisher-Rao norm of the trainable weights.

    ``sqrt(E[<w, grad l(w)>^2])`` over the samples (Liang et al. 2019, definition 2), by one product per batch.

    Memory: 4 sets of weights.

    Args:
        risk: The risk; its losses must be known sample by sample.

    Returns:
        The norm (in units of the loss) with its standard error over samples, to first order.

    Raises:
        InputError: If only the totals of a batch are known, or the loss does not depend on the weights.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(layer.weight, 2.0)
        >>> risk = EmpiricalRisk(layer, torch.nn.MSELoss(), [(torch.ones(2, 1), torch.zeros(2, 1))])
        >>> fisher_rao_norm(risk).value  # |w d(w^2)/dw| = 2 w^2
        8.0
    """
    tally = Tally()
    with perturbed_risk(risk) as here, differentiable_kernels(risk.model), risk.ranks.together():
        here.move(None)
        for batch in risk.batches():
            tally.add({"square": _squares(here, batch)})
    square = estimates([tally], risk.ranks)[0]["square"]
    norm = math.sqrt(square.value) if square.value >= 0 else math.nan
    error = square.standard_error / (2 * norm) if norm > 0 else square.standard_error
    return replace(square, value=norm, standard_error=error)


def _squares(here: PerturbedRisk, batch: Batch) -> tuple[Tensor, Tensor | float | None]:
    """Return ``w_i <w, grad l_i>^2`` of every sample, and the weights of the samples."""
    values, weights = here.risk.measure(batch)["loss"]
    require(values.ndim, "risk", "must give the loss of every sample, not of a batch alone")
    require(values.requires_grad, "risk", "must depend on the parameters by differentiable operations")
    slope = _slope(values, here.space.tensors, here.base).detach().double()
    if isinstance(weights, Tensor):
        weights = weights.detach().double().expand(slope.shape)
    each = torch.as_tensor(1.0 if weights is None else weights, dtype=slope.dtype, device=slope.device)
    return torch.where(each == 0, 0.0, slope**2 / torch.where(each == 0, 1.0, each)), weights


def _slope(values: Tensor, tensors: Sequence[Tensor], direction: Sequence[Tensor]) -> Tensor:
    """Return the derivative of every value along a direction: twice backward, with the weights of the values free."""
    free = torch.zeros_like(values, requires_grad=True)
    parts = torch.autograd.grad(values, tensors, free, create_graph=True, allow_unused=True)
    used = [(part, along) for part, along in zip(parts, direction, strict=True) if part is not None]
    total = torch.stack([(part * along).sum() for part, along in used]).sum()
    return torch.autograd.grad(total, free, materialize_grads=True)[0]
