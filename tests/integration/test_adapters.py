"""Adapters (PEFT) have the bits of a loop by hand under the mixin, and supervised fine-tuning (TRL) its numbers."""

from __future__ import annotations

import pytest
import torch
from tests.integration.test_transformers import Flat, arguments
from tests.integration.test_transformers_options import bert, words
from tests.trainer_cases import assert_same, slow_but
from torch import nn

import lowland.optim as optim
from lowland.core.errors import InputError, MissingPass
from lowland.core.types import Batch
from lowland.data import Indexed
from lowland.integrations import TrainerMixin
from lowland.losses import LLR, MESA, SAF, TrainingLoss

transformers = pytest.importorskip("transformers")

OPTIMIZERS = {
    "SGD": lambda base: base,
    "SAM": optim.SAM,
    "SAM micro-batch": lambda base: optim.SAM(base, ascent="micro-batch"),
    "GSAM": lambda base: optim.GSAM(base, rho=0.1),
    "SALA": lambda base: optim.SALA(base, period=3),
    "EMA(SAM)": lambda base: optim.EMA(optim.SAM(base), decay=0.9),
}
LOSSES = {
    "plain": lambda plain: None,
    "LLR": lambda plain: LLR(plain, initial_loss=0.7, start=1),
    "SAF": lambda plain: SAF(plain, start=1, look_back=1),
    "MESA": lambda plain: MESA(plain, start=1, half_life=1.0),
    "MESA of tokens": lambda plain: MESA(plain, start=1, half_life=1.0, class_axis=2),
}
# (optimizer, loss): every one of both, and the two that meet most often
CASES = [(name, "plain") for name in OPTIMIZERS] + [("SGD", "LLR"), ("SAM", "SAF"), ("SGD", "MESA"), ("SALA", "LLR")]

TOKENS = [(name, "plain") for name in OPTIMIZERS] + [("SAM", "LLR"), ("SALA", "LLR"), ("SGD", "MESA of tokens")]


def made(model, method):
    trained = [p for p in model.parameters() if p.requires_grad]
    return OPTIMIZERS[method](torch.optim.SGD(trained, lr=0.1, momentum=0.9))


def by_hand(model, optimizer, batches, loss, criterion, *, epochs, micro_batches=1):
    """Train as a loop of one's own does; a batch is the model's arguments, its labels and its sample ids.

    A loss of ours is divided by the micro-batches; `criterion` takes the number of labels of the step as well.
    """
    model.train()
    optimizer.zero_grad()
    ascent = optimizer if isinstance(optimizer, optim.Wrapper) and hasattr(optimizer, "perturb") else None
    ours = isinstance(loss, TrainingLoss)
    if ours:
        steps = len(batches) // micro_batches
        loss.prepare(model=model, epochs=epochs, steps_per_epoch=steps, samples=sum(len(b.target) for b in batches))

    def backward(batch, labels):
        logits = model(**batch.input).logits
        value = loss(logits, batch) / micro_batches if ours else criterion(logits, batch.target, labels)
        value.backward()

    for epoch in range(epochs):
        if ours:
            loss.epoch = epoch
        for start in range(0, len(batches), micro_batches):
            group = batches[start : start + micro_batches]
            labels = sum(int(part.target.ne(-100).sum()) for part in group)
            two = ascent is not None and ascent.needs_perturbation()
            each = two and ascent.options.ascent == "micro-batch"
            for together in [[part] for part in group] if each else [group]:
                if two:
                    with ascent.first_pass():
                        [backward(part, labels) for part in together]
                    with ascent.perturb():
                        [backward(part, labels) for part in together]
                else:
                    [backward(part, labels) for part in together]
            optimizer.step()
            optimizer.zero_grad()
            if ours:
                loss.after_step()


def trained(model, method, loss, folder, data, *, kind=Flat, **options):
    optimizer = made(model, method)
    trainer = kind(
        model,
        arguments(folder, **options),
        train_dataset=Indexed(data) if isinstance(loss, SAF) else data,
        compute_loss_func=loss,
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 0)),
    )
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(data)
    trainer.train()
    optimizer.train() if isinstance(optimizer, optim.Wrapper) else None
    return trainer


