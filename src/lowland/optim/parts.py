"""The two kinds of parts that an optimizer is made of: a method, and slow weights or averages.

A part is settings, pure functions beside their equation, and the names of its own tensors. Everything else (bases,
passes, backup and restore, scaler, ranks, checkpoints) is the optimizer's, see `Wrapper`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from lowland.optim.moves import empty_twin, joint_norm
from lowland.optim.options import AscentOptions, check_rho

if TYPE_CHECKING:
    from lowland.optim.holder import Holder

__all__ = ["Method", "Part", "rate_of"]


class Part:
    """A part of an optimizer: what it keeps of every parameter, and what it does once per step that is really taken.

    Subclass it for slow weights and averages, `Method` for what has a second pass. Public attributes are the settings:
    they are read through the optimizer, and must agree when a run goes on.

    Example:
        >>> class Tail(Part):
        ...     name, rank, own, evaluation = "Tail", 2, ("mean",), "mean"
        ...
        ...     def commit(self, held):
        ...         weights, mean = held.own("mean")
        ...         torch._foreach_lerp_(mean, weights, 0.5)
    """

    name: ClassVar[str] = ""
    """Name in checkpoints."""

    rank: ClassVar[int] = 2
    """0: a method, 1: moves the weights after the base's step, 2: looks on. A part goes around those of lower rank."""

    own: ClassVar[tuple[str, ...]] = ()
    """Names of own tensors, one per parameter: saved, loaded, moved between devices."""

    evaluation: ClassVar[str | None] = None
    """Which of them are the weights to evaluate; None: the trained ones."""

    steps_aside: ClassVar[bool] = False
    """Whether it writes weights beside the base's step, which a base with two sets of weights would not survive."""

    def numbers(self) -> dict[str, int | float | bool]:
        """Return the numbers of its own that are saved, as they are before the first step.

        Returns:
            Number by name; read and written as ``held.numbers``.
        """
        return {}

    def fresh(self, name: str, parameter: Tensor) -> Tensor:
        """Return an own tensor for a parameter at its first step.

        Args:
            name: Name of the own tensors.
            parameter: The parameter, as it is before that step.

        Returns:
            The parameter's value by default.
        """
        del name
        return empty_twin(parameter).copy_(parameter)

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse a group that it cannot treat.

        Args:
            group: A parameter group; nothing may be changed.
        """

    def adopt_group(self, group: dict[str, Any]) -> None:
        """Give a new group its options.

        Args:
            group: A parameter group.
        """

    def prepare(self, held: Holder) -> None:
        """Change gradients (final by now: unscaled, clipped) or weights before the base's step.

        Args:
            held: Parameters, own tensors and numbers.
        """

    def commit(self, held: Holder) -> None:
        """Change own tensors or weights after the base's step; ``held.steps`` counts it already.

        Args:
            held: Parameters, own tensors and numbers.
        """

    def settle(self, held: Holder) -> None:
        """Bring numbers up to date before they are saved.

        Args:
            held: Parameters, own tensors and numbers.
        """


class Method(Part):
    """A method with a second pass: how far, where to, and what becomes of both gradients.

    The ascent is ``radius * direction / norm``, and nothing where the norm is 0 or not finite.

    Args:
        rho: Length of the ascent; also ``rho`` in a parameter group, where 0 leaves the group out of it.

    Raises:
        InputError: If ``rho`` is negative or not finite.
    """

    rank: ClassVar[int] = 0

    keeps_first: ClassVar[bool] = False
    """Whether the first pass's gradients live on: until `combine` if `combines`, else summed up until `prepare`."""

    combines: ClassVar[bool] = False
    """Whether each micro-batch's two gradients become one, so that earlier micro-batches' join only afterwards."""

    def __init__(self, rho: float) -> None:
        self.rho = check_rho(rho)
        self.options = AscentOptions()

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse a radius that is none, and sharded parameters under a local ascent.

        Args:
            group: A parameter group.
        """
        check_rho(group.get("rho", 0.0))

    def adopt_group(self, group: dict[str, Any]) -> None:
        """Give a new group its radius.

        Args:
            group: A parameter group.
        """
        group.setdefault("rho", self.rho)

    def wants(self, held: Holder) -> bool:
        """Tell whether the coming step wants a second pass, asked any time before it; changes nothing.

        Args:
            held: Numbers, ``held.steps`` among them.

        Returns:
            True here; methods with a period know better.
        """
        del held
        return True

    def radius(self, group: Mapping[str, Any], step: int) -> float:
        """Return the length of the ascent for a group.

        Args:
            group: A parameter group.
            step: Steps taken so far.

        Returns:
            ``rho`` times the schedule's factor; 0 leaves the group out.
        """
        return float(group.get("rho", self.rho)) * self.options.factor(step)

    def direction(self, parameters: list[Tensor], gradients: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return where to go and the norm to divide by; called once per norm when `perturb` is entered.

        Args:
            parameters: What will be moved.
            gradients: Theirs in the first pass; may be overwritten unless the method keeps them.

        Returns:
            One direction per parameter, and a scalar.
        """
        return gradients, joint_norm(gradients)

    def combine(self, first: list[Tensor], second: list[Tensor], norm: Tensor | None) -> None:
        """Turn the second pass's gradients into the step's, in place; called at the end of `perturb`.

        Args:
            first: Gradients at the weights, 0 where a pass did not reach; may be overwritten.
            second: Gradients at the perturbed weights, in the same order.
            norm: Length of ``first`` where the ascent has computed it.
        """


def rate_of(group: Mapping[str, Any], missing: float) -> float:
    """Return a group's learning rate, which some bases leave at None."""
    rate = group.get("lr")
    return missing if rate is None else float(rate)
