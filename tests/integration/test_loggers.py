"""A run's numbers and figures reach TensorBoard and any other Fabric logger, and change no bit of the run."""

from __future__ import annotations

import csv
import sqlite3
import threading

import pytest
import torch
from torch import nn

from lowland import data, models
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError, LowlandWarning
from lowland.integrations import LogTo, line_figure
from lowland.training import Hook, fit


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


def test_numbers_that_a_logger_buffers_are_on_disk_when_training_ends(tmp_path):
    loggers = pytest.importorskip("lightning_fabric.loggers")
    logger = loggers.CSVLogger(tmp_path / "board")
    trained(tmp_path / "run", [LogTo(logger)])
    with (tmp_path / "board" / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2, 4, 6]


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


# The trainer's own logger object.

FIGURES = {"static": line_figure(points=3, samples=16), "moving": line_figure(points=3, samples=16, backend="plotly")}


def in_lightning(logger, folder):
    lightning = pytest.importorskip("lightning.pytorch")
    from tests.integration.test_lightning_evaluation import Net, loader

    from lowland.integrations import LightningCallback

    hook = LogTo(logger, figures=FIGURES, numbers=False)
    callback = LightningCallback(loss=nn.CrossEntropyLoss(), hooks=[hook, Said()], folder=folder)
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[callback],
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    trainer.fit(Net("SAM"), loader(), loader())


class Said(Hook):
    def on_epoch_end(self, run):
        run.row["said"] = 0.5


def in_transformers(callback, logger, folder):
    pytest.importorskip("transformers")
    from tests.integration.test_transformers import Flat, arguments, trainer_of
    from tests.trainer_cases import network, wrapped

    net, hooks = network(), [LogTo(logger, figures=FIGURES, numbers=False), Said()]
    args = arguments(folder, epochs=2, logging_strategy="epoch")
    trainer_of(
        Flat, net, wrapped(net), args, hooks=hooks, survey_loss=nn.CrossEntropyLoss(), callbacks=[callback]
    ).train()


def board_of(folder):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return events.EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()


def test_tensorboard_of_lightning(tmp_path):
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    logger = loggers.TensorBoardLogger(tmp_path / "board")
    in_lightning(logger, tmp_path)
    board = board_of(logger.log_dir)
    assert {"said", "val"} <= set(board.Tags()["scalars"]) and len(board.Images("static")) == 2
    assert sorted(path.suffix for path in (tmp_path / "figures").iterdir()) == [".html", ".html"]


def test_tensorboard_of_the_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    writer = tensorboard.SummaryWriter(str(tmp_path / "board"))
    in_transformers(transformers.integrations.TensorBoardCallback(writer), writer, tmp_path)
    writer.close()
    board = board_of(tmp_path / "board")
    assert {"train/said", "train/loss"} <= set(board.Tags()["scalars"]) and len(board.Images("static")) == 2


@pytest.mark.slow
def test_weights_and_biases(tmp_path, monkeypatch):
    pytest.importorskip("wandb.sdk", reason='needs pip install "lowland[trackers]"')
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)  # it writes beside the program too
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sent = []
    real = wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run, "log", lambda run, data, *a, **k: (sent.append(data), real(run, data, *a, **k))
    )
    logger = loggers.WandbLogger(save_dir=tmp_path, offline=True)
    in_lightning(logger, tmp_path)
    wandb.finish()
    found = {name: value for row in sent for name, value in row.items()}
    assert {"said", "val"} <= set(found)
    assert isinstance(found["static"], wandb.Image) and isinstance(found["moving"], wandb.Html)
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb")) and not (tmp_path / "figures").exists()


@pytest.mark.slow
def test_weights_and_biases_of_the_trainer(tmp_path, monkeypatch):
    pytest.importorskip("wandb.sdk", reason='needs pip install "lowland[trackers]"')
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)  # it writes beside the program too
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run = wandb.init()
    in_transformers(transformers.integrations.WandbCallback(), run, tmp_path)
    assert run.summary["train/said"] == 0.5 and run.summary["static"]["_type"] == "image-file"
    assert run.summary["moving"]["_type"] == "html-file"
    wandb.finish()