@pytest.mark.parametrize("adapter", ["LoRA", "DoRA"])
@pytest.mark.parametrize(
    ("method", "kind", "micro_batches"),
    slow_but(
        [(*case, n) for case in CASES for n in (1, 2)], [("SAM", "plain", 2), ("SALA", "plain", 1), ("SAM", "SAF", 2)]
    ),
)
def test_adapters_have_the_bits_of_a_loop_by_hand_and_the_frozen_weights_stay(
    method, kind, adapter, micro_batches, tmp_path
):
    peft = pytest.importorskip("peft", reason='needs pip install "lowland[peft]"')

    def adapted():
        torch.manual_seed(1)
        config = peft.LoraConfig(
            task_type="SEQ_CLS",
            r=2,
            lora_alpha=4,
            lora_dropout=0.0,
            use_dora=adapter == "DoRA",
            target_modules=["query", "value"],
        )
        return peft.get_peft_model(bert(), config)

    def of_step(logits, target, labels):
        del labels  # the Trainer leaves division to models that take **kwargs, and this one takes its batch's mean
        return criterion(logits, target)

    criterion = nn.CrossEntropyLoss()
    first, second = adapted(), adapted()
    frozen = {name: p.detach().clone() for name, p in first.named_parameters() if not p.requires_grad}
    start = [p.detach().clone() for p in first.parameters() if p.requires_grad]
    trained(first, method, LOSSES[kind](criterion), tmp_path, words(), epochs=3, micro_batches=micro_batches)
    data = words()
    batches = [
        Batch(
            {"input_ids": torch.stack([row["input_ids"] for row in data[k : k + 4]])},
            torch.stack([row["labels"] for row in data[k : k + 4]]),
            torch.arange(k, k + 4),
        )
        for k in range(0, len(data), 4)
    ]
    optimizer = made(second, method)
    by_hand(second, optimizer, batches, LOSSES[kind](criterion), of_step, epochs=3, micro_batches=micro_batches)
    assert_same(first, second)
    assert all(torch.equal(p, frozen[name]) for name, p in first.named_parameters() if name in frozen)
    moved = [p for p in first.parameters() if p.requires_grad]
    assert not all(torch.equal(p, q) for p, q in zip(moved, start, strict=True))


# TRL.


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {"<pad>": 0, "<eos>": 1, **{word: k + 2 for k, word in enumerate("abcdef")}}
    kept = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    kept.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=kept, pad_token="<pad>", eos_token="<eos>")


def language_model():
    torch.manual_seed(0)
    sizes = {"vocab_size": 8, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **still, bos_token_id=1, eos_token_id=1))


def next_token(logits, labels, reduction="mean"):
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction=reduction)


def next_token_of_step(logits, target, labels):
    """The loss of TRL: the sum over the labels of the whole step, by their number, first ones included."""
    return next_token(logits, target, "sum") / labels


def sft(
    trl,
    net,
    method,
    loss,
    folder,
    *,
    kind,
    micro_batches=1,
    epochs=2,
    adapter=None,
    collate=None,
    texts=("a b c d", "b c d e", "c d e f", "d e f a") * 2,
    more=None,
    **options,
):
    datasets = pytest.importorskip("datasets")
    texts = datasets.Dataset.from_dict({"text": list(texts)})
    args = trl.SFTConfig(
        str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=micro_batches,
        num_train_epochs=epochs,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        bf16=False,
        gradient_checkpointing=False,
        **{"logging_strategy": "epoch", **options},
    )
    if adapter is not None:
        net = pytest.importorskip("peft").get_peft_model(net, adapter)
    optimizer = made(net, method)
    trainer = kind(
        net,
        args,
        train_dataset=texts,
        data_collator=collate,
        processing_class=tokenizer(),
        compute_loss_func=loss,
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0, 0)),
        **(more or {}),
    )
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(trainer.train_dataset)
    if isinstance(loss, SAF):
        trainer.train_dataset = Indexed(trainer.train_dataset)
    batches = [dict(batch) for batch in trainer.get_train_dataloader()]
    trainer.train()
    optimizer.train() if isinstance(optimizer, optim.Wrapper) else None
    taken = ("labels", "index")
    return trainer, [
        Batch({k: v for k, v in b.items() if k not in taken}, b["labels"], b.get("index")) for b in batches
    ]


