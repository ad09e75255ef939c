"""The Trainer's own options under the mixin: what it logs, keeps as best, stops by, adds to the model, and refuses."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from tests.integration.test_transformers import Bare, Classifier, Flat, arguments, criterion_of, pair, trainer_of
from tests.trainer_cases import SAMPLES, Samples, assert_same, bfloat16, network, plain_loop, wrapped
from torch import nn

import lowland.optim as optim
from lowland.core.errors import InputError, MissingPass
from lowland.core.types import Batch
from lowland.data import Indexed
from lowland.integrations import SharpnessLog
from lowland.losses import SAF
from lowland.training import Hook

transformers = pytest.importorskip("transformers")

AVERAGING = ("EMA", "SALA", "Lookahead")
TIMES = {"runtime", "per_second"}


def rows(trainer):
    """Return what was logged, without times and without what is logged by nobody but us."""
    return [{k: v for k, v in row.items() if not any(time in k for time in TIMES)} for row in trainer.state.log_history]


class Spoken(Hook):
    def on_epoch_end(self, run):
        run.row["spoken"] = 1.0


@pytest.mark.parametrize(
    "strategy",
    [
        {"logging_strategy": "epoch"},
        {"logging_strategy": "steps", "logging_steps": 4},
        {"logging_strategy": "steps", "logging_steps": 3},
        {"logging_strategy": "steps", "logging_steps": 8, "logging_first_step": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("evaluating", ["no", "epoch"])
def test_no_row_of_the_trainer_is_lost_or_lacks_a_key(strategy, evaluating, tmp_path):
    options = {
        "epochs": 3,
        "eval_strategy": evaluating,
        "clip": 1.0,
        "include_num_input_tokens_seen": "all",
        **strategy,
    }
    found = []
    spoken = {"hooks": [Spoken()], "survey_loss": nn.CrossEntropyLoss()}
    for kind, method, criterion in (
        (Bare, "SGD", None),
        (Flat, "SGD", None),
        (Flat, "EMA", "SAF"),
        (Flat, "SAM", "LLR"),
    ):
        net, extra = network(), spoken if kind is Flat else {}
        if criterion is not None:
            extra = {**extra, "compute_loss_func": criterion_of(criterion), "indexed": criterion == "SAF"}
        trainer = trainer_of(kind, net, wrapped(net, method), arguments(tmp_path, **options), **extra)
        trainer.model.main_input_name = "x"
        trainer.train()
        found.append(rows(trainer))
    plain, ours, *others = found
    assert plain and [row for row in ours if "spoken" not in row] == plain
    for each in (ours, *others):
        own = [row for row in each if "spoken" not in row]
        assert [set(row) for row in own] == [set(row) for row in plain]
        same = ("epoch", "step", "learning_rate", "num_input_tokens_seen")
        assert [[row.get(name) for name in same] for row in own] == [[row.get(name) for name in same] for row in plain]
        assert sum("spoken" in row for row in each) == 3


def evaluated(net, optimizer):
    """Return the loss of the averaged weights, with statistics of their own."""
    data = Samples()
    parts = [Batch(data.x[i : i + 4], data.y[i : i + 4]) for i in range(0, SAMPLES, 4)]
    with optimizer.averaged(), torch.no_grad():
        optimizer.recalibrate(parts, net)
        net.eval()
        return nn.functional.cross_entropy(net(data.x), data.y).item()


@pytest.mark.parametrize("method", AVERAGING)
def test_evaluation_has_batch_norm_statistics_of_the_average(method, tmp_path):
    (net, optimizer), mine = pair(method)
    plain_loop(net, optimizer, epochs=2)
    trainer = trainer_of(Flat, *mine, arguments(tmp_path, epochs=2, eval_strategy="epoch"))
    trainer.train()
    logged = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert logged[-1] == pytest.approx(evaluated(net, optimizer), rel=1e-6)
    assert trainer.evaluate()["eval_loss"] == logged[-1]
    mine[1].train()
    net.train()
    optimizer.train()
    assert_same(net, mine[0])


@pytest.mark.parametrize("method", ["SAM", *AVERAGING])
@pytest.mark.parametrize("steps", [16, 19])  # 19: the last evaluation is not at the last step
def test_the_best_model_has_the_metric_it_was_chosen_by(method, steps, tmp_path):
    net = network()
    args = arguments(
        tmp_path,
        epochs=3,
        max_steps=steps,
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        load_best_model_at_end=True,
        greater_is_better=True,
        metric_for_best_model="eval_loss",
    )
    seen = []

    class AtEnd(Hook):
        def on_fit_end(self, run):
            run.model.eval()
            data = Samples()
            with torch.no_grad():
                seen.append(nn.functional.cross_entropy(run.model(data.x)["logits"], data.y).item())

    options = {"survey_loss": nn.CrossEntropyLoss(), "hooks": [AtEnd()]}
    trainer = trainer_of(Flat, net, wrapped(net, method), args, **options)
    trainer.train()
    best = trainer.state.best_metric
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-6)
    assert seen == [pytest.approx(best, rel=1e-6)]


def test_the_best_of_an_average_needs_its_optimizer(tmp_path):
    net = network()
    args = arguments(
        tmp_path, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, save_only_model=True
    )
    with pytest.raises(InputError, match="save_only_model"):
        trainer_of(Flat, net, wrapped(net, "EMA"), args).train()


@pytest.mark.parametrize("method", AVERAGING)
def test_resume_after_an_evaluation_has_the_trained_statistics(method, tmp_path):
    def trainer(net, optimizer):
        return trainer_of(
            Flat, net, optimizer, arguments(tmp_path, epochs=3, save_strategy="epoch", eval_strategy="epoch")
        )

    (net, optimizer), mine = pair(method)
    trainer(net, optimizer).train()
    trainer(*mine).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    for each in (optimizer, mine[1]):
        each.train()
    assert_same(net, mine[0])


def test_early_stopping_ends_the_run(tmp_path):
    net = network()
    args = arguments(
        tmp_path,
        epochs=9,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=True,
    )
    stop = transformers.EarlyStoppingCallback(early_stopping_patience=1)
    trainer = trainer_of(Flat, net, wrapped(net), args, callbacks=[stop])
    trainer.train()
    assert trainer.state.global_step < 9 * 8


# Models of the library.


def words(count=16, length=6):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 20, (count, length), generator=generator)
    return [{"input_ids": row, "labels": row[0] % 2} for row in ids]


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=8,
    )
    return transformers.BertForSequenceClassification(config)


def tuned(model, folder, *, loss=None, start=None, **options):
    """Train as the Trainer does; `start` is told the random state of the first pass."""
    optimizer = optim.SAM(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))
    trainer = Flat(
        model,
        arguments(folder, **options),
        train_dataset=words(),
        compute_loss_func=loss,
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 0)),
    )
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(words())
    if start is not None:
        own = trainer.training_step
        trainer.training_step = lambda *given: (start.append(torch.get_rng_state()), own(*given))[1]
    trainer.train()
    return trainer


def by_hand(model, smoothing=0.0, cast=nullcontext):
    optimizer = optim.SAM(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))
    model.train()
    data = words()
    for start in range(0, len(data), 4):
        part = data[start : start + 4]
        batch = {name: torch.stack([row[name] for row in part]) for name in part[0]}

        def backward(batch=batch):
            with cast():
                logits = model(input_ids=batch["input_ids"]).logits
            logits = logits.float()
            nn.functional.cross_entropy(logits, batch["labels"], label_smoothing=smoothing).backward()

        optimizer.zero_grad()
        backward()
        with optimizer.perturb():
            backward()
        optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": True},
        {"label_smoothing_factor": 0.1},
        {"torch_compile": True, "torch_compile_backend": "eager"},
        {"bf16": True},
        {"neftune_noise_alpha": 5.0},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_options_of_the_trainer_with_a_second_pass(options, tmp_path):
    first, second, start = bert(), bert(), []
    trainer = tuned(first, tmp_path, start=start, **options)
    assert getattr(trainer.optimizer, "optimizer", trainer.optimizer).steps == 4
    noise = options.get("neftune_noise_alpha")
    if noise is not None:  # what the Trainer puts on the embedding; both passes draw their own
        embedding = second.get_input_embeddings()
        embedding.neftune_noise_alpha = noise
        embedding.register_forward_hook(transformers.integrations.neftune.neftune_post_forward_hook)
    torch.set_rng_state(start[0])
    by_hand(second, options.get("label_smoothing_factor", 0.0), bfloat16 if "bf16" in options else nullcontext)
    if "label_smoothing_factor" in options:  # the Trainer sums in another order
        for one, other in zip(first.parameters(), second.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    else:
        assert_same(first, second)


class Half(Classifier):
    """Runs in float16 by itself: the Trainer refuses fp16=True on a processor."""

    def forward(self, x, labels=None):
        with torch.autocast("cpu", dtype=torch.float16):
            return super().forward(x, labels)


@pytest.mark.parametrize("ascent", ["step", "micro-batch"])
@pytest.mark.parametrize("scale", [256.0, 2.0**30])
@pytest.mark.parametrize("method", ["SAM", "FSAM"])
def test_float16_also_where_the_scaler_skips_steps(ascent, scale, method, tmp_path):
    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)

    def cast():
        return torch.autocast("cpu", dtype=torch.float16)

    (net, optimizer), mine = pair(method, ascent=ascent)
    scaled = scaler()
    plain_loop(net, optimizer, micro_batches=2, cast=cast, scaler=scaled, epochs=3)
    trainer = trainer_of(Flat, *mine, arguments(tmp_path, micro_batches=2, epochs=3))
    trainer.model = trainer.model_wrapped = Half(mine[0])
    trainer.accelerator.scaler = scaler()
    trainer.train()
    assert trainer.accelerator.scaler.get_scale() == scaled.get_scale()
    assert_same(net, mine[0])


def test_label_smoothing_beside_a_loss_of_ours_is_refused(tmp_path):
    with pytest.raises(InputError, match="label_smoothing_factor"):
        tuned(bert(), tmp_path, loss=criterion_of("LLR"), label_smoothing_factor=0.1)


def test_a_plain_trainer_names_the_mixin(tmp_path):
    net, optimizer = pair()[0]
    with pytest.raises(MissingPass, match="TrainerMixin"):
        trainer_of(Bare, net, optimizer, arguments(tmp_path)).train()


def test_automatic_batch_size_begins_the_run_anew(tmp_path):
    net = network()
    saf = SAF(nn.CrossEntropyLoss(), start=1, look_back=1)
    trainer = trainer_of(
        Flat,
        net,
        wrapped(net),
        arguments(tmp_path, epochs=2, auto_find_batch_size=True),
        compute_loss_func=saf,
        indexed=True,
        hooks=[SharpnessLog(samples=8)],
    )
    trainer.train()
    assert saf.epoch_log()["saf_hit_rate"] == 1.0 and isinstance(trainer.train_dataset, Indexed)
