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

from lowland import results
from lowland.cli.commands import COMMANDS
from lowland.cli.main import main
from lowland.cli.output import Output, Shown

# What the installed command does. `python -m` would end by SIGINT instead of with 130 when the interrupt happens to arrive
# inside exec of text, which imports do.
COMMAND = "import sys; from lowland.cli.main import main; sys.exit(main())"

SMALL = ["--data.options.train_size", "60", "--model.options.width", "4", "--epochs", "3", "--threads", "1"]


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


def test_every_command_has_help_without_loading_torch():
    code = f"""
import contextlib, io, json, sys
from lowland.cli.main import main
shown = {{}}
for command in {list(COMMANDS)!r}:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            main([command, "--help"])
        except SystemExit as stop:
            assert stop.code == 0
    shown[command] = text.getvalue()
    assert "torch" not in sys.modules and "matplotlib" not in sys.modules, command
print(json.dumps(shown))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command, text in json.loads(done.stdout).items():
        assert "default" in text, command
        assert text.rstrip().endswith(f"Example: {COMMANDS[command].example}")
        positional = COMMANDS[command].positional
        assert f"[{positional.upper()}" in text if positional else "is short for" not in text


QUICK = [
    ([], 0, ""), (["--version"], 0, ""), (["srface", "x"], 2, "did you mean 'surface'?"),
    (["surface", "{new}"], 2, "`run` must be the folder of a run"),
    (["surface", "{foreign}"], 2, "`run` must hold the spec.yaml"),
    (["surface", "{new}", "--pionts", "3"], 2, "did you mean --points?"),
    (["surface", "{new}", "--points", "wide"], 2, "such as --points 51x51"),
    (["surface", "{new}", "--engine", "warp"], 2, "`engine` must be a known name"),
    (["surface"], 2, "`run` must be given"),
    (["line", "{new}"], 2, "`run`"), (["line", "{new}", "--start", "1", "--stop", "0"], 2, "`start, stop`"),
    (["trajectory", "{new}"], 2, "`run`"), (["curvature", "{new}"], 2, "`run`"),
    (["curvature", "{new}", "--rho", "-1"], 2, "`rho` must be positive"),
    (["report", "{new}"], 2, "`run`"), (["report"], 2, "`runs` must be given"),
    (["figure", "{new}"], 2, "{new}"), (["figure", "{new}", "--colour", "x"], 2, "did you mean --color_map?"),
    (["fit", "{new}", "--epochs", "many"], 2, "such as --epochs 30"), (["fit", "{new}", "--epochs"], 2, "a value"),
    (["fit", "{foreign}"], 2, "`folder` must be new, empty or the folder of this run"),
    (["fit", "{new}", "--config", "li-resnet57"], 2, "did you mean 'li-resnet56'"),
    (["fit", "{new}", "--scale", "tiny"], 2, "`scale` must be one of full, small (got 'tiny')"),
    (["study"], 2, "`methods` must name at least one method"), (["study", "{new}.yaml"], 2, "`config`"),
    (["recommend", "--seeds", "1"], 2, "`seeds, fresh`"), (["demo", "--seeds", "1"], 2, "`seeds` must be at least 2"),
    (["list", "method"], 2, "did you mean 'methods'"), (["list", "recipes", "engines", "metrics"], 0, ""),
    (["doctor", "--jsn"], 2, "did you mean --json?"),
]  # fmt: skip


def test_bad_input_is_answered_before_torch_is_imported(tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("keep me")
    places = {"new": str(tmp_path / "new"), "foreign": str(tmp_path / "foreign")}
    cases = [([word.format(**places) for word in words], code, text.format(**places)) for words, code, text in QUICK]
    code = f"""
import contextlib, io, sys, time
from lowland.cli.main import main
for words, code, text in {cases!r}:
    shown = io.StringIO()
    begun = time.process_time()
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(io.StringIO()):
        assert main(words) == code, (words, shown.getvalue())
    assert time.process_time() - begun < 1, words
    assert text in shown.getvalue(), (words, shown.getvalue())
    assert len(shown.getvalue().splitlines()) == (code != 0), shown.getvalue()
    assert "torch" not in sys.modules, words
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "new").exists()


def test_json_holds_no_numbers_that_are_not_finite(capsys):
    Output(as_json=True).result(Shown({"a": float("nan"), "b": [1.5, float("-inf")], "c": {"d": (2, None)}}))
    text = capsys.readouterr().out
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [1.5, None], "c": {"d": [2, None]}}


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
    (["fit", "{new}", "--optimizer.name", "adamm"], "did you mean 'adam'"),
    (["fit", "{new}", "--optimizer.name", "lbfgs"], "asks for a closure"),
    (
        ["fit", "{new}", "--optimizer.name", "adam", "--optimizer.arguments.betes", "3"],
        "`optimizer.arguments` must fit Adam",
    ),
    (["fit", "{new}", "--optimizer.arguments.momentum", "-3"], "`optimizer.arguments` must fit SGD"),
    (["surface", "{run}", "--probes", "gradint"], "did you mean 'gradient'"),
    (["surface", "{run}", "--risk.metrics", "acuracy"], "did you mean 'accuracy'"),
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