@pytest.mark.parametrize(
    ("method", "kind", "micro_batches"),
    slow_but(
        [(*case, n) for case in TOKENS for n in (1, 2)],
        [("SAM", "plain", 2), ("SALA", "LLR", 1), ("SGD", "MESA of tokens", 1)],
    ),
)
def test_supervised_fine_tuning_has_the_numbers_of_a_loop_by_hand_and_its_rows_are_whole(
    method, kind, micro_batches, tmp_path
):
    trl = pytest.importorskip("trl", reason='needs pip install "lowland[peft]"')

    class FlatSFT(TrainerMixin, trl.SFTTrainer):
        pass

    first, second = language_model(), language_model()
    trainer, batches = sft(
        trl, first, method, LOSSES[kind](next_token), tmp_path, kind=FlatSFT, micro_batches=micro_batches
    )
    own = [row for row in trainer.state.log_history if "loss" in row]
    assert len(own) == 2 and all({"grad_norm", "learning_rate", "entropy", "num_tokens"} <= set(row) for row in own)
    optimizer = made(second, method)
    by_hand(
        second, optimizer, batches, LOSSES[kind](next_token), next_token_of_step, epochs=2, micro_batches=micro_batches
    )
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


def test_supervised_fine_tuning_without_the_mixin_names_it(tmp_path):
    trl = pytest.importorskip("trl", reason='needs pip install "lowland[peft]"')
    with pytest.raises(MissingPass, match="TrainerMixin"):
        sft(trl, language_model(), "SAM", None, tmp_path, kind=trl.SFTTrainer)


@pytest.mark.parametrize("method", ["SAM", "SAM micro-batch"])
def test_rows_of_supervised_fine_tuning_count_the_clean_pass_alone(method, tmp_path):
    trl = pytest.importorskip("trl", reason='needs pip install "lowland[peft]"')

    class FlatSFT(TrainerMixin, trl.SFTTrainer):
        pass

    found = []
    for kind, name in ((trl.SFTTrainer, "SGD"), (FlatSFT, method)):
        options = {"logging_strategy": "steps", "logging_steps": 1, "micro_batches": 2}
        trainer, _ = sft(trl, language_model(), name, None, tmp_path, kind=kind, **options)
        found.append([row for row in trainer.state.log_history if "loss" in row])
    plain, ours = found
    assert [row["num_tokens"] for row in ours] == [row["num_tokens"] for row in plain]
    assert all(plain[0][name] == ours[0][name] for name in ("loss", "entropy", "mean_token_accuracy"))
    assert [set(row) for row in ours] == [set(row) for row in plain]


@pytest.mark.parametrize(("method", "kind"), [("SAM", "plain"), ("SALA", "LLR"), ("SGD", "MESA of tokens")])
def test_supervised_fine_tuning_of_adapters(method, kind, tmp_path):
    trl = pytest.importorskip("trl", reason='needs pip install "lowland[peft]"')
    peft = pytest.importorskip("peft", reason='needs pip install "lowland[peft]"')

    class FlatSFT(TrainerMixin, trl.SFTTrainer):
        pass

    settings = {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["c_attn"]}
    adapter = peft.LoraConfig(lora_dropout=0.0, fan_in_fan_out=True, **settings)
    nets = [language_model(), language_model()]
    torch.manual_seed(5)
    loss = LOSSES[kind](next_token)
    trainer, batches = sft(trl, nets[0], method, loss, tmp_path, kind=FlatSFT, adapter=adapter, micro_batches=2)
    torch.manual_seed(5)
    second = peft.get_peft_model(nets[1], adapter)
    by_hand(
        second,
        made(second, method),
        batches,
        LOSSES[kind](next_token),
        next_token_of_step,
        epochs=2,
        micro_batches=2,
    )
    moved = 0
    for (name, one), other in zip(trainer.model.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)
        moved += int(one.requires_grad and "lora_B" in name and bool(one.any()))
    assert moved > 0
    assert all("lora" in name for name, p in trainer.model.named_parameters() if p.requires_grad)


class WithIds:
    """A collator that hands sample ids through, as docs/integrations.md writes it."""

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, rows):
        ids = torch.tensor([row["index"] for row in rows])
        return {**self.collate([{k: v for k, v in row.items() if k != "index"} for row in rows]), "index": ids}


