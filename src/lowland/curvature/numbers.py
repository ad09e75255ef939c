"""Further numbers of a summary, each registered beside its formula by a decorator.

`lowland.curvature.summarize` measures all of them; `lowland curvature` and the report show them by their titles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk


class Uncertain(Protocol):
    """A number with its standard error, as `Sharpness` and the estimates of a risk are."""

    @property
    def value(self) -> float:
        """The number."""

    @property
    def standard_error(self) -> float:
        """Its standard error; NaN where it is not known."""


@dataclass(frozen=True)
class Number:
    """A further number of a summary."""

    title: str  # What tables call it
    units: str
    measure: Callable[[EmpiricalRisk], Uncertain]


F = TypeVar("F", bound=Callable[[EmpiricalRisk], Uncertain])

NUMBERS: Final[dict[str, Number]] = {}
"""Name of the variable -> what is measured."""


def number(title: str, *, units: str) -> Callable[[F], F]:
    """Return a decorator that lets a summary hold what a function measures, under its name; it stays as it is.

    Args:
        title: What tables call it.
        units: Unit that tables and stores show behind it; "1" or "" for a ratio.

    Example:
        >>> from lowland.curvature import NUMBERS
        >>> NUMBERS["fisher_rao_norm"].title
        'Fisher-Rao norm'
    """

    def register(measure: F) -> F:
        NUMBERS[measure.__name__] = Number(title, units, measure)
        return measure

    return register


def with_error(name: str, measured: Uncertain, **attrs: Any) -> dict[str, Any]:
    """Return a number and its standard error as variables."""
    return {name: ((), measured.value, attrs), f"{name}_se": ((), measured.standard_error)}


def measured_numbers(risk: EmpiricalRisk) -> dict[str, Any]:
    """Return every further number of a risk as a variable; one that does not exist for it is NaN, and says why."""
    found: dict[str, Any] = {}
    for name, kind in NUMBERS.items():
        attrs = {"long_name": kind.title, "units": kind.units}
        try:
            found |= with_error(name, kind.measure(risk), **attrs)
        except InputError as error:
            found[name] = ((), math.nan, {**attrs, "missing": str(error)})
    return found
