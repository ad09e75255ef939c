"""Sharpness under supervised fine-tuning (TRL), also of adapters (PEFT): that of the mean over tokens, or refused."""

from __future__ import annotations

import pytest
import torch
from tests.integration.test_adapters import LENGTHS, language_model, next_token, sft
from torch import nn

from lowland import results
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.integrations import SharpnessLog, SurfaceAtEnd, TrainerMixin

pytest.importorskip("transformers")


def token_losses(logits, labels):
    """Losses of the tokens and how often each counts, as docs/integrations.md writes it."""
    losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    return losses, labels[:, 1:].ne(-100).float()


def fine_tuned(folder, *, adapter=None, hooks=(), survey_loss=token_losses, loss=None, seed=5):
    trl = pytest.importorskip("trl", reason='needs pip install "lowland[peft]"')

    class FlatSFT(TrainerMixin, trl.SFTTrainer):
        pass

    net = language_model()
    torch.manual_seed(seed)
    more = {"hooks": list(hooks), "survey_loss": survey_loss}
    return sft(trl, net, "SAM", loss, folder, kind=FlatSFT, adapter=adapter, texts=LENGTHS, more=more)


def row_by_row(model, batches):
    """The mean over all tokens with a label, every row alone and as long as it is."""
    sums, counts = [], 0
    for batch in batches:
        lengths = batch.input["attention_mask"].sum(1)
        for tokens, labels, length in zip(batch.input["input_ids"], batch.target, lengths, strict=True):
            logits = model(input_ids=tokens[None, :length]).logits
            sums.append(next_token(logits, labels[None, :length], "sum"))
            counts += int(labels[1:length].ne(-100).sum())
    return sum(sums) / counts


def by_hand(model, batches, rho):
    model.eval()
    moved = [p for p in model.parameters() if p.requires_grad]
    loss = row_by_row(model, batches)
    gradients = torch.autograd.grad(loss, moved)
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    with torch.no_grad():
        weights = torch.stack([p.square().sum() for p in moved]).sum().sqrt()
        for p, g in zip(moved, gradients, strict=True):
            p.add_(g, alpha=float(rho / norm))
        uphill = row_by_row(model, batches)
    return {
        "sharpness": float(uphill - loss.detach()),
        "sharpness_train_loss": float(loss.detach()),
        "sharpness_weight_norm": float(weights),
    }


@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "LoRA"])
def test_sharpness_is_that_of_the_mean_over_tokens_and_leaves_no_trace(adapted, tmp_path):
    adapter = None
    if adapted:
        peft = pytest.importorskip("peft", reason='needs pip install "lowland[peft]"')
        settings = {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["c_attn"]}
        adapter = peft.LoraConfig(lora_dropout=0.0, fan_in_fan_out=True, **settings)
    hooks = [SharpnessLog(rho=0.2, samples=100), SurfaceAtEnd(points=3, samples=100)]
    trainer, batches = fine_tuned(tmp_path / "measured", adapter=adapter, hooks=hooks)
    plain, _ = fine_tuned(tmp_path / "plain", adapter=adapter)
    assert same_bits(list(trainer.model.state_dict().values()), list(plain.model.state_dict().values()))
    rows = [row for row in trainer.state.log_history if "sharpness" in row]
    assert len(rows) == 2
    for name, value in by_hand(trainer.model, batches, 0.2).items():
        assert rows[-1][name] == pytest.approx(value, rel=2e-3 if name == "sharpness" else 1e-5), name
    assert rows[-1]["sharpness"] > 0 and [set(row) for row in rows] == [set(rows[0])] * 2
    surface = results.open(tmp_path / "measured" / "surfaces" / "random.zarr")
    assert bool((surface.status == 1).all())
    assert float(surface.loss[1, 1]) == pytest.approx(rows[-1]["sharpness_train_loss"], rel=1e-6)


def test_a_mean_over_the_tokens_of_each_batch_is_refused_with_what_to_return(tmp_path):
    hooks = [SharpnessLog(samples=100)]
    with pytest.raises(InputError, match=r"mean over samples.*\(values, weights\)"):
        fine_tuned(tmp_path, hooks=hooks, survey_loss=lambda logits, labels: next_token(logits, labels))
    with pytest.raises(InputError, match=r"one entry per sample.*counts"):
        fine_tuned(tmp_path, hooks=hooks, survey_loss=next_token)
    with pytest.raises(InputError, match="`loss`"):
        fine_tuned(tmp_path, hooks=hooks, survey_loss=None)
