"""What every model of the registry promises; a new one joins by a line in MEMBERS."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowland import models
from lowland.core.errors import InputError

BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 30,
    "max_position_embeddings": 12,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TOKENS = {"transformer": 11, "text_transformer": 11, "huggingface": 30}  # models that take token numbers

# name -> (options of a small build, shape of one input, shape of one output)
MEMBERS: dict[str, tuple[dict[str, object], tuple[int, ...], tuple[int, ...]]] = {
    "resnet": ({"depth": 8, "width": 4, "classes": 7}, (3, 16, 16), (7,)),
    "resnet8": ({"width": 4, "channels": 1, "skip": False}, (1, 8, 8), (10,)),
    "resnet14": ({"width": 4}, (3, 8, 8), (10,)),
    "resnet20": ({"width": 4, "skip": False}, (3, 8, 8), (10,)),
    "resnet32": ({"width": 4}, (3, 8, 8), (10,)),
    "resnet44": ({"width": 4}, (3, 8, 8), (10,)),
    "resnet56": ({"width": 4}, (3, 8, 8), (10,)),
    "resnet110": ({"width": 2}, (3, 8, 8), (10,)),
    "resnet18": ({"width": 4}, (3, 16, 16), (10,)),
    "resnet34": ({"width": 4, "skip": False, "classes": 3}, (3, 16, 16), (3,)),
    "resnet50": ({"width": 4, "stem": "imagenet"}, (3, 64, 64), (10,)),
    "resnet101": ({"width": 2, "stem": "cifar"}, (3, 8, 8), (10,)),
    "wide_resnet": ({"depth": 10, "factor": 1, "skip": False}, (3, 16, 16), (10,)),
    "wrn28_10": ({"factor": 1, "classes": 5}, (3, 16, 16), (5,)),
    "wrn16_4": ({"factor": 1, "channels": 1}, (1, 16, 16), (10,)),
    "vgg9": ({"narrow": 16, "size": 16}, (3, 16, 16), (10,)),
    "vgg16": ({"narrow": 8, "channels": 1}, (1, 32, 32), (10,)),
    "densenet_bc100": ({"growth": 2}, (3, 16, 16), (10,)),
    "densenet121": ({"growth": 2}, (3, 16, 16), (10,)),
    "pyramidnet110": ({"widening": 6}, (3, 16, 16), (10,)),
    "resnet1d": ({"width": 4, "skip": False}, (1, 40), (10,)),
    "vit": ({"size": 8, "patch": 4, "width": 12, "depth": 2, "channels": 1}, (1, 8, 8), (10,)),
    "transformer": ({"classes": 11, "context": 6, "width": 8, "depth": 2, "heads": 2}, (5,), (11, 5)),
    "text_transformer": (
        {"vocabulary": 11, "context": 6, "width": 8, "depth": 2, "heads": 2, "classes": 3},
        (5,),
        (3,),
    ),
    "huggingface": ({"model_type": "bert", "classes": 3, "config": BERT}, (5,), (3,)),
}


def inputs(name: str, count: int = 3) -> torch.Tensor:
    random, shape = torch.Generator().manual_seed(1), MEMBERS[name][1]
    if name in TOKENS:
        return torch.randint(TOKENS[name], (count, *shape), generator=random)
    return torch.randn(count, *shape, generator=random)


def test_every_model_of_the_registry_is_enrolled() -> None:
    assert set(MEMBERS) == set(models.MODELS)


@pytest.mark.parametrize("name", MEMBERS)
def test_forward_gives_the_stated_shape_and_gradients_reach_every_parameter(name: str) -> None:
    options, _, output_shape = MEMBERS[name]
    model = models.create(name, seed=0, **options)
    output = model(inputs(name))
    assert output.shape == (3, *output_shape)
    output.square().sum().backward()
    dead = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


@pytest.mark.parametrize("name", MEMBERS)
def test_the_seed_alone_decides_the_weights_and_the_global_generator_is_left_alone(name: str) -> None:
    options = MEMBERS[name][0]
    before = torch.get_rng_state()
    first, again, other = (models.create(name, seed=seed, **options).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", MEMBERS)
def test_state_dict_loads_into_a_fresh_model_and_gives_the_same_output(name: str) -> None:
    options = MEMBERS[name][0]
    first, second = models.create(name, seed=0, **options), models.create(name, seed=1, **options)
    second.load_state_dict(first.state_dict())
    x = inputs(name)
    assert torch.equal(first.eval()(x), second.eval()(x))


@pytest.mark.parametrize("name", MEMBERS)
def test_in_evaluation_mode_a_sample_does_not_see_its_batch(name: str) -> None:
    options = MEMBERS[name][0]
    model = models.create(name, seed=0, **options).double().eval()
    x = inputs(name)
    x = x.double() if x.is_floating_point() else x
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-9, atol=1e-9)


def test_an_import_path_builds_any_model() -> None:
    model = models.create("torch.nn:Linear", in_features=2, out_features=3)
    assert isinstance(model, nn.Linear)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet21", {}, "did you mean 'resnet"),
        ("resnet20", {"widht": 3}, "widht"),
        ("resnet", {"depth": 21}, "6n+2"),
        ("resnet20", {"classes": -1}, "`classes` must be a positive"),
        ("no.such.module:build", {}, "importable"),
        ("math:pi", {}, "callable"),
        ("math:sqrt", {"x": 1.0}, "options"),
        ("builtins:list", {}, "torch.nn.Module"),
        ("resnet20", {"shortcut": "bridge"}, "`shortcut`"),
        ("resnet18", {"stem": "oak"}, "`stem`"),
        ("resnet18", {"width": 0}, "`width`"),
        ("wide_resnet", {"depth": 27}, "6n+4"),
        ("wrn16_4", {"dropout": 1.0}, "`dropout`"),
        ("vgg9", {"narrow": 3}, "`narrow`"),
        ("densenet121", {"growth": 0}, "`growth`"),
        ("pyramidnet110", {"widening": -1}, "`widening`"),
        ("resnet1d", {"depth": 9}, "6n+2"),
        ("vit", {"patch": 5}, "`patch`"),
        ("vit", {"heads": 5}, "`heads`"),
        ("transformer", {"context": 0}, "`context`"),
        ("huggingface", {}, "`folder`"),
        ("huggingface", {"model_type": "burt"}, "burt"),
        ("huggingface", {"folder": "/nowhere"}, "config.json"),
        ("huggingface", {"model_type": "bert", "task": "cooking"}, "`task`"),
    ],
)
def test_bad_input_gives_one_clear_line(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=None) as caught:
        models.create(name, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)
