"""Every sharpness measure against closed forms, its invariances, and what must not change it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import xarray as xr
from tests.unit.test_curvature_summarize import linear_risk, risk_of
from torch import nn

from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.core.schema import check
from lowland.curvature import (
    Measure,
    average_case_sharpness,
    logits_normalized,
    protocol_risk,
    sam_sharpness,
    sharpness_table,
    worst_case_sharpness,
)
from lowland.curvature.measures import MEASURES
from lowland.curvature.protocol import metric
from lowland.curvature.worst_case import _checkpoints, _eigenvector
from lowland.results import at_matched_loss
from lowland.results.matched import _at


def quadratic(weights: list[float], stiffness: list[float]) -> EmpiricalRisk:
    """L(w) = 1/2 sum_i k_i w_i^2 as a squared error on diagonal data."""
    layer = nn.Linear(len(weights), 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights], dtype=torch.float64))
    rows = torch.diag(torch.tensor([math.sqrt(k * len(weights) / 2) for k in stiffness], dtype=torch.float64))
    return EmpiricalRisk(layer, nn.MSELoss(), [(rows, torch.zeros(len(weights), 1).double())])


def test_at_a_minimum_only_the_eigenvector_rises_and_gives_half_lambda_rho_squared() -> None:
    found = worst_case_sharpness(quadratic([0.0, 0.0, 0.0], [1.0, 8.0, 2.0]), rho=0.3, per_batch=False)
    assert found.value == pytest.approx(0.5 * 8.0 * 0.09, rel=1e-6)
    assert found.winner == "eigenvector" and found.candidates["one step"] == 0.0


def exact_l2_maximum(weights: list[float], stiffness: list[float], rho: float) -> float:
    """Trust-region maximum: w_i + d_i = mu w_i / (mu - k_i) with mu > max k such that ||d|| = rho."""
    w, k = np.asarray(weights), np.asarray(stiffness)
    low, high = k.max() * (1 + 1e-12), k.max() + 1e6
    for _ in range(200):
        mu = math.sqrt(low * high)
        length = np.linalg.norm(k * w / (mu - k))
        low, high = (mu, high) if length > rho else (low, mu)
    d = k * w / (low - k)
    return float(0.5 * (k * ((w + d) ** 2 - w**2)).sum())


def test_apgd_reaches_the_trust_region_maximum_that_one_step_misses() -> None:
    weights, stiffness = [2.0, 0.05, 0.01], [1.0, 6.0, 9.0]
    exact = exact_l2_maximum(weights, stiffness, 0.5)
    found = worst_case_sharpness(quadratic(weights, stiffness), rho=0.5, per_batch=False, steps=100)
    assert found.value <= exact * (1 + 1e-9)
    assert found.value == pytest.approx(exact, rel=0.01)
    assert found.candidates["one step"] < 0.9 * exact
    assert found.value >= max(found.candidates.values()) - 1e-15


@pytest.mark.parametrize("kind", ["plain", "adaptive", "keskar"])
def test_the_box_of_a_convex_quadratic_has_its_maximum_in_a_corner(kind: str) -> None:
    weights, stiffness = [1.0, -2.0, 0.5], [1.0, 3.0, 2.0]
    unit = metric([torch.tensor(weights).double()], kind)[0].numpy()  # type: ignore[arg-type]
    w = np.asarray(weights)
    exact = 0.5 * float((np.asarray(stiffness) * ((np.abs(w) + 0.1 * unit) ** 2 - w**2)).sum())
    found = worst_case_sharpness(quadratic(weights, stiffness), rho=0.1, norm="linf", kind=kind)  # type: ignore[arg-type]
    assert found.value == pytest.approx(exact, rel=1e-9)
    assert found.keskar == pytest.approx(100 * exact / (1 + found.loss))


@pytest.mark.parametrize(("norm", "variance"), [("l2", 1.0), ("linf", 1 / 3)])
@pytest.mark.parametrize("kind", ["plain", "adaptive"])
def test_average_case_in_closed_form_with_error_bars(norm: str, variance: float, kind: str) -> None:
    weights, stiffness = [1.0, -2.0, 0.5, 0.0], [1.0, 3.0, 2.0, 5.0]
    unit = metric([torch.tensor(weights).double()], kind)[0].numpy()  # type: ignore[arg-type]
    exact = 0.5 * 0.2**2 * variance * float((np.asarray(stiffness) * unit**2).sum())
    deviations = []
    for seed in range(60):
        found = average_case_sharpness(
            quadratic(weights, stiffness), rho=0.2, norm=norm, kind=kind, draws=30, seed=seed
        )  # type: ignore[arg-type]
        deviations.append(abs(found.raw - exact) / found.standard_error)
    assert 0.5 <= float(np.mean(np.asarray(deviations) <= 1)) <= 0.85 and max(deviations) < 5


def relu_net(scale: Callable[[nn.Sequential], None] | None = None) -> EmpiricalRisk:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x, y = torch.randn(30, 4).double(), torch.randint(0, 3, (30,))
    if scale is not None:
        with torch.no_grad():
            scale(net)
    return EmpiricalRisk(net, nn.CrossEntropyLoss(), [(x[:16], y[:16]), (x[16:], y[16:])])


def layer_rescaled(net: nn.Sequential) -> None:
    net[0].weight.mul_(3.0)
    net[0].bias.mul_(3.0)
    net[2].weight.div_(3.0)


def units_rescaled(net: nn.Sequential) -> None:
    factors = torch.tensor([0.2, 5.0, 1.0, 2.0, 0.5, 3.0]).double()
    net[0].weight.mul_(factors[:, None])
    net[0].bias.mul_(factors)
    net[2].weight.div_(factors)


@pytest.mark.parametrize("scale", [layer_rescaled, units_rescaled])
def test_adaptive_measures_are_invariant_under_compensated_rescaling_and_plain_ones_are_not(
    scale: Callable[[nn.Sequential], None],
) -> None:
    first, second = relu_net(), relu_net(scale)
    assert first.evaluate()["loss"].value == pytest.approx(second.evaluate()["loss"].value, rel=1e-12)

    def values(risk: EmpiricalRisk, *, adaptive: bool) -> np.ndarray:
        kind = "adaptive" if adaptive else "plain"
        return np.array(
            [
                sam_sharpness(risk, rho=0.3, adaptive=adaptive).value,
                sam_sharpness(risk, rho=0.3, adaptive=adaptive, per_batch=True).value,
                average_case_sharpness(risk, rho=0.3, kind=kind, draws=4).raw,
                average_case_sharpness(risk, rho=0.3, norm="linf", kind=kind, draws=4).raw,
                worst_case_sharpness(risk, rho=0.3, kind=kind).value,
                worst_case_sharpness(risk, rho=0.05, norm="linf", kind=kind).value,
                worst_case_sharpness(logits_normalized(risk), rho=0.3, kind=kind).value,
            ]
        )

    np.testing.assert_allclose(values(first, adaptive=True), values(second, adaptive=True), rtol=1e-6)
    plain = values(first, adaptive=False) / values(second, adaptive=False) - 1
    assert (np.abs(plain) > 0.02).all()


def test_normalized_outputs_do_not_feel_the_scale_of_the_last_layer() -> None:
    def louder(net: nn.Sequential) -> None:
        net[4].weight.mul_(7.0)
        net[4].bias.mul_(7.0)

    first, second = relu_net(), relu_net(louder)
    args = {"rho": 0.2, "kind": "adaptive"}
    values = [worst_case_sharpness(logits_normalized(risk), **args).value for risk in (first, second)]  # type: ignore[arg-type]
    raw = [worst_case_sharpness(risk, **args).value for risk in (first, second)]  # type: ignore[arg-type]
    assert values[0] == pytest.approx(values[1], rel=1e-6) and abs(raw[0] / raw[1] - 1) > 0.2
    with pytest.raises(InputError, match="loss"):
        logits_normalized(logits_normalized(first))


@pytest.mark.parametrize("weights", [None, [1.0, 5.0, 2.0]])
def test_normalized_outputs_keep_the_weights_of_classes(weights: list[float] | None) -> None:
    torch.manual_seed(0)
    net, x, y = nn.Linear(4, 3).double(), torch.randn(9, 4).double(), torch.arange(9) % 3
    loss = nn.CrossEntropyLoss(None if weights is None else torch.tensor(weights).double())
    parts = [(x[:4], y[:4]), (x[4:], y[4:])]
    centered = net(x) - net(x).mean(1, keepdim=True)
    expected = loss(centered / centered.norm(dim=1, keepdim=True), y).item()
    found = logits_normalized(EmpiricalRisk(net, loss, parts)).evaluate()["loss"].value
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mode", ["running", "recalibrated"])
def test_batching_changes_nothing_and_the_model_keeps_its_bits(mode: str) -> None:
    results = []
    for batches in (2, 4):
        risk = risk_of(batches=batches, batch_norm=mode)
        if mode == "recalibrated":  # cumulative statistics depend on the partition; use one for both
            risk._recalibration = [next(iter(risk_of(batches=1).batches()))]
        before = [t.detach().clone() for t in (*risk.model.parameters(), *risk.model.buffers())]
        results.append(
            (
                average_case_sharpness(risk, draws=3).raw,
                worst_case_sharpness(risk, rho=0.2, per_batch=False, steps=6).value,
                worst_case_sharpness(protocol_risk(risk, samples=16, batch_size=8), rho=0.2, steps=4).value,
                sam_sharpness(risk).value,
            )
        )
        assert same_bits(before, [t.detach() for t in (*risk.model.parameters(), *risk.model.buffers())])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)


def test_the_protocol_takes_a_fixed_subset_in_even_batches() -> None:
    risk = protocol_risk(risk_of(batches=3), samples=20, batch_size=8)
    assert [batch.size for batch in risk.batches()] == [8, 8, 4]
    again = protocol_risk(risk_of(batches=2), samples=20, batch_size=8)
    assert all(torch.equal(a.input, b.input) for a, b in zip(risk.batches(), again.batches(), strict=True))
    assert [batch.size for batch in protocol_risk(risk, samples=None, batch_size=None).batches()] == [20]
    with pytest.raises(InputError, match="batch_size"):
        protocol_risk(risk, batch_size=0)


def test_to_take_a_subset_moves_no_random_number_of_the_users() -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(12, 3), torch.arange(12) % 2), 4)
    risk, before = EmpiricalRisk(nn.Linear(3, 2), nn.CrossEntropyLoss(), loader), torch.get_rng_state()
    protocol_risk(risk, samples=8)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_check_points_of_auto_pgd() -> None:
    assert sorted(_checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert sorted(_checkpoints(20)) == [5, 9, 12, 14, 16, 18, 19, 20]


def largest_on_the_way(x: np.ndarray, w: np.ndarray, rho: float, reviews: list[int]) -> float:
    """Return the largest mean of sin^2(3 x w) that auto-PGD meets in the l2 ball, in NumPy, as far as the last review."""

    def inside(d: np.ndarray) -> np.ndarray:
        return d * min(1.0, rho / max(float(np.linalg.norm(d)), 1e-300))

    def value(d: np.ndarray) -> float:
        return float((np.sin(3 * x @ (w + d)) ** 2).mean())

    def uphill(d: np.ndarray) -> np.ndarray:
        slope = 3 * np.sin(6 * x @ (w + d)) @ x / len(x)
        return np.asarray(slope / np.linalg.norm(slope))

    now = last = best = np.zeros_like(w)
    size, rises = 2 * rho, list[bool]()
    before = (size, value(best))
    for step in range(1, reviews[-1] + 1):
        share = 1.0 if step == 1 else 0.75
        ahead = inside(now + size * uphill(now))
        now, last = inside(now + share * (ahead - now) + (1 - share) * (now - last)), now
        rises.append(value(now) > value(last))
        best = now if value(now) > value(best) else best
        if step in reviews:
            stalled = np.mean(rises) < 0.75 or before == (size, value(best))
            before, rises = (size, value(best)), []
            if stalled:
                size, now, last = size / 2, best, best
    return value(best)


@pytest.mark.parametrize(("steps", "reviews"), [(10, [3, 5, 6, 7, 8, 9, 10]), (20, [5, 9, 12, 14, 16, 18, 19, 20])])
def test_auto_pgd_reviews_its_step_size_as_a_plain_loop_does(steps: int, reviews: list[int]) -> None:
    numbers = np.random.default_rng(3)
    x, w = numbers.normal(size=(6, 4)), numbers.normal(size=4) * 0.3
    layer = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(w[None]))
    risk = EmpiricalRisk(layer, lambda o, t: (torch.sin(3 * o) ** 2).mean(), [(torch.tensor(x), torch.zeros(6, 1))])
    found = worst_case_sharpness(risk, rho=0.8, steps=steps, eigenvector=False, per_batch=False)
    exact = largest_on_the_way(x, w, 0.8, reviews)
    assert found.loss + found.candidates["apgd"] == pytest.approx(exact, rel=1e-6)


def test_the_usual_measures_are_those_of_the_study() -> None:
    # Andriushchenko et al. 2023: radii of their figures, plain and normalized alike
    assert [measure.name for measure in MEASURES] == [
        "sam l2 plain rho=0.05",
        "m-sam l2 plain rho=0.05",
        "average l2 adaptive rho=0.1",
        "average l2 adaptive rho=0.1, normalized",
        "worst l2 plain rho=0.25",
        "worst l2 adaptive rho=0.5",
        "worst l2 adaptive rho=0.5, normalized",
        "worst linf adaptive rho=0.002",
        "worst linf adaptive rho=0.002, normalized",
        "worst linf keskar rho=0.001",
    ]


def test_the_table_holds_all_settings_and_no_measure_alone() -> None:
    table = sharpness_table(risk_of(), steps=3, draws=2)
    assert check(table, "curvature") and table.sizes["measure"] == 10
    assert (table.sharpness >= 0).all() and np.isfinite(table.sharpness).all()
    for name in ("train_loss", "train_accuracy", "weight_norm"):
        assert np.isfinite(float(table[name]))
    for name in ("samples", "batch_size", "apgd_steps", "draws", "batch_norm", "mode", "seeds"):
        assert name in table.attrs
    with pytest.raises(InputError, match="family"):
        sharpness_table(risk_of(), measures=[Measure("best", 0.1)])
    with pytest.raises(InputError, match="SAM"):
        sharpness_table(risk_of(), measures=[Measure("sam", 0.1, norm="linf")])


@pytest.mark.parametrize(
    "options", [{"rho": -1.0}, {"norm": "l1"}, {"steps": 0}, {"kind": "relative", "eigenvector": False}]
)
def test_bad_worst_case_options(options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        worst_case_sharpness(linear_risk([1.0]), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"rho": -1.0}, {"norm": "l1"}, {"draws": 1}])
def test_bad_average_case_options(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        average_case_sharpness(linear_risk([1.0]), **options)  # type: ignore[arg-type]


def test_an_average_case_is_of_twenty_perturbations_unless_told() -> None:
    assert average_case_sharpness(linear_risk([1.0])).samples == 20
    assert average_case_sharpness(linear_risk([1.0]), draws=3).samples == 3


def path(losses: list[float], values: list[float]) -> list[xr.Dataset]:
    return [xr.Dataset({"train_loss": loss, "lambda_max": value}) for loss, value in zip(losses, values, strict=True)]


def test_where_a_loss_rests_its_first_value_counts() -> None:
    assert _at(np.array([2.0, 1.0, 1.0]), np.array([0.0, 10.0, 20.0]), 1.0) == 10.0
    assert math.isnan(_at(np.array([2.0, 1.0]), np.array([0.0, 10.0]), 0.5))


def test_runs_are_compared_where_their_losses_were_equal() -> None:
    runs = {"sgd": path([1.0, 0.1, 0.001], [50.0, 100.0, 3.0]), "sam": path([1.0, 0.5, 0.1], [20.0, 18.0, 16.0])}
    found = at_matched_loss(runs, "lambda_max", losses=[0.5, 0.1, 0.001])
    assert not found["comparable_at_end"] and found["end"] == {"sgd": 3.0, "sam": 16.0}
    assert found["matched"]["sgd"] == pytest.approx([50 + 50 * math.log(2) / math.log(10), 100.0, 3.0])
    assert found["matched"]["sam"][:2] == [18.0, 16.0] and math.isnan(found["matched"]["sam"][2])
    default = at_matched_loss(runs, "lambda_max")
    assert default["losses"][0] == pytest.approx(1.0) and default["losses"][-1] == pytest.approx(0.1)
    with pytest.raises(InputError, match="paths"):
        at_matched_loss({"one": runs["sgd"]}, "lambda_max")


def test_an_eigenvector_to_search_along_holds_no_other_in_memory() -> None:
    risk = quadratic([1.0, -2.0, 0.5], [1.0, 8.0, 2.0])
    (part,) = _eigenvector(risk, "plain")
    assert part.abs().flatten().tolist() == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)
    assert part.untyped_storage().nbytes() == part.nbytes
