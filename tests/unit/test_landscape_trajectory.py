"""Training paths: components against a dense SVD, coordinates for skew axes, the random-walk null, true losses."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.landscape import (
    evaluate,
    film,
    grid,
    grid_around,
    line_between,
    pca_plane,
    plane_through,
    project_trajectory,
    random_plane,
    trajectory,
    user_plane,
)
from lowland.landscape.paths import consecutive_cosines, principal_weights, step_lengths, walk_shares
from lowland.results import SnapshotWriter
from lowland.viz.paths import null_spread


def model_and_path(steps=8, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    end = {n: p.detach().clone() for n, p in model.named_parameters()}
    path = []
    for k in range(steps):
        scale = 0.0 if k == steps - 1 else 0.3 * (steps - k)
        path.append((10 * k, {n: v + scale * torch.randn_like(v) for n, v in end.items()}))
    return model, path


def matrix(model, path):
    def flat(values):
        return np.concatenate([values[n].detach().numpy().reshape(-1) for n, _ in model.named_parameters()])

    return np.stack([flat(v) for _, v in path]) - flat(dict(model.named_parameters()))


@pytest.mark.parametrize("anchored", [True, False])
def test_components_agree_with_a_dense_svd(anchored, monkeypatch):
    monkeypatch.setattr(trajectory, "_BLOCK_BYTES", 8 * 23 * 3)  # three rows a block
    model, path = model_and_path()
    rows = matrix(model, path)
    centered = rows if anchored else rows - rows.mean(0)
    _, singular, vectors = np.linalg.svd(centered, full_matrices=False)
    found = project_trajectory(model, path, anchored=anchored)
    np.testing.assert_allclose(found.variance_share, (singular**2 / (singular**2).sum())[:2], rtol=1e-10)
    np.testing.assert_allclose(np.abs(found.coordinate), np.abs(rows @ vectors[:2].T), atol=1e-10)
    expected = np.linalg.norm(rows - rows @ vectors[:2].T @ vectors[:2], axis=1)
    np.testing.assert_allclose(found.distance, expected, atol=1e-10)
    np.testing.assert_allclose(found.distance_to_origin, np.linalg.norm(rows, axis=1), rtol=1e-10)
    np.testing.assert_allclose(found.step_length[1:], np.linalg.norm(np.diff(rows, axis=0), axis=1), rtol=1e-10)
    steps = np.diff(rows, axis=0)
    cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(steps, steps[1:], strict=False)]
    np.testing.assert_allclose(found.cosine[2:], cosine, atol=1e-10)
    assert found.step.values.tolist() == [10 * k for k in range(8)]


def test_the_axes_are_a_plane_of_unit_vectors():
    model, path = model_and_path()
    plane = pca_plane(model, path)
    assert plane.norms == pytest.approx((1.0, 1.0)) and plane.cosine == pytest.approx(0.0, abs=1e-12)
    assert plane.recipe["kind"] == "pca"


def test_coordinates_on_skew_axes_of_any_length():
    model, _ = model_and_path()
    numel = sum(p.numel() for p in model.parameters())
    first = torch.randn(numel, dtype=torch.float64) * 3
    second = 0.7 * first + torch.randn(numel, dtype=torch.float64)
    plane = user_plane(model, [first, second])
    base = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    names, sizes = [n for n, _ in model.named_parameters()], [p.shape for p in model.parameters()]
    path = []
    for k, (a, b) in enumerate([(2.0, 1.0), (-1.0, 0.5), (0.0, 0.0)]):
        parts = (base + a * first + b * second).split([s.numel() for s in sizes])
        path.append((k, {n: p.view(s) for n, p, s in zip(names, parts, sizes, strict=True)}))
    found = project_trajectory(model, path, plane)
    np.testing.assert_allclose(found.coordinate, [(2, 1), (-1, 0.5), (0, 0)], atol=1e-10)
    np.testing.assert_allclose(found.distance, 0, atol=1e-10)
    assert float(found.variance_share.sum()) == pytest.approx(1.0)
    np.testing.assert_allclose(found.null_share, 1 / numel)


def test_a_random_walk_shows_what_science_says():
    generator = np.random.default_rng(0)
    centered = walk_shares(np.ones(300), 10**6, 2, generator, anchored=False, walks=4)
    anchored = walk_shares(np.ones(300), 10**6, 2, generator, anchored=True, walks=4)
    assert centered.mean(0).sum() == pytest.approx(0.76, abs=0.01)
    assert anchored.mean(0).sum() == pytest.approx(0.90, abs=0.01)
    assert (centered.std(0, ddof=1) < 0.01).all()


@pytest.mark.parametrize("dimensions", [5, 400])
def test_the_null_is_that_of_walks_really_walked(dimensions):
    generator = np.random.default_rng(1)
    lengths = generator.uniform(0.1, 2.0, size=30)
    drawn = walk_shares(lengths, dimensions, 2, generator, anchored=True, walks=200)
    mean, spread, shares = drawn.mean(0), drawn.std(0, ddof=1), []
    for _ in range(200):
        steps = generator.standard_normal((30, dimensions))
        steps *= (lengths / np.linalg.norm(steps, axis=1))[:, None]
        places = np.vstack([np.zeros(dimensions), np.cumsum(steps, 0)])
        values = np.linalg.svd(places - places[-1], compute_uv=False) ** 2
        shares.append((values / values.sum())[:2])
    error = np.sqrt(spread**2 / 200 + np.var(shares, 0, ddof=1) / 200)
    assert (np.abs(mean - np.mean(shares, 0)) < 4 * error).all()
    assert drawn.sum(1).std(ddof=1) == pytest.approx(np.sum(shares, 1).std(ddof=1), rel=0.3)


def test_the_sum_of_two_shares_scatters_less_than_either():
    model, path = model_and_path()
    found = project_trajectory(model, path, walks=200)
    assert 0 < found.attrs["null_share_sd_of_two"] < found.null_share_sd.values.min()
    assert null_spread(found) == found.attrs["null_share_sd_of_two"]
    del found.attrs["null_share_sd_of_two"]  # as in files of before
    assert null_spread(found) == pytest.approx(np.linalg.norm(found.null_share_sd))


@pytest.mark.parametrize("kind", ["line", "plane"])
def test_where_a_plane_moves_statistics_its_losses_are_those_of_its_surface(kind):
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(3)]
    x = torch.randn(30, 3)
    for scale, network in enumerate(networks, 1):
        network.train()(scale * x)
    model, second, third = networks
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x, (x[:, 0] > 0).long())])
    plane = line_between(model, second) if kind == "line" else plane_through(model, second, third)
    path = [(0, second.state_dict()), (1, model.state_dict())]
    found = project_trajectory(model, path, plane, risk=risk)
    surface = evaluate(risk, plane, grid(2, None if kind == "line" else 2, extent=(0.0, 1.0)))
    assert float(found.plane_loss[0]) == pytest.approx(float(surface.loss.values.reshape(2, -1)[1, 0]), rel=1e-6)
    assert float(found.plane_loss[0]) == pytest.approx(float(found.loss[0]), rel=1e-5)  # second lies on it
    assert float(found.plane_loss[1]) == risk.evaluate()["loss"].value


def test_a_walk_is_not_above_its_null_and_a_straight_run_is():
    torch.manual_seed(0)
    model = nn.Linear(50, 20, bias=False).double()
    walk, place = [], model.weight.detach().clone()
    for k in range(40, -1, -1):
        walk.append((k, {"weight": place.clone()}))
        place = place + 0.1 * torch.randn_like(place)
    found = project_trajectory(model, walk[::-1])
    assert abs(float(found.share_above_null.sum())) < 0.02
    assert abs(float(found.cosine[2:].mean())) < 0.02
    direction = torch.randn_like(model.weight)
    bent = [
        (k, {"weight": model.weight + (40 - k) * (direction + 0.1 * torch.randn_like(direction))}) for k in range(41)
    ]
    assert float(project_trajectory(model, bent).share_above_null[0]) > 0.05


def test_gram_helpers():
    gram = np.array([[0.0, 0, 0], [0, 1, 1], [0, 1, 2]])  # (0,0) -> (1,0) -> (1,1)
    np.testing.assert_allclose(step_lengths(gram), [1, 1])
    np.testing.assert_allclose(consecutive_cosines(gram), [0])


def batches(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    return [(x, (x[:, 0] > 0).long())]


def test_true_losses_stand_beside_the_planes_and_everything_is_restored():
    model, path = model_and_path()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), batches())
    before = [p.detach().clone() for p in model.parameters()]
    plane = random_plane(model, seed=3)
    found = project_trajectory(model, path, plane, risk=risk)
    assert same_bits(before, list(model.parameters()))
    for k, (_, values) in enumerate(path):
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.copy_(values[n])
        assert float(found.loss[k]) == risk.evaluate()["loss"].value
        with torch.no_grad():
            for p, b in zip(model.parameters(), before, strict=True):
                p.copy_(b)
    assert float(found.plane_loss[-1]) == float(found.loss[-1]) == risk.evaluate()["loss"].value
    assert (np.abs(found.plane_loss - found.loss)[:-1] > 1e-6).all()


def test_snapshots_of_float16_say_what_rounding_means(tmp_path):
    model, path = model_and_path()
    model = model.float()
    writer = SnapshotWriter(tmp_path / "snapshots", "float16")
    for step, values in path:
        writer.write(step, {n: v.float().numpy() for n, v in values.items()})
    found = project_trajectory(model, tmp_path / "snapshots")
    assert 0 < float(found.rounding.max()) < 1e-2
    expected = float(found.rounding.max()) / float(found.step_length[1:].min())
    assert found.attrs["rounding_over_smallest_step"] == pytest.approx(expected)
    assert float(found.distance_to_origin[-1]) == pytest.approx(float(found.rounding[-1]), rel=1e-3)


def test_the_grid_shows_the_whole_path():
    model, path = model_and_path()
    found = project_trajectory(model, path)
    around = grid_around(found, 5, 7)
    x, y = found.coordinate.values.T
    assert around.shape == (5, 7) and around.x[0] < min(x.min(), 0) and around.x[-1] > x.max()
    assert around.y[0] < min(y.min(), 0) and around.y[-1] > max(y.max(), 0)


def film_of(model, path):
    batch = (torch.randn(4, 4).double(), torch.randint(2, (4,)))
    return film(EmpiricalRisk(model, nn.CrossEntropyLoss(), [batch]), path)


def test_bad_paths():
    model, path = model_and_path()
    with pytest.raises(InputError, match="at least two"):
        pca_plane(model, path[:1])
    with pytest.raises(InputError, match="ascending"):
        pca_plane(model, path[::-1])
    with pytest.raises(InputError, match="span a plane"):
        pca_plane(model, [(0, path[0][1]), (1, path[0][1])])
    with pytest.raises(InputError, match="every parameter"):
        pca_plane(model, [(0, {}), (1, {})])
    with pytest.raises(InputError, match="fit the model"):
        pca_plane(nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 2)).double(), path)
    broken = [(step, {n: v * (torch.nan if step == 50 else 1) for n, v in arrays.items()}) for step, arrays in path]
    for make in (pca_plane, film_of):
        with pytest.raises(InputError, match=r"finite weights.*NaN or infinite ones at step 50.*diverged"):
            make(model, broken)
    plane, other = random_plane(model), copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.add_(1)
    with pytest.raises(InputError, match="`plane` must have been made at the weights"):
        project_trajectory(other, path, plane)
    with pytest.raises(InputError, match="`plane` must have been made at the weights"):  # losses are around the plane
        project_trajectory(model, path, plane, risk=EmpiricalRisk(other, nn.CrossEntropyLoss(), batches()))


@pytest.mark.parametrize("seed", range(6))
def test_a_principal_direction_points_where_the_first_row_off_it_goes(seed):
    rows = np.vstack([np.zeros(5), np.random.default_rng(seed).normal(size=(4, 5))])
    along = rows @ (rows.T @ principal_weights(rows @ rows.T, 2))
    assert (along[1] > 0).all()
