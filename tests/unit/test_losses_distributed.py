"""Losses over several processes: every sample finds its past output, and training equals that of one process."""

from __future__ import annotations

import copy
import gc
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.ranks import together
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from lowland.core.errors import CheckpointError, InputError
from lowland.core.types import Batch
from lowland.losses import LLR, SAF, OutputMemory, Sech

SAMPLES, CLASSES, EPOCHS, LOCAL_BATCH = 22, 3, 6, 3
IDS = torch.randperm(1000, generator=torch.Generator().manual_seed(1))[:SAMPLES]


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (SAMPLES,), generator=generator)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


def order(epoch: int, rank: int, world: int) -> torch.Tensor:
    sampler = DistributedSampler(range(SAMPLES), num_replicas=world, rank=rank, shuffle=True, seed=5)
    sampler.set_epoch(epoch)
    return torch.tensor(list(sampler))


def local_batches(epoch: int, rank: int, world: int) -> list[Batch]:
    x, y = inputs()
    return [Batch(x[i], y[i], IDS[i]) for i in order(epoch, rank, world).split(LOCAL_BATCH)]


def global_batches(epoch: int, world: int) -> list[Batch]:
    x, y = inputs()
    parts = [order(epoch, rank, world).split(LOCAL_BATCH) for rank in range(world)]
    joined = [torch.stack(step, dim=1).reshape(-1) for step in zip(*parts, strict=True)]
    return [Batch(x[i], y[i], IDS[i]) for i in joined]


def train(model: nn.Module, loss: Any, batches: Any, start: int = 0, stop: int = EPOCHS, skip: int = 0) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    rates = []
    for epoch in range(start, stop):
        loss.epoch = epoch
        for batch in batches(epoch)[skip if epoch == start else 0 :]:
            optimizer.zero_grad()
            loss(model(batch.input), batch).backward()
            optimizer.step()
            loss.after_step()
        rates.append(loss.epoch_log().get("saf_hit_rate", 1.0))
    return rates


def saf(world: int, rank: int, placement: str, planned: bool, folder: Path) -> SAF:
    path = folder / f"outputs-{planned}" if placement == "file" else None
    loss = SAF(nn.CrossEntropyLoss(), look_back=2, start=2, precision="float64", placement=placement, path=path)
    loss.prepare(samples=IDS, plan=(lambda epoch: IDS[order(epoch, rank, world)]) if planned else None)
    return loss


