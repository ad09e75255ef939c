"""Krylov runs on planted spectra: right to the stated residual, and nothing claimed that is not so."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.curvature import Lanczos, MatrixOperator, extreme_eigenvalues, top, top_eigenvalues
from lowland.curvature.bounds import reach
from lowland.curvature.top import TopEigenvalues

SPECTRA: dict[str, Tensor] = {
    "positive": torch.linspace(0.5, 9.0, 60),
    "negative": torch.linspace(-9.0, -0.5, 60),
    "pairs": torch.cat([torch.linspace(1, 5, 20), -torch.linspace(1, 5, 20)]),
    "degenerate": torch.tensor([5.0] * 4 + [2.0] * 30 + [-1.0] * 3),
    "low rank": torch.cat([torch.tensor([7.0, 3.0, -2.0]), torch.zeros(80)]),
    "zero": torch.zeros(30),
    "one dimension": torch.tensor([-3.0]),
    "fewer dimensions than steps": torch.tensor([4.0, 1.0, -0.5]),
    "clustered near zero": torch.cat([torch.tensor([10.0, 4.0]), 1e-3 * torch.linspace(-1, 1, 200)]),
    "trained net": torch.cat([torch.tensor([8.0, 5.0, 3.0, 1.0]), torch.linspace(-0.08, 0.3, 400)]),
}

EDGES = {
    "one outlier": torch.cat([torch.tensor([100.0]), torch.linspace(0, 1, 199)]),
    "outlier over equal ones": torch.cat([torch.tensor([5.0]), torch.ones(199)]),
    "ten outliers": torch.cat([torch.linspace(20, 100, 10), torch.linspace(0, 1, 190)]),
    "flat": torch.linspace(0, 1, 200),
    "two values": torch.cat([torch.zeros(100), torch.ones(100)]),
}
"""Where intervals are hard to keep."""


def planted(values: Tensor, seed: int = 0) -> MatrixOperator:
    generator = torch.Generator().manual_seed(seed)
    values = values.double()
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=generator))
    matrix = basis @ torch.diag(values) @ basis.T
    return MatrixOperator((matrix + matrix.T) / 2)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("seed", range(4))
def test_both_ends_of_planted_spectra(name: str, seed: int) -> None:
    values = SPECTRA[name].double()
    operator = planted(values)
    ends = extreme_eigenvalues(operator, seed=seed)
    assert ends.products == operator.products <= 80
    for vector, value, residual in zip(
        ends.vectors.T, (ends.lambda_max, ends.lambda_min), (ends.residual_max, ends.residual_min), strict=True
    ):
        assert float((operator @ vector - value * vector).norm()) <= residual * (1 + 1e-6) + 1e-12
    rounding = 1e-12 * (1 + ends.scale)
    assert ends.lambda_max <= float(values.max()) + rounding and ends.lambda_min >= float(values.min()) - rounding
    if ends.converged_max:
        assert float(values.max()) - ends.lambda_max <= 1e-3 * ends.scale + rounding
    if ends.converged_min:
        allowed = max(0.1 * abs(ends.lambda_min), 1e-4 * ends.scale)
        assert ends.lambda_min - float(values.min()) <= allowed + rounding
    assert name in ("clustered near zero",) or (ends.converged_max and ends.converged_min)
    assert ends.orthogonality < 1e-10


def test_what_has_not_converged_says_so_and_its_bound_holds() -> None:
    values = torch.cat([torch.tensor([100.0]), torch.linspace(-1.0, 0.0, 2000)])
    operator = MatrixOperator(torch.diag(values.double()))
    inside = [extreme_eigenvalues(operator, min_products=4, max_products=4, seed=seed) for seed in range(40)]
    assert not any(ends.converged_min for ends in inside)
    assert all(ends.bound_min >= 1.0 for ends in inside)
    later = extreme_eigenvalues(operator, min_products=12, max_products=12)
    assert 1.0 <= later.bound_min < 2.0  # the outlier at 100 is no width of the rest
    assert all(ends.negative in ("undecided", "negative") for ends in inside)


def test_three_values_of_negativity() -> None:
    assert extreme_eigenvalues(planted(SPECTRA["pairs"])).negative == "negative"
    assert extreme_eigenvalues(planted(SPECTRA["positive"])).negative == "none found"
    flat = torch.cat([torch.tensor([100.0]), torch.linspace(0.0, 1.0, 2000)]).double()
    assert extreme_eigenvalues(MatrixOperator(torch.diag(flat)), max_products=6).negative == "undecided"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_a_convex_risk_never_has_negative_curvature(kind: torch.dtype, scale: float) -> None:
    # softmax regression is convex; with large inputs it is sure of itself and its terms cancel to rounding
    found = []
    for seed in range(70):
        torch.manual_seed(seed)
        count = 1 + seed % 7 * 5
        x, y = scale * torch.rand(count, 64, dtype=kind), torch.randint(10, (count,))
        layer = nn.Linear(64, 10).to(kind)
        layer.weight.data.mul_(1 + seed % 3 * 5)
        found.append(extreme_eigenvalues(EmpiricalRisk(layer, nn.CrossEntropyLoss(), [(x, y)]), seed=seed).negative)
    assert "negative" not in found and (scale > 1 or set(found) == {"none found"})


def test_the_bound_of_rounding_does_not_hide_real_negative_curvature() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 4))
    risk = EmpiricalRisk(net, nn.CrossEntropyLoss(), [(torch.randn(60, 10), torch.randint(4, (60,)))])
    ends = extreme_eigenvalues(risk)
    assert ends.negative == "negative" and ends.rounding < 1e-2 * abs(ends.lambda_min)


@pytest.mark.slow
def test_the_documented_error_of_the_lower_end_is_the_measured_one() -> None:
    operator, truth = planted(SPECTRA["trained net"]), float(SPECTRA["trained net"].double().min())
    errors = [abs(extreme_eigenvalues(operator, seed=seed).lambda_min / truth - 1) for seed in range(200)]
    assert np.median(errors) < 0.012 and max(errors) < 0.055


def test_float32_residuals_do_not_claim_more_than_the_arithmetic() -> None:
    operator = MatrixOperator(planted(SPECTRA["positive"]).matrix.float())
    ends = extreme_eigenvalues(operator, min_products=60)
    true = float((operator.matrix.double() @ ends.vectors[:, 0].double() - ends.lambda_max * ends.vectors[:, 0]).norm())
    assert ends.residual_max >= torch.finfo(torch.float32).eps * ends.scale
    assert true <= 20 * ends.residual_max


@pytest.mark.parametrize("name", [name for name in SPECTRA if name not in ("one dimension",)])
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_top_pairs_with_their_multiplicity(name: str, which: str) -> None:
    values = SPECTRA[name].double()
    k = min(5, len(values))
    operator = planted(values)
    top = top_eigenvalues(operator, k, which=which, tolerance=1e-6)  # type: ignore[arg-type]
    expected = values.sort(descending=which == "largest")[0][:k].numpy()
    assert top.products == operator.products
    true = (operator.matrix @ top.vectors - top.vectors * torch.as_tensor(top.values)).norm(dim=0).numpy()
    assert np.all(true <= top.residuals * (1 + 1e-6) + 1e-10 * (1 + top.scale))
    if top.converged.all():
        assert np.allclose(top.values, expected, rtol=0, atol=1e-5 * (1 + top.scale))
    assert name == "clustered near zero" or (top.converged.all() and top.checked)


@pytest.mark.parametrize(("beyond", "checked"), [(0.75, True), (1.25, False)])
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_a_second_run_finds_nothing_further_out_where_its_value_is_beyond_by_less_than_its_residual(
    which: str, beyond: float, checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign, runs = (1.0 if which == "largest" else -1.0), []
    operator = MatrixOperator(torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0]).double()))

    def outermost(*call: Any, **options: Any) -> TopEigenvalues:
        runs.append(sign * (2.0 if not runs else 2.0 + 0.1 * beyond))
        columns = torch.eye(4, dtype=torch.float64)[:, len(runs) - 1 : len(runs)]
        return TopEigenvalues(
            np.array(runs[-1:]), np.array([0.1]), np.array([True]), float(len(runs)), 0, checked=False, vectors=columns
        )

    monkeypatch.setattr(top, "_outermost", outermost)
    found = top_eigenvalues(operator, 1, which=which)  # type: ignore[arg-type]
    assert found.checked == checked and found.values.tolist() == [runs[0] if checked else runs[1]]
    assert found.scale == (1.0 if checked else 2.0), "the largest scale that was seen"


def test_more_pairs_than_dimensions_are_refused() -> None:
    with pytest.raises(InputError, match="dimension 3"):
        top_eigenvalues(planted(torch.ones(3)), 4)


def test_a_warm_start_from_the_answer_needs_few_products_and_its_noise_finds_what_it_does_not_hold() -> None:
    operator = planted(SPECTRA["trained net"])
    cold = extreme_eigenvalues(operator)
    warm = extreme_eigenvalues(operator, start=cold.vectors)
    assert warm.converged_min and warm.products < 0.7 * cold.products
    assert warm.lambda_min == pytest.approx(cold.lambda_min, rel=0.02)
    values, basis = torch.linalg.eigh(operator.matrix)
    inner = extreme_eigenvalues(operator, start=basis[:, [200, -1]])
    assert inner.lambda_min == pytest.approx(float(values[0]), rel=0.1)


def test_a_long_random_part_finds_more_of_what_a_start_lacks_for_fewer_products() -> None:
    """The lowest eigenvector is one that the given vectors do not hold at all."""
    values = torch.cat([torch.logspace(1.3, 0.3, 10), torch.linspace(0.0, 0.05, 260), -torch.logspace(-0.7, -2.5, 30)])
    new = torch.tensor([1.2 * float(values.min())])
    operator = MatrixOperator(torch.diag(torch.cat([values, new]).double()))
    start = torch.zeros(301, 2).double()
    start[[0, 270], [0, 1]] = 1.0
    start += 0.02 * torch.randn(301, 2, generator=torch.Generator().manual_seed(0)).double()
    start[300] = 0.0
    found = {
        noise: [extreme_eigenvalues(operator, start=start, noise=noise, min_products=4, seed=k) for k in range(40)]
        for noise in (0.1, 1.0)
    }
    missed = {noise: sum(ends.lambda_min > 0.98 * float(new) for ends in runs) for noise, runs in found.items()}
    assert missed[1.0] < missed[0.1]
    for runs in found.values():  # what is asked of the residuals is the same
        assert all(e.residual_min <= max(0.05 * abs(e.lambda_min), 1e-4 * e.scale) and e.converged_max for e in runs)
    products = {noise: sum(ends.products for ends in runs) for noise, runs in found.items()}
    assert products[1.0] < products[0.1]


def test_a_run_is_reproducible_and_resumes_to_the_same_bits() -> None:
    operator = planted(SPECTRA["trained net"])
    whole = Lanczos(operator, seed=3)
    whole.extend(30)
    part = Lanczos(operator, seed=3)
    part.extend(11)
    again = Lanczos.resume(operator, part.state())
    again.extend(19)
    assert np.array_equal(whole.ritz().values, again.ritz().values)
    assert np.array_equal(whole.ritz().weights, again.ritz().weights)
    other = Lanczos(operator, seed=4)
    other.extend(30)
    assert not np.array_equal(whole.ritz().values, other.ritz().values)


def test_no_ghosts_in_a_long_run() -> None:
    values = torch.cat([torch.tensor([100.0]), torch.linspace(0, 1, 150)]).double()
    run = Lanczos(MatrixOperator(torch.diag(values)))
    run.extend(151)
    assert run.exhausted and run.extend(5) == 151
    np.testing.assert_allclose(run.ritz().values, np.sort(values.numpy()), atol=1e-9)


@pytest.mark.parametrize("upper", [False, True])
def test_the_bound_is_a_probability_statement_that_holds(upper: bool) -> None:
    values = torch.cat([torch.tensor([-1.0]), torch.linspace(0, 1, 500)]).double()
    values = -values if upper else values
    true = float(values.max() if upper else values.min())
    operator, misses = MatrixOperator(torch.diag(values)), 0
    for seed in range(100):
        run = Lanczos(operator, seed=seed)
        run.extend(16)
        ritz = run.ritz()
        found, further = float(ritz.values[-1 if upper else 0]), reach(run, ritz, upper=upper, risk=0.2)
        misses += abs(true - found) > further
        assert further < 0.1
    assert misses <= 20


def test_the_bound_of_a_run_solves_its_equation() -> None:
    run = Lanczos(MatrixOperator(torch.diag(torch.cat([torch.tensor([-1.0]), torch.linspace(0, 1, 500)]).double())))
    run.extend(16)
    ritz, risk = run.ritz(), 0.2
    further = ritz.values[0] - reach(run, ritz, risk=risk)
    polynomial, length = np.prod(np.abs(further - ritz.values)), np.prod(run.couplings)
    part = risk * math.sqrt(math.pi / (2 * 501))
    assert part * polynomial == pytest.approx(length, rel=0.02)
    warm = Lanczos(run.operator, start=torch.ones(501), noise=0.1)
    warm.extend(16)
    cold_risk = risk * warm.randomness  # the given part may hide as much of the random one
    known = reach(warm, warm.ritz(), risk=risk)
    warm.randomness = 1.0
    assert reach(warm, warm.ritz(), risk=cold_risk) == pytest.approx(known, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tolerance": 0.0}, "tolerance"),
        ({"lower_tolerance": 0.5}, "lower_tolerance"),
        ({"max_products": 3}, "max_products"),
        ({"start": torch.ones(3)}, "start"),
        ({"start": torch.zeros(60)}, "start"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        extreme_eigenvalues(planted(SPECTRA["positive"]), **options)  # type: ignore[arg-type]


def test_a_foreign_source_is_refused() -> None:
    with pytest.raises(InputError, match="MatrixOperator"):
        extreme_eigenvalues(torch.eye(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [5, 10, 93, 104])
def test_an_eigenvector_that_the_start_hardly_holds_is_found(seed: int) -> None:
    """Four of 300 starts that converge to the neighbor first; what the run has seen says that more may be missing."""
    low = torch.tensor([1, 0.94, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01], dtype=torch.float64)
    below = torch.cat([low, torch.tensor([0.005, 0.004, 0.003, 0.002, 0.001, 0.0005], dtype=torch.float64)])
    values = torch.cat([torch.logspace(1, 0, 10), torch.logspace(-1, -5, 470), -0.1 * below]).double()
    operator = MatrixOperator(torch.diag(values))
    found = extreme_eigenvalues(operator, seed=seed)
    assert abs(found.lambda_min / -0.1 - 1) < 0.02 and 0.1 <= found.bound_min < 0.106
    short = extreme_eigenvalues(operator, seed=seed, missed=math.inf)
    assert short.products < found.products and short.bound_min >= 0.1


def test_what_cold_starts_say_of_the_lower_end_holds_for_99_in_100() -> None:
    low = torch.cat([torch.tensor([-0.2, -0.1905, -0.12]), -torch.logspace(-1, -2.5, 17)])
    values = torch.cat([torch.logspace(1.3, 0.3, 10), torch.linspace(0, 0.1, 470), low]).double()
    operator = MatrixOperator(torch.diag(values))
    runs = [extreme_eigenvalues(operator, seed=seed) for seed in range(100)]
    assert all(run.converged_min and run.bound_min <= 1.05 * abs(run.lambda_min) for run in runs)
    assert sum(run.bound_min < 0.2 for run in runs) <= 4  # more than 4 of 100 happen to a true 1 % in 3 of 1,000
    assert sum(abs(run.lambda_min / -0.2 - 1) > 0.02 for run in runs) <= 4
