"""Slow twins: dense Hessian and Gauss-Newton matrix by torch.func, from torch's own mean loss over all data at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel


def _function(model: nn.Module, loss: Any, batches: Sequence[Any]) -> Any:
    """Return flat parameters -> (outputs of all batches, mean loss), and the flat parameters."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    tensors = [p.detach() for _, p in model.named_parameters() if p.requires_grad]
    sizes, shapes = [t.numel() for t in tensors], [t.shape for t in tensors]
    flat = torch.cat([t.reshape(-1) for t in tensors])

    def outputs(vector: Tensor) -> Tensor:
        values = [part.view(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)]
        named = dict(zip(names, values, strict=True))
        results = []
        for data, _ in batches:
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            args = () if isinstance(data, dict) else (data,)
            kwargs = data if isinstance(data, dict) else None
            results.append(functional_call(model, {**named, **buffers}, args, kwargs))
        return torch.cat(results)

    target = torch.cat([target for _, target in batches])
    return outputs, (lambda result: loss(result, target)), flat


def dense_hessian(model: nn.Module, loss: Any, batches: Sequence[Any]) -> Tensor:
    """Hessian of ``loss(cat(outputs), cat(targets))`` by reverse over reverse, entry by entry; the model as it is."""
    outputs, risk, flat = _function(model, loss, batches)
    with sdpa_kernel([SDPBackend.MATH]):
        return torch.autograd.functional.hessian(lambda w: risk(outputs(w)), flat)


def dense_hessian_by_func(model: nn.Module, loss: Any, batches: Sequence[Any]) -> Tensor:
    """The same by ``torch.func.hessian`` (forward over reverse), where that works."""
    outputs, risk, flat = _function(model, loss, batches)
    with sdpa_kernel([SDPBackend.MATH]):
        return torch.func.hessian(lambda w: risk(outputs(w)))(flat)


def dense_gauss_newton(model: nn.Module, loss: Any, batches: Sequence[Any]) -> Tensor:
    """``J^T (d^2 loss / d output^2) J`` with dense Jacobian and output Hessian."""
    outputs, risk, flat = _function(model, loss, batches)
    with sdpa_kernel([SDPBackend.MATH]):
        result = outputs(flat)
        jacobian = jacrev(outputs)(flat).reshape(result.numel(), -1)
    inner = torch.func.hessian(risk)(result).reshape(result.numel(), result.numel())
    return jacobian.T @ inner @ jacobian
