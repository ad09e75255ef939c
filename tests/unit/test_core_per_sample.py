"""The risk of any loss is the same number for every batching, and equals torch's own on one batch."""

from __future__ import annotations

import copy
import functools
import math
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn import functional

from lowland.core.errors import InputError
from lowland.core.moments import Estimate, Tally, estimates
from lowland.core.per_sample import accuracy, per_sample_loss
from lowland.core.risk import EmpiricalRisk

N, C = 17, 5
CLASS_WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0], dtype=torch.float64)


def labels() -> torch.Tensor:
    target = torch.randint(0, C, (N,))
    target[::4] = -100
    return target


def spatial_labels() -> torch.Tensor:
    target = torch.randint(0, C, (N, 3))
    target[2] = -100
    target[5, 1:] = -100
    return target


def signs() -> torch.Tensor:
    return torch.randint(0, 2, (N, C)).double() * 2 - 1


def probabilities() -> torch.Tensor:
    return torch.rand(N, C, dtype=torch.float64).softmax(1)


def real() -> torch.Tensor:
    return torch.randn(N, C, dtype=torch.float64)


def binary() -> torch.Tensor:
    return torch.randint(0, 2, (N, C)).double()


CASES = {
    "cross entropy": (lambda r: nn.CrossEntropyLoss(reduction=r), labels),
    "cross entropy weighted": (lambda r: nn.CrossEntropyLoss(weight=CLASS_WEIGHT, reduction=r), labels),
    "cross entropy smoothed": (lambda r: nn.CrossEntropyLoss(label_smoothing=0.1, reduction=r), labels),
    "weighted and smoothed": (
        lambda r: nn.CrossEntropyLoss(weight=CLASS_WEIGHT, label_smoothing=0.1, ignore_index=2, reduction=r),
        lambda: torch.randint(0, C, (N,)),
    ),
    "cross entropy of probabilities": (lambda r: nn.CrossEntropyLoss(weight=CLASS_WEIGHT, reduction=r), probabilities),
    "nll": (lambda r: nn.NLLLoss(weight=CLASS_WEIGHT, reduction=r), labels),
    "mse": (lambda r: nn.MSELoss(reduction=r), real),
    "l1": (lambda r: nn.L1Loss(reduction=r), real),
    "huber": (lambda r: nn.HuberLoss(reduction=r), real),
    "smooth l1": (lambda r: nn.SmoothL1Loss(reduction=r), real),
    "bce with logits": (
        lambda r: nn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHT, weight=CLASS_WEIGHT, reduction=r),
        binary,
    ),
    "soft margin": (lambda r: nn.SoftMarginLoss(reduction=r), signs),
    "multi margin": (lambda r: nn.MultiMarginLoss(reduction=r), lambda: torch.randint(0, C, (N,))),
    "multi label soft margin": (lambda r: nn.MultiLabelSoftMarginLoss(reduction=r), binary),
    "poisson": (lambda r: nn.PoissonNLLLoss(reduction=r), lambda: torch.rand(N, C, dtype=torch.float64)),
    "kl": (lambda r: nn.KLDivLoss(reduction=r), probabilities),
    "hinge embedding": (lambda r: nn.HingeEmbeddingLoss(reduction=r), signs),
}