@pytest.mark.slow
def test_mlflow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mlflow = pytest.importorskip("mlflow", reason='needs pip install "lowland[trackers]"')
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    logger = loggers.MLFlowLogger(
        tracking_uri=f"sqlite:///{tmp_path}/runs.db", artifact_location=str(tmp_path / "kept")
    )
    in_lightning(logger, tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/runs.db")
    assert {"said", "val"} <= set(client.get_run(logger.run_id).data.metrics)
    kept = sorted(path.path for path in client.list_artifacts(logger.run_id))
    assert kept == [
        f"{name}-{step:06d}.{kind}" for name, kind in (("moving", "html"), ("static", "png")) for step in (4, 8)
    ]


@pytest.mark.slow
def test_mlflow_of_the_trainer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mlflow = pytest.importorskip("mlflow", reason='needs pip install "lowland[trackers]"')
    transformers = pytest.importorskip("transformers")
    place = f"sqlite:///{tmp_path}/runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    mlflow.set_tracking_uri(place)
    try:
        experiment = mlflow.create_experiment("here", artifact_location=str(tmp_path / "kept"))
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "here")
        in_transformers(transformers.integrations.MLflowCallback(), mlflow, tmp_path)
    finally:
        mlflow.end_run()
        mlflow.set_tracking_uri(None)
    client = mlflow.MlflowClient(place)
    (run,) = client.search_runs([experiment])
    assert {"said", "loss"} <= set(run.data.metrics)
    assert sorted(path.path for path in client.list_artifacts(run.info.run_id)) == [
        f"{name}-{step:06d}.{kind}" for name, kind in (("moving", "html"), ("static", "png")) for step in (8, 16)
    ]


# Accelerate: the loop is one's own, and so is the call.


def in_accelerate(kind, folder, monkeypatch):
    pytest.importorskip("accelerate")
    from tests.integration.test_accelerate import accelerator_of, loop
    from tests.trainer_cases import Samples, network, wrapped

    net = network()
    accelerator = accelerator_of(log_with=kind, project_dir=str(folder / "board"))
    accelerator.init_trackers("here", init_kwargs={"wandb": {"dir": str(folder)}})
    loader = torch.utils.data.DataLoader(Samples(), batch_size=4)
    parts = accelerator.prepare(net, wrapped(net, "SAM"), loader)
    board = LogTo(accelerator.get_tracker(kind))
    figures = {}
    for epoch in range(2):
        losses = loop(accelerator, *parts)
        accelerator.log({"loss": losses[-1]}, step=epoch)
        board.send({"said": 0.5}, epoch)
        for name, draw in FIGURES.items():
            figures[name] = board.show(name, draw(run_of(net, loader)), epoch)
    return accelerator, figures


def run_of(net, loader):
    from lowland.integrations.trainer_bridge import foreign_data
    from lowland.training import FitState

    return FitState(net, None, nn.CrossEntropyLoss(), foreign_data("own", loader), None, 2, 8, 0, 0, 0, 0)


def test_tensorboard_of_accelerate(tmp_path, monkeypatch):
    accelerator, shown = in_accelerate("tensorboard", tmp_path, monkeypatch)
    assert shown == {"static": True, "moving": False}
    accelerator.end_training()
    board = board_of(tmp_path / "board" / "here")
    assert {"said", "loss"} <= set(board.Tags()["scalars"]) and len(board.Images("static")) == 2


@pytest.mark.slow
def test_mlflow_of_accelerate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mlflow = pytest.importorskip("mlflow", reason='needs pip install "lowland[trackers]"')
    place = f"sqlite:///{tmp_path}/runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    mlflow.set_tracking_uri(place)
    try:
        accelerator, shown = in_accelerate("mlflow", tmp_path, monkeypatch)
        run = accelerator.get_tracker("mlflow", unwrap=True).info.run_id
        accelerator.end_training()
    finally:
        mlflow.end_run()
        mlflow.set_tracking_uri(None)
    client = mlflow.MlflowClient(place)
    for name in ("said", "loss"):
        assert [metric.step for metric in client.get_metric_history(run, name)] == [0, 1], name
    assert shown == {"static": True, "moving": True}
    kept = sorted(path.path for path in client.list_artifacts(run))
    assert kept == [
        f"{name}-{step:06d}.{kind}" for name, kind in (("moving", "html"), ("static", "png")) for step in (0, 1)
    ]


