"""Curvature at a spacing and the part of the kinks, on losses whose kinks are planted."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowland import curvature, landscape
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.curvature import GaussNewton, Hessian, filter_weighted_trace, picture_curvature


def planted(weight: float, places: list[float], jumps: list[float], bend: float) -> EmpiricalRisk:
    """L(w) = bend w^2 / 2 + sum of jump relu(w - weight - place): the only direction is +-|weight|."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, weight)
    where, height = torch.tensor(places).double(), torch.tensor(jumps).double()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        kinks = (height * torch.relu(output - weight - where)).sum(1, keepdim=True)
        return bend * output**2 / 2 + kinks + 0 * target

    return EmpiricalRisk(model, loss, [(torch.ones(3, 1).double(), torch.zeros(3, 1).double())])


@pytest.mark.parametrize("spacing", [0.4, 0.04, 0.004])
def test_the_part_of_planted_kinks_is_its_closed_form(spacing: float) -> None:
    places, jumps, weight = [0.0, 0.01, -0.02, 0.5], [1.0, 0.5, -0.3, 2.0], 2.0
    risk = planted(weight, places, jumps, bend=1.5)
    found = picture_curvature(risk, spacing=spacing, directions=4)
    inside = [j * abs(weight) * max(0.0, spacing - abs(t) / weight) for t, j in zip(places, jumps, strict=True)]
    part = sum(inside) / spacing**2
    assert found.kinks.value == pytest.approx(part, rel=1e-6) and found.spacing == spacing
    assert found.trace.value == pytest.approx(1.5 * weight**2, rel=1e-12)
    assert found.value.value == pytest.approx(1.5 * weight**2 + part, rel=1e-6)
    assert found.causes == ("Relu",)


def trained(activation: nn.Module) -> EmpiricalRisk:
    torch.manual_seed(1)
    x = torch.randn(200, 10).double()
    y = (x @ torch.randn(10, 4).double()).argmax(1)
    net = nn.Sequential(nn.Linear(10, 24), activation, nn.Linear(24, 4)).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return EmpiricalRisk(net, nn.CrossEntropyLoss(), [(x, y)])


def test_without_kinks_the_two_numbers_agree_and_with_them_the_finer_grid_shows_more() -> None:
    smooth = picture_curvature(trained(nn.Tanh()), spacing=1e-3, directions=24)
    assert smooth.causes == () and abs(smooth.kinks.value) < 1e-3 * smooth.trace.value
    risk = trained(nn.ReLU())
    fine, coarse = (picture_curvature(risk, spacing=h, directions=48) for h in (0.004, 0.04))
    assert fine.trace.value == coarse.trace.value == filter_weighted_trace(risk).value
    assert fine.kinks.value > 2 * fine.kinks.standard_error and fine.kinks.value > coarse.kinks.value
    assert "kinks of Relu" in fine.trace.hint and "picture_curvature" in repr(fine.trace) and smooth.trace.hint == ""


@pytest.mark.parametrize(
    "activation, loss, trace, wide, fine",
    [(nn.Tanh(), 0.003, 0.41, 0.44, 0.41), (nn.ReLU(), 0.001, 0.49, 0.70, 1.29)],
)
def test_the_numbers_of_the_guide(activation: nn.Module, loss: float, trace: float, wide: float, fine: float) -> None:
    text = " ".join((Path(__file__).parents[2] / "docs" / "curvature.md").read_text().split())
    assert f"at a spacing of 0.04 and {fine} at 0.004" in text and f"show {wide:.2f} at" in text
    assert f"the trace is {trace}" in text and f"loss of {loss}" in text
    risk = trained(activation)
    assert risk.evaluate()["loss"].value == pytest.approx(loss, abs=5e-4)
    for spacing, shown in ((0.04, wide), (0.004, fine)):
        found = picture_curvature(risk, spacing=spacing, directions=200)
        assert found.trace.value == pytest.approx(trace, abs=0.01)
        assert found.value.value == pytest.approx(shown, abs=0.01) and found.value.standard_error < 0.02


