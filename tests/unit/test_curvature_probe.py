"""The convexity map: every value within its residual of the dense spectrum, warm starts guarded, NaN kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from lowland import landscape
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import STATUS_FAILED, STATUS_MEASURED
from lowland.curvature import Convexity, Hessian, MatrixOperator, convexity_summary, extreme_eigenvalues
from lowland.curvature.probe import _outer
from lowland.landscape.probes import Probe


def trained_risk() -> EmpiricalRisk:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(40, 4).double(), torch.randint(0, 3, (40,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return EmpiricalRisk(net, nn.CrossEntropyLoss(), [(x[:25], y[:25]), (x[25:], y[25:])])


def dense_ends(risk: EmpiricalRisk, directions: list[list[torch.Tensor]], coordinates: tuple[float, ...]) -> Any:
    base = [p.detach().clone() for p in risk.model.parameters()]
    with torch.no_grad():
        for k, parameter in enumerate(risk.model.parameters()):
            for axis, coordinate in zip(directions, coordinates, strict=True):
                parameter.add_(axis[k], alpha=coordinate)
    values = torch.linalg.eigvalsh(Hessian(risk).dense())
    with torch.no_grad():
        for parameter, value in zip(risk.model.parameters(), base, strict=True):
            parameter.copy_(value)
    return float(values[0]), float(values[-1])


def directions_of(plane: Any, risk: EmpiricalRisk) -> list[list[torch.Tensor]]:
    space = plane.space(risk.model)
    return [[t.double() for t in axis.tensors(space, space.copy())] for axis in plane.axes]


@pytest.mark.parametrize(("line", "noise"), [(True, 0.1), (False, 0.1), (True, 1.0), (False, 1.0)])
def test_every_point_lies_within_its_residual_of_the_dense_spectrum(line: bool, noise: float) -> None:
    risk = trained_risk()
    plane = landscape.random_line(risk.model, seed=1) if line else landscape.random_plane(risk.model, seed=1)
    grid = landscape.grid(9, extent=1.0) if line else landscape.grid(7, 5, extent=1.0)
    before = [p.detach().clone() for p in risk.model.parameters()]
    surface = landscape.evaluate(risk, plane, grid, probes=[Convexity(check_share=0.6, noise=noise)])
    assert same_bits(before, [p.detach() for p in risk.model.parameters()])
    axes = directions_of(plane, risk)
    for index in np.ndindex(*surface["loss"].shape):
        point = surface.isel(dict(zip(surface["loss"].dims, index, strict=True)))
        at = tuple(float(point[name]) for name in surface["loss"].dims)
        low, high = dense_ends(risk, axes, at)
        assert abs(float(point.lambda_max) - high) <= float(point.residual_max) + 1e-9
        assert abs(float(point.lambda_min) - low) <= float(point.residual_min) + 1e-9
        assert float(point.lambda_min) == pytest.approx(low, rel=0.02, abs=1e-4 * high)
        assert float(point.ratio) == pytest.approx(abs(low) / high, rel=0.03, abs=1e-3)
        answer = float(point.negative_curvature)
        assert answer == 1.0 if low < -2 * float(point.residual_min) else answer in (-1.0, 0.0, 1.0)
        assert abs(low) <= float(point.lambda_min_bound) + 1e-9
    summary = convexity_summary(surface)
    assert summary["negative"] + summary["undecided"] + summary["none_found"] == surface["loss"].size
    assert summary["cold_checks"] > 0 and "cold checks at" in str(summary["statement"])


def test_the_probe_keeps_the_protocol_and_its_settings() -> None:
    probe = Convexity()
    assert isinstance(probe, Probe) and probe.warm_start
    assert probe.describe()["noise"] == 0.1


@pytest.mark.parametrize(
    "option", [{"max_products": 2}, {"check_share": 2.0}, {"cold_generations": -1}, {"noise": 0.0}]
)
def test_bad_options(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        Convexity(**option)


def test_a_run_that_followed_the_wrong_eigenvalues_gives_way_to_the_cold_one() -> None:
    operator = MatrixOperator(torch.diag(torch.cat([torch.tensor([-2.0, 9.0]), torch.linspace(-1, 5, 300)]).double()))
    inner = torch.zeros(302, 2).double()
    inner[[2, 301], [0, 1]] = 1.0
    warm = extreme_eigenvalues(operator, start=inner, noise=1e-15, min_products=2, confirm=0.0)
    assert warm.lambda_max == pytest.approx(5.0) and warm.lambda_min == pytest.approx(-1.0)
    cold = extreme_eigenvalues(operator)
    assert _outer(warm, cold) == (cold, True)
    assert _outer(cold, warm) == (cold, False) and _outer(cold, cold) == (cold, False)
    for other in (replace(warm, lambda_max=cold.lambda_max), replace(warm, lambda_min=cold.lambda_min)):
        assert _outer(other, cold) == (cold, True)  # one end is enough
    assert extreme_eigenvalues(operator, start=inner, noise=0.1).lambda_max == pytest.approx(9.0, rel=1e-3)


def test_cold_checks_are_made_at_the_share_asked_for() -> None:
    risk = trained_risk()
    with risk.prepared():
        parent = Convexity()(risk, None)
        assert parent["cold_check"] == 0.0 and int(parent["generation"]) == 0
        child = Convexity(check_share=1.0)(risk, {k: parent[k] for k in ("vectors", "generation")})
        assert child["cold_check"] == 0.0 and int(child["generation"]) == 1
        later = {"vectors": child["vectors"], "generation": child["generation"]}
        checked, free = Convexity(check_share=1.0)(risk, later), Convexity(check_share=0.0)(risk, later)
    assert checked["cold_check"] == 1.0 and checked["cold_disagreement"] == 0.0 and free["cold_check"] == 0.0
    assert free["products"] < checked["products"] and free["lambda_min"] == checked["lambda_min"]


def test_points_without_a_finite_gradient_are_nan_and_start_no_one() -> None:
    risk = trained_risk()
    with torch.no_grad():
        risk.model[2].weight.fill_(torch.inf)
    with risk.prepared():
        found = Convexity()(risk, None)
    assert all(np.isnan(found[name]) for name in Convexity.names) and set(found) == set(Convexity.names)


def test_a_surface_without_a_map_has_no_summary() -> None:
    risk = trained_risk()
    surface = landscape.evaluate(risk, landscape.random_line(risk.model, seed=0), landscape.grid(3, extent=0.1))
    with pytest.raises(InputError, match="convexity"):
        convexity_summary(surface)


def test_a_summary_counts_every_answer_check_and_disagreement_of_the_points_that_were_measured() -> None:
    columns = {
        "negative_curvature": [1.0, 0.0, 0.0, np.nan, 1.0],
        "cold_check": [1.0, 1.0, 1.0, 0.0, 1.0],
        "cold_disagreement": [1.0, 1.0, 0.0, 0.0, 1.0],
        "products": [8.0, 12.0, 10.0, 10.0, 1000.0],
        "status": [STATUS_MEASURED] * 4 + [STATUS_FAILED],
    }
    found = convexity_summary(xr.Dataset({name: ("x", values) for name, values in columns.items()}))
    assert (found["cold_checks"], found["cold_disagreements"], found["products_per_point"]) == (3, 2, 10.0)
    assert found["not_finite"] == 1 and "2 found and redone by cold checks at 3 points" in str(found["statement"])
