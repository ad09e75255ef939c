"""Two real processes (gloo on loopback): in Lightning, the Trainer and Accelerate as in a DDP loop written by hand."""

from __future__ import annotations

import os
import socket
import traceback
import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.multiprocessing as mp
from tests.trainer_cases import BATCH, Samples, network, wrapped
from torch import nn
from torch.utils.data import DataLoader

from lowland import results
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.data import Indexed
from lowland.losses import SAF

pytestmark = pytest.mark.slow
pytest.importorskip("lightning")
pytest.importorskip("accelerate")
CASES = [
    (distributed, ascent, micro)
    for distributed in ("synced", "local")
    for ascent, micro in (("step", 1), ("step", 2), ("micro-batch", 2))
]


def by_hand(optimizer, ddp, batches, micro_batches):
    """Every rule said explicitly: which backward passes are synced, and whose gradient is climbed."""
    options, plain = optimizer.options, nn.CrossEntropyLoss()

    def backward(batch, *, synced):
        with nullcontext() if synced else ddp.no_sync():
            (plain(ddp(batch[0]), batch[1]) / micro_batches).backward()

    for start in range(0, len(batches), micro_batches):
        group = batches[start : start + micro_batches]
        optimizer.zero_grad()
        for together in [[part] for part in group] if options.ascent == "micro-batch" else [group]:
            for part in together:
                with optimizer.first_pass(ddp):
                    backward(part, synced=options.distributed == "synced" and part is together[-1])
            with optimizer.perturb():
                for part in together:
                    backward(part, synced=part is group[-1])
        optimizer.step()


def state_of(net):
    return [value.detach().clone() for value in (*net.parameters(), *net.buffers())]


def options_of(case):
    return {"distributed": case[0], "ascent": case[1]}


def expected_of(case, batches):
    net = network()
    optimizer = wrapped(net, **options_of(case))
    by_hand(optimizer, nn.parallel.DistributedDataParallel(net), batches, case[2])
    return state_of(net)


def lightning_runs(rank, folder):
    import lightning.pytorch as lightning

    from lowland.integrations import LightningCallback, SharpnessLog
    from lowland.training import Snapshots

    class Net(lightning.LightningModule):
        def __init__(self, net, optimizer, criterion=None):
            super().__init__()
            self.net, self.optimizer, self.criterion = net, optimizer, criterion or nn.CrossEntropyLoss()

        def training_step(self, batch, batch_idx):
            return self.criterion(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return self.optimizer

    def fit(net, optimizer, data, *, epochs=1, criterion=None, callbacks=(), ckpt=None, **options):
        hooks = [] if criterion is None else [Snapshots(), SharpnessLog(samples=8)]
        callback = LightningCallback(model="net", hooks=hooks, folder=folder / "run")
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            max_epochs=epochs,
            callbacks=[callback, *callbacks],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=bool(callbacks),
            default_root_dir=folder,
            **options,
        )
        # of its own accord Lightning shuffles the training data of several processes
        in_order = None if criterion else torch.utils.data.DistributedSampler(data, 2, rank, shuffle=False)
        loader = DataLoader(data, batch_size=BATCH, sampler=in_order, generator=torch.Generator())
        trainer.fit(Net(net, optimizer, criterion), loader, ckpt_path=ckpt)
        return trainer

    found, data = {}, Samples()
    mine = [range(start, start + 8, 2) for start in range(rank, 32 + rank - 1, 8)]
    batches = [(data.x[list(rows)], data.y[list(rows)]) for rows in mine]
    for case in CASES:
        found["by hand", case] = expected_of(case, batches)
        net = network()
        fit(net, wrapped(net, **options_of(case)), data, accumulate_grad_batches=case[2])
        found["trainer", case] = state_of(net)
    found["sharded"] = sharded(rank, data, folder)
    for name, resume in (("whole", None), ("resumed", folder / "whole" / "epoch=1.ckpt")):
        net = network()
        criterion = SAF(nn.CrossEntropyLoss(), start=1, look_back=1)
        keep = lightning.callbacks.ModelCheckpoint(
            folder / name, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True
        )
        trainer = fit(
            net, wrapped(net, "SALA"), Indexed(data), epochs=4, criterion=criterion, callbacks=[keep], ckpt=resume
        )
        found[name] = state_of(net)
        for measured in ("loss_saf_hit_rate", "sharpness"):
            found[f"{name} {measured}"] = trainer.callback_metrics.get(measured, torch.zeros(())).item()
        found["snapshots"] = results.SnapshotReader(folder / "run" / "snapshots").steps
    return found


def sharded(rank, data, folder):
    """FSDP2: the module shards its network, and builds the optimizer from what came of it."""
    import lightning.pytorch as lightning
    from torch.distributed.fsdp import fully_shard

    from lowland.integrations import LightningCallback

    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def configure_model(self):
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return wrapped(self.net)

    def fit(**options):
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=2,
            max_epochs=1,
            callbacks=[LightningCallback(model="net")],
            logger=False,
            strategy=lightning.strategies.ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
            **options,
        )
        in_order = torch.utils.data.DistributedSampler(data, 2, rank, shuffle=False)
        module = Net()
        trainer.fit(module, DataLoader(data, batch_size=BATCH, sampler=in_order))
        return [parameter.full_tensor().detach() for parameter in module.net.parameters()]

    found = fit()
    with pytest.raises(InputError, match="sharded"):
        fit(accumulate_grad_batches=2)
    return found