def test_the_mean_over_lines_of_a_survey_is_the_same_number() -> None:
    risk = trained(nn.ReLU())
    lines = [landscape.random_line(risk.model, seed=seed) for seed in range(60)]
    survey = landscape.numbers(landscape.evaluate(risk, lines, landscape.grid(3, extent=0.02), paired=False))
    found = picture_curvature(risk, spacing=0.02, directions=120)
    error = math.hypot(float(survey.curvature_se), found.value.standard_error)
    assert abs(float(survey.curvature_mean) - found.value.value) < 4 * error
    assert float(survey.curvature_mean) - found.trace.value > 4 * math.hypot(error, found.trace.standard_error)


def test_the_model_is_left_alone_also_inside_an_open_hessian() -> None:
    risk = trained(nn.ReLU())
    before = [p.detach().clone() for p in risk.model.parameters()]
    with Hessian(risk) as hessian:
        vector = torch.ones(hessian.size).double()
        first = hessian @ vector
        inside = picture_curvature(hessian, directions=4)
        assert torch.equal(hessian @ vector, first)
    assert same_bits(before, list(risk.model.parameters()))
    assert inside.kinks.value == picture_curvature(risk, directions=4).kinks.value


@pytest.mark.parametrize(
    "activation, names",
    [
        (nn.ReLU(), ("Relu",)),
        (nn.LeakyReLU(), ("LeakyRelu",)),
        (nn.SELU(), ("Elu",)),
        (nn.ELU(), ()),
        (nn.GELU(), ()),
        (nn.Hardswish(), ("Hardswish",)),
        (nn.Softplus(), ()),
        (nn.Hardtanh(), ("Hardtanh",)),
        (nn.PReLU(), ("PreluKernel",)),
        (nn.Sequential(nn.Tanh(), nn.Unflatten(1, (1, 24)), nn.MaxPool1d(1), nn.Flatten()), ("MaxPool2DWithIndices",)),
    ],
)
def test_functions_with_kinks_are_recognized(activation: nn.Module, names: tuple[str, ...]) -> None:
    net = nn.Sequential(nn.Linear(10, 24), activation, nn.Linear(24, 4)).double()
    risk = EmpiricalRisk(net, nn.CrossEntropyLoss(), [(torch.randn(8, 10).double(), torch.arange(8) % 4)])
    for kind in (Hessian, GaussNewton):
        operator = kind(risk)
        operator @ torch.ones(operator.size).double()
        assert operator.kinks == names


def test_recalibrated_statistics_are_named() -> None:
    net = nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4)).double()
    data = [(torch.randn(8, 10).double(), torch.arange(8) % 4)]
    risk = EmpiricalRisk(net, nn.CrossEntropyLoss(), data, batch_norm="recalibrated")
    assert picture_curvature(risk, directions=2).causes == ("recalibrated batch norm",)


def test_bad_input_is_refused() -> None:
    risk = planted(1.0, [0.0], [1.0], 0.0)
    with pytest.raises(InputError, match="spacing"):
        picture_curvature(risk, spacing=0.0)
    with pytest.raises(InputError, match="directions"):
        picture_curvature(risk, directions=1)
    with pytest.raises(InputError, match="Hessian"):
        picture_curvature(curvature.MatrixOperator(torch.eye(2)))  # type: ignore[arg-type]


def test_numbers_of_a_surface_say_their_spacing_and_depend_on_it() -> None:
    risk = planted(2.0, [0.0], [1.0], 0.0)
    surface = landscape.evaluate(risk, landscape.random_line(risk.model, 0), landscape.grid(9, extent=0.4))
    found = landscape.numbers(surface)
    np.testing.assert_allclose(found.curvature_spacing, [0.1])
    np.testing.assert_allclose(found.curvature, [2 / 0.1], rtol=1e-6)
    np.testing.assert_allclose(found.curvature_wider, [2 / 0.2], rtol=1e-6)
    assert "kinks" in found.attrs["curvature"]
