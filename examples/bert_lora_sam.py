"""LoRA and SAM: adapters of a tiny random BERT in the Hugging Face Trainer; nothing is downloaded.

    python examples/bert_lora_sam.py runs/lora

Needs pip install "lowland[hf,peft]".
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.utils.tensorboard import SummaryWriter
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import lowland as ll
from lowland.integrations import LogTo, SharpnessLog, TrainerMixin, line_figure


class FlatTrainer(TrainerMixin, Trainer):
    """The Trainer with Lowland's optimizers, losses and hooks."""


def sentences(count: int) -> list[dict[str, torch.Tensor]]:
    """Make sequences whose class is whether the first word comes again."""
    words = torch.randint(0, 12, (count, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": (row[1:] == row[0]).any().long()} for row in words]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the run is kept")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=12,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=8,
    )
    adapters = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"])
    model = get_peft_model(BertForSequenceClassification(config), adapters)
    optimizer = ll.optim.SAM(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3), rho=0.05)
    criterion = torch.nn.CrossEntropyLoss()
    board = SummaryWriter(str(options.folder / "board"))
    trainer = FlatTrainer(
        model,
        TrainingArguments(
            str(options.folder),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=32,
            use_cpu=True,
            eval_strategy="epoch",
            logging_strategy="epoch",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=sentences(256),
        eval_dataset=sentences(64),
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
        survey_loss=lambda output, target: criterion(getattr(output, "logits", output), target),
        hooks=[SharpnessLog(samples=64), LogTo(board, figures={"line": line_figure(points=7, samples=64)})],
    )
    trainer.train()
    board.close()
    for entry in trainer.state.log_history:
        print({name: round(value, 4) for name, value in entry.items() if name in ("epoch", "loss", "sharpness")})


if __name__ == "__main__":
    main()
