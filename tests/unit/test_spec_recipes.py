"""Recipes: every one parses, fits what it names, and is made small by the written rule."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from lowland import data, models
from lowland.cli.main import main
from lowland.core.errors import InputError
from lowland.core.names import check_options
from lowland.workflows import FitSpec, LossSpec, ModelSpec, ScheduleSpec, open_run, parse, read_recipe, recipe_names
from lowland.workflows.build import build_augment, build_loss, build_model, build_optimizer, build_schedule
from lowland.workflows.parse import call
from lowland.workflows.recipe import expand, recipe_abouts, small
from lowland.workflows.specs import DataSpec

NAMES = recipe_names()
PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_where_it_comes_from_and_its_full_size_fits_what_it_names(name: str) -> None:
    recipe = read_recipe(name)
    spec = recipe.spec()
    assert recipe.about and recipe.published and len(recipe.source) > 40 and recipe.unknown and recipe.differs
    assert name.split("-")[0] in ("li", "saf", "mesa", "sala", "llr", "fsam", "wsam", "late", "samon")
    build = models.MODELS[spec.model.name]
    check_options("model", spec.model.name, build, {"classes": 10, **spec.model.options})
    check_options("data", spec.data.name, data.DATASETS[spec.data.name], spec.data.options)
    assert spec.data.name in ("cifar10", "cifar100") and spec.epochs >= 200


@pytest.mark.parametrize("name", NAMES)
def test_a_small_recipe_builds_on_data_that_are_there_offline(name: str) -> None:
    spec = small(read_recipe(name).spec())
    splits = data.load(spec.data.name, **{**spec.data.options, "train_size": 20})
    assert build_augment(spec.augment, splits, spec.loss) is not None
    model = build_model(spec.model, splits, seed=0)
    assert sum(p.numel() for p in model.parameters()) < 4e6
    assert spec.data.options["train_size"] % spec.batch_size != 1  # batch norm cannot take one image of one pixel
    build_optimizer(spec.optimizer, model)
    build_schedule(spec.schedule)
    build_loss(spec.loss, model, splits)


def test_what_a_recipe_trains_is_its_first_line() -> None:
    assert recipe_abouts() == {name: read_recipe(name).about for name in recipe_names()}


def test_the_small_rule_in_numbers() -> None:
    full = FitSpec(
        model=ModelSpec(name="wrn28_10"),
        data=DataSpec(name="cifar100", options={"folder": "x", "label_noise": 0.2}),
        schedule=ScheduleSpec(kind="step", milestones=[60.0, 120.0], warmup=5.0),
        epochs=205,
        batch_size=8192,
        augment=[
            "crop",
            {"name": "crop", "padding": 3, "mode": "reflect"},
            "flip",
            {"name": "flip"},
            {"name": "cutout", "size": 16, "probability": 0.5},
            "cutmix",
        ],
        accelerator="auto",
        seed=3,
    )
    made = small(full)
    assert made.model.options == {"factor": 3}
    assert (made.data.name, made.data.options) == ("digits", {"train_size": 896, "label_noise": 0.2})
    assert (made.schedule.milestones, made.schedule.warmup) == ([6.0, 12.0], 0.5)
    assert (made.epochs, made.batch_size, made.accelerator, made.seed) == (20, 149, "cpu", 3)
    assert made.augment == [
        {"name": "crop", "padding": 1},
        {"name": "crop", "padding": 1, "mode": "reflect"},
        {"name": "cutout", "size": 4, "probability": 0.5},
        "cutmix",
    ]
    assert made.optimizer == full.optimizer and made.loss == full.loss
    assert full.epochs == 205 and full.augment[0] == "crop"


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (ModelSpec(name="resnet56", options={"skip": False, "width": 128}), {"skip": False, "width": 32}),
        (ModelSpec(name="resnet18"), {"width": 16}),
        (ModelSpec(name="vgg9"), {"narrow": 4}),
        (ModelSpec(name="densenet121"), {"growth": 8}),
        (ModelSpec(name="pyramidnet110"), {"widening": 68}),
    ],
    ids=lambda value: value.name if isinstance(value, ModelSpec) else "",
)
def test_widths_become_a_quarter_and_depths_stay(model: ModelSpec, options: dict[str, object]) -> None:
    made = small(FitSpec(model=model)).model
    assert (made.name, made.options) == (model.name, options)


def test_flags_after_a_recipe_win_and_its_folder_is_named_after_it() -> None:
    words = expand(["--config=li-resnet20", "--scale=small", "--epochs", "2", "--loss.label_smoothing", "0.1"])
    made = call(FitSpec, words, flags={"scale": ("full", "small")})
    spec, flags = made.spec, made.flags
    assert (spec.folder, spec.epochs, spec.loss.label_smoothing, flags["scale"]) == (
        "runs/li-resnet20-small",
        2,
        0.1,
        "small",
    )
    assert spec.optimizer == read_recipe("li-resnet20").spec().optimizer
    plain = parse(
        FitSpec,
        expand(["--folder", "a", "--config", "saf-resnet18-cifar10", "--loss.method", "none", "--loss.options", "{}"]),
    )
    assert (plain.folder, plain.loss) == ("a", LossSpec())
    assert expand(["--epochs", "3"]) == ["--epochs", "3"]


def test_files_of_recipes_and_plain_specs_are_taken_by_path(tmp_path: Path) -> None:
    recipe = read_recipe("sala-resnet18-cifar10")
    fields = {key: value for key, value in vars(recipe).items() if key != "name"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**fields, "run": {**recipe.run, "epochs": 40}}))
    spec = parse(FitSpec, expand(["--config", str(tmp_path / "mine.yaml")]))
    assert (spec.epochs, spec.folder) == (40, "runs/mine") and spec.optimizer == recipe.spec().optimizer
    (tmp_path / "plain.yaml").write_text("epochs: 50\nfolder: there\n")
    words = ["--config", str(tmp_path / "plain.yaml")]
    assert expand(words) == words
    spec = call(FitSpec, expand([*words, "--scale", "small"]), flags={"scale": ("full", "small")}).spec
    assert (spec.epochs, spec.folder, spec.batch_size) == (5, "there", 16)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "must be a YAML file or the name of a recipe"),
        ("run: [1", "must be YAML"),
        ("- 3\n", "must be a YAML mapping"),
        ("run: {epochs: 3}\n", "must have the keys of a recipe"),
        (b"\xff\xfe\x00", "readable"),
    ],
)
def test_damaged_files_are_one_clear_line(text: str | bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        expand(["--config", str(path)])
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "li-resnet65"], "did you mean 'li-resnet56'"),
        (["--scale", "small"], "`scale` must come with a --config"),
        (["--config", "li-resnet56", "--scale", "tiny"], "scale"),
    ],
)
def test_wrong_names_write_nothing(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *arguments]) == 2
    shown = capsys.readouterr()
    assert words in shown.err and len(shown.err.strip().splitlines()) == 1 and shown.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_run_on_other_than_images_is_not_made_small() -> None:
    with pytest.raises(InputError, match="`scale` must be full but for images"):
        small(FitSpec(data=DataSpec(name="mnist1d")))


def test_the_page_names_every_recipe_and_the_help_the_scale(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in text] == []
    assert all(f"{number}. " in text for number in range(1, 7))  # the rule
    rule = [line.strip()[3:20] for line in (inspect.getdoc(small) or "").splitlines() if line[:2].strip(".").isdigit()]
    assert len(rule) == 6
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help"])
    shown = capsys.readouterr().out
    assert "--scale" in shown and "--augment" in shown


def test_a_small_recipe_runs_and_its_folder_holds_the_scaled_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--epochs", "1", "--data.options", "{train_size: 48}", "--threads", "1", "--quiet"]
    assert main(["fit", "--config", "sala-resnet18-cifar100-cutmix", "--scale", "small", *few]) == 0
    folder = open_run("runs/sala-resnet18-cifar100-cutmix-small")
    assert folder.finished
    written = yaml.safe_load(folder.spec.text)
    assert (written["model"]["options"], written["batch_size"], written["epochs"]) == ({"width": 16}, 32, 1)
    assert written["augment"] == [{"name": "crop", "mode": "reflect", "padding": 1}, "cutmix"]
    assert "parts=(RandomCrop(padding=1" in folder.result["recipe"]["augment"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_small_recipe_runs(name: str, tmp_path: Path) -> None:
    few = ["--epochs", "2", "--data.options", "{train_size: 64}", "--threads", "1", "--quiet"]
    assert main(["fit", str(tmp_path / "run"), "--config", name, "--scale", "small", *few]) == 0
    result = open_run(tmp_path / "run").result
    assert result["steps"] == 2 * -(-64 // (64 if "large" in name else 32)) and 0 <= result["test"]["accuracy"] <= 1
