"""Where curvature sits: groups of parameters, and their numbers against dense blocks of the Hessian."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lowland import curvature
from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.curvature.parts import Block, curvature_by_part, parts
from lowland.models import resnet, vit
from lowland.report.measures import by_part_profile
from lowland.viz.matplotlib import draw


def risk_of(model, loss=None, count=12, classes=3):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, 4, dtype=torch.float64, generator=generator)
    y = torch.randint(classes, (count,), generator=generator)
    return EmpiricalRisk(model, loss or nn.CrossEntropyLoss(), [(x[:7], y[:7]), (x[7:], y[7:])])


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)).double()


def blocks_of(risk, by):
    """The dense Hessian and the places of each part in it."""
    operator = curvature.Hessian(risk)
    places = dict(
        zip(
            operator.shapes,
            torch.arange(operator.size).split([s.numel() for s in operator.shapes.values()]),
            strict=False,
        )
    )
    groups = parts(risk.model, by)
    return operator.dense(), {part: torch.cat([places[name] for name in names]) for part, names in groups.items()}


@pytest.mark.parametrize("by", ["layer", "kind", {"first": ["0"], "rest": ["1", "3.weight", "3.bias"]}])
def test_traces_ends_and_noise_are_those_of_dense_blocks(by):
    risk = risk_of(small())
    dense, places = blocks_of(risk, by)
    found = curvature_by_part(risk, by, probes=400, draws=6, rho=0.2)
    assert list(found.part.values) == list(places)
    assert found.part_parameters.sum() == dense.shape[0]
    for part, inside in places.items():
        row, block = found.sel(part=part), dense[inside][:, inside]
        values = torch.linalg.eigvalsh(block)
        assert abs(float(row.part_trace) - float(block.trace())) < 5 * float(row.part_trace_se) + 1e-9
        assert float(row.part_lambda_max) == pytest.approx(float(values[-1]), rel=1e-3, abs=1e-7)
        assert float(row.part_lambda_min) == pytest.approx(float(values[0]), rel=0.05, abs=1e-6)


def test_a_budget_of_few_products_is_kept():
    risk = risk_of(small())
    for most in (2, 40):
        operator = curvature.Hessian(risk)
        found = curvature_by_part(risk, "layer", probes=2, draws=0, max_products=most, hessian=operator)
        ends = operator.products - 2
        assert ends <= most * found.sizes["part"] and ends < found.part_parameters.sum() + 2 * found.sizes["part"]


def test_traces_of_parts_add_up_to_the_probes_of_the_whole():
    risk = risk_of(small())
    found = curvature_by_part(risk, "layer", probes=6, max_products=0, draws=0)
    whole = curvature.trace(risk, method="hutchinson", products=6).value
    assert float(found.part_trace.sum()) == pytest.approx(whole, rel=1e-12)
    assert set(found.data_vars) == {"part_trace", "part_trace_se", "part_parameters"}


def test_noise_moves_one_part_alone_and_its_rise_follows_the_quadratic_at_small_radius():
    model = small()
    risk = risk_of(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = curvature_by_part(risk, "layer", probes=2, max_products=0, draws=400, rho=1e-2)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert math.isnan(float(found.part_rise.sel(part="1")))  # a norm layer, which stays
    operator = curvature.Hessian(risk)
    names = list(operator.shapes)
    dense, _ = blocks_of(risk, "layer")
    start = 0
    for name, shape in operator.shapes.items():
        block = dense[start : start + shape.numel(), start : start + shape.numel()]
        start += shape.numel()
        if not name.endswith("weight") or name.startswith("1"):
            continue
        weight = model.get_parameter(name).detach()
        scale = (weight.square().sum(1, keepdim=True) / weight.shape[1]).expand_as(weight).reshape(-1)
        expected = float((scale * block.diagonal()).sum()) * 1e-4 / 2
        row = found.sel(part=name.split(".")[0])
        assert abs(float(row.part_rise) - expected) < 4 * float(row.part_rise_se)
    assert names


def test_blocks_and_kinds_of_common_networks():
    residual = parts(resnet(20), "block")
    assert list(residual)[:4] == ["conv1", "bn1", "layer1.0", "layer1.1"] and len(residual) == 12
    assert set(parts(resnet(20), "kind")) == {"convolution", "norm", "linear"}
    image = parts(vit(width=24, depth=2), "block")
    assert {"patches embedding", "position embedding", "blocks.0 attention", "blocks.1 MLP", "linear head"} <= set(
        image
    )
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    text = parts(nn.Sequential(nn.Embedding(5, 8), encoder, nn.Linear(8, 5)), "block")
    assert {"0 embedding", "1.layers.0 attention", "1.layers.1 MLP", "2 head"} <= set(text)
    every = [name for names in text.values() for name in names]
    assert len(every) == len(set(every))


def test_a_block_is_the_diagonal_block_and_shares_graphs():
    risk = risk_of(small())
    dense, places = blocks_of(risk, "layer")
    operator = curvature.Hessian(risk)
    with operator:
        block = Block(operator, ["3.bias", "3.weight"])
        inside = places["3"]
        torch.testing.assert_close(block.dense(), dense[inside][:, inside])
        assert operator.built == 2 and set(block @ {n: torch.ones(s) for n, s in block.shapes.items()}) == set(
            block.shapes
        )


@pytest.mark.parametrize(
    "options",
    [
        {"by": "group"},
        {"by": {}},
        {"by": {"a": ["nothing"]}},
        {"by": {"a": ["0"], "b": ["0.weight"]}},
        {"probes": 1},
        {"draws": 1},
        {"max_products": -1},
        {"rho": 0.0},
    ],
)
def test_bad_input(options):
    with pytest.raises(InputError):
        curvature_by_part(risk_of(small()), **options)


WEIGHTS = torch.tensor([1.0, 3.0, 0.2], dtype=torch.float64)


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=1), nn.functional.cross_entropy]
)
def test_the_gauss_newton_trace_of_backward_passes_is_that_of_products(loss):
    risk = risk_of(small(), loss)
    exact = float(curvature.GaussNewton(risk).dense().trace())
    found = curvature.gauss_newton_trace(risk, draws=600)
    assert abs(found.value - exact) < 4 * found.standard_error
    assert found.standard_error < 0.1 * exact


def test_the_gauss_newton_trace_of_tokens_and_of_soft_targets():
    torch.manual_seed(0)
    x = torch.randint(9, (6, 5))
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9)).double()

    class Swapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, tokens):
            return self.inner(tokens).transpose(1, 2)

    y = torch.randint(9, (6, 5))
    y[0, :3] = -100
    soft = torch.softmax(torch.randn(6, 9, 5, dtype=torch.float64), 1)
    for target in (y, soft):
        risk = EmpiricalRisk(Swapped(), nn.CrossEntropyLoss(), [(x[:4], target[:4]), (x[4:], target[4:])])
        exact = float(curvature.GaussNewton(risk).dense().trace())
        found = curvature.gauss_newton_trace(risk, draws=500)
        assert abs(found.value - exact) < 4 * found.standard_error


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(label_smoothing=0.1), lambda o, t: nn.functional.nll_loss(o, t)])
def test_the_gauss_newton_trace_refuses_other_losses(loss):
    with pytest.raises(InputError, match="CrossEntropyLoss"):
        curvature.gauss_newton_trace(risk_of(small(), loss))


def test_a_summary_holds_the_parts():
    options = curvature.SummaryOptions(trace_products=6, directions=2, max_products=6, by="layer")
    found = curvature.summarize(risk_of(small()), options)
    assert list(found.part.values) == ["0", "1", "3"]
    assert np.isfinite(found.part_trace.values).all() and "part_rise_se" in found
    with pytest.raises(InputError, match="by"):
        curvature.SummaryOptions(by="row")


def test_a_report_shows_the_parts_in_a_figure_without_overlaps():
    found = curvature_by_part(
        risk_of(small()), {"a part with a long name": ["0"], "another one as long": ["1", "3"]}, draws=0
    )
    figure = draw(by_part_profile({"one": found, "two": found}))
    figure.canvas.draw()
    (axes,) = figure.axes
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    legend = axes.get_legend().get_window_extent()
    assert [label.get_text() for label in axes.get_xticklabels()] == list(found.part.values)
    assert all(box.y0 >= legend.y1 for box in boxes) and legend.y0 >= 0
