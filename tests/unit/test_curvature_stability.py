"""The edge of stability where it can be computed: on quadratics, whose optimizers diverge exactly beyond it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.unit.test_curvature_trace import small_risk
from torch import nn

from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.curvature import Hessian, extreme_eigenvalues, measurement_interval, stability, warm_started_extremes
from lowland.curvature.step_sizes import step_size_of


def quadratic() -> EmpiricalRisk:
    """L = mean of (x w)^2 over rows: Hessian diag(2 x^2 / 3) = diag(6, 2, 2/3)."""
    layer = nn.Linear(3, 1, bias=False).double()
    nn.init.ones_(layer.weight)
    rows = torch.diag(torch.tensor([3.0, 3.0**0.5, 1.0])).double()
    return EmpiricalRisk(layer, nn.MSELoss(), [(rows, torch.zeros(3, 1).double())])


def diverges(risk: EmpiricalRisk, optimizer: Any) -> bool:
    for _ in range(1000):
        optimizer.zero_grad()
        loss, weight = risk.loss_terms(next(iter(risk.batches())))
        (loss / weight).backward()
        optimizer.step()
        if bool(next(risk.model.parameters()).abs().max() > 1e3):
            return True  # at once: Adam's own metric would tame it later
    return False


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.5, "dampening": 0.3}],
)
@pytest.mark.parametrize("beyond", [0.97, 1.03])
def test_sgd_diverges_exactly_beyond_the_edge(options: dict[str, Any], beyond: float) -> None:
    risk = quadratic()
    unit = stability(risk, torch.optim.SGD(risk.model.parameters(), lr=1.0, **options))
    assert unit.preconditioned == pytest.approx(6.0 * (1 - options.get("dampening", 0.0)))
    optimizer = torch.optim.SGD(risk.model.parameters(), lr=beyond / unit.ratio, **options)
    assert stability(risk, optimizer).ratio == pytest.approx(beyond)
    assert diverges(risk, optimizer) == (beyond > 1)


@pytest.mark.parametrize("beyond", [0.95, 1.05])
def test_adam_with_a_frozen_metric_diverges_exactly_beyond_the_edge(beyond: float) -> None:
    risk = quadratic()
    weight = next(risk.model.parameters())

    def made(rate: float) -> torch.optim.Adam:
        optimizer = torch.optim.Adam(risk.model.parameters(), lr=rate, betas=(0.9, 1.0 - 1e-12), eps=1e-8)
        optimizer.state[weight] = {
            "step": torch.tensor(1e14),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.tensor([[4.0, 1.0, 0.25]]).double(),
        }
        return optimizer

    unit = stability(risk, made(1.0))
    assert unit.preconditioned == pytest.approx(0.1 * 6.0 / 2.0) and unit.limit == pytest.approx(3.8)
    assert diverges(risk, made(beyond / unit.ratio)) == (beyond > 1)


def test_groups_may_differ_in_step_size_but_not_in_momentum() -> None:
    risk = small_risk()
    first, second = risk.model[0].parameters(), risk.model[2].parameters()
    mixed = torch.optim.SGD([{"params": list(first), "lr": 0.0}, {"params": list(second), "lr": 0.5}], momentum=0.9)
    alone = extreme_eigenvalues(Hessian(risk, modules=["2"]))
    assert stability(risk, mixed).preconditioned == pytest.approx(0.5 * alone.lambda_max, rel=1e-3)
    mixed.param_groups[0]["momentum"] = 0.5
    with pytest.raises(InputError, match="momentum"):
        stability(risk, mixed)


def test_optimizers_that_say_nothing_are_refused() -> None:
    risk = small_risk()
    with pytest.raises(InputError, match="step"):
        stability(risk, torch.optim.Adam(risk.model.parameters()))
    with pytest.raises(InputError, match="SGD, RMSprop or Adam"):
        stability(risk, torch.optim.Adagrad(risk.model.parameters()))
    with pytest.raises(InputError, match="missing"):
        stability(risk, torch.optim.SGD(risk.model[0].parameters(), lr=0.1))
    for other in (torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax):  # they step in other metrics than Adam's
        optimizer = other(risk.model.parameters())
        sum(parameter.sum() for parameter in risk.model.parameters()).backward()
        optimizer.step()
        with pytest.raises(InputError, match="SGD, RMSprop, Adam or AdamW"):
            stability(risk, optimizer)


def test_centered_rmsprop_has_the_metric_it_steps_in() -> None:
    risk = quadratic()
    weight = next(risk.model.parameters())
    optimizer = torch.optim.RMSprop(risk.model.parameters(), lr=0.1, centered=True)
    mean, variance = torch.tensor([[3.0, 1.0, 1.0]]).double(), torch.tensor([[4.0, 1.0, 0.25]]).double()
    optimizer.state[weight] = {"step": torch.tensor(5.0), "square_avg": variance + mean.square(), "grad_avg": mean}
    assert stability(risk, optimizer).preconditioned == pytest.approx(0.1 * 6.0 / 2.0, rel=1e-6)


def test_a_curve_over_training_follows_the_cold_values_with_few_products() -> None:
    risk = small_risk()
    optimizer = torch.optim.SGD(risk.model.parameters(), lr=0.2, momentum=0.9)
    ends = warm_started_extremes(risk)
    for _ in range(10):
        for _ in range(3):
            optimizer.zero_grad()
            total = sum(loss / 40 for loss, _ in (risk.loss_terms(batch) for batch in risk.batches()))
            total.backward()
            optimizer.step()
        ends = warm_started_extremes(risk, ends.vectors)
        assert ends.warm and ends.products <= 6
        cold = extreme_eigenvalues(risk, max_products=60)
        assert ends.lambda_max == pytest.approx(cold.lambda_max, rel=0.02)


def test_known_ends_save_the_run_where_all_steps_are_equal() -> None:
    risk = small_risk()
    ends = extreme_eigenvalues(risk, max_products=60)
    optimizer = torch.optim.SGD(risk.model.parameters(), lr=0.2, momentum=0.9)
    counted = Hessian(risk)
    known = stability(counted, optimizer, ends=ends)
    assert counted.products == 0
    assert known.ratio == pytest.approx(stability(risk, optimizer).ratio, rel=1e-3)
    weights = list(risk.model.parameters())
    mixed = torch.optim.SGD([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:]}], lr=0.2, momentum=0.9)
    assert stability(counted, mixed, ends=ends).ratio == pytest.approx(stability(risk, mixed).ratio)
    assert counted.products > 0


def test_momentum_alone_does_not_make_an_optimizer_sgd() -> None:
    layer = torch.nn.Linear(3, 3, bias=False)
    risk = EmpiricalRisk(layer, torch.nn.MSELoss(), [(torch.eye(3), torch.eye(3))])
    with pytest.raises(InputError, match=r"Muon.*without momentum"):
        stability(risk, torch.optim.Muon(layer.parameters()))


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-Free SGD (or, with a square, its AdamW in a frozen metric), written from x, y and z; c stays what it is."""

    def __init__(
        self, parameters: Any, lr: float, beta: float, share: float, warmup: int = 0, square: Any = None
    ) -> None:
        options = {"lr": lr, "k": 0, "r": 0.0, "warmup_steps": warmup, "weight_lr_power": 0.0, "lr_max": -1.0}
        metric = {"momentum": beta} if square is None else {"betas": (beta, 0.0), "eps": 1e-8}
        super().__init__(parameters, {**options, **metric, "weight_sum": 1 / share - 1})
        self.beta, self.share, self.square = beta, share, square
        (self.y,) = self.param_groups[0]["params"]
        self.x, self.z = self.y.detach().clone(), self.y.detach() + 0.1
        if square is not None:
            self.state[self.y]["exp_avg_sq"] = square

    def step(self, closure: Any = None) -> None:
        metric = 1.0 if self.square is None else self.square.sqrt() + 1e-8
        self.z -= self.param_groups[0]["lr"] * self.y.grad / metric
        self.x = (1 - self.share) * self.x + self.share * self.z
        with torch.no_grad():
            self.y.copy_((1 - self.beta) * self.z + self.beta * self.x)


