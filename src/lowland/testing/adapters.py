"""How the suite drives a tool: one small class per family, written by whoever wants the tool checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowland.testing.rulebook import Family, NotOffered

__all__ = ["Adapter", "CurvatureAdapter", "LandscapeAdapter", "OptimizerAdapter", "Surface"]

Batches = Sequence[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
Closure = Callable[[], Any]


class Adapter(ABC):
    """What every adapter says about its tool."""

    name: ClassVar[str]
    """Name in tests and tables, with the version where there is more than one."""

    family: ClassVar[Family]

    conventions: ClassVar[Mapping[str, str]] = {}
    """Rules that the tool breaks on purpose, by name, with what its documentation says and where."""


class OptimizerAdapter(Adapter):
    """Drives a sharpness-aware optimizer.

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
        self,
        model: nn.Module,
        groups: list[dict[str, Any]],
        base: type[torch.optim.Optimizer],
        options: dict[str, Any],
    ) -> torch.optim.Optimizer:
        """Build the optimizer around a base.

        Args:
            model: The model that is trained.
            groups: Its parameters in groups.
            base: Class of the base optimizer.
            options: Keyword arguments of the base, such as ``lr``.

        Returns:
            The optimizer.
        """

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, closure: Closure) -> Any:
        """Take one step as the tool documents it.

        Args:
            model: Its weights are what the optimizer steps.
            optimizer: What `make` returned.
            closure: Clears the gradients, runs forward and backward, returns the loss.

        Returns:
            What the tool returns as the loss. Default: ``optimizer.step(closure)``.
        """
        return optimizer.step(closure)

    def trained(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
        """Return copies of the weights that are trained, where a method keeps the model elsewhere.

        Args:
            model: Its weights are what the optimizer steps.
            optimizer: What `make` returned.

        Returns:
            Default: the model's parameters.
        """
        del optimizer
        return [p.detach().clone() for p in model.parameters()]

    def passes(self, steps: int) -> int:
        """Return how many forward and backward passes the method takes.

        Args:
            steps: Number of steps from the beginning.

        Returns:
            By the method's definition; default two a step.
        """
        return 2 * steps

    def scaled_step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: Closure
    ) -> None:
        """Take one step under torch's GradScaler as the tool documents it, ``scaler.update()`` left out.

        Args:
            model: Its weights are what the optimizer steps.
            optimizer: What `make` returned.
            scaler: Its scale is a power of two.
            loss: Runs forward and returns the loss.

        Raises:
            NotOffered: By default.
        """
        raise NotOffered("no way to use GradScaler is documented")

    def accumulated_step(self, model: nn.Module, optimizer: torch.optim.Optimizer, losses: Sequence[Closure]) -> None:
        """Take one step on several micro-batches, with one ascent for all of them.

        Args:
            model: Its weights are what the optimizer steps.
            optimizer: What `make` returned.
            losses: Run forward on a micro-batch each and return the loss to be added.

        Raises:
            NotOffered: By default.
        """
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
    """Drives a tool that draws losses around a model, or between two."""

    family = "landscape"

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
            loss: ``(output, target) -> Tensor``, a mean over samples.
            batches: Inputs and targets.
            shape: Points along each axis.
            extent: How far to go, in the tool's unit.
            seed: Of the directions; an adapter of a tool without seeds sets torch's and NumPy's.

        Returns:
            The losses, and where the tool says they are.

        Raises:
            NotOffered: Where the tool cannot (one batch only, square grids only).
        """

    def line(self, start: nn.Module, end: nn.Module, loss: Loss, batches: Batches, *, points: int) -> NDArray[Any]:
        """Evaluate the line between two models.

        Args:
            start: Its weights are where the line begins.
            end: Its weights are where the line ends.
            loss: A torch loss module, or a plain function.
            batches: Inputs and targets.
            points: How many losses to return.

        Raises:
            NotOffered: By default.
        """
        raise NotOffered("no lines between two models")

    def resumed(self, model: nn.Module, loss: Loss, batches: Batches, *, stop: Callable[[], None]) -> Surface:
        """Evaluate `plane` with defaults, survive one interrupt, and go on from what is stored.

        Args:
            model: Its weights are the center.
            loss: Raises KeyboardInterrupt in the middle of the first run, never again after ``stop()``.
            batches: Inputs and targets.
            stop: Ends the interrupts; call it before the second run.

        Raises:
            NotOffered: By default.
        """
        raise NotOffered("surveys cannot be resumed")


class CurvatureAdapter(Adapter):
    """Drives a tool that multiplies by the Hessian of a loss, or estimates its spectrum.

    Vectors are flat, in the order of ``model.parameters()``.
    """

    family = "curvature"

    @abstractmethod
    def product(self, model: nn.Module, loss: Loss, batches: Batches, vector: Tensor) -> Tensor:
        """Multiply the Hessian of the loss over all batches with a vector.

        Args:
            model: Differentiated at its weights, in evaluation mode.
            loss: A torch loss module, or a plain function.
            batches: Inputs and targets.
            vector: Shape [P].

        Returns:
            The product, shape [P].

        Raises:
            NotOffered: Where the tool cannot.
        """

    def ends(self, model: nn.Module, loss: Loss, batches: Batches) -> tuple[float | None, float | None]:
        """Return the smallest and the largest eigenvalue, with the tool's default settings; None for one not offered.

        Args:
            model: Differentiated at its weights, in evaluation mode.
            loss: A torch loss module, or a plain function.
            batches: Inputs and targets.

        Raises:
            NotOffered: By default.
        """
        raise NotOffered("no extreme eigenvalues")

    def trace(self, model: nn.Module, loss: Loss, batches: Batches, *, seed: int) -> tuple[float, float | None]:
        """Return the trace and its standard error (None where none is stated), with the tool's default settings.

        Args:
            model: Differentiated at its weights, in evaluation mode.
            loss: A torch loss module, or a plain function.
            batches: Inputs and targets.
            seed: Of the probes.

        Raises:
            NotOffered: By default.
        """
        raise NotOffered("no trace")

    def density(
        self, model: nn.Module, loss: Loss, batches: Batches, *, seed: int
    ) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Return nodes and weights of stochastic Lanczos quadrature, one pair per start vector.

        Args:
            model: Differentiated at its weights, in evaluation mode.
            loss: A torch loss module, or a plain function.
            batches: Inputs and targets.
            seed: Of the start vectors.

        Raises:
            NotOffered: By default.
        """
        raise NotOffered("no density of eigenvalues, or no nodes and weights of it")
