"""Hugging Face Trainer: the same bits as the plain loop, whatever the accumulation, and after a resume."""

from __future__ import annotations

import inspect

import pytest
import torch
from tests.trainer_cases import (
    EVERY_METHOD,
    SAMPLES,
    Samples,
    StopAfter,
    Unending,
    assert_same,
    network,
    plain_loop,
    slow_but,
    wrapped,
)
from torch import nn

from lowland import results
from lowland.core.contexts import same_bits
from lowland.core.errors import CheckpointError, InputError, MissingPass
from lowland.data import Indexed
from lowland.losses import LLR, MESA, SAF
from lowland.training import Snapshots

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
integration = pytest.importorskip("lowland.integrations.transformers")


class Classifier(nn.Module):
    """Takes keyword arguments and gives loss and logits, as models of the library do."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, labels=None):
        logits = self.net(x)
        found = {"logits": logits}
        return found if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), **found}


class InOrder:
    """Without shuffling, so that a plain loop meets the same batches."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(range(SAMPLES))


class Flat(InOrder, integration.TrainerMixin, transformers.Trainer):
    pass


class Bare(InOrder, transformers.Trainer):
    pass


def arguments(folder, *, micro_batches=1, epochs=1, clip=0.0, **options):
    return transformers.TrainingArguments(
        str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=epochs,
        gradient_accumulation_steps=micro_batches,
        max_grad_norm=clip,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **{"save_strategy": "no", "logging_strategy": "no", "remove_unused_columns": False, **options},
    )


def trainer_of(kind, net, optimizer, args, *, indexed=False, **options):
    data = Samples(dicts=True)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 0)
    return kind(
        Classifier(net),
        args,
        train_dataset=Indexed(data) if indexed else data,
        eval_dataset=data,
        optimizers=(optimizer, schedule),
        **options,
    )


def pair(method="SAM", **options):
    first, second = network(), network()
    return (first, wrapped(first, method, **options)), (second, wrapped(second, method, **options))


def criterion_of(kind):
    plain = nn.CrossEntropyLoss()
    return {
        "LLR": lambda: LLR(plain, initial_loss=1.2, start=1),
        "SAF": lambda: SAF(plain, start=1, look_back=1),
        "MESA": lambda: MESA(plain, start=1, half_life=1.0),
        "both": lambda: LLR(SAF(plain, start=1, look_back=1), initial_loss=1.2),
    }[kind]()


# The optimizers.


@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize(("ascent", "micro_batches"), [("step", 1), ("step", 2), ("micro-batch", 2)])
def test_same_bits_as_the_plain_loop(method, ascent, micro_batches, tmp_path):
    (net, optimizer), mine = pair(method, ascent=ascent)
    plain_loop(net, optimizer, micro_batches=micro_batches)
    trainer_of(Flat, *mine, arguments(tmp_path, micro_batches=micro_batches)).train()
    assert_same(net, mine[0])


def test_clipping_comes_after_the_second_pass(tmp_path):
    (net, optimizer), mine = pair()
    plain_loop(net, optimizer, clip=0.01)
    trainer_of(Flat, *mine, arguments(tmp_path, clip=0.01)).train()
    assert_same(net, mine[0])


def test_the_logged_loss_is_that_of_the_clean_pass(tmp_path):
    (net, optimizer), mine = pair()
    clean = plain_loop(net, optimizer)
    trainer = trainer_of(Flat, *mine, arguments(tmp_path, logging_strategy="steps", logging_steps=1))
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(clean, rel=1e-6)


def test_evaluation_sees_the_evaluation_weights(tmp_path):
    (net, optimizer), mine = pair("SALA")
    plain_loop(net, optimizer, epochs=2)
    trainer_of(Flat, *mine, arguments(tmp_path, epochs=2, eval_strategy="epoch")).train()
    with optimizer.averaged():
        averaged = [p.detach().clone() for p in net.parameters()]
    assert same_bits(averaged, list(mine[0].parameters()))
    mine[1].train()
    assert_same(net, mine[0])


