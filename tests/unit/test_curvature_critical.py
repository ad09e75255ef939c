"""Critical sharpness: exact on quadratics, near its slow twin on networks, few passes, and what it says where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.reference.critical import naive_critical_step
from torch import nn

from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.curvature import Hessian, critical_sharpness, extreme_eigenvalues, stability, summarize
from lowland.curvature.step_sizes import step_size_of


def quadratic(seed: int = 0, count: int = 30) -> tuple[nn.Module, EmpiricalRisk]:
    torch.manual_seed(seed)
    model = nn.Linear(5, 2).double()
    x = torch.randn(count, 5).double() * torch.logspace(-1, 1, 5).double()
    batches = [(x[:13], torch.randn(13, 2).double()), (x[13:], torch.randn(count - 13, 2).double())]
    return model, EmpiricalRisk(model, nn.MSELoss(), batches)


def network(*, norm: bool = False, activation: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(1)
    middle: list[nn.Module] = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(nn.Linear(6, 8), *middle, activation or nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3)).double()


def risk_of(model: nn.Module, *, seed: int = 2, count: int = 40, **options) -> EmpiricalRisk:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator).to(next(model.parameters()).dtype)
    y = torch.randint(3, (count,), generator=generator)
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x[:25], y[:25]), (x[25:], y[25:])], **options)


def passes_of(model: nn.Module) -> list[int]:
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("far", [1e-4, 0.03, 1.0, 7.0, 900.0])
@pytest.mark.parametrize("seed", range(3))
def test_on_a_quadratic_it_is_the_curvature_along_the_update(seed: int, far: float) -> None:
    model, risk = quadratic(seed)
    gradient = risk.gradient()
    update = {name: g + 0.3 * torch.randn_like(g) * g.norm() for name, g in gradient.items()}
    flat = torch.cat([part.reshape(-1) for part in update.values()])
    slope = float(sum((update[n] * gradient[n]).sum() for n in update))
    if slope < 0:
        update, flat, slope = {n: -u for n, u in update.items()}, -flat, -slope
    expected = float(flat @ (Hessian(risk) @ flat)) / slope
    calls = passes_of(model)
    found = critical_sharpness(risk, update, start=far * 2 / expected, check=False)
    assert found.value == pytest.approx(expected, rel=1e-6) and not found.missing
    assert len(calls) == 2 * found.passes <= 2 * 6
    assert found.bounds[0] <= found.step * (1 + 1e-6) and found.bounds[1] >= found.step * (1 - 1e-6)


def test_along_the_gradient_it_takes_three_passes_and_lies_below_lambda_max() -> None:
    _, risk = quadratic()
    gradient = torch.cat([g.reshape(-1) for g in risk.gradient().values()])
    found = critical_sharpness(risk)
    assert found.value == pytest.approx(float(gradient @ (Hessian(risk) @ gradient) / (gradient @ gradient)), rel=1e-6)
    assert found.passes == 3 and found.value < extreme_eigenvalues(risk).lambda_max


def stepped(name: str, rate: float) -> tuple[nn.Module, EmpiricalRisk, torch.optim.Optimizer, list[torch.Tensor]]:
    """A quadratic after five steps, the optimizer, and the weights before the last of them."""
    model, risk = quadratic()
    optimizer: torch.optim.Optimizer = {
        "sgd": lambda p: torch.optim.SGD(p, lr=rate),
        "rmsprop": lambda p: torch.optim.RMSprop(p, lr=rate),
        "adam": lambda p: torch.optim.Adam(p, lr=rate, betas=(0.0, 0.99)),
    }[name](model.parameters())
    for _ in range(5):
        for parameter, gradient in zip(model.parameters(), risk.gradient().values(), strict=True):
            parameter.grad = gradient
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
    return model, risk, optimizer, before


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam"])
def test_along_an_optimizers_step_it_lies_below_the_largest_eigenvalue_in_its_own_metric(name: str) -> None:
    rate = 1e-3
    model, risk, optimizer, before = stepped(name, rate)
    edge = stability(risk, optimizer)
    update = [(b - p.detach()) / rate for b, p in zip(before, model.parameters(), strict=True)]
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), before, strict=True):
            parameter.copy_(value)
    found = critical_sharpness(risk, update)
    assert 0.01 * edge.preconditioned < rate * found.value <= edge.preconditioned * (1 + 1e-6)


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam"])
def test_it_is_that_eigenvalue_where_the_step_lies_along_its_eigenvector(name: str) -> None:
    rate = 1e-3
    model, risk, optimizer, _ = stepped(name, rate)
    hessian = Hessian(risk) @ torch.eye(12).double()
    (group,) = optimizer.param_groups
    sizes = [step_size_of(group, optimizer.state[p], p).step.expand(p.shape) for p in model.parameters()]
    root = torch.cat([size.reshape(-1) for size in sizes]).sqrt()  # D of D H D
    values, vectors = torch.linalg.eigh(root[:, None] * hessian * root)
    wanted = vectors[:, -1] / root  # the gradient whose step D^2 g lies along D v
    gradient = torch.cat([g.reshape(-1) for g in risk.gradient().values()])
    place = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(place - torch.linalg.solve(hessian, gradient - wanted), model.parameters())
    found = critical_sharpness(risk, root * vectors[:, -1] / rate)
    assert rate * found.value == pytest.approx(float(values[-1]), rel=1e-6)
    assert stability(risk, optimizer).preconditioned == pytest.approx(float(values[-1]), rel=1e-6)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU()], ids=["tanh", "relu"])
@pytest.mark.parametrize("far", [0.15, 1.0, 6.0])
def test_on_networks_it_is_near_the_slow_twin(far: float, activation: nn.Module, norm: bool) -> None:
    model = network(norm=norm, activation=activation)
    risk = risk_of(model)
    update = list(risk.gradient().values())
    model.eval()
    whole = [torch.cat(parts) for parts in zip(*((b.input, b.target) for b in risk.batches()), strict=True)]
    step = naive_critical_step(model, lambda net: nn.functional.cross_entropy(net(whole[0]), whole[1]), update)
    model.train()
    before = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    random = torch.get_rng_state()
    found = critical_sharpness(risk, update, start=far * step)
    assert found.step == pytest.approx(step, rel=0.03) and found.passes <= 6
    assert critical_sharpness(risk, start=far * step).step == pytest.approx(step, rel=0.03)
    for farther in (1e-3, 300.0):
        assert critical_sharpness(risk, start=farther * step, max_passes=20).step == pytest.approx(step, rel=0.03)
    hasty = critical_sharpness(risk, update, start=300 * step, max_passes=3)
    assert math.isnan(hasty.value) and hasty.missing and hasty.bounds[0] <= step <= hasty.bounds[1]
    assert same_bits(before, [t.detach() for t in (*model.parameters(), *model.buffers())])
    assert torch.equal(random, torch.get_rng_state()) and model[-2].training and model.training


def test_the_relative_form_is_one_loss_along_the_others_gradient() -> None:
    model = network()
    first, second = risk_of(model, seed=2), risk_of(model, seed=3)
    relative = critical_sharpness(first, second)
    assert relative.value == critical_sharpness(first, second.gradient()).value
    assert relative.value != critical_sharpness(first).value
    assert critical_sharpness(first, first).value == critical_sharpness(first).value
    with pytest.raises(InputError, match="`update` must be a risk of the same model"):
        critical_sharpness(first, risk_of(network(), seed=3))


def test_forms_of_an_update_agree_and_wrong_ones_are_refused() -> None:
    _, risk = quadratic()
    named = risk.gradient()
    flat = torch.cat([part.reshape(-1) for part in named.values()])
    forms = [named, list(named.values()), flat, flat.float()]
    values = [critical_sharpness(risk, form).value for form in forms]
    assert values == pytest.approx([values[0]] * 4, rel=1e-6)
    for wrong in (flat[:-1], {"weight": named["weight"]}, [named["weight"], named["weight"]]):
        with pytest.raises(InputError):
            critical_sharpness(risk, wrong)
    for wrong in (0 * flat, flat * math.nan):
        with pytest.raises(InputError, match="`update` must be finite and not 0"):
            critical_sharpness(risk, wrong)
    for options in ({"start": 0.0}, {"max_passes": 2}, {"tolerance": -1.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            critical_sharpness(risk, **options)


def test_it_says_where_there_is_no_such_step() -> None:
    model, risk = quadratic()
    uphill = critical_sharpness(risk, [-g for g in risk.gradient().values()])
    assert math.isnan(uphill.value) and "rises" in uphill.missing and uphill.bounds[0] == 0 and uphill.passes <= 6
    slope = EmpiricalRisk(model, lambda output, target: output.sum(1), list(risk.batches()))
    endless = critical_sharpness(slope, slope.gradient())
    assert math.isnan(endless.value) and "falls" in endless.missing and math.isinf(endless.bounds[1])
    coarse = nn.Linear(3, 1)
    x = torch.randn(50, 3)
    small = EmpiricalRisk(coarse, lambda output, target: 1 + 1e-9 * output.square(), [(x, x)])
    found = critical_sharpness(small, small.gradient(), start=1e9, max_passes=20)
    assert math.isnan(found.value) and found.missing


def test_losses_that_are_not_finite_far_away_only_bound_the_step() -> None:
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(layer.weight, 1.0)
    one = [(torch.ones(1, 1).double(), torch.zeros(1, 1).double())]
    risk = EmpiricalRisk(layer, lambda output, target: output**2 - 0.1 * (output + 2).log(), one)  # NaN below -2
    found = critical_sharpness(risk, start=50.0)
    assert found.step == pytest.approx(critical_sharpness(risk, start=0.5).step, rel=1e-3)


def test_its_error_covers() -> None:
    model = network().eval()
    truth = critical_sharpness(risk_of(model, count=4000), max_passes=20)
    update = risk_of(model, count=4000).gradient()
    inside = 0
    for k in range(40):
        found = critical_sharpness(risk_of(model, seed=100 + k, count=200), update, start=truth.step, max_passes=20)
        inside += abs(found.value - truth.value) <= 2 * found.standard_error
    assert 33 <= inside <= 40


@pytest.mark.parametrize("mode", ["running", "batch", "recalibrated"])
def test_every_mode_of_batch_norm_has_its_own(mode: str) -> None:
    model = network(norm=True)
    found = critical_sharpness(risk_of(model, batch_norm=mode))
    assert found.value > 0 and found.passes <= 6


def test_totals_of_batches_have_a_value_and_no_error() -> None:
    _, risk = quadratic()
    totals = risk.replaced(evaluate=lambda net, b: {"loss": ((net(b.input) - b.target) ** 2).mean()})
    found = critical_sharpness(totals)
    assert found.value == pytest.approx(critical_sharpness(risk).value, rel=1e-6) and math.isnan(found.standard_error)


def test_a_summary_holds_it() -> None:
    model = network()
    risk = risk_of(model)
    found = summarize(risk)
    assert float(found.critical_sharpness) == critical_sharpness(risk, max_passes=20).value
    assert float(found.critical_sharpness_se) > 0 and float(found.critical_sharpness) < float(found.lambda_max)
    assert np.isfinite(float(found.critical_sharpness))
