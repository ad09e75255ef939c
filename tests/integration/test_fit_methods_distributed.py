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

from lowland import losses, optim
from lowland.core.errors import CheckpointError
from lowland.spec.runs import leave_processes
from lowland.training import Hook, fit, read_weights

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
                model, make(model), loss(), double_splits(), epochs=3, batch_size=8, folder=folder / name, select="last",
                hooks=[StopAt(stop)], checkpoint_every_steps=2, devices=devices, precision="64-true",
            )  # fmt: skip
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


def test_another_number_of_processes_is_refused_with_the_reason(tmp_path):
    model = plain_network()
    options = {"epochs": 2, "batch_size": 8, "folder": tmp_path / "run", "checkpoint_every_steps": 2}
    with pytest.raises(Stopped):
        fit(model, sgd(model), cross_entropy(), double_splits(), hooks=[StopAt(4)], precision="64-true", **options)
    words = f"from tests.integration.test_fit_methods_distributed import other; other({str(tmp_path / 'run')!r})"
    (tmp_path / "script.py").write_text(words)
    output = torchrun(str(tmp_path / "script.py"))
    assert "REFUSED" in output and "devices (1 there, 2 here)" in output


def test_the_command_runs_under_torchrun_and_again_on_the_finished_run(tmp_path):
    command = str(Path(sys.executable).with_name("lowland"))
    flags = ["--devices", "2", "--epochs", "1", "--threads", "1", "--model.name", "resnet8", "--json"]
    for _ in range(2):
        output = torchrun("--no-python", command, "fit", "--folder", str(tmp_path / "run"), *flags)
        assert '"passes": 15' in output.replace("\n", " ")


def other(folder):
    model = plain_network()
    try:
        fit(
            model, sgd(model), cross_entropy(), double_splits(), epochs=2, batch_size=8, folder=folder, devices=2,
            checkpoint_every_steps=2, hooks=[StopAt(None)], precision="64-true",
        )  # fmt: skip
    except CheckpointError as error:
        print("REFUSED", error, flush=True)  # ruff: ignore[print]
    leave_processes()


if __name__ == "__main__":
    train(Path(sys.argv[1]), 2, None if sys.argv[2] == "None" else int(sys.argv[2]))
    leave_processes()