@pytest.mark.slow
def test_a_number_for_a_locked_database_waits_or_is_an_error_and_never_lost_in_silence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mlflow = pytest.importorskip("mlflow", reason='needs pip install "lowland[trackers]"')
    engines = pytest.importorskip("sqlalchemy")
    from tests.integration.test_accelerate import accelerator_of

    place = f"sqlite:///{tmp_path}/runs.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    mlflow.set_tracking_uri(place)
    patience = {"milliseconds": 20_000}  # MLflow's own

    def impatient(connection, cursor, statement, parameters, context, many):
        return statement.replace("busy_timeout = 20000", f"busy_timeout = {patience['milliseconds']}"), parameters

    engines.event.listen(engines.engine.Engine, "before_cursor_execute", impatient, retval=True)
    other = sqlite3.connect(tmp_path / "runs.db", isolation_level=None, check_same_thread=False)
    try:
        accelerator = accelerator_of(log_with="mlflow", project_dir=str(tmp_path / "board"))
        accelerator.init_trackers("here")
        board = LogTo(accelerator.get_tracker("mlflow"))
        run = accelerator.get_tracker("mlflow", unwrap=True).info.run_id
        other.execute("BEGIN IMMEDIATE")  # another process that writes
        release = threading.Timer(0.5, other.execute, ["COMMIT"])
        release.start()
        board.send({"said": 0.5}, 0)
        release.join()
        other.execute("BEGIN IMMEDIATE")
        patience["milliseconds"] = 100
        with pytest.raises(mlflow.exceptions.MlflowException, match="locked"):
            board.send({"said": 0.6}, 1)
        other.execute("COMMIT")
        board.send({"said": 0.7}, 2)
        accelerator.end_training()
    finally:
        other.close()
        engines.event.remove(engines.engine.Engine, "before_cursor_execute", impatient)
        mlflow.end_run()
        mlflow.set_tracking_uri(None)
    history = mlflow.MlflowClient(place).get_metric_history(run, "said")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.5), (2, 0.7)]


@pytest.mark.slow
def test_weights_and_biases_of_accelerate(tmp_path, monkeypatch):
    pytest.importorskip("wandb.sdk", reason='needs pip install "lowland[trackers]"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    accelerator, shown = in_accelerate("wandb", tmp_path, monkeypatch)
    summary = accelerator.get_tracker("wandb", unwrap=True).summary
    assert shown == {"static": True, "moving": True} and summary["said"] == 0.5 and summary["loss"] > 0
    assert (summary["static"]["_type"], summary["moving"]["_type"]) == ("image-file", "html-file")
    accelerator.end_training()


def test_trackio(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio", reason="needs pip install trackio")
    sent = []
    monkeypatch.setattr(trackio, "log", lambda metrics, step=None: sent.append((step, metrics)))
    trained(tmp_path / "run", [LogTo(trackio, figures={"line": line_figure(points=5)})])
    figures = [(step, metrics["line"]) for step, metrics in sent if "line" in metrics]
    assert [step for step, _ in figures] == [2, 4, 6]
    assert all(isinstance(figure, trackio.Image) for _, figure in figures)
    assert [metrics["train_loss"] > 0 for _, metrics in sent if "train_loss" in metrics] == [True] * 3


def test_a_tracker_that_fails_ends_no_training(tmp_path):
    class Failing(Kept):
        def log_metrics(self, metrics, step=None):
            if step != 6:
                raise ConnectionError("no route to the board")
            super().log_metrics(metrics, step)

        def add_figure(self, *figure):
            raise ConnectionError("no route to the board")

    board = Failing()
    with pytest.warns(LowlandWarning, match="Failing failed .*no route to the board.; training goes on") as said:
        trained(tmp_path / "run", [LogTo(board, figures={"line": line_figure(points=5)})])
    assert len(said) == 1 and [step for step, _ in board.rows] == [6]
    assert len(list((tmp_path / "run" / "figures").iterdir())) == 3  # kept in place of the tracker's


@pytest.mark.parametrize(("arguments", "message"), [((object(),), "`logger`"), ((Kept(),), "`every_epochs`")])
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        LogTo(*arguments, every_epochs=0)
