"""Lightning's other loops: manual optimization with two optimizers, tuners that leave no trace, accumulation."""

from __future__ import annotations

import copy
import csv
import warnings

import pytest
import torch
from tests.trainer_cases import SAMPLES, Samples, assert_same, network, plain_loop, wrapped
from torch import nn
from torch.utils.data import DataLoader

import lowland.optim as optim
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.core.types import Batch
from lowland.data import Indexed
from lowland.losses import LLR, MESA, SAF

lightning = pytest.importorskip("lightning.pytorch")
LightningCallback = pytest.importorskip("lowland.integrations.lightning").LightningCallback


def trainer(*callbacks, epochs=2, **options):
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )


# Manual optimization.


def generator():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6))


def judge():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


class GAN(lightning.LightningModule):
    """Two networks with batch norm, each under an optimizer of its own, as the page writes it."""

    def __init__(self, base=optim.SAM):
        super().__init__()
        self.maker, self.judge, self.base = generator(), judge(), base
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [self.base(torch.optim.SGD(net.parameters(), lr=0.05), rho=0.1) for net in (self.maker, self.judge)]

    def made(self, x):
        return self.judge(self.maker(x)).mean()

    def told(self, x):
        return self.judge(self.maker(x).detach()).mean() - self.judge(x).mean()

    def training_step(self, batch, batch_idx):
        for optimizer, loss in zip(self.optimizers(), (self.made, self.told), strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss(batch[0]))
            with optimizer.perturb():
                self.manual_backward(loss(batch[0]))
            optimizer.step()


def plain_gan():
    gan = GAN()
    optimizers = gan.configure_optimizers()
    for optimizer in optimizers:
        optimizer.protect(gan)
    for _ in range(2):
        for start in range(0, SAMPLES, 8):
            x = Samples().x[start : start + 8]
            for optimizer, loss in zip(optimizers, (gan.made, gan.told), strict=True):
                optimizer.zero_grad()
                loss(x).backward()
                with optimizer.perturb():
                    loss(x).backward()
                optimizer.step()
    return gan


def test_two_optimizers_of_a_gan_have_the_bits_of_the_plain_loop():
    module = GAN()
    trainer(LightningCallback()).fit(module, DataLoader(Samples(), batch_size=8))
    assert_same(plain_gan(), module)


def test_batch_norm_of_either_network_counts_the_clean_passes_alone():
    module = GAN()
    trainer(LightningCallback()).fit(module, DataLoader(Samples(), batch_size=8))
    steps = 2 * SAMPLES // 8
    assert int(module.maker[1].num_batches_tracked) == 2 * steps  # its own pass, and the one that the judge is told
    assert int(module.judge[1].num_batches_tracked) == 3 * steps  # one for the maker, two for itself


def test_averages_of_both_networks_are_evaluated():
    class Averaged(GAN):
        def configure_optimizers(self):
            return [
                optim.EMA(torch.optim.SGD(net.parameters(), lr=0.05), decay=0.5) for net in (self.maker, self.judge)
            ]

        def forward(self, x):
            return self.judge(self.maker(x))

        def training_step(self, batch, batch_idx):
            for optimizer, loss in zip(self.optimizers(), (self.made, self.told), strict=True):
                optimizer.zero_grad()
                self.manual_backward(loss(batch[0]))
                optimizer.step()

        def on_validation_epoch_start(self):
            self.seen = [p.detach().clone() for p in self.parameters()]

        def validation_step(self, batch, batch_idx):
            pass

    module, data = Averaged(), DataLoader(Samples(), batch_size=8)
    run = trainer(LightningCallback())
    run.fit(module, data, data)
    for optimizer in run.optimizers:
        optimizer.eval()
    assert same_bits(module.seen, list(module.parameters()))


class Manual(lightning.LightningModule):
    """A network whose passes are the module's own, under a loss of ours that is given the whole batch."""

    def __init__(self, criterion):
        super().__init__()
        self.net, self.criterion, self.automatic_optimization = network(), criterion, False

    def forward(self, x):
        return self.net(x)

    def configure_optimizers(self):
        return wrapped(self.net)

    def training_step(self, batch, batch_idx):
        optimizer, whole = self.optimizers(), Batch(*batch)
        optimizer.zero_grad()
        self.manual_backward(self.criterion(self(whole.input), whole))
        with optimizer.perturb():
            self.manual_backward(self.criterion(self(whole.input), whole))
        optimizer.step()


@pytest.mark.parametrize("kind", ["LLR", "SAF", "MESA"])
def test_losses_have_the_bits_of_the_plain_loop_where_the_passes_are_the_module_s(kind):
    def criterion():
        plain = nn.CrossEntropyLoss()
        return {
            "LLR": lambda: LLR(plain, initial_loss=1.2, start=1),
            "SAF": lambda: SAF(plain, start=1, look_back=1),
            "MESA": lambda: MESA(plain, start=1, half_life=1.0),
        }[kind]()

    net = network()
    plain_loop(net, wrapped(net), loss := criterion(), epochs=3)
    module = Manual(criterion())
    data = DataLoader(Indexed(Samples()), batch_size=4, shuffle=False)
    run = trainer(LightningCallback(), epochs=3)
    run.fit(module, data)
    assert_same(net, module.net)
    assert module.criterion.epoch_log() == loss.epoch_log()
    if kind != "LLR":
        assert run.callback_metrics["loss_mesa_kl" if kind == "MESA" else "loss_saf_hit_rate"].item() > 0