def test_sample_ids_reach_saf_through_a_collator_that_keeps_them_or_are_asked_for(tmp_path):
    trl = pytest.importorskip("trl", reason='needs pip install "lowland[peft]"')
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    class FlatSFT(TrainerMixin, trl.SFTTrainer):
        pass

    def saf():
        return SAF(next_token, start=1, look_back=1, class_axis=2)

    net = language_model()
    with pytest.raises(InputError, match="remove_unused_columns"):
        sft(trl, net, "SGD", saf(), tmp_path, kind=FlatSFT)
    with pytest.raises(InputError, match=r"sample ids.*collator"):
        sft(trl, net, "SGD", saf(), tmp_path, kind=FlatSFT, remove_unused_columns=False)
    first, second = language_model(), language_model()
    collate = WithIds(DataCollatorForLanguageModeling(pad_token_id=0))
    options = {"kind": FlatSFT, "collate": collate, "remove_unused_columns": False, "epochs": 3}
    _, batches = sft(trl, first, "SAM", loss := saf(), tmp_path, **options)
    assert loss.epoch_log()["saf_hit_rate"] == 1.0 and loss.epoch_log()["saf_kl"] > 0
    by_hand(second, made(second, "SAM"), batches, saf(), next_token_of_step, epochs=3)
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


# Rows of several lengths.

LENGTHS = ("a b c d e f", "b c", "c d e f", "d e f a b", "e f a", "f a b c d e", "a c", "b d f a")


def saf_row_by_row(model, batches, *, epochs):
    """SAF with a dictionary as its memory, every row alone, as long as it is."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    past = {}
    model.train()
    for epoch in range(epochs):
        for batch in batches:
            sums, added = [], []
            lengths = batch.input["attention_mask"].sum(1)
            for tokens, labels, length, number in zip(
                batch.input["input_ids"], batch.target, lengths, batch.index, strict=True
            ):
                logits = model(input_ids=tokens[None, :length]).logits
                sums.append(next_token(logits, labels[None, :length], "sum"))
                now = torch.log_softmax(logits[0] / 5, 1)[labels[:length] != -100]
                if epoch:
                    before = past[int(number)]
                    added.append((before.exp() * (before - now)).sum(1).mean())
                past[int(number)] = now.detach()
            labeled = batch.target[:, 1:].ne(-100).sum()
            (sum(sums) / labeled + 7.5 * sum(added) / len(lengths)).backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_several_lengths_under_saf_are_as_if_never_padded(packed, tmp_path):
    trl = pytest.importorskip("trl", reason='needs pip install "lowland[peft]"')
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    class FlatSFT(TrainerMixin, trl.SFTTrainer):
        pass

    packing = {"packing": True, "packing_strategy": "wrapped", "max_length": 6} if packed else {}
    collate = WithIds(DataCollatorForLanguageModeling(pad_token_id=0, pad_to_multiple_of=8))
    options = {"kind": FlatSFT, "collate": collate, "remove_unused_columns": False, "epochs": 3, **packing}
    first, second = language_model(), language_model()
    loss = SAF(next_token, start=1, look_back=1, class_axis=2)
    _, batches = sft(trl, first, "SGD", loss, tmp_path, texts=LENGTHS, **options)
    lengths = [int(n) for batch in batches for n in batch.input["attention_mask"].sum(1)]
    assert len(set(lengths)) > 1 and {batch.target.shape[1] for batch in batches} == {8}
    assert loss.epoch_log()["saf_hit_rate"] == 1.0 and loss.epoch_log()["saf_kl"] > 0
    saf_row_by_row(second, batches, epochs=3)
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize(("free", "match"), [(False, "pad to max_length"), (True, "joins rows")])
def test_rows_padded_to_their_batch_and_joined_rows_are_refused_under_saf(free, match, tmp_path):
    trl = pytest.importorskip("trl", reason='needs pip install "lowland[peft]"')
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    class FlatSFT(TrainerMixin, trl.SFTTrainer):
        pass

    collate = WithIds(DataCollatorForLanguageModeling(pad_token_id=0, padding_free=free))
    loss = SAF(next_token, start=1, look_back=1, class_axis=2)
    with pytest.raises(InputError, match=match):
        options = {"kind": FlatSFT, "collate": collate, "remove_unused_columns": False}
        sft(trl, language_model(), "SGD", loss, tmp_path, texts=LENGTHS, **options)
