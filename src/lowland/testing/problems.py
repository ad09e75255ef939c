"""The small training runs that rules of optimizers are checked on."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowland.testing.adapters import OptimizerAdapter
from lowland.testing.networks import Pairs, flat, mlp


class Still(torch.optim.SGD):
    """A base optimizer whose step does nothing, to see what a wrapper does by itself; its rate is 0 too."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing."""
        del closure


BASES: Final[dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.01}),
    "still": (Still, {"lr": 0.0, "momentum": 0.9}),
}


def batches(count: int, dtype: torch.dtype = torch.float64, size: int = 8) -> Pairs:
    """Return batches of six features and three classes."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, size, 6, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(0, 3, (count, size), generator=generator)
    return list(zip(x, y, strict=True))


def groups_of(model: nn.Module, count: int) -> list[dict[str, Any]]:
    """Return the parameters in groups."""
    parameters = list(model.parameters())
    bounds = [len(parameters) * k // count for k in range(count + 1)]
    return [{"params": parameters[a:b]} for a, b in pairwise(bounds)]


class Training:
    """A network, the optimizer under test on a base of `BASES`, and batches that never change."""

    def __init__(
        self,
        adapter: OptimizerAdapter,
        base: str = "sgd",
        *,
        model: nn.Module | None = None,
        groups: int = 1,
        options: dict[str, Any] | None = None,  # of the base; they replace those of `BASES`
        scale: float = 1.0,  # of the loss
    ) -> None:
        self.adapter, self.scale = adapter, scale
        self.model = mlp() if model is None else model
        kind, defaults = BASES[base]
        self.optimizer = adapter.make(self.model, groups_of(self.model, groups), kind, defaults | (options or {}))
        self.batches = batches(12, next(self.model.parameters()).dtype)
        self.seen: list[Tensor] = []
        """Weights at each pass of the latest step."""
        self.losses: list[float] = []
        self.passes = 0

    def loss(self, index: int) -> Tensor:
        """Return the loss of a batch at the present weights."""
        x, y = self.batches[index % len(self.batches)]
        return self.scale * F.cross_entropy(self.model(x), y)

    def closure(self, index: int, after: Callable[[int], None] | None = None) -> Callable[[], Any]:
        """Return a closure in torch's sense that also records the weights it is called at."""

        def run() -> Tensor:
            self.optimizer.zero_grad()
            self.seen.append(flat(self.model))
            self.passes += 1
            loss = self.loss(index)
            loss.backward()  # type: ignore[no-untyped-call]
            self.losses.append(float(loss.detach()))
            if after is not None:
                after(len(self.seen))
            return loss

        return run

    def step(self, index: int, after: Callable[[int], None] | None = None) -> Any:
        """Take one step as the tool documents it."""
        self.seen, self.losses = [], []
        return self.adapter.step(self.model, self.optimizer, self.closure(index, after))

    def run(self, first: int, last: int) -> None:
        """Take steps on the batches from ``first`` to before ``last``."""
        for index in range(first, last):
            self.step(index)

    def moved(self, tries: int = 12) -> Tensor:
        """Step until a step takes a second pass, and return how far that pass was from the first."""
        for index in range(tries):
            self.step(index)
            if len(self.seen) > 1:
                return self.seen[1] - self.seen[0]
        return torch.empty(0)
