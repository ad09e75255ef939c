from __future__ import annotations

import sys
from itertools import chain

import pytest
import torch

from lowland.core.errors import InputError
from lowland.data import DataSplits, TensorData, digits, stratified_split, symmetric_noise
from lowland.data.digits import DIGITS_MEAN, DIGITS_STD
from lowland.data.draws import Draws, draws_for


def numbers(count: int) -> TensorData:
    return TensorData(torch.arange(count).float(), torch.zeros(count), torch.arange(count) + 100)


def ids(batches: object) -> list[list[int]]:
    return [batch.index.tolist() for batch in batches]  # type: ignore[attr-defined]


def test_order_is_a_function_of_seed_and_epoch_and_a_late_start_skips_exactly() -> None:
    batches = numbers(23).batches(5, seed=3, shuffle=True)
    epoch = ids(batches.batches(4))
    assert ids(batches.batches(4, 2)) == epoch[2:]
    assert ids(batches.batches(4)) == epoch != ids(batches.batches(5))
    assert ids(numbers(23).batches(5, seed=4, shuffle=True).batches(4)) != epoch
    assert sorted(chain.from_iterable(epoch)) == list(range(100, 123))
    assert len(batches) == len(epoch) == 5


def test_without_shuffle_the_stored_order_is_kept_and_drop_last_drops() -> None:
    assert ids(numbers(5).batches(2)) == [[100, 101], [102, 103], [104]]
    assert ids(numbers(5).batches(2, drop_last=True)) == [[100, 101], [102, 103]]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_out_the_global_batches_of_one_device(world: int) -> None:
    whole = numbers(23).batches(8, seed=1, shuffle=True)
    shards = [whole.shard(rank, world) for rank in range(world)]
    per_rank = [ids(shard.batches(2)) for shard in shards]
    assert [shard.ids(2).tolist() for shard in shards] == [list(chain.from_iterable(steps)) for steps in per_rank]
    for number, batch in enumerate(ids(whole.batches(2))):
        shares = [steps[number] for steps in per_rank]
        assert len({len(share) for share in shares}) == 1  # equally many samples on every rank
        assert set(chain.from_iterable(shares)) == set(batch)
        assert sum(len(share) for share in shares) - len(batch) == -len(batch) % world


def test_the_augmentation_of_a_sample_depends_on_seed_epoch_and_id_only() -> None:
    def add(batch, draws):  # type: ignore[no-untyped-def]
        from dataclasses import replace

        return replace(batch, input=batch.input * 0 + draws.uniform())

    def table(size: int, epoch: int, shuffle: bool, seed: int = 0) -> dict[int, float]:
        batches = numbers(11).batches(size, seed=seed, shuffle=shuffle, augment=add).batches(epoch)
        return {int(i): float(x) for b in batches for i, x in zip(b.index, b.input, strict=True)}

    assert table(3, 1, True) == table(11, 1, False)
    assert table(3, 1, True) != table(3, 2, True)
    assert table(3, 1, True) != table(3, 1, True, seed=1)


def test_draws_are_uniform_and_independent() -> None:
    draws = Draws(12345, torch.arange(50_000))
    u = torch.cat([draws.uniform(3), draws.uniform().unsqueeze(1)], 1).double()
    assert ((u >= 0) & (u < 1)).all()
    assert (u.mean(0) - 0.5).abs().max() < 4 * (1 / 12 / 50_000) ** 0.5
    histogram = torch.stack([torch.histc(column, 20, 0, 1) for column in u.T])
    chi_square = ((histogram - 2500) ** 2 / 2500).sum(1)
    assert chi_square.max() < 45  # 19 degrees of freedom: p about 7e-4
    off = torch.corrcoef(u.T) - torch.eye(4)
    assert off.abs().max() < 4 / 50_000**0.5
    neighbors = torch.corrcoef(torch.stack([u[:-1, 0], u[1:, 0]]))[0, 1]
    assert neighbors.abs() < 4 / 50_000**0.5


def test_draws_of_integers_cover_their_range() -> None:
    drawn = draws_for(torch.arange(2_000), seed=0, epoch=3).integers(9)
    assert sorted(drawn.unique().tolist()) == list(range(9))


