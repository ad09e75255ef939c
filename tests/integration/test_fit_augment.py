"""Augmentation from the spec: checked before training, kept in the folder, resumed to the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integration.test_fit import KillAt, Killed, assert_same

from lowland import data, losses, models, optim, training
from lowland.cli.main import main
from lowland.core.errors import CheckpointError, InputError
from lowland.training import Hook
from lowland.workflows import DataSpec, FitSpec, LossSpec, ModelSpec, StudySpec, open_run, parse
from lowland.workflows.build import build_augment
from lowland.workflows.changes import apply_changes, check_changes
from lowland.workflows.fitting import fit as fit_run

PARTS: dict[str, list[Any]] = {
    "crop, cutout": ["crop", {"name": "cutout", "size": 4, "probability": 0.5}],
    "mixup": [{"name": "crop", "padding": 1, "mode": "reflect"}, {"name": "mixup", "alpha": 0.5}],
    "cutmix": ["flip", "cutmix"],
    "kornia": [{"name": "kornia", "kind": "RandomRotation", "degrees": 20.0}],
}


def few() -> data.DataSplits:
    return data.load("digits", train_size=40)


def run(folder: Path | None, parts: list[Any], loss: Any, **options: Any) -> training.FitResult:
    splits = few()
    model = models.create("resnet8", width=2, channels=1, seed=0)
    optimizer = optim.SAM(torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), rho=0.05)
    settings = {"epochs": 3, "batch_size": 16, "seed": 1, "checkpoint_every_steps": 2, **options}
    augment = data.augmentation(parts, classes=splits.classes)
    return training.fit(model, optimizer, loss, splits, augment=augment, folder=folder, **settings)


@pytest.mark.parametrize("method", ["none", "saf", "mesa"])
@pytest.mark.parametrize("name", PARTS)
def test_a_killed_run_with_augmentation_ends_with_the_same_bits(name: str, method: str, tmp_path: Path) -> None:
    if name == "kornia":
        pytest.importorskip("kornia")

    def loss() -> Any:
        plain = torch.nn.CrossEntropyLoss()
        if method == "saf":
            return losses.SAF(plain, start=1, look_back=1, mixed="match")
        return losses.MESA(plain, start=1) if method == "mesa" else plain

    whole = run(tmp_path / "whole", PARTS[name], loss(), hooks=[Hook()])
    with pytest.raises(Killed):
        run(tmp_path / "cut", PARTS[name], loss(), hooks=[KillAt(5)])
    assert_same(whole, run(tmp_path / "cut", PARTS[name], loss(), hooks=[Hook()]))
    plain = run(None, [], loss())
    assert plain.rows[0]["train_loss"] != whole.rows[0]["train_loss"]
    with pytest.raises(CheckpointError, match="another augment"):
        run(tmp_path / "whole", [*PARTS[name], "flip"], loss(), hooks=[Hook()])


def spec(folder: Path, **options: Any) -> FitSpec:
    return FitSpec(
        folder=str(folder),
        model=ModelSpec(name="resnet8", options={"width": 2}),
        epochs=2,
        batch_size=16,
        threads=1,
        data=DataSpec(name="digits", options={"train_size": 40}),
        snapshots_every_epochs=None,
        **options,
    )


def test_the_spec_trains_with_its_augmentation_as_the_loop_does(tmp_path: Path) -> None:
    plain, crop, again = (
        fit_run(spec(tmp_path / name, augment=parts)).result
        for name, parts in (("plain", []), ("crop", ["crop"]), ("again", [{"name": "crop", "padding": 4}]))
    )
    assert plain["chosen"]["train_loss"] != crop["chosen"]["train_loss"]
    assert crop["chosen"]["train_loss"] == again["chosen"]["train_loss"] and crop["test"] == again["test"]
    kept = open_run(tmp_path / "crop").source.spec
    assert kept.augment == ["crop"]
    with pytest.raises(InputError, match="another spec"):
        fit_run(replace(kept, augment=["flip"]))


def test_saf_takes_mixed_samples_by_pair_or_not_at_all(tmp_path: Path) -> None:
    loss = LossSpec(method="saf", options={"start": 1, "look_back": 1})
    for name in ("mixup", "cutmix"):
        with pytest.raises(InputError, match="or it would do nothing"):
            fit_run(spec(tmp_path / "run", augment=[{"name": name}], loss=loss))
    assert not (tmp_path / "run").exists()
    fit_run(spec(tmp_path / "crop", augment=["crop"], loss=loss))
    matched = replace(loss, options={**loss.options, "mixed": "match"})
    folder = fit_run(spec(tmp_path / "match", augment=["mixup"], loss=matched))
    assert folder.finished
    rates = [open_run(tmp_path / name).metrics[-1]["loss_saf_hit_rate"] for name in ("crop", "match")]
    assert rates[0] == 1.0 and 0.0 <= rates[1] < 1.0  # pairs seldom come again


def test_mesa_teaches_on_mixed_images(tmp_path: Path) -> None:
    folder = fit_run(spec(tmp_path / "m", augment=["cutmix"], loss=LossSpec(method="mesa", options={"start": 1})))
    assert folder.metrics[-1]["loss_mesa_kl"] > 0


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ("[crob]", "did you mean 'crop'"),
        ("[3]", "`augment` must be a known name"),
        ("[{size: 3}]", "must hold names, or mappings with a name"),
        ("[{name: cutout, sice: 3}]", "sice"),
        ("[{name: cutout, size: 0}]", "`size` must be at least 1"),
        ("[{name: cutout, size: big}]", "must fit the augmentation 'cutout'"),
        ("[{name: crop, padding: 9, mode: reflect}]", "`padding` must be below"),
        ("[{name: crop, mode: wrap}]", "`mode` must be a known name"),
        ("[{name: kornia, kind: RandomRotatoin}]", "did you mean 'RandomRotation"),
        ("[{name: kornia, kind: RandomRotation}]", "must fit kornia's RandomRotation"),
        ("['builtins:dict']", "must name what returns an augmentation"),
        ("{crop: 4}", "`augment`"),
    ],
)
def test_wrong_augmentations_are_one_line_before_training(
    parts: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "kornia" in parts:
        pytest.importorskip("kornia")
    assert main(["fit", str(tmp_path / "new"), "--augment", parts]) == 2
    shown = capsys.readouterr()
    assert words in shown.err and len(shown.err.strip().splitlines()) == 1, shown.err
    assert not (tmp_path / "new").exists()


def broken() -> Any:
    def augment(batch: Any, draws: Any) -> Any:
        raise RuntimeError("no such color")

    return augment


def test_augmentations_are_tried_on_the_data_before_anything_is_written() -> None:
    splits, loss = few(), LossSpec()
    assert build_augment([], splits, loss) is None
    with pytest.raises(InputError, match=r"must fit the data 'digits' \(RuntimeError: no such color\)"):
        build_augment([f"{__name__}:broken"], splits, loss)
    with pytest.raises(InputError, match="images"):
        build_augment(["crop"], data.load("mnist1d", test_size=10), loss)
    with pytest.raises(InputError, match="loader"):
        build_augment(["crop"], replace(splits, train=[(torch.zeros(2, 1, 8, 8), torch.zeros(2))]), loss)
    before = torch.get_rng_state()
    build_augment(["crop", "mixup"], splits, loss)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_study_changes_augmentation_between_its_parts_only() -> None:
    from tests.study_cases import tiny_study

    assert parse(StudySpec, ["--base.augment", "[crop]"]).base.augment == ["crop"]
    made = apply_changes(FitSpec(), {"augment": ["crop", {"name": "cutout", "size": 4}]}, "variants.a")
    assert made.augment == ["crop", {"name": "cutout", "size": 4}]
    check_changes(tiny_study("s", variants={"plain": {}, "crop": {"augment": ["crop"]}}))
    with pytest.raises(InputError, match=r"methods\.CROP\.augment"):
        check_changes(tiny_study("s", methods={"SGD": {}, "CROP": {"augment": ["crop"]}}))
