"""The commands as a user types them, with good and with bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowland.cli.main import COMMANDS, main

# What the installed command does. `python -m` would end by SIGINT instead of with 130 when the interrupt happens to arrive
# inside exec of text, which imports do.
COMMAND = "import sys; from lowland.cli.main import main; sys.exit(main())"

SMALL = ["--data.options.train_size", "60", "--model.options.width", "4", "--epochs", "3", "--threads", "1"]


def lowland(*arguments: str, cwd: Path | None = None, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        capture_output=True, text=True, timeout=timeout, cwd=cwd, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sam"
    assert (
        main(["fit", str(folder), *SMALL, "--optimizer.method", "sam", "--optimizer.options.rho", "0.1", "--quiet"])
        == 0
    )
    return folder


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_without_loading_torch(command):
    code = f"""
import sys
from lowland.cli.main import main
try:
    main([{command!r}, "--help"])
except SystemExit as stop:
    assert stop.code == 0
assert "torch" not in sys.modules and "matplotlib" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "default" in done.stdout


def test_fit_counts_both_passes_and_prints_json(run, capsys):
    assert main(["fit", str(run), *SMALL, "--optimizer.method", "sam", "--optimizer.options.rho", "0.1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["passes"] == 2 * result["steps"]
    assert (run / "spec.yaml").is_file() and (run / "metrics.csv").is_file()


def test_survey_project_measure_and_report(run, capsys):
    assert main(["surface", str(run), "--points", "[5, 4]", "--json"]) == 0
    surface = json.loads(capsys.readouterr().out)
    assert surface["points"] == 20
    assert main(["curvature", str(run), "--trace_products", "6", "--directions", "4", "--json"]) == 0
    curvature = json.loads(capsys.readouterr().out)
    assert curvature["lambda_max"] > 0
    assert main(["trajectory", str(run), "--points", "[4, 4]", "--json"]) == 0
    trajectory = json.loads(capsys.readouterr().out)
    assert 0 < trajectory["variance_share"][0] <= 1
    page = run / "report.html"
    assert main(["report", str(run), "--output", str(page), "--quiet"]) == 0
    text = page.read_text()
    assert "<html" in text and "default-src 'none'" in text  # the page forbids itself every request
    # a second call of each reads what is there and says the same
    assert main(["curvature", str(run), "--trace_products", "6", "--directions", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == curvature
    assert main(["surface", str(run), "--points", "[5, 4]", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["center"] == surface["center"]


def test_lines_splits_figures_and_lists(run, tmp_path, capsys):
    other = tmp_path / "other"
    assert main(["fit", str(other), *SMALL, "--seed", "1", "--quiet"]) == 0
    splits = ["--splits", '["train", "test"]']
    assert (
        main(
            ["line", str(run), "--other", str(other), "--points", "5", "--start", "0", "--stop", "1", *splits, "--json"]
        )
        == 0
    )
    line = json.loads(capsys.readouterr().out)
    assert line["train"]["barrier"] > 0
    matched = ["--match", "true", "--name", "matched", "--points", "5", "--start", "0", "--stop", "1"]
    assert main(["line", str(run), "--other", str(other), *matched, "--risk.batch_norm", "recalibrated", "--json"]) == 0
    assert "barrier" in json.loads(capsys.readouterr().out)["train"]
    assert main(["line", str(run), "--directions", "3", "--points", "5", "--name", "band", "--quiet"]) == 0
    assert main(["surface", str(run), "--points", "[3, 3]", "--probe", "convexity", "--name", "map", "--quiet"]) == 0
    assert main(["surface", str(run), "--points", "[5, 5]", *splits, "--name", "both", "--quiet"]) == 0
    for store, kind, ending in (
        ("line", "line", "pdf"),
        ("both", "contour", "svg"),
        ("map", "convexity", "png"),
        ("both", "surface", "html"),
    ):
        figure = tmp_path / f"{store}.{ending}"
        assert (
            main(
                ["figure", str(run / "surfaces" / f"{store}.zarr"), "--kind", kind, "--output", str(figure), "--quiet"]
            )
            == 0
        )
        assert figure.stat().st_size > 1000
    capsys.readouterr()
    assert main(["list", "models", "optimizers", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"sam", "sala"} <= set(listed["optimizers"]) and "resnet20" in listed["models"]
    assert main(["list", "methods", "recipes", "augmentations", "data", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert "saf" in listed["losses"] and listed["recipes"]["li-resnet56"] == "ResNet-56 on CIFAR-10"
    assert (
        set(listed) == {"optimizers", "losses", "recipes", "augmentations", "data"}
        and "cutmix" in listed["augmentations"]
    )


BAD = [
    (["nonsense"], "`command` must be one of"),
    (["fit", "{new}", "--model.name", "resnet21"], "resnet20"),
    (["fit", "{new}", "--model.options.width", "-4"], "`width`"),
    (["fit", "{new}", "--model.options.breadth", "4"], "breadth"),
    (["fit", "{new}", "--data.name", "digit"], "digits"),
    (["fit", "{new}", "--data.options.train_size", "-1"], "`train_size`"),
    (["fit", "{new}", "--data.options.label_noise", "1.5"], "`label_noise`"),
    (["fit", "{new}", "--epochs", "-3"], "`epochs` must be positive (got -3)"),
    (["fit", "{new}", "--optimizer.method", "sam", "--optimizer.options.rho", "-1"], "`rho`"),
    (["fit", "{new}", "--optimizer.method", "tam"], "`optimizer.method` must be a known name"),
    (["fit", "{new}", "--optimizer.options.rho", "1"], "`optimizer.options`"),
    (
        ["fit", "{new}", "--model.name", "resnet20", "--data.name", "mnist1d"],
        "`model, loss` must fit the data 'mnist1d'",
    ),
    (
        ["fit", "{new}", "--model.name", "vgg9", "--model.options.size", "32"],
        "`model, loss` must fit the data 'digits'",
    ),
    (
        ["fit", "{new}", "--model.options.classes", "7"],
        "`model` must have an output for each of the 10 classes (got 7)",
    ),
    (["fit", "{new}", "--loss.name", "crossentropy"], "cross_entropy"),
    (["fit", "{new}", "--loss.label_smoothing", "2"], "`loss.label_smoothing`"),
    (["surface", "{new}"], "`run` must be the folder of a run"),
    (["surface", "{foreign}"], "`run` must hold the spec.yaml"),
    (["surface", "{run}", "--points", "[0, 4]"], "`points`"),
    (["surface", "{run}", "--risk.samples", "1000"], "`samples` must not exceed"),
    (["surface", "{run}", "--engine", "warp"], "`engine`"),
    (["curvature", "{foreign}"], "`run` must hold the spec.yaml"),
    (["trajectory", "{new}"], "`run` must be the folder of a run"),
    (["report", "{new}"], "`run`"),
    (["report", "{foreign}"], "`run`"),
    (["line", "{run}", "--start", "1", "--stop", "0"], "`start, stop`"),
    (["line", "{run}", "--other", "{new}"], "`run` must be the folder of a run"),
    (["line", "{run}", "--splits", '["train", "exam"]'], "`splits`"),
    (["figure", "{new}"], "{new}"),
    (["list", "method"], "did you mean 'methods'"),
    (["demo", "--seeds", "1"], "`seeds` must be at least 2"),
    (["demo", "--methods", '["sgd", "tam"]'], "`methods` must name some of"),
    (["fit", "{foreign}"], "`folder`"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, run, tmp_path, capsys):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("keep me")
    places = {"{new}": str(tmp_path / "new"), "{foreign}": str(foreign), "{run}": str(run)}
    before = sorted(str(path) for path in run.rglob("*"))
    assert main([places.get(word, word) for word in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = [line for line in shown.err.strip().splitlines() if "loading torch" not in line]
    assert len(lines) == 1 and places.get(message, message) in lines[0], shown.err
    assert not (tmp_path / "new").exists()
    assert [path.name for path in foreign.iterdir()] == ["letter.txt"]
    assert sorted(str(path) for path in run.rglob("*")) == before


def test_another_spec_in_the_same_folder_is_refused(run, capsys):
    assert main(["fit", str(run), *SMALL, "--seed", "5"]) == 2
    assert "another spec" in capsys.readouterr().err


def test_damaged_checkpoints_are_refused_and_left_alone(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    files = sorted((copy / "checkpoints").glob("*.safetensors"))
    for damage in (b"", b"not a checkpoint", None):
        for file in files:
            original = file.read_bytes()
            file.write_bytes(original[: len(original) // 2] if damage is None else damage)
        assert main(["curvature", str(copy), "--name", "other"]) == 2
        assert "checkpoint" in capsys.readouterr().err
        assert not (copy / "curvature" / "other.zarr").exists()
        for file in files:
            shutil.copy(run / "checkpoints" / file.name, file)


def test_a_store_of_another_plane_is_refused_and_kept(run, capsys):
    assert main(["surface", str(run), "--points", "[3, 3]", "--name", "mine", "--quiet"]) == 0
    assert main(["surface", str(run), "--points", "[3, 3]", "--name", "mine", "--seed", "1"]) == 2
    assert "mine.zarr" in capsys.readouterr().err
    assert main(["surface", str(run), "--points", "[3, 3]", "--name", "mine", "--quiet"]) == 0


def _mounted(path: Path, *options: str) -> bool:
    path.mkdir(exist_ok=True)
    return shutil.which("mount") is not None and os.geteuid() == 0 and not subprocess.run(
        ["mount", "-t", "tmpfs", *options, "tmpfs", str(path)], capture_output=True
    ).returncode  # fmt: skip


def test_a_full_disk_is_one_line(tmp_path):
    disk = tmp_path / "disk"
    if not _mounted(disk, "-o", "size=256k"):
        pytest.skip("needs the right to mount a small file system")
    try:
        done = lowland("fit", str(disk / "run"), *SMALL, "--model.options.width", "16")
        assert done.returncode == 2, done.stderr
        assert "No space left" in done.stderr and "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_read_only_file_system_is_one_line(tmp_path, run):
    disk = tmp_path / "disk"
    if not _mounted(disk):
        pytest.skip("needs the right to mount a file system")
    try:
        shutil.copytree(run, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for arguments in (["fit", str(disk / "new"), *SMALL], ["surface", str(disk / "run"), "--name", "x"],
                          ["report", str(disk / "run"), "--output", str(disk / "page.html")]):  # fmt: skip
            done = lowland(*arguments)
            assert done.returncode == 2, done.stderr
            assert "Traceback" not in done.stderr and "ead-only" in done.stderr, done.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_interrupt_exits_130_and_the_same_command_goes_on(tmp_path):
    arguments = ["fit", "run", *SMALL, "--epochs", "400", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments], cwd=tmp_path, env=environment,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 130, errors
    assert "goes on from what is stored" in errors and "Traceback" not in errors
    assert not (tmp_path / "run" / "result.json").exists()
    done = lowland(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "result.json").exists()
