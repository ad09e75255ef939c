"""Slow twins of curves between networks: a loop over parameters, autograd through the interpolation, statistics by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


def naive_weights(kind: str, count: int, t: float) -> list[float]:
    """Return what each of `count` points of one piece weighs, straight from the definitions."""
    n = count - 1
    if kind == "bezier":
        return [math.comb(n, k) * (1 - t) ** (n - k) * t**k for k in range(count)]
    found = [0.0] * count
    for k in range(n):
        if k / n <= t <= (k + 1) / n:
            share = t * n - k
            found[k], found[k + 1] = 1 - share, share
            break
    return found


def naive_curve(
    model: nn.Module, points: Sequence[dict[str, Tensor]], kind: str, data: list[tuple[Tensor, Tensor]],
    places: Sequence[float], rates: Sequence[float], decay: float,
) -> list[dict[str, Tensor]]:  # fmt: skip
    """Train the inner points by plain SGD, one batch per place, the derivative through the sum itself."""
    model = copy.deepcopy(model).train()
    inner = [{n: p.clone().requires_grad_() for n, p in point.items()} for point in points[1:-1]]
    for step, (t, rate) in enumerate(zip(places, rates, strict=True)):
        every = [points[0], *inner, points[-1]]
        share = naive_weights(kind, len(every), t)
        phi = {n: sum(c * point[n] for c, point in zip(share, every, strict=True)) for n in points[0]}
        x, y = data[step % len(data)]
        loss = nn.functional.cross_entropy(functional_call(model, phi, (x,)), y)
        loss = loss + decay / 2 * sum((value**2).sum() for value in phi.values())
        grads = torch.autograd.grad(loss, [p for point in inner for p in point.values()], allow_unused=True)
        with torch.no_grad():
            for parameter, grad in zip((p for point in inner for p in point.values()), grads, strict=True):
                parameter -= rate * (torch.zeros_like(parameter) if grad is None else grad)
    return [{n: p.detach() for n, p in point.items()} for point in [points[0], *inner, points[-1]]]


def naive_loss_at(model: nn.Module, weights: dict[str, Tensor], data: list[tuple[Tensor, Tensor]]) -> float:
    """Return the loss at given weights with batch-norm statistics recomputed by hand: the mean over batches of each one's.

    For networks of the form Linear, BatchNorm1d, activation, Linear.
    """
    net = copy.deepcopy(model).eval()
    net.load_state_dict({**net.state_dict(), **weights})
    means = [net[0](x).mean(0) for x, _ in data]
    variances = [net[0](x).var(0, unbiased=True) for x, _ in data]
    with torch.no_grad():
        net[1].running_mean.copy_(torch.stack(means).mean(0))
        net[1].running_var.copy_(torch.stack(variances).mean(0))
        total = sum(float(nn.functional.cross_entropy(net(x), y, reduction="sum")) for x, y in data)
    return total / sum(len(y) for _, y in data)
