"""What every command holds: help and bad input without torch, one line that says what works, nothing written, valid JSON.

A new command joins by its cases in BAD and by its words in GOOD.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.command_cases import FUNCTIONS, NEEDED

from lowland.cli.commands import COMMANDS
from lowland.cli.main import main
from lowland.core.errors import InputError
from lowland.workflows.options import options_of
from lowland.workflows.parse import call, from_text, to_yaml

OPTIONS = [(name, option) for name in COMMANDS for option in options_of(FUNCTIONS[name])]

MODEL = ["--model", "resnet8", "--data", "digits"]
SUBJECT = [
    ([], "`run` must be given"),
    (["{new}"], "`run` must be the folder of a run"),
    (["{foreign}"], "spec.yaml of a run"),
    (["{run}", "--model", "resnet8"], "`run` must not be given together with model"),
    (["--model", "resnet21", "--data", "digits"], "did you mean"),
    (["--model", "resnet8", "--data", "digit"], "'digits'"),
    (["--model", "nowhere:net", "--data", "digits"], "No module named 'nowhere'"),
    ([*MODEL, "--loss", "crossentropy"], "'cross_entropy'"),
    ([*MODEL, "--checkpoint", "{new}"], "`checkpoint` must exist"),
    ([*MODEL, "--risk.weights", "last"], "`risk.weights` is for runs"),
    (["--model", "resnet8"], "`data` must be given"),
    (["{run}", "--model_options", "3"], "`model_options`"),
]
RISK = [
    (["{run}", "--risk.weights", "7777"], "`risk.weights` must be the step of a snapshot (got 7777); there are 0"),
    (["{run}", "--risk.weights", "finest"], "must be best, last, initial or the step"),
    (["{cut}", "--risk.split", "exam"], "must be one of train, validation, test"),
    (["{cut}"], "`run` must hold a checkpoint"),
    (["{run}", "--risk.metrics", "acuracy"], "did you mean 'accuracy'"),
    (["{run}", "--risk.samples", "0"], "must be positive"),
    (["{run}", "--risk", "3"], "must hold names with values"),
    (["{run}", "--risk.batch_norm", "runing"], "did you mean running?"),
    (["{run}", "--threads", "0"], "`threads`"),
]
SURVEY = [
    (["{run}", "--engine", "warp"], "`engine` must be a known name"),
    (["{run}", "--engine", "processes"], "processes:N"),
    (["{run}", "--splits", "train,exam"], "`splits` must name parts"),
    (["{run}", "--splits", "train,train"], "each once"),
    (["{run}", "--name", "../x"], "`name` must be a plain file name"),
    (["{run}", "--normalization", "filtre"], "filter?"),
]
STUDY = [
    (["--engine", "warp"], "`engine`"),
    (["--seeds", "1"], "at least 2"),
    (["--base.epochs", "many"], "`base.epochs`"),
    (["--base.optimizer.method", "tam"], "'sam'"),
    (["--base.data.name", "digit"], "'digits'"),
    (["--methods", "{{A: {{optimizer.method: tam}}}}"], "did you mean 'sam'"),
    (["--methods", "{{A: {{optimizer.metod: sam}}}}"], "optimizer.method"),
    (["--config", "{new}"], "`config`"),
    (["--methods", "{{A: {{optimizer.options.rhoo: 1}}}}"], "`optimizer.options`"),
    (["--methods", "{{A: {{optimizer.method: sam, optimizer.options.rhoo: 1}}}}"], "did you mean 'rho'?"),
    (["--basee.epochs", "1"], "did you mean"),
]

BAD: dict[str, list[tuple[list[str], str]]] = {
    "demo": [
        (["--methods", "sgd,tam"], "`methods` must name some of"),
        (["--engine", "warp"], "`engine`"),
        (["--seeds", "1"], "at least 2"),
        (["--epochs", "0"], "must be positive"),
        (["--epochs", "1"], "must be at least 2, for a path that spans a plane"),
        (["stray"], "stray"),
    ],
    "fit": [
        (["{new}", "--model.name", "resnet21"], "did you mean 'resnet"),
        (["{new}", "--data.name", "digit"], "'digits'"),
        (["{new}", "--model.name", "nowhere:net"], "No module named 'nowhere'"),
        (["{new}", "--optimizer.name", "adamm"], "did you mean 'adam'"),
        (["{new}", "--optimizer.name", "lbfgs"], "closure"),
        (["{new}", "--optimizer.method", "tam"], "`optimizer.method` must be a known name"),
        (["{new}", "--optimizer.options.rho", "1"], "`optimizer.options` must be empty"),
        (["{new}", "--optimizer.lr", "1"], "--optimizer holds name, learning_rate"),
        (["{new}", "--optimizer.lr", "1"], "did you mean --optimizer.learning_rate?"),
        (["{new}", "--lr", "1"], "did you mean --optimizer.learning_rate?"),
        (["{new}", "--optimizer.method", "sam", "--optimizer.options.rhoo", "1"], "did you mean 'rho'?"),
        (["{new}", "--rho", "1"], "did you mean --optimizer.options.rho?"),
        (["{new}", "--optimizer", "3"], "optimizer.name"),
        (["{new}", "--optimizer.method", "sam", "--optimizer.options.rhoo", "1"], "did you mean 'rho'?"),
        (["{new}", "--loss.method", "saf", "--loss.options.lookback", "1"], "did you mean 'look_back'?"),
        (["{new}", "--model.options.breadth", "4"], "`model.options.breadth` must be an option of 'resnet8'"),
        (["{new}", "--data.options.train_sise", "4"], "did you mean 'train_size'?"),
        (["{new}", "--loss.name", "crossentropy"], "'cross_entropy'"),
        (["{new}", "--loss.method", "sa"], "'saf'"),
        (["{new}", "--loss.method", "llr", "--loss.options.reshaper", "sesh"], "did you mean 'sech'"),
        (["{new}", "--loss.label_smoothing", "2"], "[0, 1)"),
        (["{new}", "--augment", "corp"], "did you mean 'crop'"),
        (["{new}", "--augment", "7"], "Known: crop"),
        (["{new}", "--schedule.kind", "cosin"], "did you mean cosine?"),
        (["{new}", "--epochs", "-3"], "`epochs` must be positive (got -3)"),
        (["{new}", "--version", "2"], "`version`"),
        (["{new}", "--config", "{new}.yaml"], "`config`"),
        (["{new}", "--config", "li-resnet57"], "'li-resnet56'"),
        (["{new}", "--scale", "tiny"], "must be one of full, small"),
        (["{foreign}"], "`folder` must be new, empty"),
        (["{run}", "--epochs", "2"], "epochs is 3 there and 2 here"),
        (["{run}", "--seed", "9"], "seed is 0 there and 9 here"),
    ],
    "surface": [
        *SUBJECT,
        *RISK,
        *SURVEY,
        (["{run}", "--points", "0x4"], "`points` must be positive"),
        (["{run}", "--extent", "0"], "`extent`"),
        (["{run}", "--probes", "gradint"], "did you mean 'gradient'"),
        (["{run}", "--probes", "nowhere:Probe"], "No module named 'nowhere'"),
    ],
    "line": [
        *SUBJECT,
        *RISK,
        *SURVEY,
        (["{run}", "--start", "1", "--stop", "0"], "`start, stop`"),
        (["{run}", "--match"], "`match` needs another run"),
        (["{run}", "--other", "{new}"], "`other` must be the folder of a run"),
        (["{run}", "--other", "{cut}"], "`other` must hold a checkpoint"),
        (["{run}", "--other", "{run}", "--directions", "2"], "`directions` must be 1"),
        ([*MODEL, "--other", "{new}"], "`other` must be another checkpoint"),
    ],
    "connect": [
        *SUBJECT,
        *RISK,
        *SURVEY[:-1],
        (["{run}"], "`others` must be given"),
        (["{run}", "--others", "{new}"], "`others` must be the folder of a run"),
        (["{run}", "--others", "{cut}"], "`others` must hold a checkpoint"),
        ([*MODEL, "--others", "{new}"], "`others` must be other checkpoints"),
        ([*MODEL, "--others", "{run}"], "`epochs` must be given"),
        (["{run}", "--others", "{plain}", "--kind", "bezir"], "did you mean bezier?"),
        (["{run}", "--others", "{plain}", "--bends", "0"], "`bends` must be positive"),
        (["{run}", "--others", "{plain}", "--points", "0"], "`points` must be positive"),
        (["{run}", "--others", "{plain}", "--plane_points", "0x3"], "`plane_points`"),
        (["{run}", "--others", "{plain}", "--weight_decay", "-1"], "`weight_decay` must not be negative"),
        (["{run}", "--others", "{plain}", "--optimizer.name", "adamm"], "did you mean 'adam'"),
    ],
    "trajectory": [
        ([], "`run` must be given"),
        (["{new}"], "`run` must be the folder"),
        (["{run}", "--points", "1x0"], "`points`"),
        (["{run}", "--anchor", "ends"], "did you mean end?"),
        (["{plain}"], "`run` must hold snapshots"),
        *RISK,
    ],
    "film": [
        ([], "`run` must be given"),
        (["{new}"], "`run` must be the folder"),
        (["{run}", "--points", "1x0"], "`points`"),
        (["{run}", "--frames", "1"], "`frames` must be at least 2 (got 1)"),
        (["{run}", "--output", "film.avi"], "`output` must end in one of .gif, .mp4, .html"),
        (["{run}", "--output", "{new}/film.gif"], "`output` must lie in a folder that exists"),
        (["{run}", "--engine", "warp"], "`engine`"),
        (["{run}", "--name", "../x"], "`name`"),
        (["{run}", "--checkpoints", "*.pt"], "`checkpoints` is for a model of your own"),
        (["{plain}"], "`run` must hold snapshots"),
        *RISK,
    ],
    "curvature": [
        *SUBJECT,
        *RISK,
        (["{run}", "--rho", "-1"], "`rho` must be positive"),
        (["{run}", "--top", "-1"], "not be negative"),
        (["{run}", "--name", ".x"], "`name`"),
    ],
    "robustness": [
        *SUBJECT,
        *RISK,
        (["{run}", "--parts", "luck"], "`parts` must name some of rounding"),
        (["{run}", "--parts", "forgetting"], "needs --finetune_data for forgetting"),
        (["{run}", "--parts", "merging"], "needs --other"),
        (["{run}", "--other", "{new}"], "`other` must be the folder of a run"),
        (["{run}", "--other", "{plain}", "--other_weights", "7777"], "`other_weights` must be the step"),
        (["{run}", "--other_weights", "last"], "`other_weights` needs another run"),
        (["{run}", "--finetune_data", "digit"], "'digits'"),
        (["{run}", "--bits", "1"], "`bits` must hold"),
        (["{run}", "--radii", "0.1,0.05"], "ascending"),
        (["{run}", "--engine", "warp"], "`engine`"),
        (["{run}", "--name", "../x"], "`name`"),
    ],
    "report": [
        ([], "`runs` must be given"),
        (["{new}"], "`runs`"),
        (["{foreign}"], "`runs`"),
        (["{run}", "{run}"], "once"),
        (["{run}", "--baseline", "Adam"], "`baseline` must be one of "),
    ],
    "figure": [
        ([], "`results` must be given"),
        (["{new}"], "`results` must be stored results"),
        (["{store}", "--kind", "contours"], "`kind` must be one of contour"),
        (["{store}", "--output", "{new}.doc"], ".pdf"),
        (
            ["{store}", "--metric", "los"],
            "`metric` must be one of accuracy, accuracy_se, accuracy_skew, loss, loss_difference_se",
        ),
        (["{store}", "--color_map", "jet"], "`color_map`"),
        (["{store}", "--size", "huge"], "`size`"),
        (["{store}", "--split", "exam"], "`split`"),
        (["{store}", "--trajectories", "{new}"], "`results`"),
    ],
    "inspect": [
        ([], "`path` must be given"),
        (["{new}"], "`path` must exist"),
        (["{foreign}"], "`path` must hold a checkpoint"),
        (["{run}"], "`path` must be no run of Lowland"),
        (["{weights}", "--data", "digits"], "`model` must be given for this checkpoint"),
        (["{weights}", "--data", "digit", "--model", "resnet8"], "'digits'"),
        (["{weights}", "--model", "resnet21", "--data", "digits"], "did you mean"),
        (["{weights}", "--model", "nowhere:net", "--data", "digits"], "No module named 'nowhere'"),
        (["{weights}", "--data", "digits", "--model", "resnet8", "--folder", "{run}"], "`folder` must be no run"),
        (["{weights}", "--measures", "curve"], "did you mean 'curvature'"),
        (["{weights}", "--engine", "warp"], "`engine`"),
        (["{weights}", "--points", "0"], "`points`"),
        (["{letter}"], "not a whole safetensors file"),
    ],
    "topology": [
        ([], "`surface` must be given"),
        (["{new}"], "`surface` must be a stored surface"),
        (["{store}", "--other", "{new}"], "`other` must be a stored surface"),
        (["{store}", "--metric", "los"], "`metric` must be one of accuracy"),
        (["{store}", "--level", "1"], "`level`"),
        (["{store}", "--estimand", "data set"], "`size`"),
        (["{store}", "--split", "exam"], "`split`"),
        (["{store}", "--output", "{new}.doc"], ".pdf"),
    ],
    "merge": [
        ([], "`checkpoints` must be given"),
        (["{new}"], "or at least two files"),
        (["{foreign}"], "spec.yaml of a run"),
        (["{plain}"], "two snapshots"),
        (["{new}", "{new}"], "`checkpoints` must exist (got"),
        (["{run}", "--decay", "1-sqr"], "did you mean 1-sqrt?"),
        (["{run}", "--floor", "2"], "`floor`"),
        (["{run}", "--last", "9"], "at most the 3"),
        (["{run}", "--last", "1"], "`last`"),
        (["{run}", "--output", "{run}"], "`output`"),
    ],
    "list": [(["method"], "did you mean 'methods'"), (["--kind", "models"], "did you mean --kinds?")],
    "study": [([], "`methods` must name at least one method"), (["{new}.yaml"], "`config`"), *STUDY],
    "recommend": [*STUDY, (["--trials", "0"], "`trials`"), (["--model.name", "resnet21"], "did you mean")],
    "doctor": [(["--jsn"], "did you mean --json?")],
}

TINY = ["--data.name", "tests.golden.parts:tiny_data", "--model.name", "tests.golden.parts:net", "--threads", "1"]
BASE = [word.replace("--", "--base.") for word in TINY]
BOTH = '{"SGD": {}, "SAM": {"optimizer.method": "sam"}}'
GOOD = {
    "fit": ["{new}", *TINY, "--epochs", "1"],
    "surface": ["{run}", "--points", "3", "--threads", "1"],
    "line": ["{run}", "--points", "3", "--name", "other", "--threads", "1"],
    "connect": ["{run}", "--others", "{plain}", "--risk.weights", "last", "--points", "3", "--threads", "1"],
    "trajectory": ["{run}", "--points", "2", "--threads", "1"],
    "film": ["{run}", "--points", "3", "--output", "{new}.gif", "--threads", "1"],
    "curvature": ["{run}", "--trace_products", "6", "--directions", "2", "--threads", "1"],
    "robustness": ["{run}", "--parts", "rounding", "--bits", "8", "--threads", "1"],
    "report": ["{run}", "--output", "{new}.html"],
    "figure": ["{store}", "--output", "{new}.svg"],
    "inspect": ["{weights}"],
    "topology": ["{store}", "--other", "{store}", "--output", "{new}.svg"],
    "merge": ["{run}", "--last", "2", "--output", "{new}.safetensors"],
    "list": [],
    "doctor": [],
    "demo": [
        "--folder",
        "{new}",
        "--methods",
        "sgd,sam",
        "--seeds",
        "2",
        "--epochs",
        "2",
        "--train_size",
        "40",
        "--points",
        "2",
        "--engine",
        "serial",
    ],
    "study": ["--folder", "{new}", *BASE, "--base.epochs", "1", "--methods", BOTH, "--seeds", "2"],
    "recommend": [
        "--folder",
        "{new}",
        *TINY[:4],
        *BASE,
        "--base.epochs",
        "1",
        "--methods",
        BOTH,
        "--seeds",
        "2",
        "--fresh",
        "4",
        "--trials",
        "1",
    ],
}
SLOW = ("demo", "study", "recommend")


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("commands")
    places = {name: home / name for name in ("run", "plain", "cut", "foreign", "new")}
    assert main(["fit", str(places["run"]), *TINY, "--epochs", "3", "--quiet"]) == 0
    assert (
        main(["fit", str(places["plain"]), *TINY, "--epochs", "1", "--snapshots_every_epochs", "null", "--quiet"]) == 0
    )
    assert main(["surface", str(places["run"]), "--points", "2", "--name", "small", "--quiet"]) == 0
    places["cut"].mkdir()
    (places["cut"] / "spec.yaml").write_text((places["run"] / "spec.yaml").read_text())
    places["foreign"].mkdir()
    (places["foreign"] / "letter.txt").write_text("keep me")
    letter = home / "letter.safetensors"
    letter.write_text("no tensors")
    weights = next((places["run"] / "checkpoints").glob("*.safetensors"))
    return {**places, "store": places["run"] / "surfaces" / "small.zarr", "weights": weights, "letter": letter}


def test_every_command_is_enrolled():
    assert set(BAD) == set(GOOD) == set(COMMANDS)


def run_alone(code: str, *words: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_needs_nothing_heavy_and_ends_with_an_example():
    code = f"""
