"""SAMPa on two processes against its slow twin in one; a run goes on from rank 0's checkpoint."""

import os
import socket

import pytest
import torch
from tests.ranks import together
from tests.reference import sam as twins
from torch import nn

from lowland import optim
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError

RATES = {"sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}, "adamw": {"lr": 0.01, "weight_decay": 1e-2}}
EPOCHS, LENGTH = 5, 8
loss_of = nn.CrossEntropyLoss()


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def data():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(9, 5, generator=generator, dtype=torch.float64), torch.randint(0, 3, (9,), generator=generator))
        for _ in range(LENGTH)
    ]


def built(kind):
    model = network()
    base = (torch.optim.SGD if kind == "sgd" else torch.optim.AdamW)(model.parameters(), **RATES[kind])
    return model, optim.SAMPa(base, rho=0.1, mix=0.2, model=model)


def train(model, optimizer, epochs):
    path = []
    for _ in range(epochs):
        for x, y in optimizer.batches(data()):
            optimizer.zero_grad()
            loss_of(model(x), y).backward()
            optimizer.step()
            with optimizer.averaged():
                path.append([p.detach().clone() for p in model.parameters()])
    return path


def work(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for kind in RATES:
        model, optimizer = built(kind)
        found[kind] = train(model, optimizer, EPOCHS)
        first = built(kind)
        train(*first, 2)
        states = [{"model": first[0].state_dict(), "optimizer": first[1].state_dict()}]
        torch.distributed.broadcast_object_list(states)
        second = built(kind)
        second[0].load_state_dict(states[0]["model"])
        second[1].load_state_dict(states[0]["optimizer"])
        found[f"{kind} resumed"] = train(*second, EPOCHS - 2)
    model, optimizer = built("sgd")
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(InputError, match="GradScaler"):
        scaler.scale(loss_of(model(data()[0][0]), data()[0][1])).backward()
        scaler.step(optimizer)
    with pytest.raises(InputError, match="DistributedDataParallel"):
        optim.SAMPa(torch.optim.SGD(model.parameters(), lr=0.1), model=nn.parallel.DistributedDataParallel(model))
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampa")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    together(work, port, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("kind", list(RATES))
def test_two_processes_take_the_steps_of_the_twin(ranks, kind):
    rates = {"momentum": 0.0, **RATES[kind]}
    loop = twins.Loop(network(), data(), loss_of, adam=kind == "adamw", **rates)
    for step in range(EPOCHS * LENGTH):
        previous = step if step % LENGTH == 0 else step - 1
        twins.sampa(loop, step, previous, rho=0.1, mix=0.2)
        for fast, slow in zip(ranks[0][kind][step], loop.weights(), strict=True):
            assert (fast - slow).abs().max() < 1e-12
    assert all(same_bits(a, b) for a, b in zip(ranks[0][kind], ranks[1][kind], strict=True))


@pytest.mark.parametrize("kind", list(RATES))
def test_a_run_goes_on_from_the_checkpoint_of_rank_0(ranks, kind):
    for rank in ranks:
        for whole, resumed in zip(rank[kind][2 * LENGTH :], rank[f"{kind} resumed"], strict=True):
            assert same_bits(whole, resumed)


def test_one_process_is_refused():
    with pytest.raises(InputError, match="use SAM"):
        optim.SAMPa(torch.optim.SGD(network().parameters(), lr=0.1))
