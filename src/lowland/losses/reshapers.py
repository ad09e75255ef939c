"""Functions of the normalized loss u = L / L0, with their slopes.

A reshaped loss is ``L0 f(L / L0)``, so that its gradient is ``f'(L / L0)`` times the plain one: a reshaper is a
multiplier that depends on the loss. Chen, Jin and Shang, "Efficient Loss Landscape Reshaping for Convolutional Neural
Networks", IEEE TNNLS 36(7), 2025; formulas as in the code that accompanies it (``CIFAR/utils/engine.py``).

Deviations:
1. Every f is shifted so that f(0) = 0; slopes are unchanged.
2. `LinearWindow` is continuous; the original jumps at both edges (slopes agree).
3. `LogExponential` takes 0 <= a < 1 only: from a = 1 on the original is not a number for small losses.
4. `ShiftedBump` keeps losses above L0 where they are; the original takes the fractional part of u, which treats
   every loss just above L0 as an ultralow one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from lowland.core.errors import InputError

PEAK: Final = math.asinh(1.0)
"""sech(x) tanh(x) is largest, 1/2, where sinh(x) = 1."""
_NOT_NEGATIVE: Final = {"low": 0.0}
_POSITIVE: Final = {"low": 0.0, "open_low": True}


class Reshaper(ABC):
    """A function f of the normalized loss with f(0) = 0 and f' >= 0."""

    bounds: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Argument -> what `check_number` asks of it."""

    def __post_init__(self) -> None:
        for name, bound in self.bounds.items():
            check_number(name, getattr(self, name), **bound)

    @abstractmethod
    def value(self, u: Tensor) -> Tensor:
        """Return f(u), differentiable, for normalized losses u >= 0 of any shape, in at least float32."""

    @abstractmethod
    def slope(self, u: Tensor) -> Tensor:
        """Return f'(u) in closed form, for the same u."""

    def multiplier(self, loss: Tensor, initial_loss: float) -> Tensor:
        """Return f'(loss / initial_loss), the factor of the plain gradient, in at least float32."""
        return self.slope(wide(loss) / initial_loss)

    def at(self, epoch: int) -> Reshaper:
        """Return the reshaper of an epoch (from 0); itself unless it changes with time."""
        del epoch
        return self


@dataclass(frozen=True)
class Sech(Reshaper):
    """The paper's main reshaper: flat for ultralow and high losses, steep between, with an optional base slope.

    ``f(u) = (a b / c) (1 - sech(c u / b)) + p u``, ``f'(u) = a sech(c u / b) tanh(c u / b) + p``, with c = asinh(1).
    Without a base the slope is a/2 at u = b, and 1.4 % at u = 1 for the defaults: a warm-up is built in.

    Args:
        a: Twice the largest slope, at least 0. Default 2.5 (``CIFAR/configs.json``).
        b: Normalized loss at which the slope is largest, above 0. Default 0.15 (``CIFAR/configs.json``).
        base: Slope p that is added everywhere, at least 0. Default 0; the code's sweeps use 0.5.

    Example:
        >>> round(Sech().slope(torch.tensor(0.15)).item(), 6)
        1.25
    """

    a: float = 2.5
    b: float = 0.15
    base: float = 0.0
    bounds: ClassVar = {"a": _NOT_NEGATIVE, "b": _POSITIVE, "base": _NOT_NEGATIVE}

    def value(self, u: Tensor) -> Tensor:
        """Return f(u); see `Reshaper.value`."""
        return (self.a * self.b / PEAK) * _bowl(u * (PEAK / self.b)) + self.base * u

    def slope(self, u: Tensor) -> Tensor:
        """Return f'(u); see `Reshaper.slope`."""
        return self.a * _bell(u * (PEAK / self.b)) + self.base


