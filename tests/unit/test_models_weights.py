from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lowland import models
from lowland.core.errors import CheckpointError, InputError


def tool_names(depth: int, width: int = 16) -> dict[str, tuple[int, ...]]:
    """Names and shapes that Li et al.'s tool stores for a network of depth 6n+2 with shortcuts."""
    names: dict[str, tuple[int, ...]] = {"conv1.weight": (width, 3, 3, 3)}

    def norm(name: str, size: int) -> None:
        names.update({f"{name}.{key}": (size,) for key in ("weight", "bias", "running_mean", "running_var")})

    norm("bn1", width)
    inputs = width
    for stage, outputs in enumerate((width, 2 * width, 4 * width), 1):
        for block in range((depth - 2) // 6):
            at = f"layer{stage}.{block}"
            names[f"{at}.conv1.weight"] = (outputs, inputs, 3, 3)
            names[f"{at}.conv2.weight"] = (outputs, outputs, 3, 3)
            norm(f"{at}.bn1", outputs)
            norm(f"{at}.bn2", outputs)
            if inputs != outputs:
                names[f"{at}.shortcut.0.weight"] = (outputs, inputs, 1, 1)
                norm(f"{at}.shortcut.1", outputs)
            inputs = outputs
    return {**names, "linear.weight": (10, inputs), "linear.bias": (10,)}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("noshort", [False, True])
def test_a_t7_file_of_the_tool_loads(tmp_path: Path, wrapped: bool, noshort: bool) -> None:
    random = torch.Generator().manual_seed(0)
    state = {name: torch.rand(shape, generator=random) * 0.1 for name, shape in tool_names(20).items()}
    if noshort:
        state = {name: tensor for name, tensor in state.items() if "shortcut" not in name}
    stored = {f"module.{name}" if wrapped else name: tensor for name, tensor in state.items()}
    path = tmp_path / "model_300.t7"
    torch.save({"acc": 92.6, "epoch": 300, "state_dict": stored}, path, _use_new_zipfile_serialization=False)
    model = models.tool_model("resnet20_noshort" if noshort else "resnet20")
    models.load_weights(model, path)
    own = model.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in state.items())
    assert model.eval()(torch.zeros(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vgg9", models.VGG),
        ("densenet121", models.DenseNet),
        ("resnet18", models.ImageNetResNet),
        ("resnet50_16_noshort", models.CifarResNet),
        ("wrn56_8_noshort", models.CifarResNet),
        ("resnet34_noshort", models.ImageNetResNet),
        ("resnet110", models.CifarResNet),
    ],
)
def test_names_of_the_tool_give_the_network_they_mean(name: str, kind: type[nn.Module]) -> None:
    with torch.device("meta"):
        model = models.tool_model(name)
    assert isinstance(model, kind)
    assert any("shortcut" in key for key in model.state_dict()) == ("resnet" in name and "noshort" not in name)


def test_keys_of_vgg_and_densenet_are_those_of_the_tool() -> None:
    with torch.device("meta"):
        vgg, dense = models.tool_model("vgg9").state_dict(), models.tool_model("densenet121").state_dict()
    assert {
        "features.0.weight",
        "features.0.bias",
        "features.21.weight",
        "fc.1.running_var",
        "classifier.weight",
    } <= set(vgg)
    assert vgg["features.17.weight"].shape == (256, 256, 3, 3) and vgg["fc.0.weight"].shape == (256, 4096)
    assert {
        "dense1.0.bn1.weight",
        "dense4.15.conv2.weight",
        "trans3.conv.weight",
        "trans1.bn.bias",
        "bn.weight",
    } <= set(dense)
    assert dense["dense4.15.bn1.weight"].shape == (992,)


def test_unknown_names_of_the_tool_are_refused() -> None:
    for name in ("resnet", "alexnet", "wrn56", "resnet20_noshortcut"):
        with pytest.raises(InputError, match="Li et al"):
            models.tool_model(name)


@pytest.mark.parametrize("change", ["missing", "left over", "of another shape"])
def test_weights_that_do_not_fit_are_refused_and_nothing_is_loaded(change: str) -> None:
    model = models.create("resnet8", width=4, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights: dict[str, Tensor] = {name: tensor + 1 for name, tensor in before.items()}
    if change == "missing":
        del weights["linear.bias"]
    elif change == "left over":
        weights["linear.scale"] = torch.ones(1)
    else:
        weights["linear.bias"] = torch.ones(11)
    with pytest.raises(CheckpointError, match=change):
        models.load_weights(model, weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_hugging_face_folder_gives_its_model_back_and_language_models_put_classes_first(tmp_path: Path) -> None:
    config = {
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "vocab_size": 13,
        "n_positions": 16,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    model = models.create("huggingface", task="causal-lm", model_type="gpt2", config=config, seed=0).eval()
    model.model.save_pretrained(tmp_path / "saved")
    again = models.create("huggingface", task="causal-lm", folder=tmp_path / "saved").eval()
    tokens = torch.arange(6).reshape(2, 3)
    assert model(tokens).shape == (2, 13, 3)
    assert torch.equal(model(tokens), again(input_ids=tokens, labels=tokens))
