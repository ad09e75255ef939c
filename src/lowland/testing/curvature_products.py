"""Rules of curvature tools: products with the Hessian."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowland.testing.adapters import CurvatureAdapter
from lowland.testing.networks import Attention, Recurrent, Tied, mlp, seeded, split, unchanged
from lowland.testing.planted import dense_hessian
from lowland.testing.rulebook import demand, rule


def data_of(samples: int = 11, *shape: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of three classes, in float64."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, *(shape or (6,)), generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (samples,), generator=generator)


def vector_of(model: nn.Module) -> Tensor:
    """Return a vector with an entry for each weight."""
    size = sum(p.numel() for p in model.parameters())
    return torch.randn(size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def compare(
    adapter: CurvatureAdapter,
    model: nn.Module,
    loss: Any = None,  # cross-entropy
    data: tuple[Tensor, Tensor] | None = None,
    sizes: Sequence[int] = (11,),  # of the batches
    tolerance: float = 1e-5,
) -> None:
    """Demand that the product is the one with the dense Hessian."""
    (x, y), loss = data or data_of(), loss or nn.CrossEntropyLoss()
    x, vector = (values.to(next(model.parameters()).dtype) for values in (x, vector_of(model)))
    found = adapter.product(model.eval(), loss, split(x, y, sizes), vector).detach().double()
    exact = (dense_hessian(model, loss, x, y) @ vector).double()
    demand(found.shape == exact.shape, f"the product has {len(found)} entries, the model {len(exact)} parameters")
    gap = float((found - exact).norm() / exact.norm())
    demand(gap < tolerance, f"the product is {gap:.1%} away from the exact one")


@rule("The least that everything else stands on.")
def product_is_exact(adapter: CurvatureAdapter) -> None:
    """On one batch the product is that with the dense Hessian."""
    compare(adapter, mlp())


@rule("A mean over batch means gives the last sample ten times its weight; every loader has a last batch.")
def ragged_batches(adapter: CurvatureAdapter) -> None:
    """Batches of 10 and 1 give the Hessian of all 11 samples."""
    compare(adapter, mlp(), sizes=(10, 1))


@rule("Weighting sums by batch sizes counts the size twice.")
def sum_reduction(adapter: CurvatureAdapter) -> None:
    """With ``reduction="sum"`` the Hessian does not depend on how samples are batched."""
    model, (x, y), loss = mlp().eval(), data_of(), nn.CrossEntropyLoss(reduction="sum")
    vector = vector_of(model)
    whole = adapter.product(model, loss, [(x, y)], vector)
    parts = adapter.product(model, loss, split(x, y, (7, 4)), vector)
    gap = float((whole - parts).norm() / whole.norm())
    demand(gap < 1e-5, f"batches of 7 and 4 give a product {gap:.1%} away from that of one batch of 11")


@rule("Their means are divided by sums of weights, not by numbers of samples.")
def weights_of_samples(adapter: CurvatureAdapter) -> None:
    """With class weights and ignored targets, batches give the Hessian of all samples at once."""
    x, y = data_of()
    y[[1, 8]] = -100
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64))
    compare(adapter, mlp(), loss, (x, y), (6, 5))


@rule("Most training code has one.")
def plain_function_as_loss(adapter: CurvatureAdapter) -> None:
    """A function such as ``torch.nn.functional.cross_entropy`` may be the loss."""
    compare(adapter, mlp(), F.cross_entropy)


@rule("Models with several heads have such.")
def unused_parameter(adapter: CurvatureAdapter) -> None:
    """A parameter that the loss does not use has zeros and does not fail."""
    model = mlp()
    model.register_parameter("spare", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    compare(adapter, model)


@rule("Its gradient has no graph left to differentiate.")
def loss_without_curvature(adapter: CurvatureAdapter) -> None:
    """A loss that is linear in all weights has the product 0 and does not fail."""

    class Mean(nn.MSELoss):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            del target
            return output.mean(1) if self.reduction == "none" else output.mean()

    (x, y), model = data_of(), seeded(3, lambda: nn.Linear(6, 3)).double().eval()
    largest = float(adapter.product(model, Mean(), [(x, y)], vector_of(model)).abs().max())
    demand(largest < 1e-9, f"the product has entries up to {largest:.2g}")


@rule("Language models tie their embedding to their head.")
def tied_weights_count_once(adapter: CurvatureAdapter) -> None:
    """A weight that two layers share is one set of coordinates."""
    compare(adapter, seeded(3, lambda: Tied(6, 3)).double())


@rule("Its fused kernels have no second derivatives, in neither direction; transformers use them by default.")
def fused_attention(adapter: CurvatureAdapter) -> None:
    """Models with ``scaled_dot_product_attention`` work without a change by the user."""
    compare(adapter, seeded(3, lambda: Attention(3)).double(), data=data_of(5, 3, 2), sizes=(5,))


@rule("The fast recurrent kernels have no second derivatives either.")
def recurrent_layers(adapter: CurvatureAdapter) -> None:
    """Models with an LSTM work without a change by the user."""
    compare(adapter, seeded(3, lambda: Recurrent(3)), data=data_of(5, 4, 2), sizes=(5,), tolerance=1e-3)


@rule("Lanczos on an operator that changes finds eigenvalues of nothing.")
def product_is_repeatable(adapter: CurvatureAdapter) -> None:
    """A model with dropout, left in training mode, gives the same product twice, or is refused."""
    body, (x, y), loss = mlp(), data_of(), nn.CrossEntropyLoss()
    model = nn.Sequential(body[0], nn.Dropout(0.5), body[1], body[2]).train()
    vector = vector_of(model)
    try:
        first, second = (adapter.product(model, loss, [(x, y)], vector) for _ in range(2))
    except RuntimeError as error:
        if "determin" in str(error).lower():
            return
        raise
    gap = float((first - second).norm() / first.norm())
    demand(gap < 1e-6, f"two products with one vector differ by {gap:.0%}")


@rule("A measurement in the middle of training must not change the training.")
def measured_model_is_as_before(adapter: CurvatureAdapter) -> None:
    """After a product, or a refusal, the model has the same weights, statistics, modes and gradients."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double().train()
    (x, y), loss = data_of(), nn.CrossEntropyLoss()
    loss(model(x), y).backward()
    with unchanged(model, "after a product"), suppress(RuntimeError):  # a model in training mode may be refused
        adapter.product(model, loss, [(x, y)], vector_of(model))