@pytest.mark.parametrize("beta", [0.5, 0.9])
@pytest.mark.parametrize("share", [1.0, 0.3, 1e-3])
@pytest.mark.parametrize("square", [None, torch.tensor([[4.0, 1.0, 0.25]]).double()])
@pytest.mark.parametrize("beyond", [0.97, 1.03])
def test_schedule_free_diverges_exactly_beyond_the_edge(beta: float, share: float, square: Any, beyond: float) -> None:
    risk = quadratic()
    unit = stability(risk, ScheduleFree(risk.model.parameters(), 1.0, beta, share, square=square))
    optimizer = ScheduleFree(risk.model.parameters(), beyond / unit.ratio, beta, share, square=square)
    assert stability(risk, optimizer).ratio == pytest.approx(beyond)
    assert diverges(risk, optimizer) == (beyond > 1)


def test_schedule_free_warms_up() -> None:
    whole, risk = (stability(r := quadratic(), ScheduleFree(r.model.parameters(), 0.1, 0.9, 0.1)).ratio, quadratic())
    warming = ScheduleFree(risk.model.parameters(), 0.1, 0.9, 0.1, warmup=4)
    assert stability(risk, warming).ratio == pytest.approx(whole / 4)


def test_the_published_schedule_free_is_recognized() -> None:
    published = pytest.importorskip("schedulefree")
    risk = quadratic()
    for make in (published.SGDScheduleFree, published.AdamWScheduleFree):
        optimizer = make(risk.model.parameters(), lr=1e-9)
        optimizer.train()
        assert not diverges(risk, optimizer)
        assert stability(risk, optimizer).limit == pytest.approx(2 / (1 - 0.9), rel=0.02)


