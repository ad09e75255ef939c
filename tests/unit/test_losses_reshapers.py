"""Reshapers: values and slopes against high-precision twins, autograd and closed forms."""

from __future__ import annotations

import math
import pickle

import mpmath
import pytest
import torch

from lowland.core.errors import InputError
from lowland.losses import (
    Arctangent,
    Custom,
    Cyclic,
    LinearWindow,
    LogExponential,
    Reshaper,
    Sech,
    ShiftedBump,
    linear_exponential,
    linear_quadratic,
)
from lowland.losses.reshapers import PEAK

C = mpmath.asinh(1)


def bump(a, b, v):
    return a * b / C * (1 - mpmath.sech(C * v / b)) if v > 0 else mpmath.mpf(0)


# every reshaper with f(u) written as in the paper or its code, in 60 digits
RESHAPERS: dict[str, tuple[Reshaper, object]] = {
    "sech": (Sech(), lambda u: bump(2.5, 0.15, u)),
    "sech wide": (Sech(a=4.0, b=0.9), lambda u: bump(4.0, 0.9, u)),
    "sech with base": (Sech(base=0.5), lambda u: bump(2.5, 0.15, u) + 0.5 * u),
    "bump": (ShiftedBump(), lambda u: u + bump(5.0, 0.15, u - 0.42)),
    "arctangent": (Arctangent(a=2.0, b=3.0), lambda u: u + 2 * mpmath.atan(3 * u) ** 2),
    "log-exponential": (
        LogExponential(a=0.9, b=1.5, c=2.0),
        lambda u: 1.5 / 2 * (mpmath.log(mpmath.exp(2 * u) - 0.9) - mpmath.log(1 - mpmath.mpf(0.9))),
    ),
    "log-exponential near its pole": (
        LogExponential(a=0.99),
        lambda u: mpmath.log(mpmath.exp(u) - 0.99) - mpmath.log(1 - mpmath.mpf(0.99)),
    ),
    "linear window": (LinearWindow(), lambda u: u + 9 * (min(max(u, 0.2), 0.3) - 0.2)),
    "linear everywhere": (LinearWindow(a=0.5, low=0.0, high=math.inf), lambda u: 0.5 * u),
    "cyclic": (Cyclic(Sech(), rise=0.3, period=4), lambda u: bump(2.5, 0.15, u)),
    "custom": (Custom(lambda u: torch.log1p(u) + 3), lambda u: mpmath.log1p(u)),
    "linear-quadratic": (linear_quadratic(0.5), lambda u: u + u * u / 2),
    "linear-exponential": (linear_exponential(0.7, 0.4), lambda u: tangent_beyond(10, u)),
}


def tangent_beyond(ceiling, u):
    low = min(u, mpmath.mpf(ceiling))
    slope = 1 - 0.28 + 0.28 * mpmath.exp(0.7 * low) if u > ceiling else 0
    return (1 - 0.28) * low + 0.4 * (mpmath.exp(0.7 * low) - 1) + (u - low) * slope


INSIDE = [1e-9, 1e-4, 0.01, 0.05, 0.15, 0.25, 0.41, 0.43, 0.57, 1.0, 2.5, 7.0, 40.0, 1e3]


@pytest.fixture(params=RESHAPERS)
def pair(request):
    return RESHAPERS[request.param]


def test_value_equals_the_formula(pair):
    reshaper, formula = pair
    with mpmath.workdps(60):
        expected = torch.tensor([float(formula(mpmath.mpf(u))) for u in INSIDE], dtype=torch.float64)
    got = reshaper.value(torch.tensor(INSIDE, dtype=torch.float64))
    # linear-exponential reaches 1e5, and a float64 formula with a large tangent keeps 12 digits of it
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-18 if isinstance(reshaper, Sech) else 1e-15)


def test_slope_equals_autograd(pair):
    reshaper, _ = pair
    u = torch.tensor(INSIDE, dtype=torch.float64, requires_grad=True)
    (automatic,) = torch.autograd.grad(reshaper.value(u).sum(), u)
    torch.testing.assert_close(reshaper.slope(u.detach()), automatic, rtol=1e-10, atol=1e-10)


def test_zero_loss_has_value_zero(pair):
    assert pair[0].value(torch.zeros(1)).item() == 0.0


