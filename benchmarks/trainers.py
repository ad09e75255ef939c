"""What the callback of Lightning and the mixin of the Hugging Face Trainer add to a step.

The same run with and without, in turn: the time from one step to the next (the trainer's own work included) has a
median in each run. What is added does not depend on the network, so it is measured with one linear layer, where noise
is least: the median over rounds of the medians' differences. It is divided by the step of a small network in the same
trainer. The optimizer is a plain one, so that nothing but what stands between trainer and step is measured.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lowland import models
from lowland.core.provenance import provenance
from lowland.integrations import LightningCallback, TrainerMixin

STEPS, BATCH = 60, 64
images, labels = torch.randn(STEPS * BATCH, 1, 8, 8), torch.randint(10, (STEPS * BATCH,))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    "small": lambda: models.create("resnet8", channels=1, width=8, seed=0),
}


class Timed(nn.Module):
    """A network that notes when a step begins."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net = NETWORKS[kind]()
        self.begun: list[float] = []

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> Any:
        self.begun.append(time.perf_counter())
        logits = self.net(pixels)
        return {"logits": logits} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}

    def step(self) -> float:
        """Return the median time of a step."""
        later = zip(self.begun, self.begun[1:], strict=False)
        return statistics.median(second - first for first, second in list(later)[5:])


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)


class Module(lightning.LightningModule):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.model, self.criterion = Timed(kind), nn.CrossEntropyLoss()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.criterion(self.model(batch[0])["logits"], batch[1])
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self)


def with_lightning(ours: bool, kind: str) -> float:
    module = Module(kind)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[LightningCallback(model="model")] if ours else [], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=BATCH))
    return module.model.step()


class Flat(TrainerMixin, transformers.Trainer):
    pass


def with_trainer(ours: bool, kind: str) -> float:
    model = Timed(kind)
    optimizer = sgd(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, num_train_epochs=1, per_device_train_batch_size=BATCH, use_cpu=True, report_to=[],
            disable_tqdm=True, save_strategy="no", logging_strategy="no", remove_unused_columns=False,
        )  # fmt: skip
        trainer = (Flat if ours else transformers.Trainer)(
            model,
            arguments,
            train_dataset=[{"pixels": x, "labels": y} for x, y in zip(images, labels, strict=True)],
            optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
        )
        trainer.train()
    return model.step()


CASES: dict[str, Callable[[bool, str], float]] = {
    "Lightning, callback": with_lightning,
    "Trainer, mixin": with_trainer,
}


def measured(name: str, rounds: int) -> dict[str, Any]:
    run, added = CASES[name], []
    run(True, "layer"), run(False, "layer")
    for number in range(rounds):
        found = {ours: run(ours, "layer") for ours in ((True, False) if number % 2 else (False, True))}
        added.append(found[True] - found[False])
    step = statistics.median(run(False, "small") for _ in range(max(3, rounds // 8)))
    quarters = statistics.quantiles(added, n=4)
    share, low, high = (1 + value / step for value in (statistics.median(added), quarters[0], quarters[2]))
    return {"case": name, "added_us": 1e6 * statistics.median(added), "ratio": share, "low": low, "high": high,
            "step_ms": 1e3 * step, "rounds": rounds, "steps": STEPS}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="runs with and without, in turn")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "trainers.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    before = os.getloadavg()[0]
    rows = [measured(name, options.rounds) for name in CASES]
    for row in rows:
        print(
            f"{row['case']:<22} {row['ratio']:.4f} ({row['low']:.4f} to {row['high']:.4f}) of {row['step_ms']:.2f} ms"
        )
    result = {"rows": rows, "load": [before, os.getloadavg()[0]], **provenance()}
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
