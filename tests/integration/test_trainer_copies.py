"""Copies and pickles of models, modules and trainers in the middle of a run are whole, and belong to nobody else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tests.trainer_cases import Samples, assert_same, network, wrapped
from torch import nn
from torch.utils.data import DataLoader

import lowland.optim as optim
from lowland.core.contexts import same_bits
from lowland.core.types import Batch
from lowland.data import Indexed
from lowland.losses import LLR, MESA, SAF, TrainingLoss
from lowland.training import Snapshots

CRITERIA = {
    "plain": lambda plain: plain,
    "LLR": lambda plain: LLR(plain, initial_loss=1.2),
    "SAF": lambda plain: SAF(plain, start=1, look_back=1),
    "MESA": lambda plain: MESA(plain, start=0, half_life=1.0),
}


# A loop of one's own.


@pytest.mark.parametrize("method", ["SAM", "SALA", "EMA"])
def test_a_copy_made_in_the_middle_of_a_step_holds_the_weights_of_that_moment_and_disturbs_nothing(method):
    data = Samples()
    nets = [network(), network()]
    for net, copying in zip(nets, (False, True), strict=True):
        optimizer = wrapped(net, method)
        for start in range(0, 24, 4):
            x, y = data.x[start : start + 4], data.y[start : start + 4]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            if getattr(optimizer, "needs_perturbation", bool)():
                with optimizer.perturb():
                    if copying:
                        twin = copy.deepcopy(net)
                        assert_same(twin, net)
                        twin(x)  # its own statistics move, and not those of the original
                        assert not same_bits(list(twin.buffers()), list(net.buffers()))
                    nn.functional.cross_entropy(net(x), y).backward()
            elif copying:
                assert_same(pickle.loads(pickle.dumps(net)), net)
            optimizer.step()
    assert_same(*nets)


# Lightning.


def lightning_parts():
    lightning = pytest.importorskip("lightning.pytorch")
    from tests.integration.test_lightning_loops import Net

    return lightning, Net


def fit(module, *callbacks, epochs=2):
    from tests.integration.test_lightning_loops import LightningCallback, trainer

    run = trainer(LightningCallback(), *callbacks, epochs=epochs)
    run.fit(module, DataLoader(Indexed(Samples()), batch_size=8))
    return run


@pytest.mark.parametrize("kind", CRITERIA)
def test_copies_of_a_module_that_is_trained_have_its_own_losses_and_hooks(kind):
    lightning, net_of = lightning_parts()

    class Copying(lightning.Callback):
        found = ()

        def on_train_batch_end(self, trainer, module, *_):
            if trainer.global_step == 1:
                self.found = copy.deepcopy(module), pickle.loads(pickle.dumps(module))

    plain, copied = (net_of(CRITERIA[kind](nn.CrossEntropyLoss())) for _ in range(2))
    fit(plain)
    looks = Copying()
    fit(copied, looks)
    assert_same(plain.net, copied.net)
    twin, unpickled = looks.found
    assert type(twin.criterion) is type(unpickled.criterion) is type(copied.criterion)
    assert twin.criterion is not copied.criterion
    checkpoint = {}
    twin.on_save_checkpoint(checkpoint)
    assert checkpoint == {} and "log" not in vars(unpickled)


@pytest.mark.parametrize("kind", ["SAF", "MESA"])
@pytest.mark.parametrize("average", ["StochasticWeightAveraging", "EMAWeightAveraging"])
def test_lightnings_own_averages_copy_a_module_that_is_trained(average, kind):
    lightning, net_of = lightning_parts()
    options = {"swa_lrs": 0.05, "swa_epoch_start": 1} if average.startswith("Stoch") else {"decay": 0.9}
    module = net_of(CRITERIA[kind](nn.CrossEntropyLoss()))
    trainer = fit(module, getattr(lightning.callbacks, average)(**options), epochs=3)
    assert trainer.global_step >= 12 and isinstance(module.criterion, TrainingLoss)
    assert all(bool(p.isfinite().all()) for p in module.parameters())


def test_the_callback_and_the_optimizer_of_a_run_can_be_copied_and_pickled(tmp_path):
    callback = pytest.importorskip("lowland.integrations.lightning").LightningCallback
    given = callback(hooks=[Snapshots()], folder=tmp_path)
    assert pickle.loads(pickle.dumps(given)).folder == copy.deepcopy(given).folder == tmp_path


# Hugging Face.


def searched(folder, criterion, trials):
    """Search the learning rate as the Trainer does, and return it with what each trial ended with."""
    from tests.integration.test_transformers import Classifier, Flat, arguments

    ended = []

    class Searched(Flat):
        def create_optimizer(self, *_):
            if self.optimizer is None:
                base = torch.optim.SGD(self.model.parameters(), lr=self.args.learning_rate)
                self.optimizer = optim.EMA(optim.SAM(base), decay=0.5)
            return self.optimizer

        def train(self, *given, **options):
            found = super().train(*given, **options)
            ended.append([p.detach().clone() for p in self.model.parameters()])
            return found

    options = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True, "seed": 1}
    data = Samples(dicts=True)
    trainer = Searched(
        model_init=lambda: Classifier(network()),
        args=arguments(folder, epochs=3, **options),
        train_dataset=Indexed(data) if isinstance(criterion, SAF) else data,
        eval_dataset=Samples(dicts=True),
        compute_loss_func=criterion,
        hooks=[Snapshots()],
    )
    rates = iter(trials)
    trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", rate := next(rates), rate)},
        backend="optuna",
        n_trials=len(trials),
        direction="minimize",
    )
    return trainer, ended


@pytest.mark.parametrize("kind", ["SAF", "MESA"])
def test_every_trial_of_a_search_is_a_run_of_its_own(kind, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("optuna")
    _, both = searched(tmp_path / "both", CRITERIA[kind](nn.CrossEntropyLoss()), [0.2, 0.02])
    _, alone = searched(tmp_path / "alone", CRITERIA[kind](nn.CrossEntropyLoss()), [0.02])
    assert same_bits(both[1], alone[0]) and not same_bits(both[0], both[1])
    for trial in ("run-0", "run-1"):
        place = tmp_path / "both" / trial
        assert (place / "snapshots").exists()
        assert sorted(path.parent.name for path in place.glob("*/lowland-0.pt")) == [
            "checkpoint-16",
            "checkpoint-24",
            "checkpoint-8",
        ]
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == ["run-0", "run-1"]


def test_a_trainer_can_be_copied_and_pickled_where_it_could_without_us(tmp_path):
    pytest.importorskip("transformers")
    from tests.integration.test_transformers import Bare, Flat, arguments, trainer_of

    kinds = []
    for kind in (Bare, Flat):
        net = network()
        trainer = trainer_of(kind, net, wrapped(net, "SGD"), arguments(tmp_path))
        trainer.train()
        kinds.append({how.__name__: outcome(how, trainer) for how in (copy.deepcopy, pickle.dumps)})
    assert kinds[0] == kinds[1]


def outcome(how, trainer):
    try:
        how(trainer)
    except Exception as error:
        return type(error).__name__
    return "done"


# Accelerate.


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_model_without_what_accelerate_put_around_it(precision):
    pytest.importorskip("accelerate")
    from tests.integration.test_accelerate import accelerator_of

    from lowland.integrations import AcceleratePasses

    net, data = network(), Samples()
    accelerator = accelerator_of(mixed_precision=precision)
    model, optimizer = accelerator.prepare(net, wrapped(net, "EMA"))
    passes = AcceleratePasses(accelerator, model, optimizer)
    mesa = MESA(nn.CrossEntropyLoss(), start=0, half_life=1.0)
    mesa.prepare(model=model, epochs=1, steps_per_epoch=8)
    for start in range(0, 32, 4):
        x, y = data.x[start : start + 4], data.y[start : start + 4]
        passes.backward(lambda x=x, y=y: mesa(model(x), Batch(x, y)))
        optimizer.step()
        optimizer.zero_grad()
        mesa.after_step()
    assert mesa.epoch_log()["mesa_kl"] > 0
    with optimizer.optimizer.averaged():
        bare = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        twin = copy.deepcopy(bare).eval()
        average = [p.detach().clone() for p in net.parameters()]
    assert same_bits(list(twin.parameters()), average) and not same_bits(average, list(net.parameters()))
    with torch.no_grad():
        expected = twin(data.x)
        for p in net.parameters():
            p.zero_()
        assert torch.equal(twin(data.x), expected)