def factored(rows: int, columns: int) -> EmpiricalRisk:
    """L = mean of (W x)^2 over scaled basis vectors x, with small weights."""
    layer = nn.Linear(columns, rows, bias=False).double()
    nn.init.constant_(layer.weight, 1e-3)
    inputs = torch.diag(torch.arange(1.0, columns + 1)).double()
    return EmpiricalRisk(layer, nn.MSELoss(), [(inputs, torch.zeros(columns, rows).double())])


def is_driven_apart(risk: EmpiricalRisk, optimizer: Any, weight: Any) -> bool:
    """Step with the metric that is there now: what the optimizer learns of it is put back."""
    metric = {name: value.clone() for name, value in optimizer.state[weight].items()}
    for _ in range(1000):
        optimizer.zero_grad()
        loss, count = risk.loss_terms(next(iter(risk.batches())))
        (loss / count).backward()
        optimizer.state[weight].update({name: value.clone() for name, value in metric.items()})
        optimizer.step()
        if float(weight.detach().abs().max()) > 0.5:  # beyond 1 its scale would follow the weights
            return True
    return False


@pytest.mark.parametrize("beyond", [0.95, 1.05])
@pytest.mark.parametrize("shape", [(1, 3), (3, 4)])
def test_adafactor_with_a_frozen_metric_diverges_exactly_beyond_the_edge(shape: tuple[int, int], beyond: float) -> None:
    risk = factored(*shape)
    weight = next(risk.model.parameters())

    def made(rate: float) -> torch.optim.Adafactor:
        # a second moment that hardly moves, a scale that is not the weights', no clipping
        options: Any = {"beta2_decay": -2.0, "eps": (None, 1.0), "d": 1e12, "weight_decay": 0.0}
        optimizer = torch.optim.Adafactor([weight], lr=rate, **options)
        rows, columns = (torch.arange(1.0, size + 1).double() * 2 for size in shape)
        optimizer.state[weight] = {
            "step": torch.tensor(1e5),
            "row_var": 1e-6 * rows[:, None],
            "col_var": 1e-6 * columns[None],
        }
        return optimizer

    unit = stability(risk, made(1e-6))
    assert unit.limit == 2.0
    assert is_driven_apart(risk, made(1e-6 * beyond / unit.ratio), weight) == (beyond > 1)


@pytest.mark.parametrize("options", [{}, {"beta1": 0.9}, {"scale_parameter": True}])
@pytest.mark.parametrize("shape", [(3, 4), (5,)])
def test_adafactor_of_transformers_has_the_metric_it_steps_in(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    adafactor = pytest.importorskip("transformers.optimization").Adafactor
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape).double())
    optimizer = adafactor([weight], lr=1e-3, relative_step=False, **{"scale_parameter": False, **options})
    for _ in range(3):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
    state = optimizer.state[weight]
    expected = step_size_of(optimizer.param_groups[0], state, weight)
    assert expected.limit == pytest.approx(2 * (1 + options.get("beta1", 0.0)))
    if "exp_avg" in state:
        state["exp_avg"].zero_()
    state["step"], optimizer.param_groups[0]["decay_rate"] = 10**9, -2.0  # its metric hardly moves any more
    before, weight.grad = weight.detach().clone(), torch.randn_like(weight) * 1e-3
    optimizer.step()
    assert torch.allclose((before - weight.detach()) / weight.grad, expected.step, rtol=1e-6)


def test_adafactor_without_a_rate_is_refused() -> None:
    risk = quadratic()
    optimizer = pytest.importorskip("transformers.optimization").Adafactor(risk.model.parameters())
    with pytest.raises(InputError, match="relative_step"):
        stability(risk, optimizer)
    with pytest.raises(InputError, match="taken a step"):
        stability(risk, torch.optim.Adafactor(risk.model.parameters()))


def test_the_interval_keeps_the_cost_below_its_share() -> None:
    run = {"steps": 60_000, "batch_size": 64, "samples": 512, "products": 6, "first": 30}

    def share(warm: int) -> float:
        return 512 * (5 + 8 * 30 + (4 + 8 * 6) * warm) / (3 * 64 * 60_000)

    warm = 60_000 // measurement_interval(**run, share=0.03)
    assert share(warm) <= 0.03 < share(warm + 1)
    with pytest.raises(InputError, match="share"):
        measurement_interval(**run, share=0.0)
    with pytest.raises(InputError, match="two measurements"):
        measurement_interval(**{**run, "steps": 100}, share=0.03)
