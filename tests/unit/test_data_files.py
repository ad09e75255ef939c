from __future__ import annotations

import hashlib
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import tiny_data

from lowland import data, models, training
from lowland.core.errors import InputError
from lowland.data import cifar, local


@pytest.mark.parametrize("classes", [10, 100])
def test_every_form_of_cifar_holds_the_same_images(
    tmp_path: Path, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = data.cifar10 if classes == 10 else data.cifar100
    layout = cifar._TEN if classes == 10 else cifar._HUNDRED
    count = 40 if classes == 10 else 200
    python = tiny_data.write_cifar_pickles(tmp_path / "files" / layout["archive"][2], classes, count)
    binary = tiny_data.write_cifar_binaries(tmp_path / "bin" / layout["binary"][2], classes, count)
    for kind, folder in (("archive", python), ("binary", binary)):
        (tmp_path / kind).mkdir()
        with tarfile.open(tmp_path / kind / layout[kind][0], "w:gz") as archive:
            archive.add(folder, folder.name)
    places = [python, python.parent, binary, binary.parent, tmp_path / "archive", tmp_path / "binary"]
    prints = {load(folder=place, validation=50, verify=False).fingerprint for place in places}
    assert len(prints) == 1
    splits = load(folder=python, validation=50, verify=False)
    images, target = tiny_data.cifar_parts(classes, count)["test_batch" if classes == 10 else "test"]
    assert torch.equal(splits.test.target, torch.as_tensor(target))
    mean, std = cifar.NORMALIZATION[f"cifar{classes}"]
    back = splits.test.input * torch.tensor(std).view(1, 3, 1, 1) + torch.tensor(mean).view(1, 3, 1, 1)
    assert np.array_equal((back * 255).round().to(torch.uint8).numpy(), images)


def test_checksums_are_checked_and_never_a_partial_data_set_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_data.write_cifar_pickles(tmp_path / "c")
    with pytest.raises(InputError, match="MD5"):
        data.cifar10(folder=folder)
    right = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    monkeypatch.setattr(cifar, "_MD5", right)
    assert len(data.cifar10(folder=folder, validation=50).train) == 150
    (folder / "data_batch_4").write_bytes((folder / "data_batch_4").read_bytes()[:-1])
    with pytest.raises(InputError, match="data_batch_4"):
        data.cifar10(folder=folder, validation=50)
    (folder / "data_batch_4").unlink()
    with pytest.raises(InputError, match="data_batch_4"):
        data.cifar10(folder=folder, validation=50, verify=False)


class Stranger:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return eval, ("1/0",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({b"data": Stranger()}),
        pickle.dumps({b"data": np.array([Stranger()], dtype=object)}, protocol=2),
        pickle.dumps({b"data": np.zeros(3072, np.uint8)}),
        pickle.dumps({b"data": np.zeros(7, np.uint8), b"labels": [1]}),
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, -1]}),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}),
        b"",
        b"hello",
    ],
)
def test_strange_pickles_are_refused_without_running_their_code(tmp_path: Path, content: bytes) -> None:
    folder = tiny_data.write_cifar_pickles(tmp_path / "c")
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(InputError) as caught:
        data.cifar10(folder=folder, validation=50, verify=False)
    assert "`folder`" in str(caught.value) and "\n" not in str(caught.value)


def test_pickles_of_every_protocol_are_read() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        content = local.read_plain_pickle(pickle.dumps({b"data": array, b"labels": [1, 2]}, protocol=protocol), "x")
        assert np.array_equal(content[b"data"], array) and content[b"labels"] == [1, 2]


def test_binary_files_of_another_length_are_refused(tmp_path: Path) -> None:
    folder = tiny_data.write_cifar_binaries(tmp_path / "c")
    with pytest.raises(InputError, match="30730000 bytes"):
        data.cifar10(folder=folder)
    path = folder / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="multiple of 3073"):
        data.cifar10(folder=folder, validation=50, verify=False)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / cifar._TEN["archive"][0]
    archive.write_bytes(b"not an archive")
    for verify, words in ((True, "MD5"), (False, "whole")):
        with pytest.raises(InputError, match=words):
            data.cifar10(folder=tmp_path, verify=verify)


@pytest.mark.parametrize("damage", ["none", "foreign", "missing", "label"])
def test_svhn_reads_its_files_and_refuses_damaged_ones(tmp_path: Path, damage: str) -> None:
    folder = tiny_data.write_svhn(tmp_path / "s", 60)
    if damage == "none":
        splits = data.svhn(folder=folder, validation=10, verify=False)
        assert torch.equal(splits.test.target, torch.as_tensor(tiny_data.labels(60, 10, 1)))
        return
    if damage == "foreign":
        (folder / "test_32x32.mat").write_bytes(b"x" * 200)
    elif damage == "missing":
        (folder / "test_32x32.mat").unlink()
    else:
        from scipy.io import savemat

        savemat(folder / "test_32x32.mat", {"X": np.zeros((32, 32, 3, 1), np.uint8), "y": [[12]]})
    with pytest.raises(InputError):
        data.svhn(folder=folder, validation=10, verify=False)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_reads_idx_files(tmp_path: Path, suffix: str) -> None:
    folder = tiny_data.write_mnist(tmp_path / "m", suffix=suffix)
    splits = data.mnist(folder=folder, verify=False)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (220, 20, 240)
    assert torch.equal(splits.test.target, torch.as_tensor(tiny_data.labels(240, 10, 1)))
    if suffix:
        with pytest.raises(InputError, match="MD5"):
            data.mnist(folder=folder)
    path = folder / f"t10k-images-idx3-ubyte{suffix}"
    for content in (path.read_bytes()[:-50], b"", b"\x00\x00\x08"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="t10k-images"):
            data.mnist(folder=folder, verify=False)


