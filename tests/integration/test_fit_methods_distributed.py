"""Every method on two processes started by torchrun: the steps of one process, the bits of a run that was not cut."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.integration.test_fit import double_splits, plain_network
from torch import nn
from torch.utils.data import DataLoader

from lowland import losses, optim
from lowland.core.errors import CheckpointError
from lowland.data import Indexed, LoaderBatches
from lowland.training import FitState, Hook, fit, read_weights
from lowland.training.processes import check_processes
from lowland.workflows.fitting import leave_processes

pytestmark = pytest.mark.slow


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def cross_entropy():
    return nn.CrossEntropyLoss()


METHODS = {
    "SAM": (lambda m: optim.SAM(sgd(m), rho=0.05), cross_entropy),
    "ASAM": (lambda m: optim.ASAM(sgd(m)), cross_entropy),
    "GSAM": (lambda m: optim.GSAM(sgd(m), rho=0.2), cross_entropy),
    "LookSAM": (lambda m: optim.LookSAM(sgd(m), period=2), cross_entropy),
    "FSAM": (lambda m: optim.FSAM(sgd(m), rho=0.05), cross_entropy),
    "WSAM": (lambda m: optim.WSAM(sgd(m), gamma=0.7), cross_entropy),
    "MSAM": (lambda m: optim.MSAM(sgd(m), rho=0.1), cross_entropy),
    "SALA": (lambda m: optim.SALA(sgd(m), period=3, alpha=0.5, rho=0.2), cross_entropy),
    "Lookahead": (lambda m: optim.Lookahead(sgd(m), period=3), cross_entropy),
    "EMA": (lambda m: optim.EMA(sgd(m), decay=0.9), cross_entropy),
    "SAF": (sgd, lambda: losses.SAF(cross_entropy(), start=1, look_back=1, precision="float64")),
    "MESA": (sgd, lambda: losses.MESA(cross_entropy(), start=1)),
    "SAM+SAF": (
        lambda m: optim.SAM(sgd(m), rho=0.05),
        lambda: losses.SAF(cross_entropy(), start=1, look_back=1, precision="float64"),
    ),
}


OPTIONS = {"epochs": 3, "batch_size": 8, "checkpoint_every_steps": 2, "precision": "64-true", "select": "last"}


class StopAt(Hook):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, run):
        if run.step == self.step:
            raise Stopped


class Stopped(Exception):
    pass


def train(folder, devices, stop=None):
    for name, (make, loss) in METHODS.items():
        model = plain_network()
        try:
            fit(
                model,
                make(model),
                loss(),
                double_splits(),
                epochs=3,
                batch_size=8,
                folder=folder / name,
                select="last",
                hooks=[StopAt(stop)],
                checkpoint_every_steps=2,
                devices=devices,
                precision="64-true",
            )
        except Stopped:
            continue


def torchrun(*script):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONPATH": os.getcwd()}
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    child = subprocess.Popen(
        [*words, f"--master_port={port}", *script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = child.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        child.terminate()  # torchrun ends its workers
        output, errors = child.communicate()
    assert child.returncode == 0, errors[-3000:]
    return output


def launch(folder, stop=None):
    torchrun(__file__, str(folder), str(stop))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The runs of one process, of two, and of two that were cut in mid-epoch and went on."""
    place = tmp_path_factory.mktemp("runs")
    train(place / "one", 1)
    launch(place / "two")
    launch(place / "cut", stop=8)
    launch(place / "cut")
    return place


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_take_the_steps_of_one(name, folders):
    one, two = (read_weights(folders / kind / name) for kind in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_was_cut_ends_with_the_same_bits(name, folders):
    whole, cut = (read_weights(folders / kind / name) for kind in ("two", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def begun(folder, name, steps=10):
    """Train on one process up to a step; two epochs end at steps 5 and 10."""
    make, loss = METHODS[name]
    model = plain_network()
    with pytest.raises(Stopped):
        fit(model, make(model), loss(), double_splits(), hooks=[StopAt(steps + 1)], **OPTIONS, folder=folder / name)


def went_on(folder, names):
    """What two processes do with the runs of one: their errors by name."""
    script = folder / "script.py"
    script.write_text(
        f"from tests.integration.test_fit_methods_distributed import other; other({str(folder)!r}, {names})"
    )
    return torchrun(str(script))


MOVABLE = ["SAM", "SALA", "EMA", "MESA"]


def test_two_processes_go_on_where_one_stopped(tmp_path):
    for name in MOVABLE:
        begun(tmp_path / "moved", name)
        make, loss = METHODS[name]
        model = plain_network()
        fit(
            model, make(model), loss(), double_splits(), hooks=[StopAt(None)], **OPTIONS, folder=tmp_path / "one" / name
        )
    assert "REFUSED" not in went_on(tmp_path / "moved", MOVABLE)
    for name in MOVABLE:
        moved, one = (read_weights(tmp_path / kind / name) for kind in ("moved", "one"))
        for key in one:
            torch.testing.assert_close(moved[key], one[key], rtol=1e-6, atol=1e-9)


def test_another_number_of_processes_is_refused_where_the_method_would_change(tmp_path):
    begun(tmp_path, "SAF")
    begun(tmp_path, "SAM", steps=7)
    output = " ".join(went_on(tmp_path, ["SAF", "SAM"]).split())
    assert "`devices` of the run" in output and "is 1 and here 2" in output
    assert "SAF's past outputs are dealt out over the processes" in output and "within an epoch" in output


def test_what_binds_a_run_to_its_number_of_processes():
    network = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    plain = plain_network()
    batches = double_splits().train.batches(8)
    cases = [
        ("share of a batch \\(convert it to SyncBatchNorm", network, sgd(network), cross_entropy()),
        ("local ascent", plain, optim.SAM(sgd(plain), distributed="local"), cross_entropy()),
        ("LLR reshapes the mean of each", plain, sgd(plain), losses.LLR(cross_entropy(), initial_loss=1.0)),
        (
            "SAF's past outputs",
            plain,
            sgd(plain),
            losses.LLR(losses.SAF(cross_entropy()), initial_loss=1.0, distributed="global"),
        ),
    ]
    for reason, model, optimizer, loss in cases:
        run = FitState(model, optimizer, loss, double_splits(), None, 2, 5, 0, step=5, epoch=1)
        with pytest.raises(CheckpointError, match=reason):
            check_processes(run, batches, 1, 2)
        check_processes(run, batches, 2, 2)
    loaders = LoaderBatches(DataLoader(Indexed([(torch.zeros(5), 0)])), seed=0)
    with pytest.raises(CheckpointError, match="loader"):
        check_processes(FitState(plain, sgd(plain), cross_entropy(), double_splits(), None, 2, 5, 0), loaders, 1, 2)


def test_the_command_runs_under_torchrun_and_again_on_the_finished_run(tmp_path):
    command = str(Path(sys.executable).with_name("lowland"))
    flags = ["--devices", "2", "--epochs", "1", "--threads", "1", "--model.name", "resnet8", "--json"]
    for _ in range(2):
        output = torchrun("--no-python", command, "fit", "--folder", str(tmp_path / "run"), *flags)
        assert '"passes": 15' in output.replace("\n", " ")


def other(folder, names):
    for name in names:
        make, loss = METHODS[name]
        model = plain_network()
        try:
            fit(
                model,
                make(model),
                loss(),
                double_splits(),
                hooks=[StopAt(None)],
                devices=2,
                **OPTIONS,
                folder=Path(folder) / name,
            )
        except CheckpointError as error:
            print("REFUSED", error, flush=True)  # ruff: ignore[print]
    leave_processes()


if __name__ == "__main__":
    train(Path(sys.argv[1]), 2, None if sys.argv[2] == "None" else int(sys.argv[2]))
    leave_processes()