def test_stratified_parts_have_every_class_in_its_share() -> None:
    target = torch.arange(1000) % 4
    first, second = stratified_split(target, (400, 600), seed=0)
    assert set(first.tolist()).isdisjoint(second.tolist())
    assert (target[first].bincount() - 100).abs().max() <= 1
    assert stratified_split(target, (400, 600), seed=1)[0].tolist() != first.tolist()


@pytest.mark.parametrize("read", [True, False])
def test_the_digits_are_those_of_scikit_learn(read, monkeypatch):
    raw = pytest.importorskip("sklearn.datasets").load_digits()
    if not read:  # another version may keep its file elsewhere
        monkeypatch.setattr(sys.modules["lowland.data.digits"], "find_spec", lambda name: None)
    parts = digits()
    every, names = (parts.train, parts.validation, parts.test), ("input", "target", "index")
    found = [torch.cat([getattr(part, name) for part in every]) for name in names]
    order = found[2].argsort()
    plain = (torch.as_tensor(raw.images, dtype=torch.float32)[:, None] / 16 - DIGITS_MEAN) / DIGITS_STD
    assert torch.equal(found[0][order], plain) and torch.equal(found[1][order], torch.as_tensor(raw.target))


def test_smaller_subsamples_lie_inside_larger_ones() -> None:
    small, large = digits(train_size=40), digits(train_size=90)
    assert set(small.train.index.tolist()) < set(large.train.index.tolist())
    assert small.train.target.bincount(minlength=10).min() >= 3


def test_noise_grows_with_its_fraction_and_reaches_all_classes() -> None:
    target, index = torch.zeros(4000, dtype=torch.int64), torch.arange(4000)
    low, high = (symmetric_noise(target, index, fraction=f, classes=5, seed=0) for f in (0.2, 0.5))
    replaced = low != target
    assert torch.equal(low[replaced], high[replaced])
    assert high.bincount(minlength=5)[1:].min() > 300
    assert torch.equal(symmetric_noise(target, index, fraction=0.0, classes=5, seed=0), target)
    some = torch.tensor([7, 3999, 12])
    assert torch.equal(symmetric_noise(target[some], some, fraction=0.5, classes=5, seed=0), high[some])


@pytest.mark.parametrize(
    "make",
    [
        lambda: TensorData(torch.zeros(2), torch.zeros(3), torch.arange(2)),
        lambda: TensorData(torch.zeros(2), torch.zeros(2), torch.zeros(2, dtype=torch.int64)),
        lambda: TensorData(torch.zeros(2), torch.zeros(2), torch.arange(2.0)),
        lambda: numbers(4).batches(0),
        lambda: numbers(4).batches(2).shard(2, 2),
        lambda: numbers(4).batches(2).shard(0, 3),
        lambda: numbers(4).batches(8, drop_last=True),
        lambda: stratified_split(torch.zeros(4), (3, 3), seed=0),
        lambda: symmetric_noise(torch.tensor([5]), torch.tensor([0]), fraction=0.1, classes=5, seed=0),
    ],
)
def test_bad_input_is_refused(make: object) -> None:
    with pytest.raises(InputError):
        make()  # type: ignore[operator]


def test_the_fingerprint_sees_every_sample() -> None:
    part = numbers(3)
    changed = TensorData(part.input + torch.tensor([0.0, 0.0, 1e-3]), part.target, part.index)
    splits = [DataSplits("x", p, part, part, classes=1, shape=()) for p in (part, changed)]
    assert splits[0].fingerprint != splits[1].fingerprint


def test_data_stay_where_they_are_if_they_would_fill_the_device() -> None:
    part = TensorData(torch.zeros(4, 8), torch.zeros(4), torch.arange(4))
    size = 4 * 8 * 4 + 4 * 4 + 4 * 8
    assert part.to_fitting("cpu", free=2 * size) is not part  # moved, which on the same device copies nothing
    assert part.to_fitting("cpu", free=2 * size).input.data_ptr() == part.input.data_ptr()
    assert part.to_fitting("cpu", free=2 * size - 1) is part
    assert part.to_fitting("cpu") is not part
