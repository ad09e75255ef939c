"""The Fisher-Rao norm against a loop over samples, its closed form on homogeneous nets, and where it is shown."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lowland.cli.show import show_curvature
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.curvature import NUMBERS, fisher_rao_norm, summarize
from lowland.report.curvature import curvature_section
from lowland.results import Run


def naive(model: nn.Module, loss: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """sqrt(E[<w, grad l>^2]) by one backward pass per sample; the sum of a loss of one sample is w_i l_i."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    weight = getattr(loss, "weight", None)
    total, mass = 0.0, 0.0
    for k in range(len(x)):
        if int(y[k]) == getattr(loss, "ignore_index", -100):
            continue
        share = 1.0 if weight is None else float(weight[y[k]])
        plain = nn.functional.cross_entropy(model(x[k : k + 1]), y[k : k + 1])
        parts = torch.autograd.grad(plain, parameters)
        total += share * sum(float((w.detach() * g).sum()) for w, g in zip(parameters, parts, strict=True)) ** 2
        mass += share
    return math.sqrt(total / mass)


def data(count: int = 23) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    return torch.randn(count, 1, 4, 4).double(), torch.randint(0, 4, (count,))


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).double()


LOSSES = {
    "plain": nn.CrossEntropyLoss(),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 1.0, 0.0]).double()),
    "ignored": nn.CrossEntropyLoss(ignore_index=2),
}


@pytest.mark.parametrize("size", [1, 7, 23])
@pytest.mark.parametrize("name", LOSSES)
def test_it_is_the_mean_of_squared_slopes_along_the_weights(name: str, size: int) -> None:
    (x, y), model = data(), net().eval()
    model[4].bias.requires_grad_(False)
    risk = EmpiricalRisk(model, LOSSES[name], [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)])
    before = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    found = fisher_rao_norm(risk)
    assert found.value == pytest.approx(naive(model, LOSSES[name], x, y), rel=1e-10)
    assert found.standard_error > 0
    assert same_bits(before, [t.detach() for t in (*model.parameters(), *model.buffers())])


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_a_homogeneous_net_has_the_closed_form(layers: int) -> None:
    torch.manual_seed(layers)
    linear = [nn.Linear(5, 5, bias=False) for _ in range(layers)]
    model = nn.Sequential(*(part for one in linear for part in (one, nn.ReLU())))[:-1].double()
    x, y = torch.randn(40, 5).double(), torch.randint(0, 5, (40,))
    scores = model(x).detach()
    share = scores.softmax(1) - nn.functional.one_hot(y, 5)  # dl/df of cross entropy
    expected = layers * float(((share * scores).sum(1) ** 2).mean().sqrt())
    assert fisher_rao_norm(EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x, y)])).value == pytest.approx(expected)
    with torch.no_grad():  # what is rescaled from layer to layer computes the same, and has the same norm
        linear[0].weight.mul_(4)
        linear[-1].weight.div_(4)
    assert fisher_rao_norm(EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x, y)])).value == pytest.approx(expected)


def test_its_error_covers() -> None:
    model, inside = net().eval(), 0
    torch.manual_seed(0)
    x, y = torch.randn(4000, 1, 4, 4).double(), torch.randint(0, 4, (4000,))
    truth = fisher_rao_norm(EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x, y)])).value
    for k in range(40):
        part = slice(100 * k, 100 * k + 100)
        found = fisher_rao_norm(EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x[part], y[part])]))
        inside += abs(found.value - truth) <= 2 * found.standard_error
    assert 34 <= inside <= 40


def test_totals_of_batches_are_refused_and_a_summary_says_so() -> None:
    (x, y), model = data(), net()
    risk = EmpiricalRisk(
        model, None, [(x, y)], evaluate=lambda m, b: {"loss": nn.functional.cross_entropy(m(b.input), b.target)}
    )
    with pytest.raises(InputError, match="of every sample"):
        fisher_rao_norm(risk)
    found = summarize(risk)
    assert math.isnan(float(found.fisher_rao_norm)) and "of every sample" in found.fisher_rao_norm.attrs["missing"]


def test_every_number_of_the_registry_is_in_summary_table_and_report(tmp_path) -> None:
    (x, y), model = data(), net()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x, y)])
    found = summarize(risk)
    section = curvature_section([Run(name="a", curvature={"hessian": found})])
    shown = show_curvature((found, tmp_path), None)
    assert section is not None and "fisher_rao_norm" in NUMBERS
    for name, number in NUMBERS.items():
        assert float(found[name]) == number.measure(risk).value
        cell = dict(shown.table)[number.title]
        assert f"{number.title} ({number.units})" in str(section) and cell.endswith(f" ({number.units})")
        assert shown.result[name] == float(found[name])


def test_fused_attention_has_no_second_derivative_and_is_replaced() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            query, key, value = self.inside(x)[:, None].chunk(3, dim=-1)
            return self.out(nn.functional.scaled_dot_product_attention(query, key, value)[:, 0].mean(1))

    torch.manual_seed(0)
    model, x, y = Attends(), torch.randn(6, 5, 4), torch.arange(6) % 3
    loss = nn.CrossEntropyLoss()
    found = fisher_rao_norm(EmpiricalRisk(model, loss, [(x, y)])).value
    assert found == pytest.approx(naive(model, loss, x, y), rel=1e-4)
