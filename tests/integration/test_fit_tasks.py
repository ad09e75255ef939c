"""Every task trains end to end on data that are there offline: its network, its data, its loss, its numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lowland import data, losses, models, optim, training

BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 256,
    "max_position_embeddings": 64,
}


def trained(
    name: str, options: dict[str, object], splits: data.DataSplits, *, lr: float, epochs: int, size: int = 32
) -> training.FitResult:
    model = models.create(name, seed=0, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    return training.fit(model, optimizer, nn.CrossEntropyLoss(), splits, epochs=epochs, batch_size=size)


def test_language_modelling_learns_the_bytes_of_english() -> None:
    splits = data.load("text", context=32, train_size=600)
    small = {"context": 32, "width": 32, "depth": 1, "heads": 2}
    result = trained("transformer", small, splits, lr=1e-2, epochs=3, size=16)
    counts = torch.bincount(splits.train.target.flatten(), minlength=256).double() + 1
    unigram = -(counts / counts.sum()).log()[splits.validation.target].mean()
    assert result.chosen["validation_loss"] < min(float(unigram), math.log(256))
    assert result.test["loss"] == pytest.approx(result.chosen["validation_loss"], abs=0.4)
    assert 0.15 < result.test["accuracy"] < 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("text_transformer", {"context": 32, "width": 32, "depth": 1}),
        ("huggingface", {"model_type": "bert", "classes": 4, "config": BERT}),
    ],
)
def test_text_classification_beats_guessing(name: str, options: dict[str, object]) -> None:
    splits = data.load("topics", classes=4, context=32)
    options = {"classes": 4, **options}
    result = trained(name, options, splits, lr=3e-3, epochs=2 if name == "huggingface" else 4)
    largest = float(splits.test.target.bincount().max()) / len(splits.test)
    assert result.test["accuracy"] > largest + 3 * result.test["accuracy_se"]


@pytest.mark.parametrize(
    ("name", "options", "source", "lr"),
    [
        ("resnet1d", {"width": 8}, ("mnist1d", {"test_size": 500, "train_size": 1000}), 1e-2),
        ("vit", {"size": 8, "patch": 2, "width": 32, "depth": 2, "heads": 2, "channels": 1}, ("digits", {}), 3e-3),
    ],
)
def test_image_and_signal_classification_learn(
    name: str, options: dict[str, object], source: tuple[str, dict[str, object]], lr: float
) -> None:
    result = trained(name, options, data.load(source[0], **source[1]), lr=lr, epochs=5)
    assert result.test["accuracy"] > 0.3


def test_mixed_labels_train_with_class_probabilities() -> None:
    splits = data.load("digits", train_size=300)
    model = models.create("resnet8", width=4, channels=1, seed=0)
    augment = data.Compose(data.standard(padding=1, flip=False), data.CutMix(10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    result = training.fit(model, optimizer, nn.CrossEntropyLoss(), splits, epochs=6, batch_size=32, augment=augment)
    assert result.test["accuracy"] > 0.4
    assert result.rows[0]["train_loss"] > result.rows[-1]["train_loss"]


def test_a_wrapped_optimizer_and_a_wrapped_loss_train_together() -> None:
    splits = data.load("digits", train_size=200, label_noise=0.2)
    model = models.create("resnet8", width=4, channels=1, seed=0)
    optimizer = optim.SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.1)
    loss = losses.LLR(nn.CrossEntropyLoss(), losses.Sech(a=2.5, b=0.15), initial_loss="first_epoch")
    result = training.fit(model, optimizer, loss, splits, epochs=3, batch_size=50)
    assert result.passes == 2 * result.steps == 24
    assert 1.0 < result.rows[0]["train_loss"] < 4.0  # the plain loss, not the reshaped one
    assert any(name.startswith("loss_") for name in result.rows[0])