@dataclass(frozen=True)
class ShiftedBump(Reshaper):
    """The bump of the ImageNet experiments on top of the plain loss: steeper above a shift, plain elsewhere.

    ``f(u) = u + (a b / c) (1 - sech(c v / b))`` with v = max(u - shift, 0) and c = asinh(1);
    ``f'(u) = 1 + a sech(c v / b) tanh(c v / b)``, at most 1 + a/2, at u = shift + b. (``ImageNet/train.py`` with the
    setting ``AddBase``; the run settings without it discard the bump and train like the baseline.)

    Args:
        a: Twice the largest extra slope, at least 0. Default 5 (``ImageNet/run.sh``, ConvNeXt).
        b: Distance of the peak from the shift, in normalized loss, above 0. Default 0.15 (same line).
        shift: Normalized loss where the bump begins, at least 0. Default 0.42 (same line).

    Example:
        >>> round(ShiftedBump().slope(torch.tensor(0.57)).item(), 6)
        3.5
    """

    a: float = 5.0
    b: float = 0.15
    shift: float = 0.42
    bounds: ClassVar = {"a": _NOT_NEGATIVE, "b": _POSITIVE, "shift": _NOT_NEGATIVE}

    def value(self, u: Tensor) -> Tensor:
        """Return f(u); see `Reshaper.value`."""
        return u + (self.a * self.b / PEAK) * _bowl(self._x(u))

    def slope(self, u: Tensor) -> Tensor:
        """Return f'(u); see `Reshaper.slope`."""
        return 1 + self.a * _bell(self._x(u))

    def _x(self, u: Tensor) -> Tensor:
        return torch.relu(u - self.shift) * (PEAK / self.b)


@dataclass(frozen=True)
class Arctangent(Reshaper):
    """Steeper at middle losses, plain at both ends.

    ``f(u) = u + a atan(b u)^2``, ``f'(u) = 1 + 2 a b atan(b u) / (1 + (b u)^2)``; at most 1 + 0.824 a b, at
    b u = 0.765. (``CIFAR/utils/engine.py``)

    Args:
        a: Strength, at least 0. Default 1, as in the code's unnormalized form; its search covers 0 to 10.
        b: Inverse width, at least 0. Default 1, as in the code's unnormalized form; its search covers 0 to 8.

    Example:
        >>> Arctangent().slope(torch.tensor(0.0)).item()
        1.0
    """

    a: float = 1.0
    b: float = 1.0
    bounds: ClassVar = {"a": _NOT_NEGATIVE, "b": _NOT_NEGATIVE}

    def value(self, u: Tensor) -> Tensor:
        """Return f(u); see `Reshaper.value`."""
        return u + self.a * torch.atan(self.b * u).square()

    def slope(self, u: Tensor) -> Tensor:
        """Return f'(u); see `Reshaper.slope`."""
        x = self.b * u
        return 1 + 2 * self.a * self.b * torch.atan(x) / (1 + x.square())


@dataclass(frozen=True)
class LogExponential(Reshaper):
    """Steeper at low losses: slope b/(1-a) at 0, falling to b.

    ``f(u) = (b / c) (ln(exp(c u) - a) - ln(1 - a))``, ``f'(u) = b / (1 - a exp(-c u))``. (``CIFAR/utils/engine.py``)

    Args:
        a: Where between plain (0) and a pole at loss 0 (1); 0 <= a < 1. Default 0.9, from the range 0.1 ... 0.99 of the
            code's figure 2.
        b: Slope at high losses, above 0. Default 1.
        c: How fast the slope falls, above 0. Default 1 (``dls_coe2``).

    Example:
        >>> round(LogExponential(a=0.5).slope(torch.tensor(0.0)).item(), 6)
        2.0
    """

    a: float = 0.9
    b: float = 1.0
    c: float = 1.0
    bounds: ClassVar = {"a": {"low": 0.0, "high": 1.0}, "b": _POSITIVE, "c": _POSITIVE}

    def value(self, u: Tensor) -> Tensor:
        """Return f(u); see `Reshaper.value`."""
        # ln((e^x - a)/(1 - a)) = x + log1p(a (1 - e^-x)/(1 - a)): exact near 0, no overflow far out
        x = self.c * u
        return (self.b / self.c) * (x + torch.log1p(self.a / (1 - self.a) * -torch.expm1(-x)))

    def slope(self, u: Tensor) -> Tensor:
        """Return f'(u); see `Reshaper.slope`."""
        return self.b / ((1 - self.a) - self.a * torch.expm1(-self.c * u))