def test_another_spec_in_the_same_folder_is_refused_and_what_differs_is_named(run, capsys):
    sam = ["--optimizer.method", "sam", "--optimizer.options.rho", "0.2"]
    assert main(["fit", str(run), *SMALL, "--seed", "5", *sam]) == 2
    told = capsys.readouterr().err
    assert "another spec" in told and "seed is 0 there and 5 here" in told
    assert "optimizer.options.rho is 0.1 there and 0.2 here" in told and "only --epochs may grow" in told


def test_a_finished_run_goes_on_to_the_bits_of_a_longer_one(tmp_path, capsys):
    words = [*SMALL, "--schedule.kind", "constant", "--quiet"]
    short, whole = str(tmp_path / "short"), str(tmp_path / "whole")
    assert main(["fit", short, *words, "--epochs", "1"]) == 0
    assert main(["fit", short, *words, "--epochs", "3"]) == 0
    assert main(["fit", whole, *words, "--epochs", "3"]) == 0
    weights = [next((Path(run) / "checkpoints").glob("step-*.safetensors")) for run in (short, whole)]
    assert weights[0].name == weights[1].name and weights[0].read_bytes() == weights[1].read_bytes()
    results = [json.loads((Path(run) / "result.json").read_text()) for run in (short, whole)]
    assert results[0]["test"] == results[1]["test"] and results[0]["steps"] == results[1]["steps"]
    assert main(["fit", short, *words, "--epochs", "2"]) == 2
    assert "epochs is 3 there and 2 here" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--loss.method", "mesa", "--schedule.kind", "constant"]], ids=["cosine", "mesa"])
def test_a_run_that_is_planned_by_its_length_is_not_lengthened(more, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["fit", run, *SMALL, "--epochs", "1", *more, "--quiet"]) == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in Path(run).rglob("*"))
    assert main(["fit", run, *SMALL, "--epochs", "2", *more]) == 2
    assert "`epochs` must stay 1 in this folder" in capsys.readouterr().err
    assert sorted((path, path.stat().st_mtime_ns) for path in Path(run).rglob("*")) == before


def margin(output, batch):
    two = output.topk(2, 1).values
    return two[:, 0] - two[:, 1]


def test_probes_metrics_and_optimizers_of_torch_can_be_chosen(run, tmp_path, capsys):
    chosen = ["--probes", "gradient,lowland.landscape:GradientNorm", "--risk.metrics", f"accuracy,{__name__}:margin"]
    sys.modules.setdefault(__name__, sys.modules[margin.__module__])
    assert (
        main(["surface", str(run), "--points", "2x2", *chosen[:1], "gradient", *chosen[2:], "--name", "own", "--quiet"])
        == 0
    )
    stored = results.open(run / "surfaces" / "own.zarr")
    assert {"loss", "accuracy", "margin", "gradient_norm"} <= set(stored.data_vars)
    assert main(["surface", str(run), "--points", "2x2", *chosen[:2], "--name", "twice"]) == 2
    assert "`probes`" in capsys.readouterr().err
    words = ["--optimizer.name", "RMSprop", "--optimizer.arguments", "{alpha: 0.9}", "--optimizer.method", "sam"]
    assert main(["fit", str(tmp_path / "a"), *SMALL, "--epochs", "1", *words, "--quiet"]) == 0
    words = ["--optimizer.name", "torch.optim:Adam", "--optimizer.arguments.betas", "[0.8, 0.9]"]
    assert main(["fit", str(tmp_path / "b"), *SMALL, "--epochs", "1", *words, "--quiet"]) == 0


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


def test_a_full_disk_is_one_line(tmp_path, capsys):
    disk = tmp_path / "disk"
    if not _mounted(disk, "-o", "size=256k"):
        pytest.skip("needs the right to mount a small file system")
    try:
        assert main(["fit", str(disk / "run"), *SMALL, "--model.options.width", "16"]) == 2
        told = capsys.readouterr().err
        assert "No space left" in told and "Traceback" not in told
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_read_only_file_system_is_one_line(tmp_path, run, capsys):
    disk = tmp_path / "disk"
    if not _mounted(disk):
        pytest.skip("needs the right to mount a file system")
    try:
        shutil.copytree(run, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for arguments in (["fit", str(disk / "new"), *SMALL], ["surface", str(disk / "run"), "--name", "x"],
                          ["report", str(disk / "run"), "--output", str(disk / "page.html")]):  # fmt: skip
            assert main(arguments) == 2
            told = capsys.readouterr().err
            assert "Traceback" not in told and "ead-only" in told, told
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_interrupt_exits_130_and_the_same_command_goes_on(tmp_path, monkeypatch):
    arguments = ["fit", "run", *SMALL, "--epochs", "40", "--quiet"]
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
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0
    assert (tmp_path / "run" / "result.json").exists()
