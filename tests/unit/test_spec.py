"""Options: flags and YAML give the same values, files of 0.1.0 load, every wrong value becomes one clear line."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.command_cases import FUNCTIONS, NEEDED

from lowland import engine, workflows
from lowland.core.errors import InputError
from lowland.core.names import ENGINES, check_engine
from lowland.core.settings import SummaryOptions
from lowland.workflows import FitSpec, SurveyOptions, curvature, figure, fit, line, surface, to_yaml, trajectory
from lowland.workflows.options import HOOKS, options_of
from lowland.workflows.parse import call, from_text, from_yaml, parse, parser_of

OLD = Path(__file__).parent / "options_of_0_1_0"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_yaml_round_trip(name):
    made = call(FUNCTIONS[name], NEEDED.get(name, []))
    again = from_text(FUNCTIONS[name], to_yaml(made.values) if made.values else "{}")
    assert (again.arguments, again.values) == (made.arguments, made.values)


def test_a_spec_is_written_and_read_back(tmp_path):
    made = parse(FitSpec, ["--epochs", "3", "--optimizer.arguments", "{eps: 0.1}"])
    (tmp_path / "spec.yaml").write_text(to_yaml(made))
    assert from_yaml(FitSpec, tmp_path / "spec.yaml") == made


@pytest.mark.parametrize("file", sorted(OLD.glob("*.yaml")), ids=lambda file: file.stem)
def test_files_of_0_1_0_load_with_every_value(file):
    name = file.stem.split("_")[0]
    old: dict[str, Any] = yaml.safe_load(file.read_text())
    made = call(FUNCTIONS[name], ["--config", str(file)])
    _assert_holds(made.values, old)
    assert from_text(FUNCTIONS[name], file.read_text()).values == made.values


def _assert_holds(now: Any, old: dict[str, Any]) -> None:
    for key, value in old.items():
        if key == "probe":
            assert now["probes"] == (None if value == "none" else [value])
        elif key == "version":
            assert now.get("version", 1) == value
        elif isinstance(value, dict) and key in now and set(value) <= set(now[key]):
            _assert_holds(now[key], value)
        elif isinstance(value, list):
            assert list(now[key]) == value
        else:
            assert now["color_map" if key == "colour_map" else key] == value, key


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_shows_every_option_with_the_words_of_the_signature(name):
    function = FUNCTIONS[name]
    text = parser_of(function, "lowland", positional="run", example="lowland x --y 3").format_help()
    assert text.rstrip().endswith("Example: lowland x --y 3") and "[RUN]" in text.splitlines()[0]
    packed = "".join(text.split())  # help wraps lines, also at hyphens
    assert all(f"--{option}" in packed for option in options_of(function))
    words = (inspect.getdoc(function) or "").partition("Args:")[2].partition("Returns:")[0]
    entries = [entry for entry in words.strip().split("\n    ") if not entry.startswith(" ")]
    own = {n: p for n, p in inspect.signature(function).parameters.items() if n in options_of(function)}
    for entry in entries:
        argument, _, about = entry.partition(":")
        if argument.strip() in own and not any(o.startswith(f"{argument.strip()}.") for o in options_of(function)):
            assert "".join(about.split()) in packed, argument


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_of_a_command_is_a_flag_with_its_default(name):
    made = call(FUNCTIONS[name], NEEDED.get(name, []))
    for argument, parameter in inspect.signature(FUNCTIONS[name]).parameters.items():
        if argument in made.arguments and parameter.default is not parameter.empty:
            assert made.arguments[argument] == parameter.default
        assert argument in made.arguments or argument in HOOKS


def test_flags_win_over_the_file_before_them(tmp_path):
    (tmp_path / "a.yaml").write_text("epochs: 7\nseed: 3\noptimizer: {method: sam, options: {rho: 0.1}}\n")
    made = call(
        fit, ["--config", str(tmp_path / "a.yaml"), "--epochs", "9", "--quiet"], flags={"quiet": False, "json": False}
    )
    assert (made.spec.epochs, made.spec.seed, made.spec.optimizer.options) == (9, 3, {"rho": 0.1})
    assert made.flags == {"quiet": True, "json": False}


def test_help_says_what_is_typed_and_none_is_typed_so(tmp_path):
    for function in FUNCTIONS.values():
        text = " ".join(parser_of(function, "lowland").format_help().split())
        assert not re.search(
            r"type: [^()]*(Optional|Union|Literal|null|\bstr\b|\bint\b)|default: (null|True|False|\[)", text
        )
    text = " ".join(parser_of(surface, "lowland").format_help().split())
    assert "(type: integer x integer, default: 51x51)" in text and "(type: text,... | none, default: none)" in text
    assert "(type: filter | layer | weight | none, default: filter)" in text
    made = parse(FitSpec, ["--threads", "none", "--snapshots_every_epochs", "none"])
    assert made.threads is made.snapshots_every_epochs is None
    (tmp_path / "a.yaml").write_text("snapshots_every_epochs: none\n")
    assert parse(FitSpec, ["--config", str(tmp_path / "a.yaml")]).snapshots_every_epochs is None


@pytest.mark.parametrize("text", ["51", "51x51", "51,51", "[51,51]", "[51, 51]", "51 x 51"])
def test_lists_are_taken_in_every_form(text, tmp_path):
    assert call(surface, ["r", "--points", text], positional="run").arguments["points"] == (51, 51)
    assert call(surface, ["r", f"--points={text}"], positional="run").arguments["points"] == (51, 51)
    (tmp_path / "a.yaml").write_text(f"run: r\npoints: {text}\n")
    assert call(surface, ["--config", str(tmp_path / "a.yaml")]).arguments["points"] == (51, 51)


def test_words_are_split_and_switches_need_no_value():
    made = call(
        surface, ["r", "--splits", "train,test", "--refine", "--probes", "gradient", "--run", "s"], positional="run"
    )
    assert made.values["splits"] == ["train", "test"] and made.arguments["refine"] and made.spec.run == "s"
    assert call(surface, ["r", "--splits", "none"], positional="run").values["splits"] is None
    assert parse(FitSpec, ["--augment", "crop,flip"]).augment == ["crop", "flip"]
    assert parse(FitSpec, ["--schedule.milestones", "3,4.5"]).schedule.milestones == [3.0, 4.5]
    assert call(figure, ["a", "b", "--size", "3x2"], positional="results").spec.size == (3.0, 2.0)
    assert call(figure, ["a", "--size", "slide"], positional="results").spec.size == "slide"
    assert parse(FitSpec, ["--batch-size", "8"]).batch_size == 8


def test_a_word_alone_is_a_name_or_a_method(tmp_path):
    spec = parse(FitSpec, ["--data", "digits", "--model=resnet20", "--optimizer", "sam", "--loss", "mse"])
    assert (spec.data.name, spec.model.name, spec.loss.name) == ("digits", "resnet20", "mse")
    assert (spec.optimizer.name, spec.optimizer.method) == ("sgd", "sam")
    (tmp_path / "spec.yaml").write_text("optimizer: adamw\nloss: llr\nmodel: {name: resnet20}\n")
    spec = parse(FitSpec, ["--config", str(tmp_path / "spec.yaml")])
    assert (spec.optimizer.name, spec.loss.method, spec.model.name) == ("adamw", "llr", "resnet20")


WRONG = [
    (fit, ["--clip", "many"], "`clip` must be of the type float | None (got 'many'); such as --clip 0.5"),
    (
        fit,
        ["--optimizer.options", "3"],
        "`optimizer.options` must be of the type dict (got 3); such as --optimizer.options '{}'",
    ),
    (fit, ["--epochs", "many"], "`epochs` must be of the type int (got 'many'); such as --epochs 30"),
    (fit, ["--epochs", "-1"], "`epochs` must be positive (got -1)"),
    (fit, ["--epochs"], "`--epochs` must be given a value; such as --epochs 30"),
    (fit, ["--batch_size", "0"], "`batch_size` must be positive"),
    (fit, ["--optimizer.learning_rate", "-0.1"], "must be positive (got -0.1)"),
    (fit, ["--optimizer.momentum", "1"], "`optimizer.momentum` must be in [0, 1)"),
    (fit, ["--optimizer", "3"], "`optimizer` must hold names with values (got '3'); such as --optimizer.name sgd"),
    (fit, ["--optimizer", "same"], "`optimizer.name` must be a known name (got 'same')"),
    (fit, ["--schedule.kind", "cosin"], "must be one of cosine, constant, step (got 'cosin'); did you mean cosine?"),
    (fit, ["--version", "2"], "`version` must be 1"),
    (fit, ["--no_such_flag", "2"], "--no_such_flag"),
    (fit, ["--epoch", "2"], "`--epoch` is no flag of `lowland`; did you mean --epochs?"),
    (fit, ["--config", "no/such/file.yaml"], "`config`"),
    (fit, ["stray"], "stray"),
    (surface, [], "`run` must be given"),
    (surface, ["--run", "r", "--version", "2"], "`version` must be 1"),
    (
        surface,
        ["--run", "r", "--points", "3x"],
        "`points` must be of the type tuple[int, int] (got '3x'); such as --points 51x51",
    ),
    (surface, ["--run", "r", "--risk.samples", "-5"], "must be positive (got -5)"),
    (surface, ["--run", "r", "--risk.splt", "test"], "did you mean --risk.split?"),
    (trajectory, [], "`run` must be given; or --model, --checkpoint and --data for a model of your own"),
    (FUNCTIONS["demo"], ["--seeds", "1"], "`seeds` must be at least 2"),
]


@pytest.mark.parametrize(("command", "arguments", "message"), WRONG, ids=lambda v: v if isinstance(v, str) else None)
def test_wrong_flags(command, arguments, message):
    with pytest.raises(InputError) as caught:
        call(command, arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


CALLS = [
    (lambda: surface("r", points=(0, 3)), "`points` must be positive"),
    (lambda: surface("r", extent=0), "`extent` must be positive"),
    (lambda: surface("r", SurveyOptions(name="../x")), "`name` must be a plain file name"),
    (lambda: surface("r", SurveyOptions(engine="warp")), "`engine` must be a known name"),
    (lambda: surface("no/run"), "`run` must be the folder of a run"),
    (lambda: line("r", start=1, stop=0), "`start, stop`"),
    (lambda: line("r", start=1), "`start, stop`"),
    (lambda: line("r", match=True), "`match` needs another run"),
    (lambda: line("r", other="s", directions=2), "`directions` must be 1"),
    (lambda: curvature("r", SummaryOptions(rho=-1)), "`rho` must be positive"),
    (lambda: curvature("r", SummaryOptions(top=-1)), "`top` must not be negative"),
    (lambda: trajectory("r", points=(1, 0)), "`points` must be positive"),
]


@pytest.mark.parametrize(("measure", "message"), CALLS, ids=[message for _, message in CALLS])
def test_functions_check_like_commands(measure, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        measure()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs: [1\n", "YAML"),
        ("- 3\n", "mapping"),
        ("nonsense: 1\n", "nonsense"),
        ("epochs: null\n", "epochs"),
        ("model: 3\n", "model"),
        ("epoch: 1\n", "did you mean epochs?"),
    ],
)
def test_wrong_files(text, words, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=words.replace("?", r"\?")) as caught:
        call(fit, ["--config", str(tmp_path / "a.yaml")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ENGINES)
def test_engines_are_what_their_documented_names_say(form):
    name = form.replace("N", "2").replace("HOST:PORT", "10.0.0.1:6379")
    assert engine.select(name).name == name
    check_engine(name)
    for wrong in (name + "x", name.upper(), f" {name}"):
        if "//" in name and wrong.startswith(name):
            continue
        with pytest.raises(InputError, match="engine"):
            check_engine(wrong)


def test_every_spec_has_a_version_or_is_no_file_of_its_own():
    kept = {"FitSpec", "StudySpec", "RecommendSpec"}
    for name in workflows.__all__:
        kind = getattr(workflows, name)
        if dataclasses.is_dataclass(kind) and name in kept:
            assert "version" in kind.__dataclass_fields__, name


@pytest.mark.parametrize("text", ["optimizer: {learning_rat: 1}", "optimizer.learning_rat: 1"])
def test_a_wrong_inner_name_of_a_file_names_the_near_one_and_its_neighbours(text):
    with pytest.raises(
        InputError, match=r"did you mean optimizer\.learning_rate\? optimizer holds name, learning_rate"
    ):
        from_text(FitSpec, text)
