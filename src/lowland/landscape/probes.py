"""What can be measured at a point beyond the risk's own metrics; your own probe is any object of this shape.

Losses, accuracies and a user's metrics belong to the risk and cost nothing extra: one forward pass serves them all. A
probe does more at each point, such as a gradient or the ends of the Hessian's spectrum (a convexity map).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol, runtime_checkable

from lowland.core.errors import InputError, require
from lowland.core.params import global_norm
from lowland.core.risk import EmpiricalRisk


@runtime_checkable
class Probe(Protocol):
    """Measures the risk at the weights that are set when it is called."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the numbers it gives."""

    @property
    def warm_start(self) -> bool:
        """Whether it wants what it returned at the parent point."""

    def describe(self) -> dict[str, Any]:
        """Return its settings as plain JSON values."""

    def __call__(self, risk: EmpiricalRisk, parent: Mapping[str, Any] | None, /) -> Mapping[str, Any]:
        """Measure at the present weights, inside ``risk.prepared()``.

        Args:
            risk: The loss over its data, with the model at the point that is measured.
            parent: The arrays that it returned at the parent point, or None.

        Returns:
            A number for each of ``names``; every other entry is an array that is handed to the point's children.
        """


class GradientNorm:
    """The Euclidean norm of the risk's gradient, ``gradient_norm``; costs a backward pass.

    Args:
        modules: Only parameters of these submodules; None (default) takes all trainable ones.

    Example:
        >>> GradientNorm().names
        ('gradient_norm',)
    """

    names: Final = ("gradient_norm",)
    warm_start: Final = False

    def __init__(self, modules: list[str] | None = None) -> None:
        self.modules = modules

    def describe(self) -> dict[str, Any]:
        """Return its settings."""
        return {"probe": "gradient_norm", "modules": self.modules}

    def __call__(self, risk: EmpiricalRisk, parent: Mapping[str, Any] | None, /) -> Mapping[str, Any]:
        """Return the norm at the present weights."""
        gradient = risk.gradient(modules=self.modules)
        return {"gradient_norm": float(global_norm(list(gradient.values())))}


def check_probes(probes: tuple[Probe, ...]) -> None:
    """Refuse what is no probe, and two probes that give the same number."""
    names = []
    for probe in probes:
        if not isinstance(probe, Probe):
            raise InputError("probes", "must have names, warm_start, describe() and be callable", type(probe).__name__)
        names += list(probe.names)
    require(len(set(names)) == len(names), "probes", "must give every number once", names)
