"""Curves of low loss between trained networks, as a straight line between them crosses a barrier.

Garipov et al. 2018, "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", equations 2 to 4: the ends stay,
and ``min E_{t ~ U(0, 1)} L(phi(t))`` over the points between, ``phi(t) = sum_k c_k(t) p_k``.

Deviations from the paper and its code:
1. The network's own parameters are written at phi(t), and its gradient goes to each point p_k times c_k(t): the same
   derivative without a second kind of layer.
2. The optimizer calls back for every gradient at the step's own t, so that methods of two passes and LBFGS fit.
3. Between more than two networks the curve has a piece for each pair of neighbours.
4. Batch-norm statistics of training belong to no t and are dropped; a risk with ``batch_norm="recalibrated"`` or
   ``"batch"`` renews them at every point. The code does so at 61.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowland.core.batches import as_batch
from lowland.core.contexts import buffers_restored, evaluation_mode, forked_rng, gradients_aside, weights_restored
from lowland.core.errors import InputError, check_positive, require
from lowland.core.params import ParameterSpace, unwrap
from lowland.core.seeds import generator, torch_seed
from lowland.core.types import forward
from lowland.landscape.checkpoints import Weights
from lowland.landscape.curves import Curve
from lowland.landscape.plane import at_origin

Batches: TypeAlias = "Iterable[Any] | Callable[[int], Iterable[Any]]"
"""A loader that is gone through once per epoch, or a function from the epoch (from 0) to its batches."""

MakeOptimizer: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def annealed(progress: float) -> float:
    """Return the learning rate's multiple of Garipov et al.'s code: 1 to the middle, falling to 0.01 at 0.9."""
    return 1.0 if progress <= 0.5 else max(0.01, 1.0 - 0.99 * (progress - 0.5) / 0.4)


def _sgd(points: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(points, lr=0.03, momentum=0.9)


def curve(
    model: nn.Module,
    others: Weights | Sequence[Weights],
    loss: Callable[[Any, Any], Tensor],
    batches: Batches,
    *,
    epochs: int,
    kind: Literal["bezier", "polychain"] = "bezier",
    bends: int = 1,
    optimizer: MakeOptimizer = _sgd,
    schedule: Callable[[float], float] = annealed,
    weight_decay: float = 5e-4,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Curve:
    """Return a trained curve of low loss from one network to another, or through several.

    ``min E_{t ~ U(0, 1)} [L(phi(t)) + weight_decay / 2 ||phi(t)||^2]`` over the points between the ends, one t per
    batch (Garipov et al. 2018, Section 3.1, and its code). The model is restored bit for bit.

    Args:
        model: The network at the first end, where the curve begins.
        others: The other end, or several through which the curve goes: networks, state dicts or paths of checkpoints.
        loss: The criterion on (output, target), a mean over the batch.
        batches: Training batches: a loader, or a function from the epoch to its batches.
        epochs: Passes over the batches. The code takes 200 for a ResNet.
        kind: ``"bezier"`` (default) or ``"polychain"``.
        bends: Trained points between two ends. Default 1, the paper's.
        optimizer: Makes the optimizer of the trained points; one that averages ends at its averages. Default SGD at
            0.03 with momentum 0.9, the paper's for ResNets; give it no weight decay, which would pull the points
            and not the curve.
        schedule: Multiple of the learning rate by the share of epochs done. Default the authors' `annealed`.
        weight_decay: Of the weights on the curve. Default 5e-4, the paper's for VGG.
        seed: Seed of the places t, and of dropout.
        on_step: Called with the number of steps done.

    Raises:
        InputError: If the networks are of other shapes or the same, an argument is out of range, there are no batches,
            or the loss does not stay finite.
        CheckpointError: If a file cannot be read.

    Example:
        >>> x = torch.randn(64, 3)
        >>> one, two = nn.Linear(3, 1), nn.Linear(3, 1)
        >>> found = curve(one, two, nn.MSELoss(), [(x, x.sum(1, keepdim=True))], epochs=3)
        >>> len(found.points), len(found.losses)
        (3, 3)
    """
    check_positive(epochs=epochs)
    require(bends >= 1, "bends", "must be at least 1", bends)
    require(math.isfinite(weight_decay) and weight_decay >= 0, "weight_decay", "must not be negative", weight_decay)
    rule, advice = "must make an optimizer of the trained points", "such as lambda points: torch.optim.Adam(points)"
    require(callable(optimizer), "optimizer", rule, type(optimizer).__name__, advice)
    start = Curve.through(model, others, kind=kind, bends=bends)
    with ExitStack() as stack:
        model = unwrap(model)
        stack.enter_context(forked_rng(torch_seed(seed, "training", "curve")))
        stack.enter_context(gradients_aside(model))
        space = stack.enter_context(at_origin(model))
        stack.enter_context(buffers_restored(model))
        stack.enter_context(evaluation_mode(model))  # which puts the modes back
        stack.enter_context(weights_restored(space))
        model.train()
        bent = _Bent(model, space, start, loss, weight_decay)
        steps = optimizer([p for place in bent.trained for p in bent.points[place]])  # type: ignore[misc]
        require(isinstance(steps, torch.optim.Optimizer), "optimizer", rule, type(steps).__name__, advice)
        modes: Any = steps  # of an optimizer that averages: what counts are the weights that it evaluates
        if averages := callable(getattr(modes, "eval", None)):
            modes.train()
        losses = _trained(bent, steps, batches, epochs, schedule, seed, on_step)
        if averages:
            modes.eval()
        points = tuple(space.named([p.detach().clone() for p in point]) for point in bent.points)
    settings = {"epochs": epochs, "weight_decay": weight_decay, "seed": seed, "optimizer": type(steps).__name__}
    return replace(start, points=points, losses=tuple(losses), settings=settings)


class _Bent:
    """A network whose weights lie on a curve, and the gradients of its points."""

    def __init__(
        self, model: nn.Module, space: ParameterSpace, start: Curve, loss: Callable[[Any, Any], Tensor], decay: float
    ) -> None:
        self.model, self.space, self.shape, self.loss, self.decay = model, space, start.shape, loss, decay
        fixed = set(start.shape.ends())
        self.trained = [place for place in range(start.shape.points) if place not in fixed]
        ordered = [space.order(point) for point in start.points]
        self.points: list[list[Tensor]] = [
            point if place in fixed else [nn.Parameter(value.clone()) for value in point]
            for place, point in enumerate(ordered)
        ]

    def gradient(self, batch: Any, weights: NDArray[np.float64]) -> Tensor:
        """Write phi, and give every trained point its gradient; returns the loss."""
        targets: list[Tensor] = list(self.space.tensors)
        used = [(float(c), point) for c, point in zip(weights, self.points, strict=True) if c != 0.0]
        with torch.no_grad():
            torch._foreach_copy_(targets, used[0][1])
            torch._foreach_mul_(targets, used[0][0])
            for c, point in used[1:]:
                torch._foreach_add_(targets, point, alpha=c)
        with torch.enable_grad():
            value = self.loss(forward(self.model, batch), batch.target)
            parts = torch.autograd.grad(value, targets, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            grads = [part.to_dense() if part.is_sparse else part for part in parts]
            if self.decay:
                torch._foreach_add_(grads, targets, alpha=self.decay)
            for place in self.trained:
                shares = torch._foreach_mul(grads, float(weights[place]))
                for parameter, share in zip(self.points[place], shares, strict=True):
                    parameter.grad = share
        return value.detach()


def _trained(
    bent: _Bent,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    epochs: int,
    schedule: Callable[[float], float],
    seed: int,
    on_step: Callable[[int], None] | None,
) -> list[float]:
    stream, device = generator(seed, "order", "curve"), bent.space.tensors[0].device
    rates, losses, done = [float(group["lr"]) for group in optimizer.param_groups], [], 0
    for epoch in range(epochs):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(epoch / epochs)
        total, size = torch.zeros((), dtype=torch.float64, device="cpu"), 0
        for raw in batches(epoch) if callable(batches) else batches:
            batch, weights = as_batch(raw).to(device), bent.shape.weights(float(stream.random()))
            seen: list[Tensor] = []

            def closure(batch: Any = batch, weights: Any = weights, seen: list[Tensor] = seen) -> Tensor:
                seen.append(bent.gradient(batch, weights))
                return seen[-1]

            optimizer.step(closure)  # type: ignore[arg-type]
            total, size, done = total + seen[0].double().cpu() * batch.size, size + batch.size, done + 1
            if on_step is not None:
                on_step(done)
        require(size, "batches", "must hold batches in every epoch", f"none in epoch {epoch}")
        losses.append(float(total) / size)
        if not math.isfinite(losses[-1]):
            advice = "lower its learning rate"
            raise InputError("optimizer", "must keep the loss on the curve finite", f"epoch {epoch + 1}", advice)
    return losses
