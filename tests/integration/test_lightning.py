"""Lightning, automatic optimization: the same bits as the plain loop, whatever the precision and the accumulation."""

from __future__ import annotations

import warnings

import pytest
import torch
from tests.trainer_cases import (
    BATCH,
    EVERY_METHOD,
    Samples,
    StopAfter,
    Unending,
    assert_same,
    bfloat16,
    network,
    plain_loop,
    slow_but,
    wrapped,
)
from torch import nn

import lowland.optim as optim
from lowland import results
from lowland.core.contexts import same_bits
from lowland.core.errors import CheckpointError, InputError, MissingPass
from lowland.data import Indexed
from lowland.losses import LLR, MESA, SAF
from lowland.training import Snapshots

lightning = pytest.importorskip("lightning.pytorch")
integrations = pytest.importorskip("lowland.integrations.lightning")
LightningCallback, LightningMixin = integrations.LightningCallback, integrations.LightningMixin


class Net(lightning.LightningModule):
    """As a user has it: it knows nothing of Lowland."""

    def __init__(self, net, optimizer, criterion=None):
        super().__init__()
        self.net, self.optimizer, self.criterion = net, optimizer, criterion or nn.CrossEntropyLoss()
        self.heard = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = self.criterion(self.net(x), y)
        self.log("train_loss", loss, on_step=True)
        self.heard.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.weights = [p.detach().clone() for p in self.net.parameters()]
        self.log("validation_loss", self.criterion(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return self.optimizer


class Flat(LightningMixin, Net):
    lowland = {"model": "net"}  # ruff: ignore[mutable-class-default] - as a user writes it


def loader(*, indexed=False):
    data = Indexed(Samples()) if indexed else Samples()
    # with a generator of its own a loader leaves torch's numbers to dropout
    return torch.utils.data.DataLoader(data, batch_size=BATCH, generator=torch.Generator())


def fit(module, callbacks=(), *, indexed=False, data=None, validate=False, epochs=1, folder=None, ckpt=None, **options):
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=folder is not None,
        default_root_dir=folder,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(
            module, loader(indexed=indexed) if data is None else data, loader() if validate else None, ckpt_path=ckpt
        )
    return trainer


def pair(method="SAM", base="sgd", *, dropout=0.0, **options):
    first, second = network(dropout), network(dropout)
    return (first, wrapped(first, method, base, **options)), (second, wrapped(second, method, base, **options))


def mixed(scale=256.0):
    from lightning.pytorch.plugins import MixedPrecision

    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3))


def cast():
    return torch.autocast("cpu", dtype=torch.float16, cache_enabled=False)


# The optimizers.


