from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lowland.core.errors import InputError
from lowland.core.types import as_batch
from lowland.data import Indexed, LoaderBatches, stable_id


def test_tuples_dicts_and_bare_items_carry_their_id_through_a_loader() -> None:
    pairs = TensorDataset(torch.arange(4).float(), torch.arange(4))
    for dataset in (pairs, [{"input": i, "target": i} for i in range(4)], list(range(4))):
        seen = [as_batch(raw).index for raw in DataLoader(Indexed(dataset), batch_size=3)]
        assert [i for part in seen if part is not None for i in part.tolist()] == [0, 1, 2, 3]


def test_stream_ids_follow_the_key_not_the_position() -> None:
    items = [("a.png", 0), ("b.png", 1), ("c.png", 2)]
    forward, backward = (
        {item[0]: item[2] for item in Indexed.stream(order, key=lambda item: item[0])} for order in (items, items[::-1])
    )
    assert forward == backward == {name: stable_id(name) for name, _ in items}
    assert len(set(forward.values())) == 3


class Jitter(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.rand(()) + random.random() + np.random.rand(), i


@pytest.mark.parametrize("workers", [0, 1])
def test_a_foreign_loader_resumes_in_mid_epoch_with_the_same_samples_and_noise(workers: int) -> None:
    def run(start: int, disturb: bool) -> list[tuple[list[float], list[int]]]:
        loader = DataLoader(Jitter(), batch_size=3, shuffle=True, num_workers=workers)
        result = []
        for batch in LoaderBatches(loader, seed=5).batches(2, start):
            if disturb:
                torch.rand(3), random.random(), np.random.rand()  # what a model's dropout would draw
            result.append((batch.input.tolist(), batch.target.tolist()))
        return result

    if workers:  # NumPy and Python are seeded in the workers by torch from the loader's own seed
        torch.manual_seed(99)
    whole = run(0, disturb=True)
    torch.manual_seed(1)
    assert run(2, disturb=False) == whole[2:]
    assert [t for _, t in whole] != [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_going_over_a_loader_leaves_the_global_generators_alone() -> None:
    before = torch.get_rng_state(), random.getstate()
    list(LoaderBatches(DataLoader(Jitter(), batch_size=3, shuffle=True)))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


def test_one_way_iterators_and_streams_without_a_key_are_refused() -> None:
    with pytest.raises(InputError, match="starts anew"):
        LoaderBatches(iter([]))
    with pytest.raises(InputError, match=r"Indexed\.stream"):
        Indexed(item for item in ())
