"""Films: every pixel as by networks of its own, few measured, each frame inside its promise, resumable, bad input."""

import json
import sys

import numpy as np
import pytest
import torch
import xarray as xr
from tests.reference.naive_film import naive_film
from torch import nn

from lowland import landscape, results
from lowland.core.errors import InputError, StoreError
from lowland.core.params import ParameterSpace
from lowland.core.risk import EmpiricalRisk
from lowland.landscape.grid import grid
from lowland.landscape.progress import between
from lowland.landscape.refine import refine
from lowland.landscape.splines import Carried, spline, spline_beside
from lowland.landscape.tolerance import Tolerance, too_far

MODULE = sys.modules["lowland.landscape.film"]


def network(norm=False):
    torch.manual_seed(0)
    layers = [nn.Linear(5, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Tanh(), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


def data():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(40, 5, generator=generator), torch.randint(3, (40,), generator=generator)) for _ in range(2)]


def make_risk(model, **options):
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), data(), **options)


def trained(steps=12, norm=False):
    """Return a network at the end of its path, and the path."""
    model = network(norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    kept = []
    for step in range(steps):
        kept.append((step, {name: value.clone() for name, value in model.state_dict().items()}))
        if step < steps - 1:
            for inputs, targets in data():
                optimizer.zero_grad()
                nn.functional.cross_entropy(model.train()(inputs), targets).backward()
                optimizer.step()
    return model.eval(), kept


def twin(model, path, found):
    plane = landscape.pca_plane(model, path)
    first, second = (axis.values for axis in plane.axes)
    return naive_film(model, nn.CrossEntropyLoss(), data(), path, first, second, found.x.values, found.y.values)


@pytest.mark.parametrize("norm", [False, True])
def test_every_pixel_is_that_of_a_network_of_its_own(norm):
    model, path = trained(5, norm)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = landscape.film(make_risk(model), path, grid(6, 5, extent=3.0), refined=None)
    assert (found.status == 1).all() and found.direction.values.tolist() == ["0", "1", "2", "3", "4"]
    np.testing.assert_allclose(found.loss.values, twin(model, path, found), rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_last_frame_is_the_plane_and_each_frame_holds_its_snapshot():
    model, path = trained(4)
    plane, where = landscape.pca_plane(model, path), grid(5, 5, extent=2.0)
    found = landscape.film(make_risk(model), path, where, refined=None)
    alone = landscape.evaluate(make_risk(model), plane, where, paired=False)
    np.testing.assert_array_equal(found.loss.values[-1], alone.loss.values)
    frames = MODULE._frames(make_risk(model), path, plane, landscape.project_trajectory(model, path, plane))
    with torch.no_grad():
        space = ParameterSpace(model)
        base = [p.detach().clone() for p in space.tensors]
        for frame, (_, arrays) in zip(frames.values(), path, strict=True):
            frame.mover(model, space, base)(frame.place)
            assert all(torch.equal(p, arrays[name]) for name, p in model.named_parameters())


def test_few_points_are_measured_and_each_frame_keeps_its_promise():
    model, path = trained(7)
    found = landscape.film(make_risk(model), path, grid(41, 41, extent=4.0))
    full = landscape.film(make_risk(model), path, grid(41, 41, extent=4.0), refined=None)
    reports = json.loads(found.attrs["refinement"])
    assert len(reports) == 7 and sum(r["measured"] for r in reports) < 0.1 * found.loss.size
    measured = found.status.values == 1
    assert [r["measured"] for r in reports] == measured.sum((1, 2)).tolist()
    np.testing.assert_array_equal(found.loss.values[measured], full.loss.values[measured])
    for frame, truth, report in zip(found.loss.values, full.loss.values, reports, strict=True):
        floor = 0.1 * abs(truth.reshape(-1)[grid(41, 41, extent=4.0).center()])
        wrong = (too_far(frame - truth, truth, np.ptp(truth), floor, Tolerance()) > 1).mean()
        assert wrong <= report["share_bound"] and report["checked"] == 59, report


def series(frames=9, points=51):
    axis = grid(points, points)
    x, y = np.meshgrid(axis.x, axis.y, indexing="ij")
    for t in np.linspace(0, 1, frames):
        valley = np.log1p(np.exp(4 * ((x - 0.6 * t) ** 2 + 0.5 * y**2) - 2)) * (1 + 0.3 * np.sin(9 * x) * np.cos(7 * y))
        yield (0.02 + (2 - t) * valley).reshape(-1, 1)


def test_what_is_carried_saves_points_and_breaks_no_promise():
    truths, where = list(series()), grid(51, 51)
    alone = [len(refine(where, Tolerance(), lambda i, t=t: t[i]).measured) for t in truths]
    pictures, counts = {}, []
    for k in between(len(truths)):
        near = sorted(pictures, key=lambda other: abs(other - k))
        pairs = [pictures[other] for other in near], [1 / abs(other - k) for other in near]
        found = refine(where, Tolerance(), lambda i, truth=truths[k]: truth[i], *pairs)
        pictures[k] = found.carried()
        counts.append(len(found.measured))
        wanted = truths[k][found.guessed]
        floor = 0.1 * np.abs(truths[k][where.center()])
        wrong = too_far(found.values - wanted, wanted, np.ptp(truths[k], 0), floor, Tolerance()) > 1
        assert wrong.mean() <= found.report["share_bound"]
    assert sum(counts) < 0.6 * sum(alone)


def test_pictures_that_say_nothing_do_no_harm():
    truth = next(series())
    noise = [np.random.default_rng(k).standard_normal((2601, 1)) for k in range(4)]
    broken = [np.full((2601, 1), np.nan), np.zeros((2601, 1))]
    alone = len(refine(grid(51, 51), Tolerance(), lambda i: truth[i]).measured)
    for carried in (noise, broken):
        found = refine(grid(51, 51), Tolerance(), lambda i: truth[i], carried, [1.0] * len(carried))
        assert len(found.measured) < 1.2 * alone and found.report["failures"] == 0


@pytest.mark.parametrize("kernel", ["cubic", "quintic"])
def test_a_combination_of_terms_and_polynomials_is_met_exactly(kernel):
    random = np.random.default_rng(0)
    places, wanted = random.uniform(size=(30, 2)), random.uniform(size=(50, 2))
    terms = np.sin(40 * np.concatenate([places, wanted]))
    values = terms @ [2.0, -3.0] + np.concatenate([places, wanted]) @ [1.0, 0.5] + 7
    found = spline_beside(places, values[:30], wanted, kernel, terms[:30], terms[30:])
    np.testing.assert_allclose(found, values[30:], atol=1e-6)
    none = np.zeros((80, 0))
    plain = spline_beside(places, values[:30], wanted, kernel, none[:30], none[30:])
    np.testing.assert_allclose(plain, spline(places, values[:30, None], wanted, kernel)[:, 0], atol=1e-6)


def test_more_points_than_one_spline_takes_use_the_terms_too():
    random = np.random.default_rng(1)
    places = random.uniform(size=(1300, 2))
    terms = np.sin(200 * places[:, :1])
    found = spline_beside(places[:1250], terms[:1250, 0], places[1250:], "quintic", terms[:1250], terms[1250:])
    np.testing.assert_allclose(found, terms[1250:, 0], atol=1e-6)


def test_only_what_differs_beyond_rounding_is_a_term():
    places = np.random.default_rng(0).uniform(size=(200, 2))
    one = np.sin(9 * places[:, :1])
    assert Carried(places, [one, 2 * one, one + 1], [1, 1, 1]).terms("plain", 0).shape == (200, 1)
    assert Carried(places, [one], [1]).terms("log", 0).shape == (200, 0)
    assert not Carried(places)


def test_the_nearest_picture_leads_the_terms():
    places = np.random.default_rng(0).uniform(size=(200, 2))
    near, far = np.sin(9 * places[:, :1]), np.sin(11 * places[:, 1:])
    first = Carried(places, [near, far], [1.0, 1e-3]).terms("plain", 0)[:, 0]
    assert abs(np.corrcoef(first, near[:, 0])[0, 1]) > 3 * abs(np.corrcoef(first, far[:, 0])[0, 1])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_frames_come_from_both_ends_each_between_two(count):
    order = between(count)
    assert sorted(order) == list(range(count)) and order[0] == count - 1
    for place, frame in enumerate(order[2:], 2):
        assert any(o < frame for o in order[:place]) and any(o > frame for o in order[:place])


def test_an_interrupted_film_goes_on_to_the_same_bits_and_on_other_engines(tmp_path):
    model, path = trained(4)
    calls = [0, 330]

    def stopping(output, batch):
        calls[0] += 1
        if calls[0] == calls[1]:
            raise KeyboardInterrupt
        return output.detach()[:, 0]

    where = grid(15, 15, extent=3.0)
    with pytest.raises(KeyboardInterrupt):
        landscape.film(make_risk(model, metrics={"first": stopping}), path, where, store=tmp_path / "s.zarr")
    assert (results.open(tmp_path / "s.zarr").status.values == 1).any()
    calls[1] = -1
    made = landscape.film(make_risk(model, metrics={"first": stopping}), path, where, store=tmp_path / "s.zarr")
    whole = landscape.film(make_risk(model, metrics={"first": stopping}), path, where)
    for name in whole.data_vars:
        np.testing.assert_array_equal(made[name].values, whole[name].values)
    xr.testing.assert_identical(results.open(tmp_path / "s.zarr"), made)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    spread = landscape.film(make_risk(model), path, where, engine="processes:2")
    np.testing.assert_array_equal(spread.loss.values, landscape.film(make_risk(model), path, where).loss.values)
    torch.set_num_threads(before)


def test_another_path_does_not_go_on_in_the_store(tmp_path):
    model, path = trained(4)
    landscape.film(make_risk(model), path, grid(4, 4), store=tmp_path / "s.zarr")
    plane = landscape.pca_plane(model, path)
    path[1][1]["0.weight"] += 0.1
    with pytest.raises(StoreError, match="another"):
        landscape.film(make_risk(model), path, grid(4, 4), plane=plane, store=tmp_path / "s.zarr")


def test_splits_many_snapshots_and_other_planes():
    model, path = trained(9)
    risks = {"train": make_risk(model), "test": make_risk(model, samples=30)}
    plane = landscape.random_plane(model, seed=1, stored=False)
    found = landscape.film(risks, path, grid(3, 3), plane=plane, frames=4)
    assert found.loss.sizes == {"direction": 4, "split": 2, "x": 3, "y": 3}
    assert found.direction.values.tolist() == ["0", "3", "5", "8"]
    files = landscape.film(make_risk(model), [arrays for _, arrays in path], grid(2, 2))
    assert files.direction.values.tolist() == [str(k) for k in range(9)]


def test_bad_input_is_refused_by_name():
    model, path = trained(3)
    risk = make_risk(model)
    with pytest.raises(InputError, match="snapshots"):
        landscape.film(risk, path[:1])
    with pytest.raises(InputError, match="frames"):
        landscape.film(risk, path, frames=1)
    with pytest.raises(InputError, match="two axes"):
        landscape.film(risk, path, plane=landscape.random_line(model))
    with pytest.raises(InputError, match="plane"):
        landscape.film(risk, path, plane=landscape.random_plane(network()))
    normed, walked = trained(3, norm=True)
    bare = [(step, {n: v for n, v in arrays.items() if "running" not in n}) for step, arrays in walked]
    with pytest.raises(InputError, match="batch-norm statistics"):
        landscape.film(make_risk(normed), bare)
    assert landscape.film(make_risk(normed, batch_norm="recalibrated"), bare, grid(2, 2)).loss.notnull().all()
