"""The card's numbers against finite differences and naive loops, its restoring, resuming and refusals."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import sys

import numpy as np
import pytest
import torch
from tests.golden.parts import net, tiny_data
from torch import nn

from lowland import opening, report, results, workflows
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError, StoreError
from lowland.core.risk import EmpiricalRisk
from lowland.core.settings import RobustnessOptions
from lowland.core.units import UnitRule
from lowland.curvature import worst_case_sharpness
from lowland.report.robustness import sizes_told
from lowland.report.sections import Gallery
from lowland.results import Run
from lowland.robustness import card, noise, outcomes, rounded
from lowland.robustness import weights as parts_of_weights


def make(seed: int = 0, dtype: torch.dtype = torch.float64, size: int = 48) -> tuple[nn.Module, list]:
    torch.manual_seed(seed)
    model = net().to(dtype)
    part = tiny_data(size=size).train
    return model, [(part.input[i : i + 20].to(dtype), part.target[i : i + 20]) for i in range(0, size, 20)]


def make_risk(seed: int = 0, **options) -> EmpiricalRisk:
    model, batches = make(seed)
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), batches, **options)


def other_data(risk: EmpiricalRisk) -> EmpiricalRisk:
    part = tiny_data().test
    shuffled = (part.target + 1) % 3
    return EmpiricalRisk(risk.model, nn.CrossEntropyLoss(), [(part.input.double(), shuffled)])


SMALL = {"radii": [1e-3, 0.1], "directions": 3, "worst_steps": 4, "finetune_steps": 4, "batch_size": 16}


def losses(risk: EmpiricalRisk) -> tuple[torch.Tensor, torch.Tensor]:
    model = risk.model.eval()
    with torch.no_grad():
        pairs = [(model(b.input), b.target) for b in risk.batches()]
    each = torch.cat([nn.functional.cross_entropy(o, t, reduction="none") for o, t in pairs])
    return each, torch.cat([(o.argmax(1) == t).double() for o, t in pairs])


@pytest.mark.parametrize("group", [None, 3, 64])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("rule", [UnitRule("filter"), UnitRule("filter", axis=1), UnitRule("tensor")])
def test_rounding_is_that_of_a_loop_over_groups(bits, symmetric, group, rule):
    weight = torch.randn(5, 7, dtype=torch.float64)
    weight[2], weight[:, 3] = 0.0, weight[:, 3].abs()
    found = rounded(weight, bits, rule=rule, group=group, symmetric=symmetric)
    view = weight.T if rule.axis == 1 else weight
    view = view.reshape(1, -1) if rule.kind == "tensor" else view
    naive = np.zeros(view.shape)
    for i, row in enumerate(view.tolist()):
        for start in range(0, len(row), group or len(row)):
            part = row[start : start + (group or len(row))]
            if symmetric:
                scale, zero, low, high = max(map(abs, part)) / (2 ** (bits - 1) - 1), 0, None, None
                low, high = -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1
            else:
                scale = (max(*part, 0.0) - min(*part, 0.0)) / (2**bits - 1)
                zero, low, high = (round(-min(*part, 0.0) / scale) if scale else 0), 0, 2**bits - 1
            for j, value in enumerate(part):
                if scale:
                    naive[i, start + j] = (min(max(round(value / scale) + zero, low), high) - zero) * scale
    expected = naive.T if rule.axis == 1 else naive.reshape(weight.shape)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-14)
    again = rounded(found, bits, rule=rule, group=group, symmetric=symmetric)
    np.testing.assert_allclose(again.numpy(), found.numpy(), atol=1e-12)  # what is on the grid stays


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_agrees_with_torchao(bits, symmetric):
    primitives = pytest.importorskip("torchao.quantization.quant_primitives")
    kind = primitives.MappingType.SYMMETRIC if symmetric else primitives.MappingType.ASYMMETRIC
    low, high = (-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    weight = torch.randn(8, 64)
    for group in (None, 32):
        block = (1, group or 64)
        target = torch.int8 if symmetric else torch.uint8
        scale, zero = primitives.choose_qparams_affine(weight, kind, block, target, low, high)
        whole = primitives.quantize_affine(weight, block, scale, zero, target, low, high)
        back = primitives.dequantize_affine(whole, block, scale, zero, target, low, high)
        torch.testing.assert_close(rounded(weight, bits, group=group, symmetric=symmetric), back, atol=1e-6, rtol=1e-5)


def test_changes_are_paired_and_predictions_are_those_of_finite_differences():
    risk = make_risk()
    before, hits = losses(risk)
    found = outcomes(card(risk, RobustnessOptions(parts=["rounding"], curvature_samples=None)))
    row = next(r for r in found if r.name == "INT4 per channel, symmetric")
    plain = copy.deepcopy(risk.model)
    step = {}
    for name, p in risk.model.named_parameters():
        if p.ndim > 1:
            step[name] = rounded(p, 4) - p.detach()
    moved = lambda t: [
        p.data.copy_(q.data + t * step[n])
        for (n, p), q in zip(
            ((n, p) for n, p in risk.model.named_parameters() if n in step),
            (q for n, q in plain.named_parameters() if n in step),
            strict=True,
        )
    ]
    moved(1.0)
    after, hits_after = losses(risk)
    assert row.loss == pytest.approx(float(after.mean()), rel=1e-12)
    assert row.loss_change == pytest.approx(float((after - before).mean()), rel=1e-9)
    assert row.loss_change_se == pytest.approx(float((after - before).std() / len(before) ** 0.5), rel=1e-9)
    assert row.accuracy_change == pytest.approx(float((hits_after - hits).mean()), abs=1e-12)
    assert row.accuracy_change_se == pytest.approx(float((hits_after - hits).std() / len(before) ** 0.5), abs=1e-12)
    assert row.distance == pytest.approx(float(torch.cat([d.reshape(-1) for d in step.values()]).norm()), rel=1e-12)
    h = 1e-4
    values = []
    for t in (-h, 0.0, h):
        moved(t)
        values.append(float(losses(risk)[0].mean()))
    assert row.first == pytest.approx((values[2] - values[0]) / (2 * h), rel=1e-4)
    second = (values[2] - 2 * values[1] + values[0]) / h**2 / 2
    assert row.second == pytest.approx(second, rel=1e-3)
    assert row.compared == row.loss_change and row.ratio == pytest.approx(row.loss_change / (row.first + row.second))


def test_small_noise_and_small_worst_steps_are_as_predicted():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), make()[1])
    found = outcomes(card(risk, RobustnessOptions(parts=["noise", "worst"], **SMALL)))
    near = [r for r in found if r.size == 1e-3]
    assert {r.name.partition(" (")[0] for r in near} == {"per filter", "absolute", "worst direction"}
    norm = float(torch.cat([p.detach().reshape(-1) for p in model.parameters() if p.ndim > 1]).norm())
    for row in near:
        assert row.ratio == pytest.approx(1.0, rel=2e-3), row
        assert row.distance == pytest.approx(1e-3 * norm, rel=1e-6), row
    worst = next(r for r in near if r.part == "worst")
    assert worst.loss_change > max(r.loss_change for r in near if r.part == "noise")


def test_noise_is_the_mean_over_directions_with_their_quantiles(tmp_path):
    risk, options = make_risk(), RobustnessOptions(parts=["noise"], curvature_samples=20, **SMALL)
    found = outcomes(card(risk, options, store=tmp_path / "card.zarr"))
    lines = results.open(tmp_path / "card-noise-per-filter.zarr")
    plain = risk.evaluate()["loss"].value
    changes = lines["loss"].sel(split="all").values[:, 1] - plain
    row = next(r for r in found if r.name == "per filter" and r.size == 0.1)
    assert changes.shape == (3,) and row.draws == 3
    assert row.loss_change == pytest.approx(float(changes.mean()), rel=1e-12)
    assert row.draw_se == pytest.approx(float(changes.std(ddof=1) / 3**0.5), rel=1e-12)
    assert row.quantiles[2] == pytest.approx(float(np.median(changes)), rel=1e-12)
    assert all(a <= b for a, b in zip(row.quantiles, row.quantiles[1:], strict=False)) and row.quantile_se[2] > 0
    assert row.accuracy_change_se == pytest.approx(
        float(lines["accuracy_difference_se"].sel(split="all").values[:, 1].mean())
    )
    assert row.compared != row.loss_change  # measured on the samples of the prediction


def test_everything_is_restored_after_each_part_and_after_a_failure(monkeypatch):
    risk = make_risk()
    finetune, second = other_data(risk), make(3)[0]
    risk.model.train()
    before = {k: v.clone() for k, v in risk.model.state_dict().items()}
    grads = [p.grad for p in risk.model.parameters()]
    random = torch.get_rng_state()
    for part in ("rounding", "noise", "worst", "forgetting", "merging"):
        options = RobustnessOptions(parts=[part], **SMALL)
        rows = outcomes(card(risk, options, finetune=finetune, second=second))
        assert rows and {row.part for row in rows} == {part}
        assert all(math.isfinite(r.loss) and math.isfinite(r.predicted) and math.isfinite(r.trace) for r in rows)
        assert same_bits(list(before.values()), list(risk.model.state_dict().values())), part
        assert risk.model.training and grads == [p.grad for p in risk.model.parameters()]
        assert torch.equal(random, torch.get_rng_state())
    monkeypatch.setattr(parts_of_weights, "_train", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        card(risk, RobustnessOptions(parts=["forgetting"], **SMALL), finetune=finetune)
    assert same_bits(list(before.values()), list(risk.model.state_dict().values()))


def test_a_fine_tune_learns_the_other_data_and_comes_back():
    risk = make_risk()
    options = RobustnessOptions(parts=["forgetting"], finetune_steps=60, batch_size=48, learning_rates=[1e-2])
    rows = outcomes(card(risk, options, finetune=other_data(risk)))
    away, back = rows[2], rows[-1]
    assert [row.size for row in rows] == [15.0, 30.0, 60.0, 75.0, 90.0, 120.0]
    assert away.name.endswith("away") and back.name.endswith("back")
    assert away.other_loss < other_data(risk).evaluate()["loss"].value - 0.1
    assert away.loss_change > 0.1 and back.loss_change < away.loss_change / 2


def test_merging_with_itself_reordered_is_free_after_matching():
    risk = make_risk()
    second = copy.deepcopy(risk.model)
    order = torch.randperm(8)
    with torch.no_grad():
        second[5].weight.copy_(second[5].weight[order])
        second[5].bias.copy_(second[5].bias[order])
        second[7].weight.copy_(second[7].weight[:, order])
        second[7].bias.add_(1e-9)  # a line has no length between equal models
    rows = outcomes(card(risk, RobustnessOptions(parts=["merging"], shares=[0.5]), second=second))
    named = {row.name: row for row in rows}
    assert abs(named["matched line"].loss_change) < 1e-6 < abs(named["line"].loss_change)
    assert named["line"].other_loss == pytest.approx(risk.evaluate()["loss"].value, abs=1e-6)


def test_an_interrupted_card_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    risk = make_risk()
    options = RobustnessOptions(parts=["rounding", "noise", "worst"], **SMALL)
    whole = card(risk, options)
    with monkeypatch.context() as patch:
        patch.setattr(parts_of_weights, "worst", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            card(risk, options, store=tmp_path / "card.zarr")
    part = results.open(tmp_path / "card.zarr")
    assert {str(name) for name in part["part"].values} == {"rounding", "noise"}
    with monkeypatch.context() as patch:
        patch.setattr(parts_of_weights, "rounding", lambda *_: pytest.fail("done already"))
        again = card(risk, options, store=tmp_path / "card.zarr")
    assert again.drop_attrs().identical(whole.drop_attrs())
    assert results.open(tmp_path / "card.zarr").drop_attrs().equals(whole.drop_attrs())
    with torch.no_grad():
        risk.model[7].bias.add_(0.1)
    with pytest.raises(StoreError, match="another card"):
        card(risk, options, store=tmp_path / "card.zarr")


@pytest.mark.parametrize("mode", ["running", "batch", "recalibrated"])
def test_every_mode_of_batch_norm_and_a_subset(mode):
    risk = make_risk(batch_norm=mode)
    rows = outcomes(card(risk, RobustnessOptions(parts=["rounding", "noise"], curvature_samples=20, **SMALL)))
    assert all(math.isfinite(row.loss_change) and math.isfinite(row.ratio) for row in rows)
    assert rows[0].loss - rows[0].loss_change == pytest.approx(risk.evaluate()["loss"].value, rel=1e-9)


def test_regression_and_totals_alone_have_no_accuracy_but_a_loss():
    model = nn.Linear(3, 1)
    risk = EmpiricalRisk(model, nn.MSELoss(), [(torch.randn(30, 3), torch.randn(30, 1))])
    rows = outcomes(card(risk, RobustnessOptions(parts=["rounding", "noise"], **SMALL)))
    assert all(math.isnan(row.accuracy) and row.loss_change_se >= 0 for row in rows)


def test_noise_on_inputs_is_paired_with_clean_ones():
    model = make(dtype=torch.float32)[0]
    rows = noise(model, tiny_data(), deviations=[0.0, 1.0])
    clean = model.eval()(tiny_data().test.input).argmax(1) == tiny_data().test.target
    assert rows[0].change_error == 0.0 and rows[0].accuracy == pytest.approx(float(clean.float().mean()))
    assert 0 < rows[1].change_error < 0.2


@pytest.mark.parametrize(
    ("part", "words"),
    [("forgetting", "second data set"), ("merging", "other weights"), ("inputs", "`data`")],
)
def test_a_part_without_what_it_needs_is_refused(part, words, tmp_path):
    with pytest.raises(InputError, match=words):
        card(make_risk(), RobustnessOptions(parts=[part]), store=tmp_path / "card.zarr")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_measured_is_refused_before_anything_is_written(tmp_path):
    from lowland.core.errors import LowlandError

    store, risk = tmp_path / "card.zarr", make_risk()
    torch.manual_seed(0)
    with pytest.raises(LowlandError, match="shape|architecture"):
        card(risk, second=net(width=3).double(), store=store)
    bare = nn.BatchNorm1d(4)
    with pytest.raises(InputError, match="to be rounded"):
        card(EmpiricalRisk(bare, nn.CrossEntropyLoss(), [(torch.randn(9, 4), torch.arange(9) % 4)]), store=store)
    whole = nn.Linear(4, 4)
    whole.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="before it is quantized"):
        card(EmpiricalRisk(whole, nn.CrossEntropyLoss(), [(torch.randn(9, 4), torch.arange(9) % 4)]), store=store)
    with pytest.raises(InputError, match="same model"):
        card(risk, finetune=make_risk(1), store=store)
    with pytest.raises(InputError, match="other data"):
        card(risk, finetune=EmpiricalRisk(risk.model, nn.CrossEntropyLoss(), make()[1]), store=store)
    assert not list(tmp_path.iterdir())


def test_the_worst_case_says_where_it_is():
    risk = make_risk()
    case = worst_case_sharpness(risk, rho=0.2, steps=5, per_batch=False)
    assert sum(float(part.square().sum()) for part in case.step.values()) ** 0.5 == pytest.approx(0.2, rel=1e-6)
    with torch.no_grad():
        for name, p in risk.model.named_parameters():
            p.add_(case.step[name])
    assert risk.evaluate()["loss"].value == pytest.approx(case.loss + case.value, rel=1e-9)
    assert worst_case_sharpness(risk, rho=0.2, steps=2).step is None


def test_options_are_plain_and_checked():
    assert dataclasses.replace(RobustnessOptions(), bits=[4]).bits == [4]
    for wrong in ({"radii": [0.1, 0.05]}, {"directions": 1}, {"parts": ["luck"]}, {"bits": []}, {"radii": []}):
        with pytest.raises(InputError):
            RobustnessOptions(**wrong)


def test_the_report_compares_cards_at_equal_train_loss_only():
    torch.manual_seed(0)
    options = RobustnessOptions(**SMALL)
    runs = [Run(name=f"run {seed}", result={"test_accuracy": 0.5}) for seed in (0, 3)]
    for run, seed in zip(runs, (0, 3), strict=True):
        risk = make_risk(seed)
        vars(run)["cards"] = {"card": card(risk, options, finetune=other_data(risk), second=make(5)[0])}
    page = report.build(runs, date="")
    section = next(part for part in page.sections if part.title == "Robustness")
    text = report.render(page)
    assert (
        section.blocks[0].text == "Measured on data: train; loss: CrossEntropyLoss(); batch norm: running; samples: 48."
    )
    assert "All cards are at train losses within" in section.blocks[1].text
    gallery = next(block for block in section.blocks if isinstance(block, Gallery))
    assert len(gallery.blocks) == 5 and "INT4 per group of 32, asymmetric" in text
    meant = "Size: bits (rounding); step length over weight norm (noise, worst); step (second half: on the own data) "
    assert f"{meant}(forgetting); share of the way (merging)" in text
    assert sizes_told(runs[0].cards["card"]).endswith("(merging).")  # no inputs were attacked
    runs[0].cards["card"].attrs["train_loss"] = 1e-3
    section = next(part for part in report.build(runs, date="").sections if part.title == "Robustness")
    assert section.blocks[1].text.startswith("Not comparable: the train losses")


def test_a_card_without_foolbox_says_that_attacks_are_missing_and_how_to_have_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "foolbox", None)
    options = RobustnessOptions(parts=["inputs"], deviations=[0.1])
    model, batches = make(dtype=torch.float32)
    data = dataclasses.replace(tiny_data(), mean=(0.5,), std=(0.25,))
    found = card(EmpiricalRisk(model, nn.CrossEntropyLoss(), batches), options, data=data)
    (note,) = json.loads(found.attrs["notes"])
    assert note.startswith("No attacks on inputs: ") and 'pip install "lowland[robust]"' in note
    assert {row.name for row in outcomes(found)} == {"noise on inputs"}


def test_attacks_see_a_subset_and_are_compared_with_its_own_clean_images():
    pytest.importorskip("foolbox")
    model, batches = make(dtype=torch.float32)
    data = dataclasses.replace(tiny_data(), mean=(0.5,), std=(0.25,))
    data.test.input.clamp_(-2.0, 2.0)
    options = RobustnessOptions(parts=["inputs"], deviations=[0.1], attack_samples=5)
    rows = outcomes(card(EmpiricalRisk(model, nn.CrossEntropyLoss(), batches), options, data=data))
    attacked = [row for row in rows if row.name != "noise on inputs"]
    assert len(attacked) == 12
    for row in attacked:
        clean = row.accuracy - row.accuracy_change
        assert all(abs(5 * share - round(5 * share)) < 1e-9 for share in (row.accuracy, clean))
        assert row.accuracy_change <= 0


def test_a_snapshot_is_merged_with_other_weights_of_the_other_run(tmp_path):
    names = {"data": workflows.DataSpec(name="tests.golden.parts:tiny_data")}
    names["model"] = workflows.ModelSpec(name="tests.golden.parts:net")
    folders = [str(tmp_path / name) for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        more = {"seed": seed, "batch_size": 16 + 8 * seed, "snapshots_every_epochs": 1}
        workflows.fit(workflows.FitSpec(folder=folder, epochs=1, threads=1, **more, **names))
    options = RobustnessOptions(**SMALL, parts=["merging"])
    words = {"other": folders[1], "threads": 1, "risk": workflows.RiskSpec(weights="3")}
    with pytest.raises(InputError, match="`other_weights` must be the step of a snapshot"):
        workflows.robustness(folders[0], options, **words)
    found, path = workflows.robustness(folders[0], options, other_weights="last", **words)
    assert path.name == "card-3.zarr" and found.attrs["step"] == 3
    whole = next(row for row in outcomes(found) if row.name == "line" and row.size == 1.0)
    other = opening.open_run(tmp_path / "two").risk(weights="last").evaluate()["loss"].value
    assert whole.loss == pytest.approx(other, rel=1e-5)


def test_the_command_goes_on_and_finds_its_card_again(tmp_path, monkeypatch):
    folder = str(tmp_path / "run")
    small = {"folder": folder, "epochs": 1, "threads": 1, "batch_size": 16}
    names = {"data": "tests.golden.parts:tiny_data", "model": "tests.golden.parts:net"}
    workflows.fit(workflows.FitSpec(**small, data=workflows.DataSpec(name=names["data"]), model=workflows.ModelSpec(name=names["model"])))  # fmt: skip
    options = RobustnessOptions(**SMALL, parts=["rounding", "forgetting", "merging", "inputs"])
    words = {"finetune_data": names["data"], "finetune_options": {"size": 24}, "other": folder, "threads": 1}
    with pytest.raises(InputError, match="`other` must have other weights"):  # a line from a model to itself
        workflows.robustness(folder, options, **words)
    assert not (tmp_path / "run" / "robustness").exists()
    words["other"] = None
    options = dataclasses.replace(options, parts=["rounding", "forgetting", "inputs"])
    found, path = workflows.robustness(folder, options, **words)
    monkeypatch.setattr(parts_of_weights, "rounding", lambda *_: pytest.fail("done already"))
    again, same = workflows.robustness(folder, options, **words)
    assert path == same == tmp_path / "run" / "robustness" / "card.zarr" and again.equals(found)
    assert list(opening.open_run(tmp_path / "run").cards) == ["card"]
    assert {row.part for row in outcomes(again)} == {"rounding", "forgetting", "inputs"}


def test_weights_that_are_all_zero_have_no_length_to_measure_radii_by():
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.zero_()
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), [(torch.randn(9, 4), torch.arange(9) % 3)])
    with pytest.raises(InputError, match="not all 0"):
        card(risk, RobustnessOptions(parts=["rounding"]))