import contextlib, io, json, sys
from lowland.cli.main import main
shown = {{}}
for command in {list(COMMANDS)!r}:
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main([command, "--help"])
    shown[command] = text.getvalue()
    heavy = {{"torch", "matplotlib", "xarray", "zarr", "pandas"}} & set(sys.modules)
    assert not heavy, (command, heavy)
print(json.dumps(shown))
"""
    for command, text in json.loads(run_alone(code)).items():
        assert "default" in text, command
        assert text.rstrip().endswith(f"Example: {COMMANDS[command].example}")
        positional = COMMANDS[command].positional
        assert f"[{positional.upper()}" in text if positional else "is short for" not in text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_the_help_is_understood(name):
    command, words = COMMANDS[name], shlex.split(COMMANDS[name].example)
    assert words[:2] == ["lowland", name]
    if name != "study":  # whose file is the reader's
        flags = {"json": False, **command.flags}
        understood = call(FUNCTIONS[name], words[2:], positional=command.positional, flags=flags)
        assert from_text(FUNCTIONS[name], to_yaml(understood.values)).values == understood.values


REFUSING = """
import contextlib, io, json, sys
from lowland.cli.main import main

def refused(command, words, says):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        code = main([command, *words])
    heavy = {"torch", "scipy.stats", "sklearn", "transformers"} & set(sys.modules)
    lines = err.getvalue().splitlines()
    good = code == 2 and says in err.getvalue() and len(lines) == 1 and out.getvalue() == "" and not heavy
    return None if good else [words, says, code, out.getvalue(), err.getvalue(), sorted(heavy)]