# Tuners.


class Net(lightning.LightningModule):
    def __init__(self, criterion, method="SAM"):
        super().__init__()
        self.net, self.criterion, self.method, self.lr = network(), criterion, method, 0.1

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return self.criterion(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return wrapped(self, self.method)


LOSSES = {
    "SAF": lambda _: SAF(nn.CrossEntropyLoss(), start=1, look_back=1),
    "SAF file": lambda folder: SAF(
        nn.CrossEntropyLoss(), start=1, look_back=1, placement="file", path=folder / "outputs"
    ),
    "MESA": lambda _: MESA(nn.CrossEntropyLoss(), start=0, half_life=1.0),
    "LLR": lambda _: LLR(nn.CrossEntropyLoss(), initial_loss="first_epoch"),
}


def indexed():
    return DataLoader(Indexed(Samples()), batch_size=4, shuffle=False)


def fitted(module, *callbacks):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(LightningCallback(), *callbacks, epochs=3).fit(module, indexed())
    return module


def found_rate(module, folder):
    run = trainer(LightningCallback(), default_root_dir=folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        finder = lightning.tuner.Tuner(run).lr_find(module, indexed(), num_training=6, update_attr=False)
    assert len(finder.results["loss"]) >= 5


@pytest.mark.parametrize("kind", LOSSES)
def test_a_tuner_leaves_no_trace(kind, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    plain = fitted(Net(LOSSES[kind](tmp_path / "a")))
    tuned = Net(LOSSES[kind](tmp_path / "b"))
    before = copy.deepcopy(tuned.criterion.state_dict())
    found_rate(tuned, tmp_path)
    if kind != "LLR":
        assert str(tuned.criterion.state_dict()) == str(before) and not (tmp_path / "b" / "outputs").exists()
    fitted(tuned)
    assert_same(plain.net, tuned.net)
    assert tuned.criterion.epoch_log() == plain.criterion.epoch_log()


def test_a_finder_among_the_callbacks_sees_every_pass_of_the_optimizer(tmp_path):
    from lightning.pytorch.callbacks import LearningRateFinder

    module = Net(LOSSES["SAF"](tmp_path))
    run = trainer(LightningCallback(), LearningRateFinder(num_training_steps=6), default_root_dir=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(module, indexed())
    assert module.criterion.epoch_log()["saf_hit_rate"] == 1.0


# Without the callback.


def test_accumulation_without_the_callback_names_the_callback():
    module = Net(nn.CrossEntropyLoss())
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(InputError, match="LightningCallback"):
        trainer(accumulate_grad_batches=2).fit(module, DataLoader(Samples(), batch_size=4))
    assert same_bits(before, list(module.parameters()))


# What is logged.


class Logging(Net):
    """Logs in every way that a module has."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"weight": self.net[0].weight.norm().detach(), "seen": float(len(batch[0]))}, on_step=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", nn.functional.cross_entropy(self(batch[0]), batch[1]))


def rows(folder, method, criterion, *callbacks, every, **options):
    logger = lightning.loggers.CSVLogger(folder, name="", version="")
    run = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[*callbacks, lightning.callbacks.LearningRateMonitor()],
        logger=logger,
        log_every_n_steps=every,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    module = Logging(criterion, method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(module, indexed() if callbacks else DataLoader(Samples(), batch_size=4), DataLoader(Samples()))
    return list(read(folder / "metrics.csv")), set(run.callback_metrics)


def read(path):
    with path.open() as file:
        for row in csv.DictReader(file):
            yield {"lr" if name.startswith("lr-") else name: value for name, value in row.items() if value}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_no_row_of_the_trainer_is_lost_or_lacks_a_key(every, micro_batches, tmp_path):
    options = {"every": every, "accumulate_grad_batches": micro_batches}
    plain, names = rows(tmp_path / "plain", "SGD", nn.CrossEntropyLoss(), **options)
    for method, kind in (("SGD", None), ("SAM", "LLR"), ("EMA", "SAF")):
        criterion = nn.CrossEntropyLoss() if kind is None else LOSSES[kind](tmp_path)
        ours, found = rows(tmp_path / method, method, criterion, LightningCallback(), **options)
        assert {name for name in names if not name.startswith("lr-")} <= found  # lr-SAM is another's name
        if kind is None:
            assert ours == plain
            continue
        own = [{name for name in row if not name.startswith(("loss_saf", "loss_llr"))} for row in ours]
        assert [row for row in own if row - {"epoch", "step"}] == [set(row) for row in plain]