@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize("ascent", ["step", "micro-batch"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_same_bits_as_the_plain_loop(method, ascent, micro_batches):
    (net, optimizer), mine = pair(method, ascent=ascent)
    plain_loop(net, optimizer, micro_batches=micro_batches)
    fit(Net(*mine), [LightningCallback(model="net")], accumulate_grad_batches=micro_batches)
    assert_same(net, mine[0])


@pytest.mark.parametrize("ascent", ["step", "micro-batch"])
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
@pytest.mark.parametrize("scale", [256.0, 2.0**30])
@pytest.mark.parametrize("method", ["SAM", "FSAM"])
def test_float16_also_where_the_scaler_skips_steps(ascent, micro_batches, scale, method):
    (net, optimizer), mine = pair(method, ascent=ascent)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    plain_loop(net, optimizer, micro_batches=micro_batches, cast=cast, scaler=scaler, epochs=2)
    module = Net(*mine)
    fit(module, [LightningCallback()], accumulate_grad_batches=micro_batches, plugins=mixed(scale), epochs=2)
    assert_same(net, mine[0])
    assert (mine[1].steps < 16 // micro_batches) == (scale > 256)


@pytest.mark.parametrize(
    ("method", "kind"), [("SAM", None), ("GSAM", None), ("SALA", "LLR"), ("EMA", "MESA"), ("SAM", "SAF")]
)
def test_bfloat16(method, kind):
    (net, optimizer), mine = pair(method)
    plain_loop(net, optimizer, kind and criterion_of(kind), cast=bfloat16, epochs=2, micro_batches=2)
    module, options = Net(*mine, kind and criterion_of(kind)), {"accumulate_grad_batches": 2, "precision": "bf16-mixed"}
    fit(module, [LightningCallback(model="net")], epochs=2, indexed=kind == "SAF", **options)
    assert_same(net, mine[0])


@pytest.mark.parametrize("clip", [0.01, 1.0])
def test_clipping_comes_after_the_second_pass(clip):
    (net, optimizer), mine = pair()
    plain_loop(net, optimizer, clip=clip)
    fit(Net(*mine), [LightningCallback()], gradient_clip_val=clip)
    assert_same(net, mine[0])


def test_replayed_random_numbers():
    (net, optimizer), mine = pair(dropout=0.5, rng="replay", ascent="micro-batch")
    torch.manual_seed(3)
    plain_loop(net, optimizer, micro_batches=2)
    torch.manual_seed(3)
    fit(Net(*mine), [LightningCallback()], accumulate_grad_batches=2)
    assert_same(net, mine[0])


def test_the_mixin_brings_the_callback_and_a_callback_of_the_trainer_goes_before_it():
    (net, optimizer), mine = pair("SALA")
    plain_loop(net, optimizer)
    fit(Flat(*mine))
    assert_same(net, mine[0])
    given = LightningCallback(model="net")
    trainer = fit(Flat(*pair()[0]), [given])
    assert [c for c in trainer.callbacks if isinstance(c, LightningCallback)] == [given]


def test_logs_and_metrics_are_those_of_the_clean_pass():
    torchmetrics = pytest.importorskip("torchmetrics")
    (net, optimizer), mine = pair()
    clean = plain_loop(net, optimizer)

    class Counting(Net):
        def __init__(self, *given):
            super().__init__(*given)
            self.mean = torchmetrics.MeanMetric()

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.mean(loss.detach())
            return loss

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.outputs = [*getattr(self, "outputs", []), outputs["loss"].item()]

        def on_train_epoch_end(self):
            self.epoch_mean = self.mean.compute().item()

    module = Counting(*mine)
    trainer = fit(module, [LightningCallback()])
    assert len(module.heard) == 16 and module.heard[::2] == clean
    assert module.outputs == clean and trainer.callback_metrics["train_loss"].item() == pytest.approx(clean[-1])
    assert module.epoch_mean == pytest.approx(sum(clean) / len(clean))


def test_skipped_batches_stay_skipped():
    class Skipping(Net):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 2 else super().training_step(batch, batch_idx)

    (_, _), mine = pair()
    fit(Skipping(*mine), [LightningCallback()])
    assert all(bool(p.isfinite().all()) for p in mine[0].parameters())


@pytest.mark.parametrize("method", ["EMA", "SALA", "Lookahead"])
def test_validation_sees_the_evaluation_weights_and_training_goes_on_with_the_trained_ones(method):
    (net, optimizer), mine = pair(method)
    plain_loop(net, optimizer)
    module = Net(*mine)
    fit(module, [LightningCallback(model="net")], validate=True)
    assert_same(net, mine[0])
    with optimizer.averaged():
        assert same_bits(module.weights, list(net.parameters()))
    assert not same_bits(module.weights, list(net.parameters()))


# Resume.


class Stateful(torch.utils.data.DataLoader):
    """Goes on within an epoch, as torchdata's loaders do; of others Lightning begins the epoch's data anew."""

    start, done = 0, 0

    def __iter__(self):
        start, self.start = self.start, 0
        for number, batch in enumerate(super().__iter__()):
            if number >= start:
                self.done = number + 1
                yield batch

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.start = state["done"]


RESUMES = [(m, k, s) for m in ("SAM", "LookSAM", "SALA", "EMA") for k in ("SAF", "MESA", "LLR") for s in (13, 16)]


@pytest.mark.parametrize(
    ("method", "kind", "step"), slow_but(RESUMES, [("SAM", "SAF", 13), ("LookSAM", "LLR", 13), ("SALA", "MESA", 16)])
)
def test_resume_ends_with_the_same_bits(method, kind, step, tmp_path):
    def run(name, ckpt=None):
        net = network()
        module = Net(net, wrapped(net, method), criterion_of(kind))
        every = {"every_n_train_steps": 13} if step == 13 else {"every_n_epochs": 1, "save_on_train_epoch_end": True}
        keep = lightning.callbacks.ModelCheckpoint(tmp_path / name, save_top_k=-1, filename="{step}", **every)
        data = Indexed(Samples()) if kind == "SAF" else Samples()
        callbacks = [LightningCallback(model="net"), keep]
        fit(module, callbacks, folder=tmp_path, epochs=3, data=Stateful(data, batch_size=BATCH), ckpt=ckpt)
        return module

    whole = run("a")
    resumed = run("b", tmp_path / "a" / f"step={step}.ckpt")
    passes = 2 if method == "SAM" else 1
    assert len(resumed.heard) == pytest.approx(passes * (24 - step), rel=0.6) and len(resumed.heard) < len(whole.heard)
    assert_same(whole.net, resumed.net)


def test_a_trainer_that_is_told_to_go_on_keeps_what_losses_know():
    (net, optimizer), mine = pair("SALA")
    plain_loop(net, optimizer, criterion_of("MESA"), epochs=3)
    module = Net(*mine, criterion_of("MESA"))
    trainer = fit(module, [LightningCallback(model="net")], epochs=1)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, loader())
    assert_same(net, mine[0])


# The losses.


def criterion_of(kind):
    plain = nn.CrossEntropyLoss()
    return {
        "LLR": lambda: LLR(plain, initial_loss=1.2, start=1),
        "SAF": lambda: SAF(plain, start=1, look_back=1),
        "MESA": lambda: MESA(plain, start=1, half_life=1.0),
        "both": lambda: LLR(SAF(plain, start=1, look_back=1), initial_loss=1.2),
    }[kind]()


RUNS = [(k, m, n) for k in ("LLR", "SAF", "MESA", "both") for m in ("SGD", "SAM", "SALA") for n in (1, 2)]


@pytest.mark.parametrize(
    ("kind", "method", "micro_batches"),
    slow_but(RUNS, [("LLR", "SGD", 1), ("SAF", "SAM", 2), ("MESA", "SAM", 1), ("both", "SALA", 2)]),
)
def test_losses_in_an_unchanged_module(kind, method, micro_batches):
    (net, optimizer), mine = pair(method)
    plain_loop(net, optimizer, criterion_of(kind), epochs=3, micro_batches=micro_batches)
    criterion = criterion_of(kind)
    module = Net(*mine, criterion)
    trainer = fit(
        module,
        [LightningCallback(model="net")],
        indexed=kind in ("SAF", "both"),
        epochs=3,
        validate=True,
        accumulate_grad_batches=micro_batches,
    )
    assert_same(net, mine[0])
    assert module.criterion is criterion
    if kind != "LLR":
        name = "loss_mesa_kl" if kind == "MESA" else "loss_saf_hit_rate"
        assert trainer.callback_metrics[name].item() > 0


# Hooks.


def test_path_sharpness_and_surface_without_a_trace_in_the_weights(tmp_path):
    from lowland.integrations import SharpnessLog, SurfaceAtEnd

    (net, optimizer), mine = pair("SALA", dropout=0.5)
    torch.manual_seed(3)
    plain_loop(net, optimizer, epochs=2)
    hooks = [Snapshots(every_steps=4), SharpnessLog(samples=16), SurfaceAtEnd(points=3, samples=16)]
    callback = LightningCallback(model="net", loss=nn.CrossEntropyLoss(), hooks=hooks, folder=tmp_path)
    torch.manual_seed(3)
    trainer = fit(Net(*mine), [callback], epochs=2)
    assert_same(net, mine[0])
    assert results.SnapshotReader(tmp_path / "snapshots").steps == (0, 4, 8, 12, 16)
    assert trainer.callback_metrics["sharpness"] >= 0 and trainer.callback_metrics["sharpness_weight_norm"] > 0
    surface = results.open(tmp_path / "surfaces" / "random.zarr")
    assert surface.loss.shape == (3, 3) and bool((surface.status == 1).all())


# Wrong use.


def unchanged(net, before):
    return same_bits(before, list(net.parameters()))


@pytest.mark.parametrize(
    ("trainer_options", "error", "match"),
    [({"plugins": "mixed"}, MissingPass, "second pass"), ({"accumulate_grad_batches": 2}, InputError, "micro-batches")],
)
def test_without_the_callback_nothing_is_trained_wrongly(trainer_options, error, match):
    net, optimizer = pair()[0]
    before = [p.detach().clone() for p in net.parameters()]
    options = {k: mixed() if v == "mixed" else v for k, v in trainer_options.items()}
    with pytest.raises(error, match=match):
        fit(Net(net, optimizer), **options)
    assert unchanged(net, before)


def test_sample_ids_that_are_missing():
    net, optimizer = pair("SGD")[0]
    with pytest.raises(InputError, match="sample ids"):
        fit(Net(net, optimizer, criterion_of("SAF")), [LightningCallback()])


@pytest.mark.parametrize(
    ("callback", "method", "kind", "match"),
    [
        (lambda: LightningCallback(), "SGD", "MESA", "must name the network"),
        (lambda: LightningCallback(), "EMA", "LLR", "must name the network"),
        (lambda: LightningCallback(hooks=[Snapshots()]), "SGD", "LLR", "must name the network"),
        (lambda: LightningCallback(model="nothing"), "SGD", "LLR", "must name an attribute"),
        (lambda: LightningCallback(model="net", hooks=[Snapshots()]), "SGD", "LLR", "`folder`"),
    ],
)
def test_what_callback_and_module_must_say(callback, method, kind, match):
    net, optimizer = pair(method)[0]
    with pytest.raises(InputError, match=match):
        fit(Net(net, optimizer, criterion_of(kind)), [callback()])


def test_hooks_of_another_kind():
    with pytest.raises(InputError, match="`hooks`"):
        LightningCallback(hooks=[object()])


def test_replay_over_several_micro_batches_is_refused():
    net, optimizer = pair(rng="replay", ascent="step")[0]
    with pytest.raises(InputError, match='"replay"'):
        fit(Net(net, optimizer), [LightningCallback()], accumulate_grad_batches=2)


def test_a_step_that_draws_its_own_batches_is_refused():
    class Drawing(Net):
        def training_step(self, dataloader_iter):
            batch, _, _ = next(dataloader_iter)
            return super().training_step(batch, 0)

    with pytest.raises(InputError, match="cannot draw"):
        fit(Drawing(*pair()[0]), [LightningCallback()])


def test_a_checkpoint_without_the_state_of_the_losses_is_refused(tmp_path):
    net = network()
    keep = lightning.callbacks.ModelCheckpoint(tmp_path, filename="end")
    fit(Net(net, wrapped(net, "SGD")), [keep], folder=tmp_path)
    net = network()
    module = Net(net, wrapped(net, "SGD"), criterion_of("SAF"))
    with pytest.raises(CheckpointError, match="no state"):
        fit(module, [LightningCallback()], indexed=True, epochs=2, ckpt=tmp_path / "end.ckpt")


def test_after_an_exception_module_and_trainer_are_as_before():
    class Failing(Net):
        def training_step(self, batch, batch_idx):
            if len(self.heard) == 3:
                raise RuntimeError("now")
            return super().training_step(batch, batch_idx)

    (net, optimizer), _ = pair()
    criterion = criterion_of("SAF")
    module = Failing(net, optimizer, criterion)
    with pytest.raises(RuntimeError, match="now"):
        fit(module, [LightningCallback()], indexed=True)
    assert module.criterion is criterion and not optimizer._held.scratch.driven
    assert isinstance(optimizer, optim.SAM) and "log" not in vars(module)


def test_a_hook_ends_the_run():
    net = network()
    trainer = fit(Net(net, wrapped(net)), [LightningCallback(model="net", hooks=[StopAfter(2)])], epochs=5)
    assert trainer.global_step == 2 * 8


def test_data_without_a_length(tmp_path):
    (net, optimizer), mine = pair("EMA")
    plain_loop(net, optimizer)
    data = torch.utils.data.DataLoader(Unending(), batch_size=BATCH)
    hooks = [Snapshots(every_steps=4)]
    fit(Net(*mine), [LightningCallback(model="net", hooks=hooks, folder=tmp_path)], data=data)
    assert_same(net, mine[0])
    assert list(results.SnapshotReader(tmp_path / "snapshots").steps) == [0, 4, 8]
