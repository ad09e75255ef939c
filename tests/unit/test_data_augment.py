from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from lowland import data
from lowland.core.errors import InputError, MissingExtra
from lowland.core.types import Batch
from lowland.data.augment import _beta
from lowland.data.draws import Draws, draws_for

AUGMENTATIONS: dict[str, Callable[[], data.Augment]] = {
    "crop": lambda: data.RandomCrop(2),
    "flip": data.Flip,
    "cutout": lambda: data.Cutout(4, probability=0.5),
    "mixup": lambda: data.Mixup(5),
    "mixup, alpha 0.2": lambda: data.Mixup(5, alpha=0.2),
    "cutmix": lambda: data.CutMix(5),
    "all": lambda: data.Compose(data.standard(padding=1, cutout=3), data.CutMix(5, alpha=2.0)),
}


def images(count: int = 12) -> data.TensorData:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(count, 2, 8, 7, generator=random)
    return data.TensorData(x, torch.arange(count) % 5, torch.arange(count) * 3)


def apply(name: str, ids: torch.Tensor | None = None, seed: int = 0, epoch: int = 0) -> Batch:
    part = images()
    batch = Batch(part.input, part.target, part.index)
    return AUGMENTATIONS[name]()(batch, draws_for(part.index if ids is None else ids, seed=seed, epoch=epoch))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_same_seed_epoch_and_ids_give_the_same_bits_and_others_do_not(name: str) -> None:
    first, again = apply(name), apply(name)
    assert torch.equal(first.input, again.input) and torch.equal(first.target, again.target)
    assert not torch.equal(first.input, apply(name, seed=1).input)
    assert not torch.equal(first.input, apply(name, epoch=1).input)
    assert first.input.shape == images().input.shape and first.input.dtype == torch.float32
    assert torch.equal(images().input, images().input)


@pytest.mark.parametrize("name", ["crop", "flip", "cutout"])
def test_a_sample_gets_the_same_augmentation_in_every_batching(name: str) -> None:
    part = images()
    whole = {
        int(i): x
        for b in part.batches(12, augment=AUGMENTATIONS[name]())
        for i, x in zip(b.index, b.input, strict=True)
    }
    for b in part.batches(5, shuffle=True, augment=AUGMENTATIONS[name]()):
        for i, x in zip(b.index, b.input, strict=True):
            assert torch.equal(x, whole[int(i)])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_one_and_two_workers_give_the_same_batches(name: str) -> None:
    """A worker process sees whole batches; which process makes one must not matter."""
    whole = images().batches(4, shuffle=True, augment=AUGMENTATIONS[name]())
    expected = list(whole.batches(1))
    with torch.multiprocessing.get_context("fork").Pool(2) as pool:
        made = pool.map(_nth, [(name, number) for number in range(3)])
    for batch, other in zip(expected, made, strict=True):
        assert np.array_equal(batch.input.numpy(), other[0]) and np.array_equal(batch.target.numpy(), other[1])


def _nth(task: tuple[str, int]) -> tuple[object, object]:
    batches = images().batches(4, shuffle=True, augment=AUGMENTATIONS[task[0]]())
    batch = next(batches.batches(1, task[1]))
    return batch.input.numpy(), batch.target.numpy()


def test_a_crop_is_a_window_of_the_padded_image_and_all_shifts_occur() -> None:
    x = torch.arange(1.0, 31.0).view(1, 1, 5, 6).expand(3000, 1, 5, 6)
    out = data.RandomCrop(2)(Batch(x), Draws(3, torch.arange(3000))).input
    padded = torch.nn.functional.pad(x[:1], (2,) * 4)
    windows = [padded[0, :, r : r + 5, c : c + 6] for r in range(5) for c in range(5)]
    counts = [int((out == window).flatten(1).all(1).sum()) for window in windows]
    assert sum(counts) == 3000
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_reflecting_crop_shows_windows_of_the_mirrored_image() -> None:
    x = torch.arange(1.0, 31.0).view(1, 1, 5, 6).expand(400, 1, 5, 6)
    out = data.RandomCrop(2, mode="reflect")(Batch(x), Draws(3, torch.arange(400))).input
    padded = torch.from_numpy(np.pad(x[0, 0].numpy(), 2, mode="reflect"))
    windows = torch.stack([padded[r : r + 5, c : c + 6] for r in range(5) for c in range(5)])
    assert (out[:, None, 0] == windows).flatten(2).all(2).any(1).all()
    plain = data.RandomCrop(2)(Batch(x), Draws(3, torch.arange(400))).input
    assert torch.equal(out[plain != 0], plain[plain != 0])  # the same shifts, other edges


BY_NAME: dict[str, tuple[dict[str, object], Callable[[], data.Augment]]] = {
    "crop": ({"padding": 2}, lambda: data.RandomCrop(2)),
    "flip": ({}, data.Flip),
    "cutout": ({"size": 4, "probability": 0.5}, lambda: data.Cutout(4, probability=0.5)),
    "mixup": ({"alpha": 0.2}, lambda: data.Mixup(5, alpha=0.2)),
    "cutmix": ({}, lambda: data.CutMix(5)),
    "kornia": ({"kind": "RandomInvert", "p": 1.0}, lambda: data.Kornia(lambda K: K.RandomInvert(p=1.0))),
}


@pytest.mark.parametrize("name", data.AUGMENTATIONS)
def test_a_name_gives_what_its_class_gives(name: str) -> None:
    if name == "kornia":
        pytest.importorskip("kornia")
    options, make = BY_NAME[name]
    part = images()
    batch = Batch(part.input[:, :1], part.target, part.index)
    named = data.augmentation([{"name": name, **options}], classes=5)
    assert named is not None and " at 0x" not in repr(named)  # a run knows it again by its repr
    ours, theirs = (f(batch, draws_for(part.index, seed=0, epoch=0)) for f in (named, make()))
    assert torch.equal(ours.input, theirs.input) and torch.equal(ours.target, theirs.target)
    assert not torch.equal(ours.input, batch.input)


