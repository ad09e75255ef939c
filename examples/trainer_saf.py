"""SAM and SAF in the Hugging Face Trainer: a small vision transformer from its configuration, nothing is downloaded.

    python examples/trainer_saf.py runs/trainer

Needs pip install "lowland[hf,data]"; the images come with scikit-learn.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

import lowland as ll
from lowland.integrations import SharpnessLog, TrainerMixin


class FlatTrainer(TrainerMixin, Trainer):
    """The Trainer with Lowland's optimizers, losses and hooks."""


class Images(Dataset[dict[str, Tensor]]):
    """Digits under the names that the model takes them by."""

    def __init__(self, part: Any) -> None:
        self.part = part

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"pixel_values": self.part.input[i], "labels": self.part.target[i]}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the run is kept")
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    digits = ll.data.load("digits", train_size=400)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=8,
            patch_size=2, num_channels=1, num_labels=10,
        )
    )  # fmt: skip
    optimizer = ll.optim.SAM(torch.optim.AdamW(model.parameters(), lr=2e-3), rho=0.05)
    trainer = FlatTrainer(
        model,
        TrainingArguments(
            str(options.folder), num_train_epochs=options.epochs, per_device_train_batch_size=50, use_cpu=True,
            eval_strategy="epoch", save_strategy="epoch", report_to=[], disable_tqdm=True, remove_unused_columns=False,
        ),
        train_dataset=ll.data.Indexed(Images(digits.train)),
        eval_dataset=Images(digits.validation),
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
        compute_loss_func=ll.losses.SAF(nn.CrossEntropyLoss(), start=0.3, look_back=1),
        hooks=[ll.training.Snapshots(), SharpnessLog(samples=200)],
    )  # fmt: skip
    trainer.train()
    for entry in trainer.state.log_history:
        print({name: round(value, 4) for name, value in entry.items() if name in ("epoch", "eval_loss", "sharpness")})


if __name__ == "__main__":
    main()
