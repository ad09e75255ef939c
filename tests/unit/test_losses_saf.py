"""SAF: when it acts, on which samples, with which weight, and what it reports."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lowland.core.contexts import perturbed_pass
from lowland.core.errors import InputError, LowlandWarning
from lowland.core.types import Batch
from lowland.losses import SAF
from lowland.losses.divergence import tempered_divergence

CE = nn.functional.cross_entropy


def logits(seed: int, n: int = 4, classes: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, generator=generator, dtype=torch.float64).requires_grad_()


TARGET = torch.tensor([0, 1, 2, 0])
IDS = torch.arange(4)


def at(loss: SAF, epoch: int, output: torch.Tensor, **batch) -> torch.Tensor:
    loss.epoch = epoch
    return loss(output, Batch(None, TARGET[: len(output)], **{"index": IDS[: len(output)], **batch}))


def test_published_defaults():
    loss = SAF(nn.CrossEntropyLoss())
    assert (loss.weight, loss.temperature, loss.look_back, loss.active.start) == (0.3, 5.0, 3, 5)
    assert loss.temperature_squared and loss.effective_weight == pytest.approx(7.5)
    assert SAF(nn.CrossEntropyLoss(), temperature_squared=False).effective_weight == 0.3


def test_divergence_is_that_of_the_past_from_the_present():
    past, now = logits(0), logits(1)
    p, q = (past.detach() / 5).softmax(1), (now / 5).softmax(1)
    expected = (p * (p / q).log()).sum(1)
    torch.testing.assert_close(tempered_divergence(past, now, 5.0), expected, rtol=1e-12, atol=1e-15)
    reversed_ = (q * (q / p).log()).sum(1)
    assert not torch.allclose(expected, reversed_)
    tempered_divergence(past, now, 5.0).sum().backward()
    assert past.grad is None and now.grad is not None
    torch.testing.assert_close(now.grad, (q - p).detach() / 5, rtol=1e-12, atol=1e-15)


def test_divergence_is_taken_in_float32_outside_autocast():
    past, now = logits(0).detach().half() * 300, logits(1).detach().half().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = tempered_divergence(past, now, 5.0)
    assert value.dtype == torch.float32 and torch.isfinite(value).all()
    exact = tempered_divergence(past.double(), now.detach().double(), 5.0)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)


def test_divergence_over_positions_is_their_mean():
    past, now = torch.randn(2, 5, 3), torch.randn(2, 5, 3)  # [n, positions, classes]
    each = tempered_divergence(past.reshape(10, 3), now.reshape(10, 3), 2.0).reshape(2, 5).mean(1)
    torch.testing.assert_close(tempered_divergence(past, now, 2.0, class_axis=2), each)


def test_acts_from_its_start_on_the_output_of_look_back_epochs_ago():
    loss = SAF(nn.CrossEntropyLoss(), look_back=3, start=5, precision="float64")
    for epoch in range(8):
        output = logits(epoch)
        value = at(loss, epoch, output)
        plain = CE(output, TARGET)
        if epoch < 5:
            assert value == plain
        else:
            added = 0.3 * 25 * tempered_divergence(logits(epoch - 3), output, 5.0).mean()
            torch.testing.assert_close(value, plain + added, rtol=1e-13, atol=0)


@pytest.mark.parametrize("start, records", [(5, [2, 3, 4, 5]), (3, [0, 1, 2, 3]), (1, [0, 1])])
def test_records_only_what_will_be_read(start, records):
    loss = SAF(nn.CrossEntropyLoss(), look_back=3, start=start, stop=start + 4)
    loss.prepare(epochs=20, samples=4)
    written = []
    for epoch in range(12):
        loss.memory.record = lambda *_, epoch=epoch: written.append(epoch)  # type: ignore[method-assign]
        at(loss, epoch, logits(epoch))
    assert written == [epoch for epoch in range(12) if start <= epoch + 3 < start + 4] and set(records) >= set(written)


def test_nothing_is_recorded_for_epochs_beyond_the_run():
    loss = SAF(nn.CrossEntropyLoss(), look_back=3, start=1)
    loss.prepare(epochs=6, samples=4)
    written = []
    for epoch in range(6):
        loss.memory.record = lambda *_, epoch=epoch: written.append(epoch)  # type: ignore[method-assign]
        at(loss, epoch, logits(epoch))
    assert written == [0, 1, 2]


def test_fractions_of_a_run():
    loss = SAF(nn.CrossEntropyLoss(), look_back=0.1, start=0.3, stop=0.8)
    with pytest.raises(InputError, match="prepare"):
        at(loss, 0, logits(0))
    loss.prepare(epochs=20, samples=4)
    assert loss.memory.look_back == 2
    acts = []
    for epoch in range(20):
        output = logits(epoch)
        acts.append(bool(at(loss, epoch, output) != CE(output, TARGET)))
    assert acts == [6 <= epoch < 16 for epoch in range(20)]


def test_samples_without_a_past_output_add_nothing_and_are_reported():
    loss = SAF(nn.CrossEntropyLoss(), look_back=1, start=1, precision="float64")
    before = logits(0, 2)
    at(loss, 0, before)
    now = logits(1)
    value = at(loss, 1, now)
    kl = tempered_divergence(before, now[:2], 5.0)
    torch.testing.assert_close(value, CE(now, TARGET) + 7.5 * kl.sum() / 4, rtol=1e-13, atol=0)
    log = loss.epoch_log()
    assert log["saf_hit_rate"] == 0.5
    assert log["saf_kl"] == pytest.approx(kl.mean().item(), rel=1e-12)
    assert log["saf_loss"] == pytest.approx(7.5 * kl.sum().item() / 4, rel=1e-12)
    assert log["criterion"] == pytest.approx(CE(now, TARGET).item(), rel=1e-12)
    value.backward()
    assert torch.isfinite(now.grad).all()


def test_a_loss_that_does_nothing_is_seen_in_the_log():
    loss = SAF(nn.CrossEntropyLoss(), look_back=1, start=0)
    at(loss, 0, logits(0))
    log = loss.epoch_log()
    assert log["saf_hit_rate"] == 0.0 and log["saf_loss"] == 0.0 and math.isnan(log["saf_kl"])


def test_counts_and_records_the_clean_pass_alone():
    loss = SAF(nn.CrossEntropyLoss(), look_back=1, start=1, precision="float64")
    at(loss, 0, logits(0))
    with perturbed_pass():
        at(loss, 0, logits(7))
    value = at(loss, 1, logits(1))
    with perturbed_pass():
        again = at(loss, 1, logits(1))
        at(loss, 1, logits(9))
    assert again == value
    kl = tempered_divergence(logits(0), logits(1), 5.0).mean().item()
    assert loss.epoch_log()["saf_kl"] == pytest.approx(kl, rel=1e-12)
    torch.testing.assert_close(
        at(loss, 2, logits(2)), CE(logits(2), TARGET) + 7.5 * tempered_divergence(logits(1), logits(2), 5.0).mean()
    )


def test_mixed_samples_are_left_out_by_default():
    loss = SAF(nn.CrossEntropyLoss(), look_back=1, start=1, precision="float64")
    mixed = {"partner": torch.tensor([3, 2, 1, 0]), "share": torch.tensor([0.6, 1.0, 0.5, 1.0])}
    at(loss, 0, logits(0), **mixed)
    now = logits(1)
    value = at(loss, 1, now)
    kl = tempered_divergence(logits(0), now, 5.0)
    torch.testing.assert_close(value, CE(now, TARGET) + 7.5 * (kl[1] + kl[3]) / 4, rtol=1e-13, atol=0)
    assert loss.epoch_log()["saf_hit_rate"] == 0.5
    at(loss, 2, logits(2), **mixed)
    assert loss.epoch_log()["saf_hit_rate"] == 1.0  # of the two that take part


def test_mixed_samples_can_be_matched_by_pair():
    loss = SAF(nn.CrossEntropyLoss(), look_back=1, start=1, mixed="match", precision="float64")
    partner, share = torch.tensor([3, 2, 1, 0]), torch.tensor([0.6, 1.0, 0.5, 1.0])
    at(loss, 0, logits(0), partner=partner, share=share)
    now = logits(1)
    value = at(loss, 1, now, partner=torch.tensor([3, 0, 0, 1]), share=share)
    kl = tempered_divergence(logits(0), now, 5.0)
    torch.testing.assert_close(value, CE(now, TARGET) + 7.5 * (kl[0] + kl[1] + kl[3]) / 4, rtol=1e-13, atol=0)
    assert loss.epoch_log()["saf_hit_rate"] == 0.75


def test_weight_zero_is_the_plain_loss():
    loss = SAF(nn.CrossEntropyLoss(), look_back=1, start=1, weight=0.0)
    for epoch in range(3):
        output = logits(epoch)
        value = at(loss, epoch, output)
        assert value == CE(output, TARGET)


def test_language_models_keep_a_row_per_sequence():
    criterion = lambda output, target: CE(output.flatten(0, 1), target.flatten())
    loss = SAF(criterion, look_back=1, start=1, class_axis=2, precision="float64")
    target, ids = torch.zeros(2, 5, dtype=torch.int64), torch.tensor([4, 9])
    outputs = [torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    for epoch, output in enumerate(outputs):
        loss.epoch = epoch
        value = loss(output, Batch(None, target, ids))
    added = 7.5 * tempered_divergence(outputs[0], outputs[1], 5.0, class_axis=2).mean()
    torch.testing.assert_close(value, criterion(outputs[1], target) + added)


def rows_of_tokens(seed, *, length=5, padded=5):
    """Two rows of logits and labels, the second of two positions, padded with what must not count."""
    torch.manual_seed(seed)
    output = torch.randn(2, padded, 7, dtype=torch.float64)
    labels = torch.full((2, padded), -100)
    labels[0, :length], labels[1, :2] = 1, 2
    return output.requires_grad_(), labels


@pytest.mark.parametrize("padded", [5, 9])
def test_padding_takes_no_part_in_the_divergence(padded):
    criterion = lambda output, target: CE(output.flatten(0, 1), target.flatten())
    loss = SAF(criterion, look_back=1, start=1, class_axis=2, precision="float64")
    outputs = []
    for epoch in range(2):
        loss.epoch = epoch
        output, labels = rows_of_tokens(epoch, padded=padded)
        outputs.append(output)
        value = loss(output, Batch(None, labels, IDS[:2]))
    alone = [
        tempered_divergence(outputs[0][k : k + 1, :n], outputs[1][k : k + 1, :n], 5.0, class_axis=2)
        for k, n in enumerate((5, 2))
    ]
    added = 7.5 * torch.cat(alone).mean()
    torch.testing.assert_close(value, criterion(outputs[1], labels) + added, rtol=1e-12, atol=0)
    value.backward()
    assert not outputs[1].grad[1, 2:].any() and outputs[1].grad[1, :2].any()


def test_pixels_that_the_criterion_ignores_and_samples_without_any_label():
    loss = SAF(nn.CrossEntropyLoss(ignore_index=255), look_back=1, start=1, precision="float64")
    outputs = [torch.randn(3, 4, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    labels = torch.tensor([[[0, 1], [2, 255]], [[255, 255], [255, 255]], [[0, 0], [0, 0]]])
    for epoch, output in enumerate(outputs):
        loss.epoch = epoch
        loss(output, Batch(None, labels, IDS[:3])).backward()
    each = [
        tempered_divergence(outputs[0][k : k + 1, :, i, j], outputs[1][k : k + 1, :, i, j], 5.0)
        for k, kept in ((0, [(0, 0), (0, 1), (1, 0)]), (2, [(0, 0), (0, 1), (1, 0), (1, 1)]))
        for i, j in kept
    ]
    expected = (torch.stack(each[:3]).mean() + torch.stack(each[3:]).mean()) / 3
    assert loss.epoch_log()["saf_kl"] == pytest.approx(expected.item(), rel=1e-12)


def test_rows_of_several_lengths_and_joined_rows_are_refused_with_what_to_do():
    criterion = lambda output, target: CE(output.flatten(0, 1), target.flatten())
    loss = SAF(criterion, look_back=1, start=1, class_axis=2)
    loss.epoch = 0
    loss(*((b := rows_of_tokens(0))[0], Batch(None, b[1], IDS[:2])))
    with pytest.raises(InputError, match=r"shape.*\[6, 7\].*max_length"):
        output, labels = rows_of_tokens(1, padded=6)
        loss(output, Batch(None, labels, IDS[2:]))
    with pytest.raises(InputError, match=r"batch.index.*joins rows"):
        output, labels = rows_of_tokens(2)
        loss(output.reshape(1, 10, 7), Batch(None, labels.reshape(1, 10), IDS[2:]))


def test_ids_are_asked_for():
    loss = SAF(nn.CrossEntropyLoss(), look_back=1, start=1)
    loss.epoch = 0
    assert loss.needs_index and loss.needs_input
    with pytest.raises(InputError, match="Indexed"):
        loss(logits(0), TARGET)


@pytest.mark.parametrize(
    "options, argument",
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"weight": -0.1}, "weight"),
        ({"look_back": 0}, "look_back"),
        ({"look_back": 1.5}, "look_back"),
        ({"start": 0.0}, "start"),
        ({"start": 5, "stop": 5}, "stop"),
        ({"mixed": "keep"}, "mixed"),
        ({"precision": "top64"}, "precision"),
    ],
)
def test_bad_settings_are_refused(options, argument):
    with pytest.raises(InputError, match=f"^`{argument}`"):
        SAF(nn.CrossEntropyLoss(), **options)


def test_a_loop_that_never_says_the_epoch_is_told_so():
    with pytest.raises(InputError, match="must be set before each epoch"):
        SAF(CE)(logits(0), Batch(None, TARGET, IDS))
    loss = SAF(CE)
    loss.prepare(epochs=20, samples=4)
    for step in range(3):
        loss(logits(step), Batch(None, TARGET, IDS))
        with perturbed_pass():  # the second pass of SAM is no further sample
            loss(logits(step), Batch(None, TARGET, IDS))
    with pytest.warns(LowlandWarning, match="16 samples in epoch 0 of 4"):  # a sampler may draw so many
        loss(logits(3), Batch(None, TARGET, IDS))
    with pytest.raises(InputError, match="204 samples in epoch 0 of 4"):
        for step in range(50):
            loss(logits(step), Batch(None, TARGET, IDS))
    loss.epoch = 1
    loss(logits(4), Batch(None, TARGET, IDS))


def test_a_second_head_is_refused_and_one_loss_per_head_is_right():
    main, aux = logits(0), logits(1)
    loss = SAF(nn.CrossEntropyLoss(), look_back=1, start=1)
    loss.prepare(epochs=3, samples=4)
    loss.epoch = 0
    loss(main, Batch(None, TARGET, IDS))
    with pytest.raises(InputError, match="a SAF of its own"):
        loss(aux, Batch(None, TARGET, IDS))
    each = [SAF(nn.CrossEntropyLoss(), look_back=1, start=1) for _ in range(2)]
    for epoch in range(2):
        for loss, output in zip(each, (main, aux), strict=True):
            at(loss, epoch, output).backward()
    assert all(abs(loss.epoch_log()["saf_kl"]) < 1e-7 for loss in each)  # nothing moved


def test_a_sample_that_is_drawn_again_after_its_backward_pass_is_no_second_head():
    loss = SAF(nn.CrossEntropyLoss(), look_back=1, start=1)
    loss.prepare(epochs=3, samples=4)
    for epoch in range(2):
        loss.epoch = epoch
        for step in range(3):
            loss(logits(step), Batch(None, TARGET, IDS)).backward()
    assert loss.epoch_log()["saf_hit_rate"] == 1.0
    loss.epoch = 2
    loss(logits(3), Batch(None, TARGET, IDS))  # a batch whose backward pass was left out
    loss.after_step()
    loss(logits(4), Batch(None, TARGET, IDS))


@pytest.mark.parametrize("other", [{"target": TARGET.flip(0)}, {"index": IDS.flip(0)}], ids=["target", "ids"])
def test_two_targets_for_one_output_are_refused_as_mixed_by_hand(other):
    loss, output = SAF(nn.CrossEntropyLoss(), look_back=1, start=1), logits(0)
    loss.prepare(epochs=3, samples=40)
    loss.epoch = 0
    given = {"target": TARGET, "index": IDS}
    loss(output, Batch(None, **given))
    loss(output, Batch(None, TARGET.clone(), IDS.clone()))  # said again, it is the same
    with pytest.raises(InputError, match=r"one for an output.*partner=ids"):
        loss(output, Batch(None, **{**given, **other}))
    loss(output, Batch(None, **given)).backward()
    loss(output, Batch(None, **{**given, **other})).backward()


def probabilities(kind: str) -> torch.Tensor:
    eye = torch.eye(6)
    first, second = eye[[0, 1, 2, 0]], eye[[3, 0, 2, 1]]
    return {
        "mixup": 0.7 * first + 0.3 * second,
        "mixup, even": 0.5 * first + 0.5 * second,
        "mixup, smoothed": 0.9 * (0.7 * first + 0.3 * second) + 0.1 / 6,
        "smoothed": 0.9 * first + 0.1 / 6,
        "one-hot": first,
        "distilled": torch.linspace(0, 3, 24).cos().reshape(4, 6).softmax(1),
        "two labels": (first + eye[[5, 4, 3, 5]]),
    }[kind]


@pytest.mark.parametrize("kind", ["mixup", "mixup, even", "mixup, smoothed"])
def test_probabilities_that_mix_two_classes_are_told_of_once(kind):
    loss = SAF(nn.CrossEntropyLoss(), look_back=1, start=1)
    loss.prepare(epochs=3, samples=4)
    loss.epoch = 0
    loss(logits(0, classes=6), Batch(None, probabilities(kind), IDS)).backward()
    with pytest.warns(LowlandWarning, match=r"mix two classes.*partner=ids"):
        loss.epoch = 1
    loss(logits(0, classes=6), Batch(None, probabilities(kind), IDS)).backward()
    assert loss.epoch_log()["criterion"] > 0  # without another warning, which is an error in these tests


@pytest.mark.parametrize("kind", ["smoothed", "one-hot", "distilled", "two labels", "mixup"])
def test_other_probabilities_and_known_partners_are_right(kind):
    loss = SAF(nn.BCEWithLogitsLoss() if kind == "two labels" else nn.CrossEntropyLoss(), look_back=1, start=1)
    loss.prepare(epochs=3, samples=4)
    loss.epoch = 0
    known = {"partner": IDS.flip(0), "share": torch.full((4,), 0.7)} if kind == "mixup" else {}
    loss(logits(0, classes=6), Batch(None, probabilities(kind), IDS, **known)).backward()
    assert loss.epoch_log()["criterion"] > 0  # without a warning, which is an error in these tests


@pytest.mark.parametrize("shape", [(4, 1), (4,), (4, 3)], ids=str)
def test_binary_labels_have_the_divergence_of_bernoulli(shape):
    torch.manual_seed(0)
    past, now = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64, requires_grad=True)
    loss = SAF(nn.BCEWithLogitsLoss(), look_back=1, start=1, precision="float64", temperature=2.0)
    labels = torch.ones(shape, dtype=torch.float64)
    for epoch, output in enumerate((past.clone().requires_grad_(), now)):
        loss.epoch = epoch
        loss(output, Batch(None, labels, IDS)).backward()
    p, q = torch.sigmoid(past / 2), torch.sigmoid(now.detach() / 2)
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum() / 4
    assert loss.epoch_log()["saf_kl"] == pytest.approx(expected.item(), rel=1e-12)


def test_one_number_of_a_regression_is_refused():
    loss = SAF(nn.MSELoss(), look_back=1, start=1)
    loss.epoch = 0
    loss(torch.zeros(4, 1, requires_grad=True), Batch(None, torch.zeros(4, 1), IDS)).backward()
    loss.epoch = 1
    with pytest.raises(InputError, match="regression"):
        loss(torch.zeros(4, 1, requires_grad=True), Batch(None, torch.zeros(4, 1), IDS))


@pytest.mark.parametrize(("shape", "axis"), [((4, 5, 3), 2), ((4, 3, 5, 2), 1), ((4, 5, 2, 3), -1)], ids=str)
def test_logits_by_position_are_compared_along_their_classes_or_refused(shape, axis):
    torch.manual_seed(0)
    past, now = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    last = axis % len(shape)
    labels = torch.zeros(shape[:last] + shape[last + 1 :], dtype=torch.int64)

    def criterion(output, target):
        return CE(output.movedim(axis, 1), target)

    loss, wrong = (
        SAF(criterion, look_back=1, start=1, precision="float64", class_axis=each)
        for each in (axis, 1 if last > 1 else 2)
    )
    for epoch, output in enumerate((past, now)):
        loss.epoch = epoch
        value = loss(output, Batch(None, labels, IDS))
        value.backward()
    flat = [x.detach().movedim(axis, -1).flatten(1, -2) for x in (past, now)]
    expected = torch.stack(
        [tempered_divergence(flat[0][:, k], flat[1][:, k], 5.0) for k in range(flat[0].shape[1])]
    ).mean()
    assert loss.epoch_log()["saf_kl"] == pytest.approx(expected.item(), rel=1e-12)
    wrong.epoch = 0
    with pytest.raises(InputError, match="class_axis"):
        wrong(past, Batch(None, labels, IDS))


def test_batches_without_labels_have_a_memory_too():
    loss = SAF(lambda output, _: output.square().mean(), look_back=1, start=1)
    for epoch in range(2):
        loss.epoch = epoch
        loss(logits(epoch), Batch(None, None, IDS)).backward()
    assert loss.epoch_log()["saf_hit_rate"] == 1.0