cases = json.loads(sys.argv[1])
print(json.dumps({command: [refused(command, *case) for case in cases[command]] for command in cases}))
"""


@pytest.fixture(scope="module")
def refusals(places) -> dict[str, list[object]]:
    """What is wrong with the answer to each bad input: all of them in one process, which none makes import torch."""
    cases = {}
    for command, bad in BAD.items():
        positional = COMMANDS[command].positional
        general = [
            (["--nonsense", "1"], f"is no flag of `lowland {command}`"),
            (["--json", "--quite"], "did you mean --quiet?"),
        ]
        general += [] if positional == "config" or command == "fit" else [(["--config", "{new}.yaml"], "`config`")]
        cases[command] = [([word.format(**places) for word in words], says) for words, says in [*bad, *general]]
    home = places["new"].parent
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.name != ".zarr.lock"}
    found: dict[str, list[object]] = json.loads(run_alone(REFUSING, json.dumps(cases)))
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.name != ".zarr.lock"} == before
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_input_is_one_line_before_torch_and_writes_nothing(command, refusals):
    assert len(refusals[command]) > len(BAD[command])
    assert [wrong for wrong in refusals[command] if wrong] == []


WRONG = {
    "int": "many",
    "float": "wide",
    "bool": "perhaps",
    "tuple": "wide",
    "Literal": "zzz",
    "list": "{a: 1}",
    "dict": "3",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_type_says_an_example_that_works(name):
    function, known = FUNCTIONS[name], options_of(FUNCTIONS[name])
    for option, parameter in known.items():
        kind = next((kind for kind in WRONG if str(parameter.annotation).startswith(kind)), None)
        if kind is None or "| str" in str(parameter.annotation):
            continue
        with pytest.raises(InputError) as caught:
            call(function, [*NEEDED.get(name, []), f"--{option}={WRONG[kind]}"])
        text = str(caught.value)
        assert f"`{option}`" in text and "\n" not in text
        example = re.search(r"such as (--[\w.]+ .+)$", text)
        choice = re.search(r"must be one of (\w[\w-]*)", text)
        assert example or choice, text
        words = shlex.split(example.group(1)) if example else [f"--{option}", choice.group(1)]  # type: ignore[union-attr]
        again = call(function, [*NEEDED.get(name, []), *words])
        assert again.values, (option, words)


@pytest.mark.parametrize("text", ["51", "51x51", "51,51", "[51,51]", "[51, 51]"])
@pytest.mark.parametrize(
    ("name", "option"),
    [pair for pair in OPTIONS if str(options_of(FUNCTIONS[pair[0]])[pair[1]].annotation) == "tuple[int, int]"],
)
def test_pairs_are_taken_in_every_form(name, option, text):
    assert call(FUNCTIONS[name], [*NEEDED.get(name, []), f"--{option}", text]).values[option] == (51, 51)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in COMMANDS]
)
def test_json_is_one_valid_document(name, places, tmp_path, capsys):
    words = [word.replace("{new}", str(tmp_path / "new")) for word in GOOD[name]]
    for place in ("run", "plain", "store", "weights"):
        words = [word.replace(f"{{{place}}}", str(places[place])) for word in words]
    assert main([name, *words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{name} prints {word}"))
    assert isinstance(shown, dict) and shown


@pytest.mark.parametrize("flag", [["--points", "5"], ["--refine"], ["--quiet"]])
def test_a_folder_behind_the_flags_is_told_where_it_goes(flag, capsys):
    assert main(["surface", *flag, "runs/a"]) == 2
    said = capsys.readouterr().err
    assert "`run` must go before the flags (got 'runs/a'); write lowland surface runs/a --" in said