@dataclass(frozen=True)
class LinearWindow(Reshaper):
    """Another slope in a window of losses, plain outside; a window over everything scales the learning rate.

    ``f'(u) = a`` for low <= u <= high, else 1, and f its integral from 0. (``CIFAR/utils/engine.py``)

    Args:
        a: Slope in the window, at least 0. Default 10 (figure 2 of the code's ``run.sh``).
        low: Lower end of the window, normalized loss, at least 0. Default 0.2 (same).
        high: Upper end, above low. Default 0.3 (same).

    Example:
        >>> LinearWindow().slope(torch.tensor([0.1, 0.25, 0.5])).tolist()
        [1.0, 10.0, 1.0]
    """

    a: float = 10.0
    low: float = 0.2
    high: float = 0.3
    bounds: ClassVar = {"a": _NOT_NEGATIVE, "low": _NOT_NEGATIVE}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.high > self.low:  # infinity is fine: a window over everything above
            raise InputError("high", f"must be above low={self.low:g}", self.high)

    def value(self, u: Tensor) -> Tensor:
        """Return f(u); see `Reshaper.value`."""
        return u + (self.a - 1) * (u.clamp(self.low, self.high) - self.low)

    def slope(self, u: Tensor) -> Tensor:
        """Return f'(u); see `Reshaper.slope`."""
        inside = (u >= self.low) & (u <= self.high)
        return torch.where(inside, torch.full_like(u, self.a), torch.ones_like(u))


@dataclass(frozen=True)
class Cyclic(Reshaper):
    """A reshaper whose width b grows in cycles of epochs: ``b(e) = b + rise (e mod period) / period``.

    The original has four versions of this saw-tooth, which differ by one epoch and begin at its top or bottom; this one
    begins at the bottom and repeats after exactly `period` epochs.

    Args:
        reshaper: One that has a width b: `Sech` or `ShiftedBump`.
        rise: By how much b grows within a cycle, in normalized loss, at least 0.
        period: Epochs of a cycle, a whole number of at least 1.

    Example:
        >>> cyclic = Cyclic(Sech(b=0.15), rise=0.3, period=3)
        >>> [round(cyclic.at(epoch).b, 2) for epoch in range(4)]
        [0.15, 0.25, 0.35, 0.15]
    """

    reshaper: Sech | ShiftedBump
    rise: float
    period: int
    bounds: ClassVar = {"rise": _NOT_NEGATIVE}

    def __post_init__(self) -> None:
        if not isinstance(self.reshaper, Sech | ShiftedBump):
            raise InputError("reshaper", "must have a width b (Sech or ShiftedBump)", self.reshaper)
        super().__post_init__()
        if isinstance(self.period, bool) or not isinstance(self.period, int) or self.period < 1:
            raise InputError("period", "must be a positive integer number of epochs", self.period)

    def at(self, epoch: int) -> Sech | ShiftedBump:
        """Return the reshaper with the width of an epoch; see `Reshaper.at`."""
        width = self.reshaper.b + self.rise * (epoch % self.period) / self.period
        return replace(self.reshaper, b=width)

    def value(self, u: Tensor) -> Tensor:
        """Return f(u) at the start of a cycle; see `Reshaper.value`."""
        return self.reshaper.value(u)

    def slope(self, u: Tensor) -> Tensor:
        """Return f'(u) at the start of a cycle; see `Reshaper.slope`."""
        return self.reshaper.slope(u)


def _bowl(x: Tensor) -> Tensor:
    # 1 - sech x = (1 - e)^2 / (1 + e^2) with e = exp(-x): no cancellation near 0, no overflow far out
    return torch.expm1(-x).square() / (1 + torch.exp(-2 * x))


def _bell(x: Tensor) -> Tensor:
    return torch.tanh(x) / torch.cosh(x)  # sech(x) tanh(x); where cosh overflows to infinity, 0 is right


def wide(loss: Tensor) -> Tensor:
    """Return losses in at least float32."""
    return loss.float() if loss.dtype in (torch.float16, torch.bfloat16) else loss


def check_number(
    name: str, value: float, *, low: float = -math.inf, high: float = math.inf, open_low: bool = False
) -> None:
    """Raise InputError unless a number is finite and inside its bounds."""
    fine = isinstance(value, int | float) and math.isfinite(value) and value < high
    if not fine or value < low or (open_low and value == low):
        rule = f"must be a number {'above' if open_low else 'of at least'} {low:g}"
        raise InputError(name, rule + (f" and below {high:g}" if math.isfinite(high) else ""), value)
