from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lowland import data, models, training
from lowland.core.errors import InputError, MissingExtra
from lowland.robustness import Robustness, adversarial, median_perturbation, noise, telling_epsilon

pytest.importorskip("foolbox")
RADII = (0.02, 0.05, 0.1, 0.2)


@pytest.fixture(scope="module")
def splits() -> data.DataSplits:
    return data.load("digits")


@pytest.fixture(scope="module")
def trained(splits: data.DataSplits) -> nn.Module:
    model = models.create("resnet8", width=8, channels=1, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return training.fit(model, optimizer, nn.CrossEntropyLoss(), splits, epochs=4, batch_size=64).model


def linear(weight: float) -> nn.Module:
    """Two classes told apart by the mean pixel of [1, 2, 2] images: margin 8 w (mean - 0.5), radius |mean - 0.5|."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-weight] * 4, [weight] * 4]))
        model[1].bias.copy_(torch.tensor([2 * weight, -2 * weight]))
    return model


def flat_images() -> data.DataSplits:
    means = torch.linspace(0.2, 0.8, 41)
    x = means.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    part = data.TensorData(x, (means > 0.5).long(), torch.arange(41))
    return data.DataSplits("flat", part, part, part, classes=2, shape=(1, 2, 2), mean=(0.0,), std=(1.0,))


def table(rows: list[Robustness]) -> dict[tuple[str, float], float]:
    return {(row.attack, row.size): row.accuracy for row in rows}


def test_on_a_linear_model_every_attack_finds_exactly_the_samples_within_reach() -> None:
    result = table(adversarial(linear(5.0), flat_images(), epsilons=(0.1, 0.2), step=0.02, restarts=2))
    means = torch.linspace(0.2, 0.8, 41)
    for epsilon in (0.1, 0.2):
        # the sample at 0.5 is a tie and one at the very edge of the ball may round either way
        expected = float(((means - 0.5).abs() > epsilon).float().mean())
        for attack in ("fgsm", "pgd", "margin", "worst"):
            assert result[attack, epsilon] == pytest.approx(expected, abs=2.1 / 41)


def test_median_and_telling_radius_are_exact_on_a_linear_model() -> None:
    distances = (torch.linspace(0.2, 0.8, 41) - 0.5).abs()
    assert median_perturbation(linear(5.0), flat_images()) == pytest.approx(float(distances.median()), abs=2e-3)
    radius = telling_epsilon(linear(5.0), flat_images(), keep=0.3)
    assert float((distances > radius).float().mean()) == pytest.approx(0.3, abs=0.05)


def test_robust_accuracy_falls_with_the_radius_and_stronger_attacks_leave_less(
    trained: nn.Module, splits: data.DataSplits
) -> None:
    rows = adversarial(trained, splits, epsilons=RADII, samples=150, restarts=2, iterations=20)
    found = table(rows)
    for attack in ("fgsm", "pgd", "margin", "worst"):
        values = [found["clean", 0.0], *(found[attack, e] for e in RADII)]
        assert all(a >= b for a, b in zip(values, values[1:], strict=False))
    for e in RADII:
        assert found["pgd", e] <= found["fgsm", e]
        assert found["margin", e] <= found["pgd", e]
        assert found["worst", e] <= found["margin", e]
    assert found["clean", 0.0] > 0.8 and found["worst", 0.2] < 0.3
    assert all(row.samples == 150 and row.standard_error <= 0.5 / 150**0.5 for row in rows)


def test_equal_seeds_give_equal_numbers_and_the_model_is_restored(trained: nn.Module, splits: data.DataSplits) -> None:
    trained.train()
    before = {k: v.clone() for k, v in trained.state_dict().items()}
    flags = [p.requires_grad for p in trained.parameters()]
    random = torch.get_rng_state()
    first, again = (adversarial(trained, splits, epsilons=(0.05,), samples=60, iterations=5) for _ in range(2))
    assert first == again
    assert trained.training and flags == [p.requires_grad for p in trained.parameters()]
    assert all(torch.equal(v, before[k]) for k, v in trained.state_dict().items())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in trained.parameters())
    assert torch.equal(random, torch.get_rng_state())


def test_the_telling_radius_leaves_the_baseline_between_30_and_70_percent(
    trained: nn.Module, splits: data.DataSplits
) -> None:
    radius = telling_epsilon(trained, splits, samples=60, resolution=7, iterations=10)
    kept = table(adversarial(trained, splits, epsilons=(radius,), step=radius / 4, samples=60, iterations=10))
    assert 0.3 <= kept["pgd", radius] <= 0.7
    middle = median_perturbation(trained, splits, samples=60, resolution=7, iterations=10)
    assert middle == pytest.approx(radius, rel=0.05)  # half of the samples survive the median


def test_noise_lowers_accuracy_and_no_noise_does_nothing(trained: nn.Module, splits: data.DataSplits) -> None:
    rows = noise(trained, splits, deviations=(0.0, 0.2, 1.0))
    clean = float((trained.eval()(splits.test.input).argmax(1) == splits.test.target).float().mean())
    assert rows[0].accuracy == pytest.approx(clean)
    assert rows[0].accuracy >= rows[1].accuracy > rows[2].accuracy
    assert noise(trained, splits, deviations=(0.2,), batch_size=77)[0] == rows[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epsilons": ()}, "`epsilons`"),
        ({"epsilons": (0.0,)}, "`epsilons`"),
        ({"epsilons": (8.0,)}, "`epsilons`"),
        ({"step": 0.0}, "`step`"),
        ({"iterations": 0}, "`iterations`"),
        ({"restarts": 0}, "`restarts`"),
        ({"samples": 601}, "`samples`"),
    ],
)
def test_bad_input_is_refused(options: dict[str, object], words: str, splits: data.DataSplits) -> None:
    with pytest.raises(InputError, match=words):
        adversarial(models.create("resnet8", channels=1), splits, **options)  # type: ignore[arg-type]


def test_signals_text_and_hopeless_models_are_refused(splits: data.DataSplits) -> None:
    signals: Callable[[], object] = lambda: adversarial(models.create("resnet1d"), data.load("mnist1d", test_size=10))
    for call in (signals, lambda: noise(nn.Identity(), data.load("text"))):
        with pytest.raises(InputError, match="`data`"):
            call()
    constant = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(InputError, match="clean accuracy"):
        telling_epsilon(constant, splits, keep=0.9, samples=50)


def test_without_foolbox_the_error_names_the_extra(splits: data.DataSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(MissingExtra, match=r"lowland\[robust\]"):
        adversarial(models.create("resnet8", channels=1), splits, samples=10)


def test_the_defaults_are_the_protocol_of_llr() -> None:
    defaults = {name: p.default for name, p in inspect.signature(adversarial).parameters.items()}
    assert defaults["epsilons"] == (3 / 255, 5 / 255, 8 / 255)
    assert (defaults["step"], defaults["iterations"]) == (0.01, 40)
    assert defaults["restarts"] > 1  # beyond it: a margin loss with restarts
