"""Two real processes (gloo on loopback): DDP with local and synced ascent, FSDP2, and distributed checkpoints."""

import copy
import os
import traceback
from contextlib import nullcontext

import pytest
import torch
import torch.multiprocessing as mp
from tests.optim_cases import COMPOSITIONS, METHODS, TWO_PASS
from torch import nn

import lowland.optim as optim
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError

pytestmark = pytest.mark.slow
MEMBERS = METHODS | COMPOSITIONS
STEPS = 5
loss_of = nn.CrossEntropyLoss()


class SyncedNorm(nn.Module):
    """Batch norm over the batches of all ranks; torch's own SyncBatchNorm runs on accelerators only."""

    def forward(self, x):
        from torch.distributed.nn.functional import all_reduce

        total = torch.cat([x.sum(0), x.square().sum(0), torch.full((1,), float(len(x)))])
        total = all_reduce(total) if torch.distributed.is_initialized() else total
        width = x.shape[1]
        mean, square = total[:width] / total[-1], total[width : 2 * width] / total[-1]
        return (x - mean) / (square - mean.square() + 1e-5).sqrt()


def network(norm=None):
    torch.manual_seed(0)
    middle = {None: nn.Identity, "batch": lambda: nn.BatchNorm1d(8), "synced": SyncedNorm}[norm]()
    return nn.Sequential(nn.Linear(6, 8), middle, nn.Tanh(), nn.Linear(8, 3))


class Branched(nn.Module):
    """A network with a branch that runs on one rank alone."""

    def __init__(self, runs):
        super().__init__()
        self.trunk, self.runs = network(), runs
        self.branch = nn.Linear(6, 3)

    def forward(self, x):
        return self.trunk(x) + self.branch(x) if self.runs else self.trunk(x)


def batch_of(step, rank):
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(4, 6, generator=generator), torch.randint(0, 3, (4,), generator=generator)


def joined(step):
    return tuple(torch.cat(parts) for parts in zip(batch_of(step, 0), batch_of(step, 1), strict=True))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def train(model, optimizer, batches, micro_batches=1):
    for start in range(0, len(batches), micro_batches):
        optimizer.zero_grad()
        for index in range(micro_batches):
            last = index == micro_batches - 1
            x, y = batches[start + index]
            with optimizer.first_pass(model) if isinstance(optimizer, optim.Ascent) else nullcontext():
                (loss_of(model(x), y) / micro_batches).backward()
            if optimizer.needs_perturbation():
                silent = nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync()
                with optimizer.perturb(), silent:
                    (loss_of(model(x), y) / micro_batches).backward()
        optimizer.step()


def state_of(model):
    values = [*model.parameters(), *model.buffers()]
    return [(v.full_tensor() if hasattr(v, "full_tensor") else v).detach().clone() for v in values]


# What the two processes do.


def ddp_runs(rank, found):
    from torch.nn.parallel import DistributedDataParallel

    batches = [batch_of(step, rank) for step in range(2 * STEPS)]
    for name, make in MEMBERS.items():
        for distributed in ("local", "synced"):
            model = network("batch")
            train(DistributedDataParallel(model), make(sgd(model), distributed=distributed), batches[:STEPS])
            found[f"ddp {name} {distributed}"] = state_of(model)
            model = network("batch")
            wrapped = DistributedDataParallel(model, gradient_as_bucket_view=True)
            train(wrapped, make(sgd(model), distributed=distributed), batches[:STEPS])
            found[f"ddp {name} {distributed} in views"] = state_of(model)
        model = network()
        optimizer = make(sgd(model), distributed="local", ascent="micro-batch")
        train(DistributedDataParallel(model), optimizer, batches, micro_batches=2)
        found[f"micro {name}"] = state_of(model)
    for name in TWO_PASS:
        model = Branched(runs=rank == 0)
        optimizer = METHODS[name](sgd(model), distributed="local")
        train(DistributedDataParallel(model, find_unused_parameters=True), optimizer, batches[:STEPS])
        found[f"branched {name}"] = state_of(model)
    for norm in (None, "synced"):
        model = network(norm)
        train(DistributedDataParallel(model), optim.SAM(sgd(model)), batches[:STEPS])
        found[f"large batch {norm}"] = state_of(model)
    for view in (False, True):
        model = network()
        options = {"distributed": "local", "ascent": "micro-batch"}
        wrapped = DistributedDataParallel(model, gradient_as_bucket_view=view)
        train(wrapped, optim.SAM(sgd(model), **options), batches, micro_batches=2)
        found[f"accumulated {view}"] = state_of(model)
    model = network()
    optimizer = optim.SAM(sgd(model), distributed="local")
    loss_of(model(batches[0][0]), batches[0][1]).backward()
    with pytest.raises(InputError, match="first_pass"), optimizer.perturb():
        pass
    with pytest.raises(InputError, match="no_sync"), optimizer.first_pass(model):
        pass


def fsdp_runs(rank, found, folder):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))

    def sharded():
        model = network()
        fully_shard(model[0], mesh=mesh)
        return fully_shard(model, mesh=mesh)

    batches = [batch_of(step, rank) for step in range(2 * STEPS)]
    for name, make in MEMBERS.items():
        model = sharded()
        optimizer = make(sgd(model))
        train(model, optimizer, batches[:STEPS])
        found[f"fsdp {name}"] = state_of(model)
        optimizer.zero_grad()
        weights, state = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/{name}")
        train(model, optimizer, batches[STEPS:])
        found[f"fsdp {name} on"] = state_of(model)
        again = sharded()
        resumed = make(sgd(again))
        weights, state = get_state_dict(again, resumed)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/{name}")
        set_state_dict(again, resumed, model_state_dict=weights, optim_state_dict=state)
        train(again, resumed, batches[STEPS:])
        found[f"fsdp {name} resumed"] = state_of(again)
    model = sharded()
    optimizer = optim.SAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=0.5)
    train(model, optimizer, batches)
    found["fsdp restored"] = state_of(model)
    with pytest.raises(InputError, match="sharded"):
        optim.SAM(sgd(model), distributed="local")


