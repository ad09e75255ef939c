"""SALA in Lightning: an unchanged module, the training path, sharpness in the log, and a loss surface at the end.

    python examples/lightning_sala.py runs/lightning

Needs pip install "lowland[lightning,data]"; the images come with scikit-learn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lowland as ll
from lowland.integrations import LightningCallback, SharpnessLog, SurfaceAtEnd


class Classifier(lightning.LightningModule):
    """Knows nothing of Lowland but the optimizer and the loss that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ll.models.create("resnet8", channels=1, width=8, seed=0)
        self.criterion = ll.losses.LLR(nn.CrossEntropyLoss(), initial_loss=2.3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.criterion(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        hits = self.net(batch[0]).argmax(1) == batch[1]
        self.log("validation_accuracy", hits.float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        base = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
        return ll.optim.SALA(base, period=2, alpha=0.5, rho=0.2)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the run is kept")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--points", type=int, default=15, help="points per side of the surface")
    options = parser.parse_args(arguments)

    lightning.seed_everything(0)
    digits = ll.data.load("digits", train_size=400)
    train = DataLoader(TensorDataset(digits.train.input, digits.train.target), batch_size=50, shuffle=True)
    validation = DataLoader(TensorDataset(digits.validation.input, digits.validation.target), batch_size=200)

    hooks = [ll.training.Snapshots(), SharpnessLog(samples=200), SurfaceAtEnd(points=options.points, samples=200)]
    callback = LightningCallback(model="net", hooks=hooks, folder=options.folder)
    trainer = lightning.Trainer(
        max_epochs=options.epochs, accelerator="cpu", callbacks=[callback], accumulate_grad_batches=2,
        logger=CSVLogger(options.folder), log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(), train, validation)

    surface = ll.results.open(options.folder / "surfaces" / "random.zarr")
    ll.viz.contour(surface).savefig(options.folder / "contour.svg")
    measured = {name: round(float(value), 4) for name, value in trainer.callback_metrics.items()}
    print(f"{measured}\nkept in {options.folder}")


if __name__ == "__main__":
    main()