def trainer_runs(rank, folder):
    from transformers import Trainer, TrainingArguments

    from lowland.integrations import TrainerMixin

    class Classifier(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x, labels=None):
            logits = self.net(x)
            found = {"logits": logits}
            return found if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), **found}

    class Flat(TrainerMixin, Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(range(32))

    found, data = {}, Samples()
    batches = [(data.x[i : i + BATCH], data.y[i : i + BATCH]) for i in range(rank * BATCH, 32, 2 * BATCH)]
    for case in CASES:
        for criterion in (None, SAF(nn.CrossEntropyLoss(), weight=0.0)):
            net = network()
            optimizer = wrapped(net, **options_of(case))
            arguments = TrainingArguments(
                str(folder),
                per_device_train_batch_size=BATCH,
                num_train_epochs=1,
                use_cpu=True,
                report_to=[],
                gradient_accumulation_steps=case[2],
                max_grad_norm=0.0,
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                remove_unused_columns=False,
            )
            own = Samples(dicts=True)
            Flat(
                Classifier(net),
                arguments,
                train_dataset=own if criterion is None else Indexed(own),
                optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 0)),
                compute_loss_func=criterion,
            ).train()
            found["trainer" if criterion is None else "loss", case] = state_of(net)
        found["by hand", case] = expected_of(case, batches)
    return found


def accelerate_runs(rank, folder):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    from lowland.integrations import AcceleratePasses

    found, data = {}, Samples()
    batches = [(data.x[i : i + BATCH], data.y[i : i + BATCH]) for i in range(rank * BATCH, 32, 2 * BATCH)]
    for case in CASES:
        for state in (AcceleratorState, GradientState):
            state._reset_state()
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=case[2])
        net = network()
        loader = DataLoader(data, batch_size=BATCH)
        model, optimizer, loader = accelerator.prepare(net, wrapped(net, **options_of(case)), loader)
        passes = AcceleratePasses(accelerator, model, optimizer)
        for x, y in loader:
            with accelerator.accumulate(model):
                passes.backward(lambda x=x, y=y, model=model: nn.functional.cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
        found["trainer", case] = state_of(net)
        found["by hand", case] = expected_of(case, batches)
    return found


KINDS = {"lightning": lightning_runs, "transformers": trainer_runs, "accelerate": accelerate_runs}


def process(rank, kind, port, folder, queue):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
        ACCELERATE_USE_CPU="true",
    )
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        torch.distributed.init_process_group("gloo")
        found = KINDS[kind](rank, folder)
        torch.save(found, folder / f"{kind}-{rank}.pt")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        queue.put((rank, None))
    except BaseException:
        queue.put((rank, traceback.format_exc()))
        raise


def launched(kind, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    running = [context.Process(target=process, args=(rank, kind, port, folder, queue)) for rank in range(2)]
    for one in running:
        one.start()
    try:
        for _ in running:
            _, error = queue.get(timeout=240)
            assert error is None, error
    finally:
        for one in running:
            one.join(10)
            if one.is_alive():
                one.kill()
    return [torch.load(folder / f"{kind}-{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module", params=list(KINDS))
def ranks(request, tmp_path_factory):
    return request.param, launched(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_rank_has_the_bits_of_the_loop_by_hand(ranks, case):
    for found in ranks[1]:
        assert same_bits(found["by hand", case], found["trainer", case])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_parameters_agree_on_all_ranks(ranks, case):
    first, second = (found["trainer", case] for found in ranks[1])
    count = len(list(network().parameters()))
    assert same_bits(first[:count], second[:count])


@pytest.mark.parametrize("ascent", ["step", "micro-batch"])
def test_local_and_synced_ascent_differ(ranks, ascent):
    first, second = (ranks[1][0]["trainer", (distributed, ascent, 2)] for distributed in ("local", "synced"))
    assert not same_bits(first, second)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_loss_of_ours_is_the_mean_over_all_samples(ranks, case):
    kind, both = ranks
    if kind != "transformers":
        pytest.skip("only the Trainer divides losses by items")
    for found in both:
        for ours, own in zip(found["loss", case], found["trainer", case], strict=True):
            assert torch.allclose(ours.double(), own.double(), rtol=0, atol=1e-6)  # the order of divisions differs


def test_sharded_parameters(ranks):
    kind, both = ranks
    if kind != "lightning":
        pytest.skip("run in Lightning only")
    for found in both:
        for ours, own in zip(found["sharded"], found["by hand", ("synced", "step", 1)], strict=False):
            assert torch.allclose(ours, own, rtol=0, atol=1e-6)


def test_shared_memory_and_resume(ranks):
    kind, both = ranks
    if kind != "lightning":
        pytest.skip("run in Lightning only")
    for found in both:
        assert same_bits(found["whole"], found["resumed"])
    assert both[0]["whole loss_saf_hit_rate"] == both[0]["resumed loss_saf_hit_rate"] == 1.0
    assert both[0]["whole sharpness"] == both[0]["resumed sharpness"] > 0
    assert both[0]["snapshots"] == (0, 4, 8, 12, 16)
