"""A run's numbers and figures reach TensorBoard and any other Fabric logger, and change no bit of the run."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn

from lowland import data, models
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.integrations import LogTo, line_figure
from lowland.training import fit


class Kept:
    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))


def trained(folder, hooks):
    model = models.create("resnet8", width=4, channels=1, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    splits = data.load("digits", train_size=64)
    return fit(model, optimizer, nn.CrossEntropyLoss(), splits, epochs=3, batch_size=32, folder=folder, hooks=hooks)


def test_any_logger_gets_the_numbers_and_the_folder_the_figures(tmp_path):
    logger = Kept()
    hook = LogTo(logger, figures={"line": line_figure(points=5)}, every_epochs=2)
    logged, plain = trained(tmp_path / "logged", [hook]), trained(tmp_path / "plain", [])
    assert same_bits(list(logged.model.state_dict().values()), list(plain.model.state_dict().values()))
    assert [step for step, _ in logger.rows] == [2, 4, 6]
    with (tmp_path / "logged" / "metrics.csv").open() as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert [metrics["train_loss"] for _, metrics in logger.rows] == pytest.approx(losses, rel=1e-6)
    assert [path.name for path in (tmp_path / "logged" / "figures").iterdir()] == ["line-0002.png"]


def test_tensorboard_gets_scalars_and_figures(tmp_path):
    loggers = pytest.importorskip("lightning_fabric.loggers")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = loggers.TensorBoardLogger(tmp_path / "board")
    trained(tmp_path / "run", [LogTo(logger, figures={"line": line_figure(points=5)})])
    logger.finalize("success")
    board = events.EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    assert {"train_loss", "validation_accuracy"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("train_loss")] == [2, 4, 6]
    assert [event.step for event in board.Images("line")] == [2, 4, 6]


@pytest.mark.parametrize(("arguments", "message"), [((object(),), "`logger`"), ((Kept(),), "`every_epochs`")])
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        LogTo(*arguments, every_epochs=0)
