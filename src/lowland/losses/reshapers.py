"""Functions of the normalised loss u = L / L0, with their slopes.

A reshaped loss is ``L0 f(L / L0)``, so that its gradient is ``f'(L / L0)`` times the plain one: a reshaper is a
multiplier that depends on the loss. Chen, Jin and Shang, "Efficient Loss Landscape Reshaping for Convolutional Neural
Networks", IEEE TNNLS 36(7), 2025; formulas as in the code that accompanies it (``CIFAR/utils/engine.py``).

Deviations:
1. Every f is shifted so that f(0) = 0; slopes are unchanged.
2. `LinearWindow` is continuous; the original jumps at both edges (slopes agree).
3. `LogExponential` takes 0 <= a < 1 only: from a = 1 on the original is not a number for small losses.
4. `ShiftedBump` keeps losses above L0 where they are; the original takes the fractional part of u, which treats
   every loss just above L0 as an ultralow one.
5. `LinearExponential` goes on along its tangent beyond a ceiling, so that no loss overflows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lowland.core.errors import InputError

__all__ = ["Reshaper", "Sech"]

PEAK: Final = math.asinh(1.0)
"""sech(x) tanh(x) is largest, 1/2, where sinh(x) = 1."""


class Reshaper(ABC):
    """A function f of the normalised loss with f(0) = 0 and f' >= 0."""

    @abstractmethod
    def value(self, u: Tensor) -> Tensor:
        """Return f(u), differentiable.

        Args:
            u: Normalised losses, not negative, at least float32, any shape.

        Returns:
            Same shape.
        """

    @abstractmethod
    def slope(self, u: Tensor) -> Tensor:
        """Return f'(u) in closed form.

        Args:
            u: Normalised losses, not negative, at least float32, any shape.

        Returns:
            Same shape.
        """

    def multiplier(self, loss: Tensor, initial_loss: float) -> Tensor:
        """Return the factor by which the reshaped gradient differs from the plain one.

        Args:
            loss: Plain losses, any shape.
            initial_loss: The normalising constant L0 > 0, in units of the loss.

        Returns:
            f'(loss / initial_loss), in at least float32.
        """
        return self.slope(_wide(loss) / initial_loss)

    def at(self, epoch: int) -> Reshaper:
        """Return the reshaper of an epoch; itself unless it changes with time.

        Args:
            epoch: The epoch, from 0.

        Returns:
            A reshaper.
        """
        del epoch
        return self


@dataclass(frozen=True)
class Sech(Reshaper):
    """The paper's main reshaper: flat for ultralow and high losses, steep between, with an optional base slope.

    ``f(u) = (a b / c) (1 - sech(c u / b)) + p u``, ``f'(u) = a sech(c u / b) tanh(c u / b) + p``, with c = asinh(1).
    Without a base the slope is a/2 at u = b, and 1.4 % at u = 1 for the defaults: a warm-up is built in.

    Args:
        a: Twice the largest slope. Default 2.5 (``CIFAR/configs.json``).
        b: Normalised loss at which the slope is largest. Default 0.15 (``CIFAR/configs.json``).
        base: Slope p that is added everywhere. Default 0; the code's sweeps use 0.5.

    Raises:
        InputError: If a or base is negative or b is not positive.

    Example:
        >>> round(Sech().slope(torch.tensor(0.15)).item(), 6)
        1.25
    """

    a: float = 2.5
    b: float = 0.15
    base: float = 0.0

    def __post_init__(self) -> None:
        check_number("a", self.a, low=0.0)
        check_number("b", self.b, low=0.0, open_low=True)
        check_number("base", self.base, low=0.0)

    def value(self, u: Tensor) -> Tensor:
        """Return f(u); see `Reshaper.value`."""
        x = u * (PEAK / self.b)
        # 1 - sech x = (1 - e)^2 / (1 + e^2) with e = exp(-x): no cancellation near 0, no overflow far out
        shape = torch.expm1(-x).square() / (1 + torch.exp(-2 * x))
        return (self.a * self.b / PEAK) * shape + self.base * u

    def slope(self, u: Tensor) -> Tensor:
        """Return f'(u); see `Reshaper.slope`."""
        return self.a * _bell(u * (PEAK / self.b)) + self.base


def _bell(x: Tensor) -> Tensor:
    """Return sech(x) tanh(x) for x >= 0 without overflow."""
    return 2 * torch.exp(-x) * -torch.expm1(-2 * x) / (1 + torch.exp(-2 * x)).square()


def _wide(loss: Tensor) -> Tensor:
    return loss.float() if loss.dtype in (torch.float16, torch.bfloat16) else loss


def check_number(
    name: str, value: float, *, low: float = -math.inf, high: float = math.inf, open_low: bool = False
) -> None:
    """Raise InputError unless a number is finite and inside its bounds.

    Args:
        name: Name of the argument.
        value: The number.
        low: Lower bound, allowed itself unless `open_low`.
        high: Upper bound, never allowed itself.
        open_low: Whether the lower bound itself is refused.

    Raises:
        InputError: If it is not.
    """
    fine = isinstance(value, int | float) and math.isfinite(value) and value < high
    if not fine or value < low or (open_low and value == low):
        rule = f"must be a number {'above' if open_low else 'of at least'} {low:g}"
        raise InputError(name, rule + (f" and below {high:g}" if math.isfinite(high) else ""), value)
