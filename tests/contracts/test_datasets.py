"""What every data set of the registry promises; a new one joins by a line in MEMBERS."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from tests import tiny_data

from lowland import data
from lowland.core.errors import InputError

# name -> (options, classes, writer of tiny files for `folder`)
MEMBERS: dict[str, tuple[dict[str, object], int, Callable[[Path], Path] | None]] = {
    "digits": ({}, 10, None),
    "mnist": ({}, 10, None),
    "mnist1d": ({"test_size": 500}, 10, None),
    "cifar10": ({"validation": 60, "verify": False}, 10, tiny_data.write_cifar_pickles),
    "cifar100": ({"validation": 60, "verify": False}, 100, lambda f: tiny_data.write_cifar_binaries(f, 100, 300)),
    "svhn": ({"validation": 60, "verify": False}, 10, tiny_data.write_svhn),
    "folders": ({}, 3, tiny_data.write_folders),
    "text": ({"context": 32}, 256, None),
    "topics": ({"context": 32}, 10, None),
}
LOADERS = {"huggingface"}  # not resident; see test_data_files.py


@pytest.fixture(params=MEMBERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@cache
def files(name: str) -> Path:
    writer = MEMBERS[name][2]
    assert writer is not None
    return writer(Path(tempfile.mkdtemp()) / name)


@cache
def load(name: str, **more: object) -> data.DataSplits:
    options, _, writer = MEMBERS[name]
    place = {} if writer is None else {"folder": files(name)}
    return data.load(name, **{**options, **place, **more})


def test_every_data_set_of_the_registry_is_enrolled() -> None:
    assert set(MEMBERS) | LOADERS == set(data.DATASETS)


def test_parts_never_overlap_and_every_sample_keeps_its_id(name: str) -> None:
    splits = load(name)
    ids = [part.index for part in (splits.train, splits.validation, splits.test)]
    together = torch.cat(ids)
    assert together.unique().numel() == together.numel()
    assert all(len(part) > 0 for part in ids)


def test_shapes_types_and_labels_are_as_stated(name: str) -> None:
    splits = load(name)
    assert splits.classes == MEMBERS[name][1]
    for part in (splits.train, splits.validation, splits.test):
        assert tuple(part.input.shape[1:]) == splits.shape
        assert part.target.dtype == torch.int64
        assert int(part.target.min()) >= 0 and int(part.target.max()) < splits.classes


def test_loading_twice_gives_the_same_fingerprint(name: str) -> None:
    assert load(name).fingerprint == load.__wrapped__(name).fingerprint


def test_another_split_seed_gives_another_split(name: str) -> None:
    if "split_seed" not in load(name).recipe:
        pytest.skip("the parts of this data set are fixed by its publishers")
    assert load(name).fingerprint != load(name, split_seed=1).fingerprint


def test_inputs_are_normalized_over_the_training_part(name: str) -> None:
    splits = load(name)
    if splits.mean == ():
        pytest.skip("not normalized")
    dims = [0, *range(2, splits.train.input.ndim)]
    assert splits.train.input.mean(dims).abs().max() < 0.1
    assert (splits.train.input.std(dims) - 1).abs().max() < 0.1


def test_label_noise_is_stated_stays_out_of_the_test_part_and_belongs_to_samples(name: str) -> None:
    if "label_noise" not in data.DATASETS[name].__annotations__:
        pytest.skip("no label noise for this data set")
    clean, noisy = load(name), load(name, label_noise=0.4)
    assert torch.equal(clean.test.target, noisy.test.target)
    for part in ("train", "validation"):
        before, after = getattr(clean, part).target, getattr(noisy, part).target
        wrong = float((before != after).double().mean())
        assert noisy.recipe["labels_changed"][part] == pytest.approx(wrong, abs=1e-6)
        expected = 0.4 * (1 - 1 / clean.classes)
        assert wrong == pytest.approx(expected, abs=4 * (expected * (1 - expected) / len(before)) ** 0.5)
    few = load(name, label_noise=0.4, train_size=50)
    place = {int(i): int(t) for i, t in zip(noisy.train.index, noisy.train.target, strict=True)}
    assert all(place[int(i)] == int(t) for i, t in zip(few.train.index, few.train.target, strict=True))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("digit", {}, "did you mean 'digits'"),
        ("digits", {"train_size": 0}, "`train_size` must be in [1, 897]"),
        ("digits", {"train_size": 898}, "`train_size`"),
        ("digits", {"label_noise": 1.5}, "`label_noise`"),
        ("digits", {"label_noise": float("nan")}, "`label_noise`"),
        ("digits", {"seed": -1, "train_size": 10}, "`seed`"),
        ("digits", {"sede": 1}, "sede"),
        ("builtins:dict", {}, "DataSplits"),
        ("mnist1d", {"test_size": 15}, "`test_size`"),
        ("text", {"context": 0}, "`context`"),
        ("text", {"context": 10**6}, "bytes for this context"),
        ("text", {"path": "/nowhere.txt"}, "`path`"),
        ("text", {"train_size": 10**6}, "`train_size`"),
        ("topics", {"classes": 1}, "`classes`"),
        ("topics", {"context": 0}, "`context`"),
        ("cifar10", {"folder": "/nowhere"}, "put the files of cifar10 there"),
    ],
)
def test_bad_input_gives_one_clear_line(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        data.load(name, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def named(*, name: str) -> data.DataSplits:
    return data.load("digits", train_size=len(name))


def test_an_option_called_name_reaches_a_data_set_of_your_own() -> None:
    assert len(data.load(f"{__name__}:named", name="seven77").train) == 7