def risk_value(loss, output, target, cuts) -> float:
    edges = [0, *cuts, N]
    batches = [(output[a:b], target[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    return EmpiricalRisk(nn.Identity(), loss, batches).evaluate()["loss"].value


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cuts", [[], [16], [1, 2, 9], [5, 10, 15]], ids=str)
def test_every_reduction_and_batching_gives_torchs_mean(name, cuts):
    make, target_of = CASES[name]
    target = target_of()
    output = torch.randn(N, C, dtype=torch.float64)
    expected = make("mean")(output, target).item()
    for reduction in ("mean", "sum", "none"):
        assert risk_value(make(reduction), output, target, cuts) == pytest.approx(expected, rel=1e-13)


def test_batchmean_divides_by_samples():
    output, target = torch.randn(N, C, dtype=torch.float64), probabilities()
    loss = nn.KLDivLoss(reduction="batchmean")
    assert risk_value(loss, output, target, [3, 4]) == pytest.approx(loss(output, target).item(), rel=1e-13)


def test_positions_of_a_sequence_count_each():
    output, target = torch.randn(N, C, 3, dtype=torch.float64), spatial_labels()
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=CLASS_WEIGHT), nn.CrossEntropyLoss(ignore_index=1)):
        if loss.ignore_index == 1:
            target = target.clamp(min=0)
        assert risk_value(loss, output, target, [2, 3, 11]) == pytest.approx(loss(output, target).item(), rel=1e-13)


@pytest.mark.parametrize(
    "loss",
    [
        functional.cross_entropy,
        functools.partial(functional.cross_entropy, weight=CLASS_WEIGHT, ignore_index=3),
        lambda output, target: functional.cross_entropy(output, target, reduction="none"),
    ],
    ids=["function", "partial", "per sample"],
)
def test_functions_are_exact_too(loss):
    output, target = torch.randn(N, C, dtype=torch.float64), torch.randint(0, C, (N,))
    expected = loss(output, target).mean().item()
    assert risk_value(loss, output, target, [4, 5]) == pytest.approx(expected, rel=1e-13)


def test_a_scalar_of_an_unknown_callable_is_a_mean_over_samples():
    output, target = torch.randn(N, C, dtype=torch.float64), torch.randn(N, C, dtype=torch.float64)
    loss = lambda o, t: ((o - t) ** 2).sum(1).mean()
    assert risk_value(loss, output, target, [4, 5]) == pytest.approx(loss(output, target).item(), rel=1e-13)


def test_the_users_loss_keeps_its_reduction():
    loss = nn.MSELoss(reduction="sum")
    per_sample_loss(loss, torch.ones(2, 2), torch.zeros(2, 2))
    assert loss.reduction == "sum"


def test_a_loss_of_another_length_is_refused():
    with pytest.raises(InputError, match="one entry per sample"):
        per_sample_loss(lambda o, t: torch.ones(3), torch.ones(5, 2), torch.ones(5))


def test_accuracy_counts_what_is_not_ignored():
    output = torch.eye(4)
    hits, counts = accuracy(output, torch.tensor([0, 1, 3, -100]))
    assert hits.tolist() == [1, 1, 0, 0]
    assert counts.tolist() == [1, 1, 1, 0]
    assert accuracy(torch.randn(4, 1), torch.randn(4, 1)) is None


def test_accuracy_of_as_many_tokens_as_words_needs_a_loss_that_says_where_classes_are():
    logits, target = torch.randn(3, 7, 7), torch.randint(7, (3, 7))
    for loss in (None, lambda output, target: functional.cross_entropy(output.transpose(1, 2), target)):
        assert accuracy(logits, target, loss) is None
        assert accuracy(logits, logits.softmax(1), loss) is None
    hits, counts = accuracy(logits, target, functools.partial(functional.cross_entropy, ignore_index=2))
    kept = target != 2
    assert torch.equal(hits, ((logits.argmax(1) == target) & kept).sum(1).float())
    assert torch.equal(counts, kept.sum(1).float())
    assert accuracy(logits[:, :6], target, nn.CrossEntropyLoss(ignore_index=2)) is not None


def test_standard_error_of_a_mean_and_of_a_ratio():
    values = torch.randn(200, dtype=torch.float64)
    estimate = estimate_of(values)
    assert estimate.standard_error == pytest.approx((values.std() / math.sqrt(200)).item(), rel=1e-10)
    weights = torch.rand(200, dtype=torch.float64) + 0.5
    ratio = estimate_of((values * weights, weights))
    residual = values * weights - ratio.value * weights
    expected = math.sqrt(200 / 199 * (residual**2).sum().item()) / weights.sum().item()
    assert ratio.value == pytest.approx(((values * weights).sum() / weights.sum()).item(), rel=1e-12)
    assert ratio.standard_error == pytest.approx(expected, rel=1e-9)


def moments(*pairs):
    tally = Tally()
    for pair in pairs:
        tally.add({"loss": pair if isinstance(pair, tuple) else (pair, None)})
    return tally.moments()["loss"]


def estimate_of(*pairs):
    return Estimate.of(moments(*pairs).tolist())


def test_moments_match_explicit_ones_and_blocks_those_of_the_whole(monkeypatch):
    values, ones = torch.rand(30, dtype=torch.float64), torch.ones(30, dtype=torch.float64)
    assert torch.allclose(moments(values), moments((values, ones)), rtol=1e-14)
    whole = estimate_of(values)
    monkeypatch.setattr("lowland.core.moments._BLOCK", 7)
    assert len(moments(values)) == 5
    parts = estimate_of(values)
    for name in ("value", "standard_error", "samples", "weight", "skewness"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-12)


@pytest.mark.parametrize(("center", "spread"), [(1e4, 1e-2), (2.3, 1e-8), (-7e8, 1.0)])
@pytest.mark.parametrize("sizes", [[1000], [1, 400, 599], [50] * 20])
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_of_values_far_from_zero(center, spread, sizes, weighted):
    """Against rational arithmetic: power sums about 0 lose all of it."""
    generator = torch.Generator().manual_seed(3)
    values = center + spread * torch.randn(1000, generator=generator).double()
    weights = torch.rand(1000, generator=generator).double() + 0.5 if weighted else torch.ones(1000).double()
    parts = zip(values.split(sizes), weights.split(sizes), strict=True)
    found = estimate_of(*((v * w, w if weighted else None) for v, w in parts))
    v, w = ([Fraction(x) for x in part.tolist()] for part in (values * weights, weights))
    ratio = sum(v) / sum(w)
    rest = [a - ratio * b for a, b in zip(v, w, strict=True)]
    second, third = float(sum(r**2 for r in rest)), float(sum(r**3 for r in rest))
    loose = 1e-4 if spread < 1e-6 or (weighted and spread / abs(center) < 1e-5) else 1e-6
    assert found.standard_error == pytest.approx(math.sqrt(1000 / 999 * second) / float(sum(w)), rel=loose)
    assert found.skewness == pytest.approx(third / 1000 / (second / 1000) ** 1.5, rel=100 * loose, abs=loose)


@pytest.mark.parametrize("block", [5, 16, 1 << 14])
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_have_the_same_bits_for_every_batching(block, weighted, monkeypatch):
    monkeypatch.setattr("lowland.core.moments._BLOCK", block)
    values, weights = torch.randn(40), torch.rand(40)

    def found(sizes):
        parts = zip(values.split(sizes), weights.split(sizes), strict=True)
        return moments(*((v, w if weighted else None) for v, w in parts))

    whole = found(40)
    assert len(whole) == -(-40 // block)
    for sizes in (1, 7, [3, 30, 7], [39, 1]):
        assert torch.equal(found(sizes), whole)


def test_quantities_of_other_sizes_kinds_and_totals_are_tallied_side_by_side(monkeypatch):
    """A batch may give a total where another gives values, and two metrics may count differently."""
    monkeypatch.setattr("lowland.core.moments._BLOCK", 4)
    tally = Tally()
    a, b = torch.arange(6.0), torch.arange(3.0, dtype=torch.float64)
    tally.add({"a": (a, None), "b": (b, 2.0), "c": (torch.tensor(4.0), 8.0)})
    tally.add({"a": (a + 1, torch.full((6,), 3.0)), "b": (b, torch.tensor(1.0)), "c": (torch.tensor(2.0), None)})
    found = {name: Estimate.of(rows.tolist()) for name, rows in tally.moments().items()}
    assert list(found) == ["a", "b", "c"]
    assert found["a"].value == pytest.approx(float(a.sum() + (a + 1).sum()) / (6 + 18))
    assert (found["b"].value, found["b"].samples) == (pytest.approx(6 / 9), 6)
    assert found["c"].value == pytest.approx(6 / 9)
    assert (found["c"].samples, math.isnan(found["c"].standard_error)) == (0, True)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("block", [1 << 14, 7])
def test_what_is_tallied_beside_it_changes_no_bit_of_an_estimate(block, threads, monkeypatch):
    monkeypatch.setattr("lowland.core.moments._BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    before = torch.get_num_threads()

    def tally(number):
        found = Tally()
        for size in (30, 3) if block == 7 else (3000, 17):
            values = torch.rand(3, size, generator=generator)
            weights = torch.ones(size) if number % 3 else (values[2] > 0.3).float()  # some are weighted, some are not
            found.add({"a": (values[0], weights), "b": (values[1], None), "total": (values[2].sum(), 2.0)})
        return found

    try:
        torch.set_num_threads(threads)
        tallies = [tally(number) for number in range(40)]
        alone = [estimates([copy.deepcopy(one)])[0] for one in tallies]
        assert estimates(tallies) == alone
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [1e-130, 1e-160, 1e110, 1e150, 1e170])
def test_moments_of_the_smallest_and_largest_values_end_in_numbers(size):
    found = estimate_of(size * torch.arange(5, dtype=torch.float64))
    assert found.value == pytest.approx(2 * size)
    assert found.standard_error == pytest.approx(size * 0.5**0.5, rel=1e-6) or not 1e-150 < size < 1e150


def test_skewness_flags_few_samples_of_a_skewed_loss():
    skewed = torch.zeros(100, dtype=torch.float64)
    skewed[0] = 1.0
    estimate = estimate_of(skewed)
    centered = skewed - skewed.mean()
    assert estimate.skewness == pytest.approx(((centered**3).mean() / (centered**2).mean() ** 1.5).item(), rel=1e-9)
    assert not estimate.reliable
    assert estimate_of(torch.rand(100)).reliable


def test_coverage_of_the_standard_error_at_one_and_two():
    """Nominal rates 0.683 and 0.954 within four binomial standard errors of 2,000 trials."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(2000, 50, generator=generator, dtype=torch.float64)
    estimates = [estimate_of(row) for row in values]
    for width, nominal in ((1, 0.683), (2, 0.954)):
        rate = sum(abs(e.value) <= width * e.standard_error for e in estimates) / len(estimates)
        assert abs(rate - nominal) < 4 * math.sqrt(nominal * (1 - nominal) / 2000) + 0.01  # + t against normal


def test_nothing_counted_is_nan_not_zero():
    assert math.isnan(
        EmpiricalRisk(nn.Identity(), nn.CrossEntropyLoss(), [(torch.randn(2, 3), torch.full((2,), -100))])
        .evaluate()["loss"]
        .value
    )


@pytest.mark.parametrize("classes", [2, 10, 15, 16, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
def test_few_classes_give_the_bits_of_torchs_cross_entropy(classes, dtype, weighted):
    stream = torch.Generator().manual_seed(classes)
    output = (4 * torch.randn(300, classes, generator=stream)).to(dtype)
    output[3], output[4, 1], output[5, 0], output[6] = torch.inf, torch.nan, -torch.inf, -torch.inf
    target = torch.randint(classes, (300,), generator=stream)
    target[7] = -100
    weight = torch.rand(classes, generator=stream).to(dtype) if weighted else None
    for lowered in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lowered):
            for loss in (nn.CrossEntropyLoss(weight), functools.partial(functional.cross_entropy, weight=weight)):
                if lowered and weighted and dtype != torch.float32:
                    continue  # torch refuses class weights of another type than its own
                values, _ = per_sample_loss(loss, output, target)
                true = functional.cross_entropy(output, target, weight, reduction="none")
                assert values.dtype == true.dtype
                torch.testing.assert_close(values, true, rtol=0, atol=0, equal_nan=True)


def test_few_classes_have_the_gradients_of_torchs_cross_entropy():
    output = torch.randn(60, 10, dtype=torch.float32, requires_grad=True)
    target = torch.randint(10, (60,))

    def derivatives(loss):
        (first,) = torch.autograd.grad(loss, output, create_graph=True)
        return first, *torch.autograd.grad(first.square().sum(), output)

    ours = derivatives(per_sample_loss(nn.CrossEntropyLoss(), output, target)[0].sum())
    for mine, true in zip(ours, derivatives(functional.cross_entropy(output, target, reduction="sum")), strict=True):
        torch.testing.assert_close(mine, true)
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.1)
    torch.testing.assert_close(
        per_sample_loss(smoothed, output, target)[0],
        functional.cross_entropy(output, target, label_smoothing=0.1, reduction="none"),
    )
    with pytest.raises(IndexError, match="out of bounds"):
        per_sample_loss(nn.CrossEntropyLoss(), output, torch.full((60,), 10))
