"""Your own reshaping function, and two examples of it from the code that accompanies LLR.

Deviation: `linear_exponential` goes on along its tangent beyond a ceiling, so that no loss overflows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lowland.core.errors import InputError
from lowland.losses.reshapers import Reshaper, check_number

_PROBED: Final = torch.cat([torch.zeros(1), torch.logspace(-6, 4, 201)])
"""Normalized losses where a function is tried before it is used."""


@dataclass(frozen=True)
class Custom(Reshaper):
    """A reshaper made from a function of the normalized loss.

    Args:
        function: ``u -> f(u)``, elementwise, differentiable by autograd, never falling, finite up to u = 1e4.
        derivative: ``u -> f'(u)``; None takes it from autograd. Default None.

    Raises:
        InputError: If the function falls somewhere, is not finite, or the derivative is another function's.

    Example:
        >>> Custom(lambda u: u.square()).slope(torch.tensor(3.0)).item()
        6.0
    """

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        automatic = self._automatic(_PROBED)
        slopes = self.slope(_PROBED)
        if not (torch.isfinite(self.value(_PROBED)).all() and torch.isfinite(slopes).all()):
            rule = "must be finite, with its slope, for normalized losses in [0, 1e4]"
            raise InputError("function", rule, self.function)
        if (slopes < 0).any():
            worst = float(_PROBED[slopes.argmin()])
            rule = f"must never fall, but its slope at u={worst:.3g} is {float(slopes.min()):.3g}"
            raise InputError("function", rule, self.function, "a negative slope would make training climb")
        if not torch.allclose(slopes, automatic, rtol=1e-3, atol=1e-5):
            raise InputError("derivative", "must be the derivative of `function`", self.derivative)

    def __repr__(self) -> str:
        function = self.function.func if isinstance(self.function, functools.partial) else self.function
        options = self.function.keywords if isinstance(self.function, functools.partial) else {}
        name = getattr(function, "__qualname__", type(function).__qualname__)
        return f"Custom({name}" + "".join(f", {key}={value!r}" for key, value in options.items()) + ")"

    def value(self, u: Tensor) -> Tensor:
        """Return f(u) - f(0); see `Reshaper.value`."""
        return self.function(u) - self.function(torch.zeros_like(u))

    def slope(self, u: Tensor) -> Tensor:
        """Return f'(u); see `Reshaper.slope`."""
        return self._automatic(u) if self.derivative is None else self.derivative(u)

    def _automatic(self, u: Tensor) -> Tensor:
        with torch.enable_grad():
            point = u.detach().clone().requires_grad_()
            return torch.autograd.grad(self.function(point).sum(), point)[0]


def linear_quadratic(a: float) -> Custom:
    """Return the reshaper ``f(u) = u + a u^2``, ``f'(u) = 1 + 2 a u``: steeper the higher the loss.

    Args:
        a: Strength, at least 0.

    Example:
        >>> linear_quadratic(0.5).slope(torch.tensor(2.0)).item()
        3.0
    """
    check_number("a", a, low=0.0)
    return Custom(functools.partial(_quadratic, a=a), functools.partial(_quadratic_slope, a=a))


def linear_exponential(a: float, beta: float, *, ceiling: float = 10.0) -> Custom:
    """Return the reshaper ``f(u) = (1 - beta a) u + beta (exp(a u) - 1)``, ``f'(u) = 1 - beta a + beta a exp(a u)``.

    Args:
        a: Rate, at least 0.
        beta: Strength, at least 0.
        ceiling: Normalized loss from which on f is its own tangent. Default 10: ten times the initial loss (ours).

    Raises:
        InputError: If a number is negative, or the exponential overflows below the ceiling.

    Example:
        >>> linear_exponential(1.0, 0.5).slope(torch.tensor(0.0)).item()
        1.0
    """
    check_number("a", a, low=0.0)
    check_number("beta", beta, low=0.0)
    check_number("ceiling", ceiling, low=0.0, open_low=True)
    return Custom(
        functools.partial(_exponential, a=a, beta=beta, ceiling=ceiling),
        functools.partial(_exponential_slope, a=a, beta=beta, ceiling=ceiling),
    )


def _quadratic(u: Tensor, a: float) -> Tensor:
    return u + a * u.square()


def _quadratic_slope(u: Tensor, a: float) -> Tensor:
    return 1 + 2 * a * u


def _exponential(u: Tensor, a: float, beta: float, ceiling: float) -> Tensor:
    low = u.clamp(max=ceiling)
    curved = u - beta * a * low + beta * torch.expm1(a * low)
    return curved + (u - low) * (_exponential_slope(low.detach(), a, beta, ceiling) - 1)


def _exponential_slope(u: Tensor, a: float, beta: float, ceiling: float) -> Tensor:
    return 1 + beta * a * torch.expm1(a * u.clamp(max=ceiling))
