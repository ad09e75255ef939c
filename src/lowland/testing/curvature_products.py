"""Rules of curvature tools: products with the Hessian."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowland.core.contexts import same_bits
from lowland.testing.adapters import CurvatureAdapter
from lowland.testing.planted import dense_hessian
from lowland.testing.problems import bits, mlp, split
from lowland.testing.rulebook import demand, rule

__all__: list[str] = []


def _data(samples: int = 11, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, *(shape or (6,)), generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (samples,), generator=generator)


def _vector(model: nn.Module) -> Tensor:
    size = sum(p.numel() for p in model.parameters())
    return torch.randn(size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def _compare(
    adapter: CurvatureAdapter,
    model: nn.Module,
    loss: Any,
    batches: Sequence[tuple[Tensor, Tensor]],
    wanted: Tensor,
    tolerance: float = 1e-5,
) -> None:
    vector = _vector(model)
    found = adapter.product(model, loss, batches, vector).detach().double()
    exact = wanted @ vector
    demand(found.shape == exact.shape, f"the product has {len(found)} entries, the model {len(exact)} parameters")
    gap = float((found - exact).norm() / exact.norm())
    demand(gap < tolerance, f"the product is {gap:.1%} away from the exact one")


@rule("curvature")
def product_is_exact(adapter: CurvatureAdapter) -> None:
    """On one batch the product is that with the dense Hessian.

    The least that everything else stands on.
    """
    model, (x, y), loss = mlp().eval(), _data(), nn.CrossEntropyLoss()
    _compare(adapter, model, loss, [(x, y)], dense_hessian(model, loss, x, y))


@rule("curvature")
def ragged_batches(adapter: CurvatureAdapter) -> None:
    """Batches of 10 and 1 give the Hessian of all 11 samples.

    A mean over batch means gives the last sample ten times its weight; every loader has a last batch.
    """
    model, (x, y), loss = mlp().eval(), _data(), nn.CrossEntropyLoss()
    _compare(adapter, model, loss, split(x, y, (10, 1)), dense_hessian(model, loss, x, y))


@rule("curvature")
def sum_reduction(adapter: CurvatureAdapter) -> None:
    """With ``reduction="sum"`` the Hessian does not depend on how samples are batched.

    Weighting sums by batch sizes counts the size twice.
    """
    model, (x, y), loss = mlp().eval(), _data(), nn.CrossEntropyLoss(reduction="sum")
    vector = _vector(model)
    whole = adapter.product(model, loss, [(x, y)], vector)
    parts = adapter.product(model, loss, split(x, y, (7, 4)), vector)
    gap = float((whole - parts).norm() / whole.norm())
    demand(gap < 1e-5, f"batches of 7 and 4 give a product {gap:.1%} away from that of one batch of 11")


@rule("curvature")
def weights_of_samples(adapter: CurvatureAdapter) -> None:
    """With class weights and ignored targets, batches give the Hessian of all samples at once.

    Their means are divided by sums of weights, not by numbers of samples.
    """
    model, (x, y) = mlp().eval(), _data()
    y[[1, 8]] = -100
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64))
    _compare(adapter, model, loss, split(x, y, (6, 5)), dense_hessian(model, loss, x, y))


@rule("curvature")
def plain_function_as_loss(adapter: CurvatureAdapter) -> None:
    """A function such as ``torch.nn.functional.cross_entropy`` may be the loss.

    Most training code has one.
    """
    model, (x, y) = mlp().eval(), _data()
    _compare(adapter, model, F.cross_entropy, [(x, y)], dense_hessian(model, F.cross_entropy, x, y))


@rule("curvature")
def unused_parameter(adapter: CurvatureAdapter) -> None:
    """A parameter that the loss does not use has zeros and does not fail.

    Models with several heads have such.
    """
    model, (x, y), loss = mlp().eval(), _data(), nn.CrossEntropyLoss()
    model.register_parameter("spare", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    _compare(adapter, model, loss, [(x, y)], dense_hessian(model, loss, x, y))


@rule("curvature")
def loss_without_curvature(adapter: CurvatureAdapter) -> None:
    """A loss that is linear in all weights has the product 0 and does not fail.

    Its gradient has no graph left to differentiate.
    """

    class Mean(nn.MSELoss):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            del target
            return output.mean(1) if self.reduction == "none" else output.mean()

    x, y = _data()
    torch.manual_seed(3)
    model = nn.Linear(6, 3).double().eval()
    largest = float(adapter.product(model, Mean(), [(x, y)], _vector(model)).abs().max())
    demand(largest < 1e-9, f"the product has entries up to {largest:.2g}")


@rule("curvature")
def tied_weights_count_once(adapter: CurvatureAdapter) -> None:
    """A weight that two layers share is one set of coordinates.

    Language models tie their embedding to their head.
    """

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))
            return scores

    torch.manual_seed(3)
    model, (x, y), loss = Tied().double().eval(), _data(), nn.CrossEntropyLoss()
    _compare(adapter, model, loss, [(x, y)], dense_hessian(model, loss, x, y))


@rule("curvature")
def fused_attention(adapter: CurvatureAdapter) -> None:
    """Models with ``scaled_dot_product_attention`` work without a change by the user.

    Its fused kernels have no second derivatives, in neither direction; transformers use them by default.
    """

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(2, 12), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.embed(x).chunk(3, -1)
            mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])
            scores: Tensor = self.head(mixed[:, 0].mean(1))
            return scores

    torch.manual_seed(3)
    model, (x, y), loss = Attention().double().eval(), _data(5, 3, 2), nn.CrossEntropyLoss()
    _compare(adapter, model, loss, [(x, y)], dense_hessian(model, loss, x, y))


@rule("curvature")
def recurrent_layers(adapter: CurvatureAdapter) -> None:
    """Models with an LSTM work without a change by the user.

    The fast recurrent kernels have no second derivatives either.
    """

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.lstm(x)[0][:, -1])
            return scores

    torch.manual_seed(3)
    model, (x, y), loss = Recurrent().eval(), _data(5, 4, 2), nn.CrossEntropyLoss()
    x = x.float()
    vector = _vector(model).float()
    found = adapter.product(model, loss, [(x, y)], vector).detach()
    exact = dense_hessian(model, loss, x, y) @ vector
    gap = float((found - exact).norm() / exact.norm())
    demand(gap < 1e-3, f"the product is {gap:.1%} away from the exact one")


@rule("curvature")
def product_is_repeatable(adapter: CurvatureAdapter) -> None:
    """A model with dropout, left in training mode, gives the same product twice, or is refused.

    Lanczos on an operator that changes finds eigenvalues of nothing.
    """
    body, (x, y), loss = mlp(), _data(), nn.CrossEntropyLoss()
    model = nn.Sequential(body[0], nn.Dropout(0.5), body[1], body[2]).train()  # type: ignore[index]
    vector = _vector(model)
    try:
        first, second = (adapter.product(model, loss, [(x, y)], vector) for _ in range(2))
    except RuntimeError as error:
        if "determin" in str(error).lower():
            return
        raise
    gap = float((first - second).norm() / first.norm())
    demand(gap < 1e-6, f"two products with one vector differ by {gap:.0%}")


@rule("curvature")
def measured_model_is_as_before(adapter: CurvatureAdapter) -> None:
    """After a product, or a refusal, the model has the same weights, statistics, modes and gradients.

    A measurement in the middle of training must not change the training.
    """
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double().train()
    x, y = _data()
    loss = nn.CrossEntropyLoss()
    loss(model(x), y).backward()
    before, modes = bits(model), [module.training for module in model.modules()]
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    with suppress(RuntimeError):  # a model in training mode may be refused
        adapter.product(model, loss, [(x, y)], _vector(model))
    demand(same_bits(before, bits(model)), "weights or batch-norm statistics are changed")
    demand(modes == [module.training for module in model.modules()], "training mode is changed")
    kept = [p.grad for p in model.parameters() if p.grad is not None]
    demand(same_bits(gradients, kept), "gradients are changed")
