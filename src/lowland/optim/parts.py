"""The two kinds of parts that an optimizer is made of: a method, and slow weights or averages.

A part is settings, pure functions beside their equation, and the names of its own tensors. Everything else (bases,
passes, backup and restore, scaler, ranks, checkpoints) is the optimizer's, see `Wrapper`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from lowland.core.errors import InputError, require
from lowland.optim.moves import empty_twin, joint_norm
from lowland.optim.options import AscentOptions, check_rho
from lowland.optim.phases import Scratch


class Held(Protocol):
    """What an optimizer shows its parts: bases, parameters, own tensors and numbers, and where the step stands."""

    bases: tuple[torch.optim.Optimizer, ...]
    options: AscentOptions
    numbers: dict[str, int | float | bool]  # saved
    scratch: Scratch  # of the step in progress

    @property
    def steps(self) -> int:
        """Number of steps taken; `Part.commit` is told the running one's too."""

    @property
    def method(self) -> Method | None:
        """The part with a second pass."""

    def groups(self) -> list[dict[str, Any]]:
        """Return all groups in order."""

    def parameters(self) -> Iterator[Tensor]:
        """Return every optimized parameter in the order of the groups."""

    def gradients(self) -> dict[Tensor, Tensor]:
        """Return the present gradients by parameter, without sparse ones."""

    def own(self, name: str) -> tuple[list[Tensor], list[Tensor]]:
        """Return parameters and their own tensors."""

    def below(self, part: Part) -> tuple[list[Tensor], list[Tensor]]:
        """Return parameters, and what is evaluated without a part and those around it."""

    def backup(self, parameter: Tensor) -> Tensor:
        """Return memory for a copy of a parameter, the same in every step."""

    def rescaling(self) -> Tensor:
        """Return what the step's gradients were multiplied by since the second pass."""


class Part:
    """A part of an optimizer: what it keeps of every parameter, and what it does once per step that is really taken.

    Subclass it for slow weights and averages, `Method` for what has a second pass. Public attributes are the settings:
    they are read through the optimizer, and must agree when a run goes on. In what follows ``held`` gives parameters,
    groups, own tensors and ``held.numbers``, and ``group`` is a parameter group.

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

    exchanges: ClassVar[bool] = False
    """Whether it exchanges gradients between ranks by itself."""

    reads_state: ClassVar[bool] = False
    """Whether it reads the base's state, of which a sharded base (ZeRO) holds a part on each rank."""

    owns_rate: ClassVar[bool] = False
    """Whether it writes the groups' learning rates, which only one can."""

    @property
    def steps_aside(self) -> bool:
        """Whether it has weights beside those the base steps with, which a base with two sets would not survive."""
        return self.evaluation is not None

    def numbers(self) -> dict[str, int | float | bool]:
        """Return the numbers of its own that are saved, as they are before the first step."""
        return {}

    def fresh(self, name: str, parameter: Tensor) -> Tensor:
        """Return the own tensor ``name`` of a parameter that has its first step: its value if evaluated, else 0."""
        twin = empty_twin(parameter)
        return twin.copy_(parameter) if name == self.evaluation else twin.zero_()

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse a group that it cannot treat; nothing may be changed."""
        if self.owns_rate:
            check_rate(group)

    def adopt_group(self, group: dict[str, Any]) -> None:
        """Give a new group its options."""
        if self.owns_rate:  # room for the rate that it has when its rate begins to be written, and for the last one
            group["plain_rate"] = group["own_rate"] = -1.0

    def prepare(self, held: Held) -> None:
        """Change gradients (final by now: unscaled, clipped) or weights before the base's step."""

    def commit(self, held: Held) -> None:
        """Change own tensors or weights after the base's step; ``held.steps`` counts it already."""

    def settle(self, held: Held) -> None:
        """Bring numbers up to date before they are saved."""

    def check_scaler(self, known: bool) -> None:
        """Refuse the loss scaler that is about to step, where it cannot be treated; ``known``: it was given."""


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
    """Whether the first pass's gradients live on: until `combine` if `combines`, else summed up until `commit`."""

    combines: ClassVar[bool] = False
    """Whether each micro-batch's two gradients become one, so that earlier micro-batches' join only afterwards."""

    measures: ClassVar[bool] = False
    """Whether it asks, once gradients are final, what they were multiplied by since (`Held.rescaling`)."""

    def __init__(self, rho: float) -> None:
        self.rho = check_rho(rho)
        self.options = AscentOptions()

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse a radius that is none."""
        super().check_group(group)
        check_rho(group.get("rho", 0.0))

    def adopt_group(self, group: dict[str, Any]) -> None:
        """Give a new group its radius."""
        group.setdefault("rho", self.rho)
        super().adopt_group(group)

    def wants(self, held: Held) -> bool:
        """Tell whether the coming step wants a second pass, asked any time before it; methods with a period do not."""
        del held
        return True

    def radius(self, group: Mapping[str, Any], step: int) -> float:
        """Return the length of a group's ascent in the step counted from 0; 0 leaves the group out."""
        return float(group.get("rho", self.rho)) * self.options.factor(step)

    def direction(self, held: Held, parameters: list[Tensor], gradients: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return where to go, one tensor per parameter, and the scalar norm to divide by; called once per norm.

        Args:
            held: Own tensors and numbers.
            parameters: What will be moved.
            gradients: Theirs in the first pass; may be overwritten unless the method keeps them.

        Returns:
            Both.
        """
        del held
        return gradients, joint_norm(gradients)

    def combine(self, first: list[Tensor], second: list[Tensor], norm: Tensor | None) -> list[Tensor]:
        """Return the step's gradients; called at the end of `perturb`.

        Args:
            first: Gradients at the weights, 0 where a pass did not reach; may be overwritten and returned.
            second: Gradients at the perturbed weights, in the same order; somebody else may keep them.
            norm: Length of ``first`` where the ascent has computed it.

        Returns:
            One tensor per gradient, in the same order.
        """
        del first, norm
        return second


def check_rate(group: Mapping[str, Any]) -> None:
    """Refuse a group without a learning rate of its own."""
    require(group.get("lr", 0.0) is not None, "base", "must have a learning rate that can be set", None)


def rate_of(group: Mapping[str, Any], missing: float) -> float:
    """Return a group's learning rate, which some bases leave at None."""
    rate = group.get("lr")
    return missing if rate is None else float(rate)


def set_rates(held: Held, factor: float) -> None:
    """Write every group's rate for the coming step: what it was when this began, times a factor."""
    for group in held.groups():
        rate = float(group["lr"])
        if group["plain_rate"] < 0:
            group["plain_rate"] = rate
        elif rate not in (group["plain_rate"], group["own_rate"]):
            rule = f"must be {group['own_rate']:g} still, for from here on the rate belongs to the method"
            raise InputError("lr", rule, rate, "end schedulers before, or let them be constant")
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(group["plain_rate"] * factor)
        else:
            group["lr"] = group["plain_rate"] * factor
        group["own_rate"] = float(group["lr"])
