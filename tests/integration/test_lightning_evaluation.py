"""Lightning's validate and test: the evaluation weights of the moment, or those of a checkpoint, in any trainer."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.trainer_cases import Samples, network, wrapped
from torch import nn
from torch.utils.data import DataLoader

from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.core.types import Batch

lightning = pytest.importorskip("lightning.pytorch")
LightningCallback = pytest.importorskip("lowland.integrations.lightning").LightningCallback

METHODS = ("EMA", "SWA", "SALA", "Lookahead")


class Net(lightning.LightningModule):
    def __init__(self, method="EMA", norm=True):
        super().__init__()
        self.net, self.method = network() if norm else without_norm(), method

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    test_step = validation_step

    def configure_optimizers(self):
        return wrapped(self, self.method)


def without_norm():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def loader(*, shuffle=False):
    return DataLoader(Samples(), batch_size=8, shuffle=shuffle, generator=torch.Generator().manual_seed(1))


def trainer(*callbacks, folder=None, epochs=4):
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[LightningCallback(), *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=folder is not None,
        default_root_dir=folder,
    )


def best_of(folder, **options):
    from lightning.pytorch.callbacks import ModelCheckpoint

    return ModelCheckpoint(folder, **{"monitor": "val", "mode": "max", "save_top_k": -1, **options})


def of_its_own(optimizer):
    """Return what an optimizer holds beside the weights of the module."""
    state = copy.deepcopy(optimizer.state_dict())
    state["lowland"]["tensors"].pop("trained", None)
    for entry in state["state"].values():
        entry.pop("lowland.trained", None)
    return str(state)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_s_own_average_is_evaluated_in_the_same_trainer_and_in_a_new_one(method, norm, tmp_path):
    keep = best_of(tmp_path / "kept")  # the worst, so that it is not the last
    run, module = trainer(keep, folder=tmp_path), Net(method, norm)
    run.fit(module, loader(shuffle=True), loader())
    logged = float(keep.best_model_score)
    last = run.validate(module, loader(), verbose=False)[0]["val"]
    assert last != logged
    before = of_its_own(run.optimizers[0])
    for evaluate in (run.validate, run.test):
        assert evaluate(module, loader(), ckpt_path="best", verbose=False)[0]["val"] == logged
    assert of_its_own(run.optimizers[0]) == before
    for evaluate in ("validate", "test"):
        found = getattr(trainer(), evaluate)(Net(method, norm), loader(), ckpt_path=keep.best_model_path, verbose=False)
        assert found[0]["val"] == logged


@pytest.mark.parametrize("method", METHODS)
def test_an_evaluation_leaves_the_checkpoint_s_trained_weights_in_the_module(method, tmp_path):
    keep = best_of(tmp_path)
    trainer(keep, folder=tmp_path).fit(Net(method), loader(), loader())
    stored = torch.load(keep.best_model_path, weights_only=True)["state_dict"]
    module = Net(method)
    trainer().validate(module, loader(), ckpt_path=keep.best_model_path, verbose=False)
    assert same_bits([stored[name] for name in module.state_dict()], list(module.state_dict().values()))


@pytest.mark.parametrize("method", METHODS)
def test_statistics_are_those_of_the_average_on_the_training_data(method, tmp_path):
    module = Net(method)
    run = trainer()
    run.fit(module, loader(shuffle=True))
    optimizer = run.optimizers[0]
    optimizer = getattr(optimizer, "optimizer", optimizer)
    found = run.validate(module, loader(), verbose=False)[0]["val"]
    data = Samples()
    batches = [Batch(data.x[i : i + 8], data.y[i : i + 8]) for i in range(0, len(data), 8)]
    with optimizer.averaged():
        optimizer.recalibrate(batches, module)
        with torch.no_grad():
            module.eval()
            losses = [nn.functional.cross_entropy(module(b.input), b.target) for b in batches]
    assert found == pytest.approx(float(torch.stack(losses).mean()), rel=1e-6)


def test_a_checkpoint_of_weights_alone_has_no_average(tmp_path):
    keep = best_of(tmp_path, save_weights_only=True)
    run, module = trainer(keep, folder=tmp_path), Net()
    run.fit(module, loader(), loader())
    with pytest.raises(InputError, match="save_weights_only"):
        run.validate(module, loader(), ckpt_path="best", verbose=False)
    for evaluate in ("validate", "test"):  # a new trainer has no optimizer that would say so
        with pytest.raises(InputError, match="save_weights_only"):
            getattr(trainer(), evaluate)(Net(), loader(), ckpt_path=keep.best_model_path, verbose=False)
    assert not {"on_save_checkpoint", "on_load_checkpoint"} & set(vars(module))
    assert run.validate(module, loader(), verbose=False)[0]["val"] > 0


def test_weights_alone_of_a_plain_optimizer_are_evaluated_and_the_module_s_own_hooks_run(tmp_path):
    calls = []

    class Told(Net):
        def on_save_checkpoint(self, checkpoint):
            calls.append("save")

        def on_load_checkpoint(self, checkpoint):
            calls.append("load")

    keep = best_of(tmp_path, save_weights_only=True)
    trainer(keep, folder=tmp_path).fit(Told("SAM"), loader(), loader())
    found = trainer().validate(Told("SAM"), loader(), ckpt_path=keep.best_model_path, verbose=False)[0]["val"]
    assert found == float(keep.best_model_score) and set(calls) == {"save", "load"}


def test_a_checkpoint_within_an_epoch_needs_the_training_data(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    keep = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
    run, module = trainer(keep, folder=tmp_path), Net()
    run.fit(module, loader())
    place = tmp_path / "step=3.ckpt"
    with pytest.raises(InputError, match="batch-norm statistics of the average"):
        trainer().validate(Net(), loader(), ckpt_path=place, verbose=False)
    assert run.validate(module, loader(), ckpt_path=place, verbose=False)[0]["val"] > 0


def test_a_plain_optimizer_is_evaluated_as_it_stands(tmp_path):
    keep = best_of(tmp_path)
    run, module = trainer(keep, folder=tmp_path), Net("SAM")
    run.fit(module, loader(), loader())
    found = trainer().validate(Net("SAM"), loader(), ckpt_path=keep.best_model_path, verbose=False)[0]["val"]
    assert found == float(keep.best_model_score)
