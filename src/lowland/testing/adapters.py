"""How the suite drives a tool: one small class per family, written by whoever wants the tool checked."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowland.testing.networks import small
from lowland.testing.rulebook import Adapter, NotOffered

Batches = Sequence[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
Closure = Callable[[], Any]


class OptimizerAdapter(Adapter):
    """Drives a sharpness-aware optimizer.

    In every method ``model`` is the model that is trained, and ``optimizer`` what `make` returned for it. A closure, or
    a loss, runs forward; a closure also clears the gradients before and runs backward. What is not overridden is the
    default, or not offered.

    Example:
        >>> from lowland.optim import SAM
        >>> class Mine(OptimizerAdapter):
        ...     name = "mine"
        ...     def make(self, model, groups, base, options):
        ...         return SAM(base(groups, **options), rho=self.rho)
        >>> Mine().moves
        'rho'
    """

    family = "optimizer"

    rho: ClassVar[float] = 0.05
    """Length of the ascent that `make` asks for."""

    moves: ClassVar[Literal["rho", "other", "never"]] = "rho"
    """Whether the second pass is run at Euclidean distance ``rho`` along the gradient, elsewhere, or not at all."""

    bases: ClassVar[tuple[str, ...]] = ("sgd", "adamw")
    """Base optimizers that the tool is made for."""

    formula: ClassVar[Literal["sam", "other"]] = "other"
    """``"sam"`` where a step is the one of Foret et al. 2021, algorithm 1."""

    @abstractmethod
    def make(
        self, model: nn.Module, groups: list[dict[str, Any]], base: type[torch.optim.Optimizer], options: dict[str, Any]
    ) -> torch.optim.Optimizer:
        """Build the optimizer around a base of a class with options, such as ``lr``, over parameters in groups."""

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, closure: Closure) -> Any:
        """Take one step as the tool documents it, and return the loss as it does."""
        return optimizer.step(closure)

    def trained(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """Return copies of the weights that are trained, where a method keeps the model elsewhere."""
        del optimizer
        return [p.detach().clone() for p in model.parameters()]

    def passes(self, steps: int) -> int:
        """Return how many forward and backward passes the method takes in its first steps, by its definition."""
        return 2 * steps

    def averaged(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> AbstractContextManager[Any]:
        """Return a context in which the model holds the weights that are evaluated, where they are not the trained."""
        raise NotOffered("the weights that are trained are those that are evaluated")

    def scaled_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: Closure
    ) -> None:
        """Take one step under torch's GradScaler as the tool documents it; its ``update()`` is left out."""
        raise NotOffered("no way to use GradScaler is documented")

    def accumulated_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, losses: Sequence[Closure]) -> None:
        """Take one step on several micro-batches, with one ascent for all; the losses are to be added."""
        raise NotOffered("no way to accumulate gradients is documented")


@dataclass(frozen=True, slots=True)
class Surface:
    """What a landscape tool found.

    Args:
        values: Losses, shape [nx, ny].
        x: Coordinates of the first axis as the tool states them, shape [nx].
        y: Coordinates of the second axis, shape [ny].
    """

    values: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]


class LandscapeAdapter(Adapter):
    """Drives a tool that draws losses around a model, or between two.

    In every method the loss is ``(output, target) -> Tensor``, a mean over samples, as a module or as a function, and
    batches are inputs and targets. What a tool cannot do (several batches, oblong grids) raises `NotOffered`.
    """

    family = "landscape"

    def network(self, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
        """Return the model that rules survey where they need no special one, with 11 inputs and their targets.

        Override it to hold the rules for another kind of model; the loss is the mean squared error.
        """
        return small(seed)

    @abstractmethod
    def plane(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Batches,
        *,
        shape: tuple[int, int] = (5, 5),
        extent: float = 1.0,
        seed: int = 0,
    ) -> Surface:
        """Evaluate a random plane through the model's weights, normalized as the tool recommends.

        Args:
            model: Its weights are the center.
            loss: What is drawn.
            batches: What it is drawn on.
            shape: Points along each axis.
            extent: How far to go, in the tool's unit.
            seed: Of the directions; an adapter of a tool without seeds sets torch's and NumPy's.

        Returns:
            The losses, and where the tool says they are.
        """

    def line(self, start: nn.Module, end: nn.Module, loss: Loss, batches: Batches, *, points: int) -> NDArray[Any]:
        """Return that many losses on the line from one model to another."""
        raise NotOffered("no lines between two models")

    def resumed(self, model: nn.Module, loss: Loss, batches: Batches, *, stop: Callable[[], None]) -> Surface:
        """Evaluate `plane` with defaults, survive one interrupt, and go on from what is stored.

        The loss raises KeyboardInterrupt in the middle of the first run, not after ``stop()``: call that between.
        """
        raise NotOffered("surveys cannot be resumed")

    def stored(self, model: nn.Module, loss: Loss, batches: Batches, folder: str) -> Surface:
        """Evaluate `plane` with defaults, or return what the folder holds of the same survey; fill the folder."""
        raise NotOffered("surveys are not stored")


class CurvatureAdapter(Adapter):
    """Drives a tool that multiplies by the Hessian of a loss, or estimates its spectrum.

    In every method the model is differentiated at its weights in evaluation mode, the loss is a torch module or a plain
    function, and batches are inputs and targets. Settings are the tool's defaults. Vectors are flat, shape [P], in the
    order of ``model.parameters()``. What a tool cannot do raises `NotOffered`.
    """

    family = "curvature"

    @abstractmethod
    def product(self, model: nn.Module, loss: Loss, batches: Batches, vector: Tensor) -> Tensor:
        """Multiply the Hessian of the loss over all batches with a vector."""

    def ends(self, model: nn.Module, loss: Loss, batches: Batches) -> tuple[float | None, float | None]:
        """Return the smallest and the largest eigenvalue; None for one that is not offered."""
        raise NotOffered("no extreme eigenvalues")

    def trace(self, model: nn.Module, loss: Loss, batches: Batches, *, seed: int) -> tuple[float, float | None]:
        """Return the trace and its standard error, None where none is stated; the seed is that of the probes."""
        raise NotOffered("no trace")

    def density(
        self, model: nn.Module, loss: Loss, batches: Batches, *, seed: int
    ) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Return nodes and weights of stochastic Lanczos quadrature, one pair per start vector drawn from the seed."""
        raise NotOffered("no density of eigenvalues, or no nodes and weights of it")