def test_names_are_applied_in_order_and_none_is_none() -> None:
    named = data.augmentation(["crop", {"name": "cutmix"}, "torch.nn:Identity"], classes=5)
    assert isinstance(named, data.Compose) and [type(part).__name__ for part in named.parts] == [
        "RandomCrop",
        "CutMix",
        "Identity",
    ]
    assert data.augmentation([], classes=5) is None


def test_flips_mirror_about_half_of_the_images() -> None:
    x = torch.randn(1, 3, 4, 5).expand(2000, 3, 4, 5)
    out = data.Flip()(Batch(x), Draws(3, torch.arange(2000))).input
    flipped = (out == x.flip(3)).flatten(1).all(1)
    assert (flipped | (out == x).flatten(1).all(1)).all()
    assert abs(float(flipped.float().mean()) - 0.5) < 4 * 0.5 / 2000**0.5


def test_cutout_blanks_one_square_that_may_reach_over_the_edge() -> None:
    out = data.Cutout(4, fill=7.0)(Batch(torch.zeros(2000, 1, 10, 10)), Draws(3, torch.arange(2000))).input
    area = (out == 7).flatten(1).sum(1)
    assert area.max() == 16 and area.min() == 4  # a pixel in the corner keeps a quarter
    rows = (out == 7).any(3).squeeze(1)
    assert ((rows.int().diff(dim=1) != 0).sum(1) <= 2).all()  # one connected piece
    none = data.Cutout(4, probability=0.0)(Batch(torch.ones(5, 1, 10, 10)), Draws(3, torch.arange(5))).input
    assert (none == 1).all()


@pytest.mark.parametrize("name", ["mixup", "mixup, alpha 0.2", "cutmix", "all"])
def test_mixed_targets_are_probabilities_and_say_what_was_mixed(name: str) -> None:
    batch = apply(name)
    assert batch.target.shape == (12, 5)
    torch.testing.assert_close(batch.target.sum(1), torch.ones(12))
    assert batch.partner is not None and batch.share is not None
    assert ((batch.share >= 0) & (batch.share <= 1)).all()
    assert sorted(batch.partner.tolist()) == sorted(images().index.tolist())
    assert (batch.partner != images().index).all()
    own = images().target
    other = (batch.partner // 3) % 5
    for row in range(12):
        expected = torch.zeros(5)
        expected[own[row]] += batch.share[row]
        expected[other[row]] += 1 - batch.share[row]
        torch.testing.assert_close(batch.target[row], expected)


def test_mixup_mixes_the_images_in_the_stated_shares() -> None:
    batch, part = apply("mixup"), images()
    assert batch.share is not None and batch.partner is not None and (batch.share >= 0.5).all()
    w = batch.share.view(-1, 1, 1, 1)
    torch.testing.assert_close(batch.input, w * part.input + (1 - w) * part.input[batch.partner // 3])


def test_cutmix_pastes_as_many_pixels_as_the_targets_say() -> None:
    batch, part = apply("cutmix"), images()
    assert batch.share is not None and batch.partner is not None
    pasted = (batch.input == part.input[batch.partner // 3]).all(1)
    kept = (batch.input == part.input).all(1)
    assert (pasted | kept).all()
    torch.testing.assert_close(pasted.flatten(1).float().mean(1), 1 - batch.share)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 2.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    drawn = _beta(Draws(5, torch.arange(4000)), alpha).numpy()
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_mixing_twice_keeps_probabilities() -> None:
    both = data.Compose(data.Mixup(5), data.CutMix(5))
    part = images()
    batch = both(Batch(part.input, part.target, part.index), draws_for(part.index, seed=0, epoch=0))
    torch.testing.assert_close(batch.target.sum(1), torch.ones(12))


def test_kornia_runs_under_seeds_of_the_samples_and_leaves_the_global_generator() -> None:
    pytest.importorskip("kornia")
    augment = data.Kornia(lambda K: K.RandomGaussianNoise(std=1.0, p=1.0))
    x, index = torch.zeros(4, 3, 6, 6), torch.arange(4)
    before = torch.get_rng_state()
    whole = augment(Batch(x, index=index), draws_for(index, seed=0, epoch=0)).input
    part = augment(Batch(x[2:], index=index[2:]), draws_for(index[2:], seed=0, epoch=0)).input
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(whole[2:], part) and not torch.equal(whole[0], whole[1])


def test_without_kornia_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "kornia", None)
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    with pytest.raises(MissingExtra, match=r"lowland\[augment\]"):
        data.Kornia(lambda K: K.RandomHorizontalFlip())


@pytest.mark.parametrize(
    "make",
    [
        lambda: data.RandomCrop(-1),
        lambda: data.Flip(1.5),
        lambda: data.Cutout(0),
        lambda: data.Cutout(4, probability=-0.1),
        lambda: data.Mixup(1),
        lambda: data.Mixup(5, alpha=0.0),
        lambda: data.CutMix(5, alpha=3.0),
        lambda: data.Flip()(Batch(torch.zeros(3, 4)), Draws(0, torch.arange(3))),
    ],
)
def test_bad_input_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError):
        make()


def test_a_batch_keeps_what_an_augmentation_does_not_touch() -> None:
    part = images(3)
    batch = replace(Batch(part.input, part.target, part.index), share=torch.ones(3))
    out = data.standard()(batch, draws_for(part.index, seed=0, epoch=0))
    assert torch.equal(out.target, part.target) and out.index is part.index and out.share is not None
