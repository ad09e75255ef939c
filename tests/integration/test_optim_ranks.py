"""Two real processes that start apart are told so before the first step, and those that do not are not."""

import os
import traceback

import pytest
import torch
import torch.multiprocessing as mp
from tests.optim_cases import METHODS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lowland.optim as optim
from lowland.core.errors import InputError

pytestmark = pytest.mark.slow
loss_of = nn.CrossEntropyLoss()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def built(name, distributed=True, **options):
    model = network()
    wrapped = DistributedDataParallel(model) if distributed else model
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, wrapped, METHODS[name](base, model=wrapped, **options)


def step(wrapped, optimizer, how="block"):
    x, y = torch.ones(4, 6), torch.arange(4) % 3

    def closure():
        optimizer.zero_grad()
        loss = loss_of(wrapped(x), y)
        loss.backward()
        return loss

    if how == "closure":
        return optimizer.step(closure)
    with optimizer.first_pass(wrapped):
        closure()
    if optimizer.needs_perturbation():
        with optimizer.perturb():
            closure()
    return optimizer.step()


def weights_apart(rank, model, optimizer):
    if rank == 1:
        with torch.no_grad():
            model[2].bias[0] += 1e-4


def steps_apart(rank, model, optimizer):
    if rank == 1:
        optimizer._held.numbers["steps"] = 1


def rates_apart(rank, model, optimizer):
    optimizer.param_groups[0]["lr"] = 0.1 + rank


APART = {"weights": weights_apart, "settings, steps": steps_apart, "learning rates": rates_apart}


def apart(rank, found):
    for name in METHODS:
        for what, spoil in APART.items():
            for how in ("block", "closure"):
                model, wrapped, optimizer = built(name)
                spoil(rank, model, optimizer)
                before = [p.detach().clone() for p in model.parameters()]
                with pytest.raises(InputError, match=f"rank 1 differs from rank 0 in its .*{what}"):
                    step(wrapped, optimizer, how)
                assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    model = network()
    optimizer = optim.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1 + rank, distributed="local")
    with pytest.raises(InputError, match="settings"):
        optimizer.needs_perturbation()
    model = network()
    weights_apart(rank, model, None)
    with pytest.raises(InputError, match="weights"):
        optim.SAMPa(torch.optim.SGD(model.parameters(), lr=0.1)).step(
            lambda: loss_of(model(torch.ones(3, 6)), torch.arange(3)).backward()
        )


def sharded(rank, found):
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(network())
    optimizer = optim.SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    steps_apart(rank, model, optimizer)
    with pytest.raises(InputError, match="steps"):
        step(model, optimizer)


def together(rank, found):
    for name in METHODS:
        for how in ("block", "closure"):
            model, wrapped, optimizer = built(name, schedule=lambda step: 1.0)  # whose address differs by rank
            for _ in range(3):
                step(wrapped, optimizer, how)
            found[f"{name} {how}"] = [p.detach().clone() for p in model.parameters()]
    for _ in range(rank + 1):  # each rank a model of its own, as in a search: nobody waits for anybody
        model, wrapped, optimizer = built("SAM", distributed=False)
        weights_apart(rank, model, optimizer)
        step(wrapped, optimizer)


def worker(rank, folder, task):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    try:
        task(rank, found)
    except BaseException:
        found["error"] = traceback.format_exc()
    torch.save(found, f"{folder}/rank{rank}.pt")
    os._exit("error" in found)  # the other rank may wait for ever in a collective


@pytest.mark.parametrize("task", [apart, sharded, together])
def test_on_two_ranks(task, tmp_path):
    context = mp.get_context("spawn")
    processes = [context.Process(target=worker, args=(rank, str(tmp_path), task)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.terminate()
    found = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for results in found:
        assert "error" not in results, results["error"]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(a, b) for key in found[0] for a, b in zip(found[0][key], found[1][key], strict=True))