# The losses.


RUNS = [(k, m, n) for k in ("LLR", "SAF", "MESA", "both") for m in ("SGD", "SAM") for n in (1, 2)]


@pytest.mark.parametrize(
    ("kind", "method", "micro_batches"),
    slow_but(RUNS, [("LLR", "SGD", 1), ("SAF", "SAM", 2), ("MESA", "SAM", 1)]),
)
def test_losses_as_compute_loss_func(kind, method, micro_batches, tmp_path):
    (net, optimizer), mine = pair(method)
    plain_loop(net, optimizer, criterion_of(kind), epochs=3, micro_batches=micro_batches)
    trainer = trainer_of(
        Flat,
        *mine,
        arguments(tmp_path, epochs=3, micro_batches=micro_batches, eval_strategy="epoch"),
        indexed=kind in ("SAF", "both"),
        compute_loss_func=criterion_of(kind),
    )
    trainer.train()
    assert_same(net, mine[0])
    logged = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    if kind != "LLR":
        assert logged["loss_mesa_kl" if kind == "MESA" else "loss_saf_hit_rate"] > 0
    with torch.no_grad():
        data = Samples()
        net.eval()
        plain = nn.functional.cross_entropy(net(data.x), data.y).item()
    assert logged["eval_loss"] == pytest.approx(plain, rel=1e-5)


# Resume.


RESUMES = [(m, k, s) for m in ("SAM", "LookSAM", "SALA", "EMA") for k in ("SAF", "MESA") for s in (10, 16)]


@pytest.mark.parametrize(("method", "kind", "step"), slow_but(RESUMES, [("SAM", "SAF", 10), ("SALA", "MESA", 16)]))
def test_resume_ends_with_the_same_bits(method, kind, step, tmp_path):
    def trainer(net, optimizer):
        args = arguments(tmp_path, epochs=3, save_strategy="steps", save_steps=2, eval_strategy="epoch")
        return trainer_of(Flat, net, optimizer, args, indexed=kind == "SAF", compute_loss_func=criterion_of(kind))

    (net, optimizer), mine = pair(method)
    trainer(net, optimizer).train()
    resumed = trainer(*mine)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert resumed.state.global_step == 24
    assert_same(net, mine[0])


def test_the_last_checkpoint_is_found_by_the_trainers_rule(tmp_path):
    def trainer(net, optimizer, epochs):
        args = arguments(tmp_path, epochs=epochs, save_strategy="epoch")
        return trainer_of(Flat, net, optimizer, args, indexed=True, compute_loss_func=criterion_of("SAF"))

    (net, optimizer), mine = pair()
    trainer(net, optimizer, 1).train()
    resumed = trainer(*mine, 2)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 16


# Hooks.


def test_path_sharpness_and_surface_without_a_trace_in_the_weights(tmp_path):
    from lowland.integrations import SharpnessLog, SurfaceAtEnd

    (net, optimizer), mine = pair()
    plain_loop(net, optimizer, epochs=2)
    trainer = trainer_of(
        Flat,
        *mine,
        arguments(tmp_path, epochs=2),
        survey_loss=nn.CrossEntropyLoss(),
        hooks=[Snapshots(every_steps=4), SharpnessLog(samples=16), SurfaceAtEnd(points=3, samples=16)],
    )
    trainer.train()
    assert_same(net, mine[0])
    assert results.SnapshotReader(tmp_path / "snapshots").steps == (0, 4, 8, 12, 16)
    measured = [entry for entry in trainer.state.log_history if "sharpness" in entry]
    assert len(measured) == 2 and all(entry["sharpness_weight_norm"] > 0 for entry in measured)
    surface = results.open(tmp_path / "surfaces" / "random.zarr")
    assert surface.loss.shape == (3, 3) and bool((surface.status == 1).all())