@pytest.mark.parametrize("initial", [0.05, 0.69, 2.3, 6.9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_finite_and_never_falling_for_every_loss(pair, initial, dtype):
    reshaper, _ = pair
    loss = torch.cat([torch.zeros(1), torch.logspace(-8, 4, 500), torch.tensor([1e4])]).to(dtype)
    slope = reshaper.multiplier(loss, initial)
    assert slope.dtype in (torch.float32, torch.float64)
    u = (loss.to(slope.dtype) / initial).requires_grad_()
    value = reshaper.value(u)
    (automatic,) = torch.autograd.grad(value.sum(), u)
    for numbers in (value, slope, automatic):
        assert torch.isfinite(numbers).all()
    assert (slope >= 0).all() and (value[1:] - value[:-1] >= -1e-6 * value[1:].abs()).all()


@pytest.mark.parametrize("a, b", [(2.5, 0.15), (5.0, 0.8), (0.3, 2.0)])
def test_sech_peaks_at_half_a_where_u_is_b(a, b):
    reshaper = Sech(a=a, b=b)
    u = torch.linspace(0, 10 * b, 100_001, dtype=torch.float64)
    slopes = reshaper.slope(u)
    assert reshaper.slope(torch.tensor(b, dtype=torch.float64)).item() == pytest.approx(a / 2, rel=1e-14)
    assert slopes.max().item() <= a / 2 * (1 + 1e-14)
    assert u[slopes.argmax()].item() == pytest.approx(b, abs=2e-4 * b)


def test_sech_slopes_of_the_published_defaults():
    published = {1.0: 0.014, 0.6: 0.147, 0.4: 0.464, 0.3: 0.786, 0.15: 1.25, 0.05: 0.684, 0.02: 0.29}
    for u, slope in published.items():
        assert Sech().slope(torch.tensor(u)).item() == pytest.approx(slope, abs=6e-4)


def test_bump_is_not_the_baseline_and_peaks_behind_its_shift():
    slopes = ShiftedBump().slope(torch.tensor([0.0, 0.41, 0.57, 5.0], dtype=torch.float64))
    assert slopes.tolist() == pytest.approx([1.0, 1.0, 3.5, 1.0], abs=1e-8)


def test_arctangent_peaks_where_stated():
    u = torch.linspace(0, 3, 300_001, dtype=torch.float64)
    slopes = Arctangent(a=2.0, b=0.5).slope(u)
    assert slopes.max().item() == pytest.approx(1 + 0.824, abs=5e-4)
    assert 0.5 * u[slopes.argmax()].item() == pytest.approx(0.765, abs=5e-4)


def test_log_exponential_runs_from_its_pole_to_b():
    slopes = LogExponential(a=0.75, b=2.0).slope(torch.tensor([0.0, 60.0], dtype=torch.float64))
    assert slopes.tolist() == pytest.approx([8.0, 2.0], rel=1e-12)
    usual = LogExponential().slope(torch.tensor([0.0, math.log(2.0), 60.0], dtype=torch.float64))
    assert usual.tolist() == pytest.approx([10.0, 1 / 0.55, 1.0], rel=1e-12)


def test_cyclic_width_follows_its_formula():
    cyclic = Cyclic(ShiftedBump(b=0.2), rise=0.4, period=4)
    assert [cyclic.at(epoch).b for epoch in range(9)] == pytest.approx([0.2, 0.3, 0.4, 0.5] * 2 + [0.2])
    assert cyclic.at(2).shift == ShiftedBump().shift


def test_peak_is_where_sech_times_tanh_is_largest():
    assert math.sinh(PEAK) == pytest.approx(1.0, rel=1e-15)


@pytest.mark.parametrize(
    "build, argument",
    [
        (lambda: Sech(a=-1), "a"),
        (lambda: Sech(b=0), "b"),
        (lambda: Sech(base=-0.1), "base"),
        (lambda: Sech(a=math.nan), "a"),
        (lambda: ShiftedBump(shift=-0.1), "shift"),
        (lambda: Arctangent(a=-1), "a"),
        (lambda: LogExponential(a=1.0), "a"),
        (lambda: LogExponential(c=0.0), "c"),
        (lambda: LinearWindow(a=-1.0), "a"),
        (lambda: LinearWindow(low=0.3, high=0.3), "high"),
        (lambda: Cyclic(Sech(), rise=-1, period=2), "rise"),
        (lambda: Cyclic(Sech(), rise=1, period=0), "period"),
        (lambda: Cyclic(Arctangent(), rise=1, period=3), "reshaper"),
        (lambda: Custom(lambda u: -u), "function"),
        (lambda: Custom(lambda u: torch.sin(u)), "function"),
        (lambda: Custom(lambda u: torch.exp(u)), "function"),
        (lambda: Custom(lambda u: u.square(), lambda u: u), "derivative"),
        (lambda: linear_quadratic(-0.1), "a"),
        (lambda: linear_exponential(1.0, 1.0, ceiling=1e3), "function"),
    ],
)
def test_bad_settings_are_refused(build, argument):
    with pytest.raises(InputError, match=f"^`{argument}`"):
        build()


def test_examples_of_custom_functions_travel_to_other_processes():
    for reshaper in (linear_quadratic(0.5), linear_exponential(0.7, 0.4)):
        again = pickle.loads(pickle.dumps(reshaper))
        assert again.slope(torch.tensor(1.0)) == reshaper.slope(torch.tensor(1.0))
