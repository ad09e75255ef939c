"""A network whose Hessian is known, and the dense Hessian of any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lowland.core.contexts import evaluation_mode


class Planted(nn.Module):
    """A model of one weight vector at 0 whose mean squared error against -1/2 has a Hessian of given eigenvalues."""

    # With the output q(w) = w^T A w / 2 the loss (q + 1/2)^2 has the Hessian 2 (q + 1/2) A + ..., at w = 0 exactly A.
    # The eigenvectors are those of a random rotation.

    matrix: Tensor

    def __init__(self, eigenvalues: Sequence[float]) -> None:
        super().__init__()
        values = torch.tensor(eigenvalues, dtype=torch.float64)
        generator = torch.Generator().manual_seed(11)
        rotation = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
        self.weight = nn.Parameter(torch.zeros(len(values), dtype=torch.float64))
        self.register_buffer("matrix", (rotation * values) @ rotation.T)

    def forward(self, x: Tensor) -> Tensor:
        """Return q(w) for every sample, shape [n, 1]."""
        return 0.5 * (self.weight @ self.matrix @ self.weight) + 0 * x


def planted_data(samples: int = 6) -> tuple[Tensor, Tensor]:
    """Return data for `Planted`."""
    return torch.ones(samples, 1, dtype=torch.float64), torch.full((samples, 1), -0.5, dtype=torch.float64)


def dense_hessian(model: nn.Module, loss: Any, x: Any, y: Tensor) -> Tensor:
    """Return the Hessian of the loss on one batch in evaluation mode, the slow way."""
    named = dict(model.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def total(vector: Tensor) -> Tensor:
        parts = torch.split(vector, sizes)
        weights = {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}
        value: Tensor = loss(functional_call(model, weights, (x,), tie_weights=True), y)
        return value

    here = torch.cat([p.detach().reshape(-1) for p in named.values()])
    # fused attention and oneDNN's recurrent kernels have no second derivatives
    with evaluation_mode(model), sdpa_kernel([SDPBackend.MATH]), torch.backends.mkldnn.flags(enabled=False):
        found: Tensor = torch.autograd.functional.hessian(total, here)  # type: ignore[no-untyped-call]
    return found