def worker(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    try:
        for placement, planned in [("device", True), ("device", False), ("file", True)]:
            equals_one_process(rank, world, folder, placement, planned)
        repeated_samples(rank, world, folder)
        resumes_in_mid_epoch(rank, world, folder)
        refuses_what_it_cannot_do(rank, world)
        reshapes_together(rank, world)
        dist.barrier()
    finally:
        gc.collect()  # DDP holds on to the group
        dist.destroy_process_group()
    # all has passed: leave at once, since threads of gloo can abort an interpreter that is shutting down
    sys.stdout.flush()
    os._exit(0)


def equals_one_process(rank: int, world: int, folder: Path, placement: str, planned: bool) -> None:
    model = DistributedDataParallel(network())
    loss = saf(world, rank, placement, planned, folder)
    rates = train(model, loss, lambda epoch: local_batches(epoch, rank, world))
    assert rates == [1.0] * EPOCHS, rates
    expected = torch.load(folder / "one-process.pt")
    for name, tensor in model.module.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-13)
    if planned and placement == "device":
        shelf = loss.state_dict()["own"]["memory"]["shelf"]
        held = sum(value.nbytes for table in (shelf["owned"], shelf["recorded"]) for value in table.values())
        row = 4 + 8 * CLASSES
        assert held <= (3 * -(-SAMPLES // world) + -(-SAMPLES // world) + 2) * row


def repeated_samples(rank: int, world: int, folder: Path) -> None:
    # every process meets sample 7 in each epoch, at another place: the last by (place, rank) is kept
    for placement in ("device", "file"):
        path = folder / "repeated" if placement == "file" else None
        memory = OutputMemory(look_back=1, precision="float64", placement=placement, path=path, samples=world + 8)
        ids = torch.tensor([7, 8 + rank]) if rank % 2 else torch.tensor([8 + rank, 7])
        memory.configure(None, lambda epoch, ids=ids: ids)
        outputs = torch.full((2, 1), float(rank), dtype=torch.float64)
        last = max(other for other in range(world) if other % 2 == 0)
        memory.begin(0, recording=True, reading=False)
        rows = memory.locate(ids, outputs)
        if rank == last:
            memory.record(rows, outputs)
        dist.barrier()  # the others are later by the clock, which must not count
        if rank != last:
            memory.record(rows, outputs)
        memory.begin(1, recording=True, reading=True)
        values, hit = memory.recall(memory.locate(ids, outputs), outputs)
        assert hit.all()
        assert sorted(values[:, 0].tolist()) == sorted([float(rank), float(last)])
        dist.barrier()


def resumes_in_mid_epoch(rank: int, world: int, folder: Path) -> None:
    def batches(epoch: int) -> list[Batch]:
        return local_batches(epoch, rank, world)

    for placement in ("device", "file"):
        folder = folder / placement
        straight_model, straight = DistributedDataParallel(network()), saf(world, rank, "device", True, folder)
        train(straight_model, straight, batches)
        model, loss = DistributedDataParallel(network()), saf(world, rank, placement, True, folder)
        train(model, loss, batches, 0, 4)
        loss.epoch = 4
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        optimizer.zero_grad()
        loss(model(batches(4)[0].input), batches(4)[0]).backward()
        optimizer.step()
        loss.after_step()
        saved = copy.deepcopy((model.module.state_dict(), loss.state_dict()))
        again, resumed = network(), saf(world, rank, placement, True, folder)
        again.load_state_dict(saved[0])
        resumed.load_state_dict(saved[1])
        again = DistributedDataParallel(again)
        train(again, resumed, batches, 4, EPOCHS, skip=1)
        # DDP lays its buckets out anew after its first step, and so adds four gradients, not two, in another order
        exact = {"rtol": 0, "atol": 0} if world == 2 else {"rtol": 1e-14, "atol": 1e-16}
        for one, other in zip(again.parameters(), straight_model.parameters(), strict=True):
            torch.testing.assert_close(one, other, **exact)
        dist.barrier()


def refuses_what_it_cannot_do(rank: int, world: int) -> None:
    output = torch.zeros(1, 2, requires_grad=True)
    unknown = SAF(nn.CrossEntropyLoss(), look_back=1, start=1)
    unknown.epoch = 0
    with pytest.raises(InputError, match="several processes"):
        unknown(output, Batch(None, torch.tensor([0]), torch.tensor([5])))
    unplanned = SAF(nn.CrossEntropyLoss(), look_back=1, start=1)
    unplanned.prepare(samples=10, plan=lambda epoch: torch.tensor([1, 2]))
    with pytest.raises(InputError, match="^`plan`"):
        unplanned(output, Batch(None, torch.tensor([0]), torch.tensor([5])))
    state = unplanned.state_dict()
    state["own"]["memory"]["process"] = ((rank + 1) % world, world)
    with pytest.raises(CheckpointError, match="its own"):
        unplanned.load_state_dict(state)
    dist.barrier()


def reshapes_together(rank: int, world: int) -> None:
    slopes, target = [], torch.tensor([0, 1])
    for distributed in ("local", "global"):
        loss = LLR(nn.CrossEntropyLoss(), initial_loss="first_epoch", distributed=distributed)
        first = torch.full((2, 2), 0.1, dtype=torch.float64).mul(rank).requires_grad_()
        loss(first + torch.tensor([1.0, 0.0]), target)
        loss.epoch = 1
        mine = first.detach().clone().requires_grad_()
        shifted = mine * 3 + torch.tensor([0.0, 0.5]) * rank
        value = loss(shifted, target)
        (gradient,) = torch.autograd.grad(value, mine, retain_graph=True)
        plain = nn.functional.cross_entropy(shifted, target)
        (expected,) = torch.autograd.grad(plain, mine)
        everyone = [None] * world
        dist.all_gather_object(everyone, (loss.initial_loss, float(plain.detach())))
        assert len({initial for initial, _ in everyone}) == 1
        met = sum(one for _, one in everyone) / world if distributed == "global" else float(plain.detach())
        slope = float(Sech().multiplier(torch.tensor(met, dtype=torch.float64), loss.initial_loss))
        torch.testing.assert_close(gradient, slope * expected, rtol=1e-12, atol=1e-15)
        slopes.append(loss.multipliers.values[-1])
        assert slopes[-1] == pytest.approx(slope, rel=1e-12)
    assert slopes[0] != slopes[1]


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_equal_one(world, tmp_path):
    model, loss = network(), SAF(nn.CrossEntropyLoss(), look_back=2, start=2, precision="float64")
    loss.prepare(samples=IDS)
    assert train(model, loss, lambda epoch: global_batches(epoch, world)) == [1.0] * EPOCHS
    torch.save(model.state_dict(), tmp_path / "one-process.pt")
    together(worker, world, tmp_path, count=world)
