"""Records that processes exchange, with one process for all: what is handed in comes back, and who writes last wins."""

import pytest
import torch
import torch.distributed as dist

from lowland.losses.records import RecordFormat
from lowland.losses.sharing import Exchange, yields_to_others


@pytest.fixture
def alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_all_batches_of_an_epoch_come_back_however_often_it_is_begun(alone):
    form = RecordFormat("float32", (2,))
    exchange = Exchange(10, form, 1, None, torch.device("cpu"), pinned=False)
    values = torch.arange(20.0).reshape(10, 2)
    for batch in (range(4), range(4, 8)):
        exchange.begin(0, recording=True, reading=False)
        rows = torch.tensor(list(batch))
        exchange.write(rows, form.encode(values[rows], 0))
    exchange.begin(1, recording=True, reading=True)
    found = exchange.read(torch.arange(10))
    torch.testing.assert_close(form.decode(found)[:8], values[:8])


def test_an_epoch_that_looks_back_to_none_reads_no_record(alone):
    form = RecordFormat("float32", (2,))
    exchange = Exchange(10, form, 1, None, torch.device("cpu"), pinned=False)
    exchange.begin(0, recording=True, reading=False)
    assert exchange.read(torch.arange(4))["stamp"].tolist() == [0] * 4, "nothing was recorded"


def test_of_a_row_that_several_write_the_last_counts(monkeypatch):
    monkeypatch.setattr("lowland.losses.sharing.rank_and_world", lambda: (0, 2))
    monkeypatch.setattr("lowland.losses.sharing._wire_device", lambda: torch.device("cpu"))
    others = torch.tensor([-1, 1, 5, 3])  # by place in the batch times the ranks, plus the rank
    monkeypatch.setattr(dist, "all_reduce", lambda last, op: torch.maximum(last, others, out=last))
    assert yields_to_others(torch.tensor([0, 1, 2]), 4).tolist() == [False, False, True, False]
    assert yields_to_others(torch.tensor([2, 3, 2, 2]), 4).tolist() == [False, False, False, True]