# Wrong use.


def test_without_the_mixin_nothing_is_trained_wrongly(tmp_path):
    net, optimizer = pair()[0]
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(MissingPass):
        trainer_of(Bare, net, optimizer, arguments(tmp_path)).train()
    assert same_bits(before, list(net.parameters()))
    with pytest.raises(TypeError, match="num_items_in_batch"):
        trainer_of(Bare, net, optimizer, arguments(tmp_path), compute_loss_func=criterion_of("LLR")).train()


@pytest.mark.parametrize(
    ("indexed", "options", "match"),
    [(True, {"remove_unused_columns": True}, "remove_unused_columns"), (False, {}, "sample ids")],
)
def test_sample_ids_that_do_not_arrive(indexed, options, match, tmp_path):
    net, optimizer = pair("SGD")[0]
    trainer = trainer_of(
        Flat, net, optimizer, arguments(tmp_path, **options), indexed=indexed, compute_loss_func=criterion_of("SAF")
    )
    with pytest.raises(InputError, match=match):
        trainer.train()


def test_replay_over_several_micro_batches_is_refused(tmp_path):
    net, optimizer = pair(rng="replay", ascent="step")[0]
    with pytest.raises(InputError, match='"replay"'):
        trainer_of(Flat, net, optimizer, arguments(tmp_path, micro_batches=2)).train()


def test_hooks_need_a_loss_that_can_be_measured(tmp_path):
    from lowland.integrations import SharpnessLog

    net, optimizer = pair("SGD")[0]
    with pytest.raises(InputError, match="`loss`"):
        trainer_of(Flat, net, optimizer, arguments(tmp_path), hooks=[SharpnessLog()]).train()


def test_a_checkpoint_without_the_state_of_the_loss_is_refused(tmp_path):
    net, optimizer = pair("SGD")[0]
    trainer_of(Flat, net, optimizer, arguments(tmp_path, save_strategy="epoch")).train()
    net, optimizer = pair("SGD")[0]
    loss = criterion_of("LLR")
    args = arguments(tmp_path, epochs=2, save_strategy="epoch")
    with pytest.raises(CheckpointError, match="no state"):
        trainer_of(Flat, net, optimizer, args, compute_loss_func=loss).train(resume_from_checkpoint=True)


def test_an_exception_leaves_no_work_behind(tmp_path):
    class Failing(Classifier):
        count = 0

        def forward(self, x, labels=None):
            Failing.count += 1
            if Failing.count == 2:
                raise RuntimeError("now")
            return super().forward(x, labels)

    net, optimizer = pair()[0]
    trainer = trainer_of(Flat, net, optimizer, arguments(tmp_path, micro_batches=2))
    trainer.model = trainer.model_wrapped = Failing(net)
    with pytest.raises(RuntimeError, match="now"):
        trainer.train()
    trainer.train()
    assert optimizer.steps == 4 and all(bool(p.isfinite().all()) for p in net.parameters())


def test_the_mixin_changes_no_other_step_of_the_trainer():
    own = {name for name, value in vars(integration.TrainerMixin).items() if inspect.isfunction(value)}
    assert own == {"__init__", "train", "training_step", "evaluation_loop"}


def test_a_hook_ends_the_run(tmp_path):
    net = network()
    args = arguments(tmp_path, epochs=5)
    trainer = trainer_of(Flat, net, wrapped(net), args, hooks=[StopAfter(2)], survey_loss=nn.CrossEntropyLoss())
    trainer.train()
    assert trainer.state.global_step == 2 * 8


def test_data_without_a_length(tmp_path):
    net = network()
    optimizer = wrapped(net)
    trainer = Flat(
        Classifier(net),
        arguments(tmp_path, max_steps=6),
        train_dataset=Unending(dicts=True),
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 0)),
    )
    trainer.train()
    assert trainer.state.global_step == 6 and optimizer.steps == 6
