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

import lowland as ll
from lowland import results
from lowland.cli.commands import COMMANDS
from lowland.cli.main import main
from lowland.cli.output import Output, Shown
from lowland.core import names

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


def test_commands_are_named(capsys):
    assert main([]) == 0 and main(["--version"]) == 0
    assert main(["srface", "x"]) == 2 and "did you mean 'surface'?" in capsys.readouterr().err


def test_the_package_is_the_command():
    said = subprocess.run([sys.executable, "-m", "lowland", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"lowland {ll.__version__}\n"


def test_json_holds_no_numbers_that_are_not_finite(capsys):
    Output(as_json=True).result(Shown({"a": float("nan"), "b": [1.5, float("-inf")], "c": {"d": (2, None)}}))
    text = capsys.readouterr().out
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [1.5, None], "c": {"d": [2, None]}}


@pytest.mark.parametrize("width", [20, 40, 80])
def test_no_number_of_a_table_is_cut_in_a_narrow_terminal(width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    cells = [f"{-0.00012345 * k:.3e} ± 1.2e-05" for k in range(1, 10)]
    Output().result(Shown({}, table=[["a long title of a column"] * 9, cells]))
    shown = capsys.readouterr().out
    plain = [cell.replace("±", "+-") for cell in cells]  # as every encoding can say it
    assert all(word in shown for cell in plain for word in cell.split()) and "…" not in shown and "±" not in shown


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


def test_a_page_of_other_runs_is_not_written_over(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / "runs" / name)
    page = tmp_path / "report.html"
    assert main(["report", "runs/a"]) == main(["report", str(tmp_path / "runs" / "a")]) == 0  # renewed
    before = page.read_bytes()
    assert main(["report", "runs/b"]) == 2 and "`output` must be given" in capsys.readouterr().err
    assert page.read_bytes() == before
    assert main(["report", "runs", "--allow_mixed", "true"]) == 0  # a is shown again, beside b
    assert main(["report", "runs/a"]) == 2 and main(["report", "runs/a", "--output", "report.html"]) == 0
    page.write_text("<html>mine</html>")
    assert main(["report", "runs/a"]) == 2 and page.read_text() == "<html>mine</html>"


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
    assert main(["line", str(run), "--other", str(other), "--points", "6", "--name", "default", "--json"]) == 0
    longer = json.loads(capsys.readouterr().out)["train"]
    assert longer["barrier"] > 0  # -0.5 to 1.5 in six points holds neither model by itself
    stored = results.open(run / "surfaces" / "default.zarr")
    assert stored.sizes["x"] == 8 and {0.0, 1.0} <= set(stored.x.values)
    assert main(["line", str(run), "--points", "5", "--name", "random", "--quiet"]) == 0
    assert results.open(run / "surfaces" / "random.zarr").x.values.tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
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
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed["engines"]) == set(names.ENGINES) and "`" not in json.dumps(listed)
    assert main(["list", "methods", "recipes", "augmentations", "data", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert "saf" in listed["losses"] and listed["recipes"]["li-resnet56"] == "ResNet-56 on CIFAR-10"
    assert (
        set(listed) == {"optimizers", "losses", "recipes", "augmentations", "data"}
        and "cutmix" in listed["augmentations"]
    )


# What only the objects themselves can know; all else is met without torch, see tests/contracts/test_commands.py
BAD = [
    (["fit", "{new}", "--model.options.width", "-4"], "`width`"),
    (["fit", "{new}", "--data.options.train_size", "-1"], "`train_size`"),
    (["fit", "{new}", "--data.options.label_noise", "1.5"], "`label_noise`"),
    (["fit", "{new}", "--optimizer.method", "sam", "--optimizer.options.rho", "-1"], "`rho`"),
    (
        ["fit", "{new}", "--model.name", "resnet20", "--data.name", "mnist1d", "--data.options.test_size", "10"],
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
    (
        ["fit", "{new}", "--optimizer.name", "adam", "--optimizer.arguments.betes", "3"],
        "`optimizer.arguments` must fit Adam",
    ),
    (["fit", "{new}", "--optimizer.arguments.momentum", "-3"], "`optimizer.arguments` must fit SGD"),
    (["surface", "{run}", "--risk.samples", "1000"], "`samples` must not exceed"),
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


def test_a_finished_run_is_read_back_without_torch_and_nothing_is_written(run):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}
    words = ["fit", str(run), *SMALL, "--optimizer.method", "sam", "--optimizer.options.rho", "0.1", "--json"]
    code = f"import sys; from lowland.cli.main import main; print(main({words!r}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("0 False\n") and json.loads(done.stdout[: -len("0 False\n")])["steps"] > 0, done.stderr
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()} == before


def test_a_damaged_result_is_written_anew(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "result.json").write_text("{")
    words = [*SMALL, "--optimizer.method", "sam", "--optimizer.options.rho", "0.1", "--quiet"]
    assert main(["fit", str(copy), *words]) == 0
    old, new = (json.loads((place / "result.json").read_text()) for place in (run, copy))
    assert old["test"] == new["test"] and old["steps"] == new["steps"]


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
    error = capsys.readouterr().err
    assert "mine.zarr" in error and "another --name" in error  # flags, where Python has `store`
    assert main(["surface", str(run), "--points", "[3, 3]", "--name", "mine", "--quiet"]) == 0


def _mounted(path: Path, *options: str) -> bool:
    path.mkdir(exist_ok=True)
    return (
        shutil.which("mount") is not None
        and os.geteuid() == 0
        and not subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(path)], capture_output=True).returncode
    )


def test_a_name_that_no_disk_takes_is_one_line(tmp_path, capsys):
    assert main(["fit", str(tmp_path / ("n" * 300)), *SMALL]) == 2
    told = capsys.readouterr().err
    assert "name too long" in told and "Traceback" not in told


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
        for arguments in (
            ["fit", str(disk / "new"), *SMALL],
            ["surface", str(disk / "run"), "--name", "x"],
            ["report", str(disk / "run"), "--output", str(disk / "page.html")],
        ):
            assert main(arguments) == 2
            told = capsys.readouterr().err
            assert "Traceback" not in told and "ead-only" in told, told
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_interrupt_exits_130_and_the_same_command_goes_on(tmp_path, monkeypatch):
    arguments = ["fit", "run", *SMALL, "--epochs", "40", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
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


NAMES = [name for registry in (names.OPTIMIZERS, names.LOSSES, names.MODELS, names.DATASETS) for name in registry]
NAMES += [*names.AUGMENTATIONS, *names.RESHAPERS, *names.PROBES, *names.CRITERIA, *names.torch_optimizers()]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_says_what_it_takes_within_80_columns(name, capsys):
    assert main(["list", name]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert main(["list", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[name]
    assert found["what"] and all(option["name"] for option in found["options"])
    if name in (*names.OPTIMIZERS, *names.LOSSES):
        assert all(option["meaning"] for option in found["options"] + found["shared"]), found
        assert name in found["typed"]


def test_a_method_says_options_defaults_origins_and_flags(capsys):
    assert main(["list", "sam"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "rho │ 0.05 │ Length of the ascent" in text and "Default 0.05, the paper's section 3" in text
    assert "as every two-pass method:" in text and "m-sharpness" in text
    assert "Source: Foret, Kleiner" in text and "--optimizer.method sam --optimizer.options.rho 0.05" in text
    assert main(["list", "sam", "saf"]) == 0
    assert "look_back" in capsys.readouterr().out
    assert main(["list", "sam", "models"]) == 2 and "not both" in capsys.readouterr().err
    assert main(["list", "samm"]) == 2 and "did you mean" in capsys.readouterr().err


def test_a_line_to_another_run_holds_both_ends_and_prints_no_nan(run, tmp_path, capsys):
    other = tmp_path / "other"
    assert main(["fit", str(other), *SMALL, "--seed", "1", "--quiet"]) == 0
    for count, name in ((7, "odd"), (10, "even")):
        words = ["line", str(run), "--other", str(other), "--points", str(count), "--name", name, "--threads", "1"]
        assert main(words) == 0
        assert "nan" not in capsys.readouterr().out.lower()
        found = results.open(run / "surfaces" / f"{name}.zarr")
        for place, folder in ((0.0, run), (1.0, other)):  # both are coordinates, to the bit
            own = ll.open(folder).risk().evaluate()["loss"].value
            assert float(found["loss"].sel(x=place)) == pytest.approx(own, rel=1e-6)


def test_a_run_that_diverges_ends_with_a_clear_line(tmp_path, capsys):
    words = ["fit", str(tmp_path / "lost"), *SMALL, "--lr", "1e20"]
    words[words.index("--lr")] = "--optimizer.learning_rate"
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "The train loss was not finite in" in shown and "try a lower --optimizer.learning_rate" in shown
    late = ["fit", str(tmp_path / "late"), *SMALL, "--epochs", "1", "--optimizer.learning_rate", "1e12"]
    assert main(late) == 0
    shown = capsys.readouterr().out
    assert "The test loss is not finite" in shown and "try a lower" in shown
    assert main([*words, "--json"]) == 0
    json.loads(capsys.readouterr().out, parse_constant=pytest.fail)


def test_a_refined_surface_says_how_many_points_were_measured(run, capsys):
    words = ["surface", str(run), "--points", "31", "--refine", "--name", "refined", "--threads", "1"]
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert 0 < found["measured"] < found["points"] == 31 * 31
    assert main(words) == 0
    captured = capsys.readouterr()
    assert str(found["measured"]) in captured.out
    assert f"{found['measured']}/{found['measured']}" in captured.err  # the bar counts what was measured
