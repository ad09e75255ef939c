"""What a rule is, how it is registered, and what checking a tool against it can end with."""

from __future__ import annotations

import importlib
import random
import warnings
from abc import ABC
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, TypeAlias

import numpy as np
import torch

from lowland.core.errors import InputError
from lowland.testing import ambient

Family: TypeAlias = Literal["optimizer", "landscape", "curvature"]

Status: TypeAlias = Literal["holds", "broken", "not offered", "other convention"]

_HOMES: Final[dict[Family, tuple[str, ...]]] = {
    "optimizer": ("optimizer_steps", "optimizer_state", "optimizer_surroundings", "optimizer_averages"),
    "landscape": ("landscape_points", "landscape_effects", "landscape_inputs"),
    "curvature": ("curvature_products", "curvature_estimates", "curvature_inputs"),
}
"""The modules whose import registers the rules of a family, in the order of the table."""

_RULES: Final[dict[str, Rule]] = {}


class Adapter(ABC):
    """What every adapter says about its tool."""

    name: ClassVar[str]
    """Name in tests and tables, with the version where there is more than one."""

    family: ClassVar[Family]

    conventions: ClassVar[Mapping[str, str]] = {}
    """Rules that the tool breaks on purpose, by name, with what its documentation says and where."""

    source: ClassVar[Mapping[str, str]] = {}
    """How the tool is called, for scripts that stand alone: lines of Python by the name of the function they define.

    ``"import"`` holds what is imported. The functions are ``make(model, groups, base, **options)`` and
    ``step(optimizer, closure)`` of an optimizer (default ``optimizer.step(closure)``), ``plane(model, loss, batches,
    shape=(5, 5), extent=1.0, seed=0)``, which returns values, x and y, of a landscape tool, ``product(model, loss,
    batches, vector)`` of a curvature tool, and the adapter's other methods by their names. A script has 15 lines, so
    that a function should have at most three.
    """


class Breach(AssertionError):
    """A tool breaks a rule; the message says what was expected and what came out."""


class NotOffered(Exception):
    """A tool does not offer what a rule is about, and does not claim to; raised by adapters.

    Example:
        >>> raise NotOffered("takes one batch")
        Traceback (most recent call last):
        ...
        lowland.testing.rulebook.NotOffered: takes one batch
    """


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that a tool of a family must get right.

    Args:
        name: Unique, also the name of its test.
        family: Which tools it is for.
        statement: The rule in one sentence.
        reason: What goes wrong for a user where it is broken.
        function: Raises where an adapter breaks the rule.
    """

    name: str
    family: Family
    statement: str
    reason: str
    function: Callable[[Any], None] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What checking one rule ended with.

    Args:
        rule: What was asked of the tool.
        status: ``"holds"``, ``"broken"``, ``"not offered"``, or ``"other convention"`` where the tool breaks the rule
            and documents that it means to.
        detail: What was found, what is not offered, or what the tool documents; empty where the rule holds.
    """

    rule: Rule
    status: Status
    detail: str = ""


def rule(reason: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a function as a rule of its module's family, with what goes wrong for a user where it is broken."""
    # the first line of the function's docstring is the statement

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        name, home = function.__name__, function.__module__.rpartition(".")[2]
        if name in _RULES and _RULES[name].function.__module__ != function.__module__:
            raise InputError("rule", "must have a name of its own", name)
        family = next(family for family, homes in _HOMES.items() if home in homes)
        _RULES[name] = Rule(name, family, (function.__doc__ or "").partition("\n")[0], reason, function)
        return function

    return register


def rules(family: Family | None = None) -> list[Rule]:
    """Return the rules of a family, or all of them, in the order of the table.

    Args:
        family: ``"optimizer"``, ``"landscape"``, ``"curvature"``, or None for all.

    Returns:
        The rules.

    Raises:
        InputError: If the family is unknown.

    Example:
        >>> rules("optimizer")[0].name
        'one_norm_over_groups'
    """
    if family is not None and family not in _HOMES:
        raise InputError("family", f"must be one of {', '.join(map(repr, _HOMES))}", family)
    modules = [module for member in _HOMES if family in (None, member) for module in _HOMES[member]]
    homes = [importlib.import_module(f"lowland.testing.{module}").__name__ for module in modules]
    return [known for home in homes for known in _RULES.values() if known.function.__module__ == home]


def check(adapter: Adapter, only: Rule | None = None) -> list[Outcome]:
    """Check a tool against the rules of its family.

    Args:
        adapter: How the tool is driven.
        only: One rule; None takes all of the family.

    Returns:
        One outcome per rule.

    Example:
        >>> from lowland.testing import own_adapters
        >>> sam = next(adapter for adapter in own_adapters() if adapter.name == "lowland SAM")
        >>> check(sam, rules("optimizer")[0])[0].status
        'holds'
    """
    return [_outcome(adapter, one) for one in ([only] if only is not None else rules(adapter.family))]


def demand(condition: object, message: str) -> None:
    """Raise `Breach` unless a condition holds.

    Args:
        condition: What must be true.
        message: What was expected and what came out.

    Raises:
        Breach: If it is not.

    Example:
        >>> demand(1 + 1 == 2, "arithmetic broke")
    """
    if not condition:
        raise Breach(message)


def _outcome(adapter: Adapter, one: Rule) -> Outcome:
    try:
        with _seeded():
            one.function(adapter)
    except NotOffered as missing:
        return Outcome(one, "not offered", str(missing))
    except Exception as error:
        # whatever a tool raises is its answer to the rule
        detail = str(error) if isinstance(error, Breach) else f"raises {type(error).__name__}: {_first_line(error)}"
        if one.name in adapter.conventions:
            return Outcome(one, "other convention", adapter.conventions[one.name])
        return Outcome(one, "broken", detail)
    return Outcome(one, "holds")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]


@contextmanager
def _seeded() -> Generator[None, None, None]:
    """Give every rule the same random state, and put back all that a tool changes; its warnings are not shown."""
    with ambient.guarded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        yield