def worker(rank, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    try:
        ddp_runs(rank, found)
        fsdp_runs(rank, found, folder)
    except BaseException:
        found["error"] = traceback.format_exc()
    torch.save(found, f"{folder}/rank{rank}.pt")
    if "error" in found:
        os._exit(1)  # the other rank may wait for ever in a collective
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("ranks"))
    context = mp.get_context("spawn")
    processes = [context.Process(target=worker, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        if process.is_alive():
            process.terminate()
    found = [torch.load(f"{folder}/rank{rank}.pt") for rank in range(2) if os.path.exists(f"{folder}/rank{rank}.pt")]
    for results in found:
        assert "error" not in results, results["error"]
    assert len(found) == 2
    return found


# What one process expects.


def by_hand(rho, steps, norm=None, micro_batches=1):
    """SAM with one ascent per rank, in one process: gradients at each rank's own uphill point, averaged."""
    models = [network(norm), network(norm)]
    base = sgd(models[0])
    for step in range(steps):
        totals = [torch.zeros_like(p) for p in models[0].parameters()]
        for micro in range(micro_batches):
            for buffer, source in zip(models[1].buffers(), models[0].buffers(), strict=True):
                buffer.copy_(source)  # DDP sends rank 0's buffers before a first pass
            for rank, model in enumerate(models):
                x, y = batch_of(micro_batches * step + micro, rank)
                slopes = torch.autograd.grad(loss_of(model(x), y), list(model.parameters()))
                length = torch.stack([g.square().sum() for g in slopes]).sum().sqrt()
                uphill = copy.deepcopy(model)
                with torch.no_grad():
                    for p, g in zip(uphill.parameters(), slopes, strict=True):
                        p.add_(rho * g / length)
                slopes = torch.autograd.grad(loss_of(uphill(x), y), list(uphill.parameters()))
                for total, g in zip(totals, slopes, strict=True):
                    total += g / 2 / micro_batches
        for p, total in zip(models[0].parameters(), totals, strict=True):
            p.grad = total
        base.step()
        with torch.no_grad():
            for p, source in zip(models[1].parameters(), models[0].parameters(), strict=True):
                p.copy_(source)
    return [state_of(model) for model in models]


def close(first, second, tolerance=1e-6):
    return all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(first, second, strict=True))


def test_local_ascent_equals_its_emulation_buffers_of_both_ranks_included(ranks):
    for rank, expected in enumerate(by_hand(0.05, STEPS, norm="batch")):
        assert close(ranks[rank]["ddp SAM local"], expected)
    assert not close(ranks[0]["ddp SAM local"], ranks[0]["ddp SAM synced"], 1e-5), "another algorithm"


@pytest.mark.parametrize("distributed", ["local", "synced"])
@pytest.mark.parametrize("method", list(MEMBERS))
def test_parameters_stay_bit_identical_on_all_ranks(ranks, method, distributed):
    count = len(list(network("batch").parameters()))
    first, second = (found[f"ddp {method} {distributed}"][:count] for found in ranks)
    assert same_bits(first, second)


@pytest.mark.parametrize("distributed", ["local", "synced"])
@pytest.mark.parametrize("method", list(MEMBERS))
def test_gradients_that_are_views_of_buckets_change_no_bit(ranks, method, distributed):
    for found in ranks:
        assert same_bits(found[f"ddp {method} {distributed}"], found[f"ddp {method} {distributed} in views"])


@pytest.mark.parametrize("method", list(MEMBERS))
def test_parameters_stay_bit_identical_with_accumulation(ranks, method):
    assert same_bits(*(found[f"micro {method}"] for found in ranks))


@pytest.mark.parametrize("method", TWO_PASS)
def test_a_layer_that_one_rank_alone_runs_is_no_obstacle_to_a_local_ascent(ranks, method):
    assert same_bits(*(found[f"branched {method}"] for found in ranks))


@pytest.mark.parametrize("view", [False, True])
def test_local_ascent_with_accumulation(ranks, view):
    expected = by_hand(0.05, STEPS, micro_batches=2)[0]
    assert close(ranks[0][f"accumulated {view}"], expected)
    assert same_bits(ranks[0][f"accumulated {view}"], ranks[1][f"accumulated {view}"])


def large_batch(make, norm=None, steps=STEPS):
    model = network(norm)
    train(model, make(sgd(model)), [joined(step) for step in range(steps)])
    return state_of(model)


@pytest.mark.parametrize("norm", [None, "synced"])
def test_synced_ascent_is_large_batch_sam(ranks, norm):
    assert close(ranks[0][f"large batch {norm}"], large_batch(MEMBERS["SAM"], norm))


@pytest.mark.parametrize("method", list(MEMBERS))
def test_sharded_training_agrees_with_the_unsharded_run(ranks, method):
    assert close(ranks[0][f"fsdp {method}"], large_batch(MEMBERS[method]))
    assert close(ranks[0][f"fsdp {method} on"], large_batch(MEMBERS[method], steps=2 * STEPS), 1e-5)


def test_sharded_weights_are_restored(ranks):
    assert same_bits(ranks[0]["fsdp restored"], state_of(network()))


@pytest.mark.parametrize("method", list(MEMBERS))
def test_distributed_checkpoints_resume_bit_for_bit(ranks, method):
    for found in ranks:
        assert same_bits(found[f"fsdp {method} on"], found[f"fsdp {method} resumed"])