def test_image_folders_are_read_in_name_order_and_small_ones_stay_in_memory(tmp_path: Path) -> None:
    folder = tiny_data.write_folders(tmp_path / "f", 10)
    splits = data.folders(folder=folder)
    assert splits.recipe["class_names"] == ["ant", "bee", "cat"]
    assert splits.train.target.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    expected = tiny_data.pixels(
        10, 8, data.folders.__globals__["IMAGENET_MEAN"], data.folders.__globals__["IMAGENET_STD"], 1
    )
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (splits.mean, splits.std))
    assert np.array_equal(((splits.train.input[10:20] * std + mean) * 255).round().numpy(), expected)
    two = data.folders(folder=tiny_data.write_folders(tmp_path / "g", 10, ("train", "val")), size=6)
    assert (len(two.train), len(two.validation), len(two.test), two.shape) == (27, 3, 30, (3, 6, 6))


def test_large_image_folders_become_loaders_with_ids_and_train(tmp_path: Path) -> None:
    folder = tiny_data.write_folders(tmp_path / "f", 8)
    splits = data.folders(folder=folder, size=8, resident_bytes=0, batch_size=7, workers=0)
    batches = list(data.LoaderBatches(splits.train, seed=1).batches(0))
    assert sorted(i for b in batches for i in b.index.tolist()) == list(range(24))
    model = models.create("resnet8", width=2, classes=3, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = training.fit(model, optimizer, torch.nn.CrossEntropyLoss(), splits, epochs=1)
    assert result.steps == 4 and 0 <= result.test["accuracy"] <= 1


def test_image_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    folder = tiny_data.write_folders(tmp_path / "f", 3)
    with pytest.raises(InputError, match="`size`"):
        data.folders(folder=folder, resident_bytes=0)
    with pytest.raises(InputError, match="train_size"):
        data.folders(folder=folder, resident_bytes=0, size=8, train_size=3)
    Image.new("RGB", (9, 8)).save(folder / "val" / "bee" / "odd.png")
    with pytest.raises(InputError, match=r"odd\.png"):
        data.folders(folder=folder)
    (folder / "val" / "bee" / "odd.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"odd\.png"):
        data.folders(folder=folder)
    (folder / "val" / "dog").mkdir()
    with pytest.raises(InputError, match="dog"):
        data.folders(folder=folder)
    with pytest.raises(InputError, match="train/"):
        data.folders(folder=folder / "val")


def test_the_error_for_missing_files_says_where_to_put_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOWLAND_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"cifar10.*put the files"):
        data.cifar10()
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(InputError, match=r"cifar-10-python\.tar\.gz"):
        data.cifar10()


def test_text_windows_follow_one_another_and_parts_do_not_overlap() -> None:
    splits = data.text(context=16)
    assert torch.equal(splits.train.input[0, 1:], splits.train.target[0, :-1])
    assert torch.equal(splits.train.target[0, -1:], splits.train.input[1, :1])
    assert bytes(splits.train.input[:3].flatten().tolist()).isascii()
    few = data.text(context=16, train_size=20)
    rows = {int(i): row for i, row in zip(splits.train.index, splits.train.input, strict=True)}
    assert all(torch.equal(rows[int(i)], row) for i, row in zip(few.train.index, few.train.input, strict=True))


def test_hugging_face_data_train_an_encoder_from_a_configuration(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tiny_data.write_hugging_face(tmp_path / "hf")
    splits = data.huggingface(folder=folder, tokenizer=tiny_data.letters, batch_size=16)
    sizes = [len(part.dataset) for part in (splits.train, splits.validation, splits.test)]
    assert sizes == [48, 6, 6] and splits.classes == 3
    config = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 64,
    }
    model = models.create("huggingface", model_type="bert", classes=3, config=config, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    result = training.fit(model, optimizer, torch.nn.CrossEntropyLoss(), splits, epochs=3)
    assert result.rows[-1]["train_loss"] < result.rows[0]["train_loss"]
    for options, words in (
        ({"folder": tmp_path}, "save_to_disk"),
        ({"label": "mood"}, "mood"),
        ({"tokenizer": tmp_path}, "tokenizer"),
    ):
        with pytest.raises(InputError, match=words):
            data.huggingface(**{"folder": folder, "tokenizer": tiny_data.letters, **options})
