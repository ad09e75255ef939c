"""Curves between networks: the training against autograd through the sum, statistics by hand, ends, planes, files."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from tests.reference.curves import naive_curve, naive_loss_at, naive_weights
from torch import nn
from torch.nn.utils import parametrizations

from lowland import landscape, optim
from lowland.core.contexts import same_bits
from lowland.core.errors import CheckpointError, InputError
from lowland.core.risk import EmpiricalRisk
from lowland.core.seeds import generator
from lowland.landscape import Curve, CurveShape, curve, evaluate, grid, line_between, ways


def net(seed: int, *, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)]
    return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else [])).double()


def data(count: int = 60, size: int = 20) -> list[tuple[torch.Tensor, torch.Tensor]]:
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, generator=stream).double()
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    return [(x[k : k + size], y[k : k + size]) for k in range(0, count, size)]


def fitted(seed: int, steps: int = 150) -> nn.Module:
    model = net(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for step in range(steps):
        x, y = data()[step % 3]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def plain(points: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(points, lr=0.1)


@pytest.mark.parametrize("kind", ["bezier", "polychain"])
@pytest.mark.parametrize("bends", [1, 2, 3])
def test_points_weigh_as_their_definitions_say(kind: str, bends: int) -> None:
    shape = CurveShape(kind, bends)
    for t in np.linspace(0, 1, 31):
        assert shape.weights(float(t)) == pytest.approx(naive_weights(kind, bends + 2, float(t)), abs=1e-12)
        assert shape.weights(float(t)).sum() == pytest.approx(1.0) and shape.speeds(float(t)).sum() == pytest.approx(0)
    for t in (0.111, 0.47, 0.83):
        slope = (shape.weights(t + 1e-6) - shape.weights(t - 1e-6)) / 2e-6
        assert shape.speeds(t) == pytest.approx(slope, abs=1e-6)
    double = CurveShape(kind, bends, 2)
    assert double.ends() == [0, bends + 1, 2 * bends + 2]
    assert double.weights(0.25)[: bends + 2] == pytest.approx(shape.weights(0.5))
    assert double.weights(0.75)[bends + 1 :] == pytest.approx(shape.weights(0.5))


@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("bezier", 2), ("polychain", 1), ("polychain", 3)])
def test_training_follows_the_derivative_through_the_sum(kind: str, bends: int) -> None:
    first, second = net(0), net(1)
    before = [t.clone() for t in (*first.parameters(), *first.buffers())]
    found = curve(
        first, second, nn.CrossEntropyLoss(), data(), epochs=4, kind=kind, bends=bends, optimizer=plain,
        weight_decay=0.01, seed=5,
    )  # fmt: skip
    stream = generator(5, "order", "curve")
    places = [float(stream.random()) for _ in range(12)]
    rates = [0.1 * landscape.annealed(epoch / 4) for epoch in range(4) for _ in range(3)]
    start = Curve.through(first, second, kind=kind, bends=bends)
    twin = naive_curve(first, [dict(p) for p in start.points], kind, data(), places, rates, 0.01)
    for mine, other in zip(found.points, twin, strict=True):
        for name, value in other.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-10, atol=1e-12)
    assert same_bits(before, [t.detach() for t in (*first.parameters(), *first.buffers())])
    assert len(found.losses) == 4 and first.training


def test_the_ends_stay_and_are_the_networks_to_the_bit() -> None:
    first, second = fitted(0), fitted(1)
    found = curve(first, second, nn.CrossEntropyLoss(), data(), epochs=3, optimizer=plain)
    for t, model in ((0.0, first), (1.0, second)):
        weights = found.weights(t)
        assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())
    assert not torch.equal(found.points[1]["0.weight"], Curve.through(first, second).points[1]["0.weight"])
    kept = [{name: value.clone() for name, value in point.items()} for point in found.points]
    with torch.no_grad():
        for parameter in (*first.parameters(), *second.parameters()):
            parameter.zero_()
    assert all(
        torch.equal(point[name], old[name]) for point, old in zip(found.points, kept, strict=True) for name in old
    )
    assert not any(value.requires_grad for point in found.points for value in point.values())


@pytest.mark.parametrize("kind", ["bezier", "polychain"])
def test_statistics_along_the_curve_are_those_recomputed_by_hand(kind: str) -> None:
    first, second = fitted(0), fitted(1)
    found = curve(first, second, nn.CrossEntropyLoss(), data(), epochs=5, kind=kind, optimizer=plain)
    risk = EmpiricalRisk(first, nn.CrossEntropyLoss(), data(), batch_norm="recalibrated")
    surface = evaluate(risk, found.line(first), grid(7, extent=(0, 1)))
    for t, loss in zip(surface.x.values, surface.loss.values, strict=True):
        assert float(loss) == pytest.approx(naive_loss_at(first, found.weights(float(t)), data()), rel=1e-10)
        model = found.network(first, float(t), data())
        again = EmpiricalRisk(model, nn.CrossEntropyLoss(), data()).evaluate()["loss"].value
        assert float(loss) == pytest.approx(again, rel=1e-10)
    stale = evaluate(EmpiricalRisk(first, nn.CrossEntropyLoss(), data()), found.line(first), grid(7, extent=(0, 1)))
    assert abs(float(stale.loss[3]) - float(surface.loss[3])) > 1e-3  # the modes are told apart


def test_a_curve_goes_round_the_barrier_of_the_straight_line() -> None:
    first, second = fitted(0), fitted(1)
    found = curve(first, second, nn.CrossEntropyLoss(), data(), epochs=60, weight_decay=0.0)
    matched = landscape.match_weights(first, second, data()[0]).model
    risk = EmpiricalRisk(first, nn.CrossEntropyLoss(), data(), batch_norm="recalibrated")
    planes = {
        "line": line_between(first, second, move_statistics=False),
        "matched line": line_between(first, matched, move_statistics=False),
        "curve": found.line(first),
    }
    surface = evaluate(risk, planes, grid(21, extent=(0, 1)))
    assert list(surface.direction.values) == list(planes)
    rows = ways(surface)
    barriers = {str(name): float(rows.barrier.sel(direction=name)) for name in planes}
    assert barriers["line"] > 0.1 and barriers["curve"] < 0.3 * barriers["line"]
    assert float(rows.length.sel(direction="line")) == pytest.approx(1.0) and float(rows.length[2]) > 1
    assert float(surface.loss[0, -1]) == pytest.approx(float(surface.loss[2, -1]), rel=1e-9)
    plain_mean = np.trapezoid(surface.loss[0], surface.x)
    assert float(rows["mean"][0]) == pytest.approx(float(plain_mean))


def test_the_arc_length_is_that_of_many_short_pieces() -> None:
    first, second = net(0), net(1)
    found = curve(first, second, nn.CrossEntropyLoss(), data(), epochs=5, bends=2, optimizer=plain)
    risk = EmpiricalRisk(first, nn.CrossEntropyLoss(), data(), batch_norm="batch")
    rows = ways(evaluate(risk, {"curve": found.line(first), "again": found.line(first)}, grid(9, extent=(0, 1))))
    places = [torch.cat([t.reshape(-1) for t in found.weights(float(t)).values()]) for t in np.linspace(0, 1, 2001)]
    length = sum(float((b - a).norm()) for a, b in zip(places, places[1:], strict=False))
    assert float(rows.length[0]) == pytest.approx(length / float((places[-1] - places[0]).norm()), rel=1e-3)


OPTIMIZERS = {
    "adam": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0),
    "sam": lambda p: optim.SAM(torch.optim.SGD(p, lr=0.1, momentum=0.9), rho=0.05),
    "ema": lambda p: optim.EMA(torch.optim.SGD(p, lr=0.1), decay=0.5),
    "sala": lambda p: optim.SALA(torch.optim.SGD(p, lr=0.1), period=2, alpha=0.5, rho=0.05),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_trains_it_and_the_same_seed_gives_the_same_curve(name: str) -> None:
    first, second = net(0, dropout=0.2), net(1, dropout=0.2)
    random = torch.get_rng_state()
    one, two = (
        curve(first, second, nn.CrossEntropyLoss(), data(), epochs=12, optimizer=OPTIMIZERS[name], seed=1)
        for _ in range(2)
    )
    assert torch.equal(random, torch.get_rng_state())
    assert same_bits(list(one.points[1].values()), list(two.points[1].values()))
    assert one.losses[-1] < one.losses[0]
    assert all(p.grad is None for p in first.parameters())


def test_of_an_optimizer_that_averages_the_averages_count() -> None:
    first, second = net(0), net(1)
    kept: list[list[torch.Tensor]] = []

    def watched(points: list[nn.Parameter]) -> torch.optim.Optimizer:
        base = plain(points)
        base.register_step_post_hook(lambda *_: kept.append([p.detach().clone() for p in points]))
        return optim.EMA(base, decay=0.5)

    found = curve(first, second, nn.CrossEntropyLoss(), data(), epochs=2, optimizer=watched)
    average = kept[0]
    for step in kept[1:]:
        average = [0.5 * a + 0.5 * p for a, p in zip(average, step, strict=True)]
    for mine, expected, last in zip(found.points[1].values(), average, kept[-1], strict=True):
        torch.testing.assert_close(mine, expected)
        assert not torch.equal(mine, last)


def test_through_three_networks_the_curve_visits_each() -> None:
    models = [fitted(seed) for seed in range(3)]
    found = curve(models[0], models[1:], nn.CrossEntropyLoss(), data(), epochs=150, weight_decay=0.0)
    assert found.shape.pieces == 2 and len(found.points) == 5
    for t, model in zip((0.0, 0.5, 1.0), models, strict=True):
        assert all(torch.equal(found.weights(t)[name], p) for name, p in model.named_parameters())
    risk = EmpiricalRisk(models[0], nn.CrossEntropyLoss(), data(), batch_norm="recalibrated")
    straight = Curve.through(models[0], models[1:], bends=0)
    planes = {"line": straight.line(models[0]), "curve": found.line(models[0])}
    rows = ways(evaluate(risk, planes, grid(21, extent=(0, 1))))
    assert float(rows.barrier[1]) < 0.5 * float(rows.barrier[0])
    plane = found.plane(models[0])
    assert set(plane.markers) == {"end 2", "end 3"}
    path = next(iter(plane.recipe["paths"].values()))
    for place, name in ((30, "end 2"), (60, "end 3")):
        assert (path["x"][place], path["y"][place]) == pytest.approx(plane.markers[name], abs=1e-9)
        assert path["distance"][place] == pytest.approx(0, abs=1e-6)
    assert max(path["distance"]) > 0.01


def test_the_plane_through_ends_and_bend_holds_the_curve() -> None:
    first, second = fitted(0), fitted(1)
    found = curve(first, second, nn.CrossEntropyLoss(), data(), epochs=10, optimizer=plain)
    plane = found.plane(first)
    assert plane.cosine == pytest.approx(0, abs=1e-12) and plane.norms[0] == pytest.approx(plane.norms[1])
    path = plane.recipe["paths"]["bezier curve"]
    assert max(path["distance"]) < 1e-6
    risk = EmpiricalRisk(first, nn.CrossEntropyLoss(), data(), batch_norm="recalibrated")
    line = evaluate(risk, found.line(first), landscape.Grid(np.linspace(0, 1, 61)))
    for place in (0, 17, 30, 60):
        here = landscape.Grid(np.array([path["x"][place]]), np.array([path["y"][place]]))
        assert float(evaluate(risk, plane, here).loss[0, 0]) == pytest.approx(float(line.loss[place]), rel=1e-9)
    around = found.grid_around(plane, 5, 4)
    assert around.shape == (5, 4) and around.x[0] < min(path["x"]) and around.y[-1] > max(path["y"])


def test_a_curve_is_kept_in_a_file_and_damaged_ones_are_refused(tmp_path) -> None:
    first, second = net(0), net(1)
    found = curve(first, second, nn.CrossEntropyLoss(), data(), epochs=1, optimizer=plain)
    found.save(tmp_path / "a.safetensors")
    again = Curve.load(tmp_path / "a.safetensors")
    assert again.joins_same(found) and again.line(first).describe() == found.line(first).describe()
    assert again.shape == found.shape and again.losses == found.losses and dict(again.settings) == dict(found.settings)
    assert all(same_bits(list(a.values()), [b[n] for n in a]) for a, b in zip(found.points, again.points, strict=True))
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-40])
    (tmp_path / "c.safetensors").write_bytes(b"")
    import safetensors.torch

    safetensors.torch.save_file(first.state_dict(), tmp_path / "d.safetensors")
    for name in ("b", "c", "d", "nowhere"):
        with pytest.raises(CheckpointError, match="holds no curve"):
            Curve.load(tmp_path / f"{name}.safetensors")


def test_bad_input_is_named_and_changes_nothing() -> None:
    first, second = net(0), net(1)
    before = [t.clone() for t in (*first.parameters(), *first.buffers())]
    loss = nn.CrossEntropyLoss()
    with pytest.raises(InputError, match="architecture"):
        curve(first, nn.Sequential(nn.Linear(3, 3)).double(), loss, data(), epochs=1)
    with pytest.raises(InputError, match="must differ"):
        curve(first, copy.deepcopy(first), loss, data(), epochs=1)
    with pytest.raises(InputError, match="must hold at least one network"):
        curve(first, [], loss, data(), epochs=1)
    with pytest.raises(InputError, match="batches"):
        curve(first, second, loss, [], epochs=1)
    with pytest.raises(InputError, match="in every epoch"):
        curve(first, second, loss, iter(data()), epochs=2)
    with pytest.raises(InputError, match="finite"):
        curve(first, second, loss, data(), epochs=9, optimizer=lambda p: torch.optim.SGD(p, lr=1e200))
    for wrong in ({"kind": "spline"}, {"bends": 0}, {"epochs": 0}, {"weight_decay": -1.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            curve(first, second, loss, data(), **{"epochs": 1, **wrong})
    for make in (torch.optim.SGD(first.parameters(), lr=0.1), lambda points: points):
        with pytest.raises(InputError, match="must make an optimizer of the trained points"):
            curve(first, second, loss, data(), epochs=1, optimizer=make)
    with pytest.raises(RuntimeError, match="mine"):
        curve(first, second, lambda *_: (_ for _ in ()).throw(RuntimeError("mine")), data(), epochs=1)
    found = curve(first, second, loss, data(), epochs=1)
    with pytest.raises(InputError, match="first end"):
        found.line(second)
    with pytest.raises(InputError, match="bends"):
        Curve.through(first, second, bends=0).plane(first)
    with pytest.raises(InputError, match="axes"):
        evaluate(EmpiricalRisk(first, loss, data(), batch_norm="batch"), found.line(first), grid(3, 3))
    assert same_bits(before, [t.detach() for t in (*first.parameters(), *first.buffers())])


def test_parametrized_and_frozen_networks_move_as_lines_do() -> None:
    torch.manual_seed(0)
    first, second = (
        nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 3)).double() for _ in "ab"
    )
    second[1].load_state_dict(first[1].state_dict())
    for model in (first, second):
        model[1].requires_grad_(False)
    before = [p.detach().clone() for p in first.parameters()]
    found = curve(first, second, nn.CrossEntropyLoss(), data(), epochs=2, optimizer=plain)
    assert set(found.points[0]) == {"0.weight", "0.bias"}
    risk = EmpiricalRisk(first, nn.CrossEntropyLoss(), data())
    surface = evaluate(risk, found.line(first), grid(3, extent=(0, 1)))
    expected = EmpiricalRisk(second, nn.CrossEntropyLoss(), data()).evaluate()["loss"].value
    assert float(surface.loss[-1]) == pytest.approx(expected, rel=1e-9)
    assert same_bits(before, [p.detach() for p in first.parameters()]) and math.isfinite(float(surface.loss[1]))
