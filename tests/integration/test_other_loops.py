"""Loops without a bridge: Fabric, torchtitan's shape (distributed checkpoints), and ZeRO's sharded base."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from tests.ranks import together
from tests.trainer_cases import SAMPLES, Samples, assert_same, bfloat16, network, plain_loop, wrapped
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

import lowland.optim as optim
from lowland.core.contexts import same_bits
from lowland.core.errors import CheckpointError, InputError


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("method", ["SAM", "SALA", "EMA"])
def test_fabric(method, precision):
    fabric_of = pytest.importorskip("lightning_fabric").Fabric
    first, second = network(), network()
    plain_loop(first, wrapped(first, method), forward=bfloat16 if precision == "bf16-mixed" else nullcontext)
    fabric = fabric_of(accelerator="cpu", devices=1, precision=precision)
    model, optimizer = fabric.setup(second, wrapped(second, method))
    two = isinstance(optimizer.optimizer, optim.Ascent)
    data = Samples()
    for start in range(0, SAMPLES, 4):
        x, y = data.x[start : start + 4], data.y[start : start + 4]
        optimizer.zero_grad()
        fabric.backward(nn.functional.cross_entropy(model(x), y))
        if two and optimizer.needs_perturbation():
            with optimizer.perturb():
                fabric.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()
    assert_same(first, second)


def steps(net, optimizer, start, stop):
    data = Samples()
    for step in range(start, stop):
        k = 4 * step % SAMPLES
        for _ in (0,):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(data.x[k : k + 4]), data.y[k : k + 4]).backward()
            if isinstance(optimizer, optim.Ascent) and optimizer.needs_perturbation():
                with optimizer.perturb():
                    nn.functional.cross_entropy(net(data.x[k : k + 4]), data.y[k : k + 4]).backward()
            optimizer.step()


@pytest.mark.parametrize("method", ["SAM", "LookSAM", "SALA", "EMA"])
def test_a_distributed_checkpoint_in_the_middle_changes_no_bit(method, tmp_path):
    # as torchtitan saves: state dicts by torch's own helpers, loaded into a model and an optimizer that are new
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    whole = network()
    steps(whole, wrapped(whole, method), 0, 9)
    first = network()
    optimizer = wrapped(first, method)
    steps(first, optimizer, 0, 5)
    model_state, optimizer_state = get_state_dict(first, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=tmp_path / "kept", no_dist=True)
    second = network()
    again = wrapped(second, method)
    model_state, optimizer_state = get_state_dict(second, again)
    state = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(state, checkpoint_id=tmp_path / "kept", no_dist=True)
    set_state_dict(second, again, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    steps(second, again, 5, 9)
    assert_same(whole, second)


MADE = {
    "SAM": optim.SAM,
    "LookSAM": lambda base: optim.LookSAM(base, period=2),
    "SALA": lambda base: optim.SALA(base, period=3),
    "EMA(SAM)": lambda base: optim.EMA(optim.SAM(base), decay=0.5),
}
OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}


def by_zero(net):
    return ZeroRedundancyOptimizer(net.parameters(), torch.optim.SGD, **OPTIONS)


def in_parallel(net):
    return nn.parallel.DistributedDataParallel(net)


def zero(rank, folder, found):
    """Bits of the whole base, and of a run that is saved and goes on; a save that would lack a part is refused."""
    for name, make in MADE.items():
        whole, net = network(), network()
        steps(in_parallel(whole), make(torch.optim.SGD(whole.parameters(), **OPTIONS)), rank, rank + 9)
        optimizer, model = make(by_zero(net)), in_parallel(net)
        steps(model, optimizer, rank, rank + 5)
        with pytest.raises(CheckpointError, match="consolidate_state_dict"):
            optimizer.state_dict()
        optimizer.consolidate_state_dict(to=0)
        place = folder / f"{name}.pt"
        if rank == 0:
            torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, place)
        dist.barrier()
        steps(model, optimizer, rank + 5, rank + 9)
        again = network()
        resumed = make(by_zero(again))
        saved = torch.load(place, weights_only=True)
        again.load_state_dict(saved["model"])
        resumed.load_state_dict(saved["optimizer"])
        steps(in_parallel(again), resumed, rank + 5, rank + 9)
        found[name] = [list(map(torch.clone, each.parameters())) for each in (whole, net, again)]
    with pytest.raises(InputError, match="reads it"):
        optim.MSAM(by_zero(network()))
    with pytest.raises(InputError, match="overlap_with_ddp"):
        net = network()
        optim.SAM(ZeroRedundancyOptimizer(net.parameters(), torch.optim.SGD, overlap_with_ddp=True, lr=0.1))


def replicated(rank, folder, found):
    """Saved by both ranks of a DDP run through torch's distributed checkpoint, and loaded by both."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    for name, make in MADE.items():
        net = network()
        optimizer = make(torch.optim.SGD(net.parameters(), **OPTIONS))
        model = in_parallel(net)
        steps(model, optimizer, rank, rank + 5)
        optimizer.zero_grad()
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder / name)
        steps(model, optimizer, rank + 5, rank + 9)
        again = network()
        resumed = make(torch.optim.SGD(again.parameters(), **OPTIONS))
        second = in_parallel(again)
        weights, state = get_state_dict(second, resumed)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder / name)
        set_state_dict(second, resumed, model_state_dict=weights, optim_state_dict=state)
        steps(second, resumed, rank + 5, rank + 9)
        found[name] = [list(map(torch.clone, each.parameters())) for each in (net, net, again)]


TASKS = {"zero": zero, "replicated": replicated}


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        for name, task in TASKS.items():
            place, found = folder / name, {}
            place.mkdir(exist_ok=True)
            task(rank, place, found)
            torch.save(found, place / f"weights{rank}.pt")
            dist.barrier()
    finally:
        dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Where two processes have left what they found; most of their time goes into imports."""
    folder = tmp_path_factory.mktemp("two")
    together(process, folder)
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_have_the_bits_of_the_whole_base_and_go_on_where_they_were_saved(task, two):
    start = list(network().parameters())
    for rank in range(2):
        for name, (whole, run, resumed) in torch.load(two / task / f"weights{rank}.pt", weights_only=True).items():
            assert same_bits(whole, run), name
            assert same_bits(run, resumed), name
            assert not same_bits(whole, start)
