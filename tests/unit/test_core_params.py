"""Parameter space: names, tied and frozen parameters, flat vectors, moves, unit rules of every kind of tensor."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lowland.core.contexts import same_bits, weights_restored
from lowland.core.effective import effective_weights
from lowland.core.errors import InputError
from lowland.core.params import ParameterSpace, global_norm, normalized_scale, unwrap
from lowland.core.units import UnitRule, clean_name, unit_rules
from lowland.optim import norm_parameters


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)


def test_tied_once_frozen_left_alone():
    assert ParameterSpace(Tied()).names == ("embedding.weight",)
    assert ParameterSpace(Tied(), trainable=False).names == ("embedding.weight", "frozen.weight", "frozen.bias")


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "parallel"])
def test_names_and_tensors_under_wrappers(wrap):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    wrapped = wrap(model)
    assert unwrap(wrapped) is model
    assert ParameterSpace(wrapped).names == ParameterSpace(model).names
    assert ParameterSpace(wrapped).tensors[0] is model[0].weight


def test_prefixes_go_but_a_module_of_that_name_stays():
    assert clean_name("_orig_mod.net.0.weight") == "net.0.weight"
    assert clean_name("net._orig_mod.weight") == "net.weight"
    assert clean_name("module.a") == "module.a"  # a wrapper is known by its type: see `unwrap`


def test_modules_choose_a_subspace():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 3)), nn.Linear(3, 1))
    assert ParameterSpace(model, modules=["1", "2"]).names == ("1.0.weight", "1.0.bias", "2.weight", "2.bias")
    with pytest.raises(InputError, match="`modules` must name submodules"):
        ParameterSpace(model, modules=["10"])


def test_flatten_and_back():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(3, 2)).to(memory_format=torch.channels_last)
    space = ParameterSpace(model)
    values = [torch.randn_like(p) for p in space.tensors]
    vector = space.flatten(values)
    assert vector.shape == (space.numel,)
    assert all(torch.equal(a, b) for a, b in zip(values, space.unflatten(vector), strict=True))
    assert torch.equal(space.flatten(space.named(values)), vector)
    with pytest.raises(InputError, match=r"shape \[28\]"):
        space.unflatten(torch.zeros(3))
    with pytest.raises(InputError, match="names"):
        space.flatten({"nothing": torch.zeros(1)})
    with pytest.raises(InputError, match="shape"):
        space.flatten([torch.zeros(1)] * 4)


def test_move_is_from_the_base_and_the_center_has_its_bits():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight[0, 0] = -0.0
    space = ParameterSpace(model)
    axes = [[torch.randn_like(p) for p in space.tensors] for _ in range(2)]
    before, addresses = space.copy(), [p.data_ptr() for p in space.tensors]
    with weights_restored(space) as base:
        for x, y in ((0.3, -2.0), (1e3, 1e-3), (0.5, 0.25)):
            space.move(base, axes, (x, y))
        for i, parameter in enumerate(space.tensors):
            assert torch.allclose(parameter, before[i] + 0.5 * axes[0][i] + 0.25 * axes[1][i], rtol=1e-6)
        space.move(base, axes, (0.0, 0.0))
        assert same_bits(space.tensors, before)
        space.move(base, axes, (1.0, 1.0))
    assert same_bits(space.tensors, before)
    assert addresses == [p.data_ptr() for p in space.tensors]


def test_nothing_trainable_is_an_error():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(InputError, match="must have trainable parameters"):
        ParameterSpace(model)


RULES = [
    (nn.Linear(3, 5), {"weight": "filter axis 0", "bias": "fixed"}),
    (nn.Conv1d(4, 6, 3, groups=2), {"weight": "filter axis 0", "bias": "fixed"}),
    (nn.Conv3d(2, 3, 2), {"weight": "filter axis 0", "bias": "fixed"}),
    (nn.ConvTranspose2d(4, 6, 3), {"weight": "filter axis 1", "bias": "fixed"}),
    (nn.ConvTranspose2d(4, 6, 3, groups=2), {"weight": "filter axis 1, groups 2", "bias": "fixed"}),
    (nn.Embedding(5, 3), {"weight": "filter axis 0"}),
    (nn.Bilinear(2, 3, 4), {"weight": "filter axis 0", "bias": "fixed"}),
    (nn.BatchNorm2d(3), {"weight": "fixed", "bias": "fixed"}),
    (nn.LayerNorm([3, 4]), {"weight": "fixed", "bias": "fixed"}),
    (nn.RMSNorm(4), {"weight": "fixed"}),
    (nn.PReLU(3), {"weight": "fixed"}),
    (
        nn.LSTM(3, 4),
        {
            "weight_ih_l0": "filter axis 0",
            "weight_hh_l0": "filter axis 0",
            "bias_ih_l0": "fixed",
            "bias_hh_l0": "fixed",
        },
    ),
    (
        nn.MultiheadAttention(4, 2, add_bias_kv=True),
        {
            "in_proj_weight": "filter axis 0",
            "in_proj_bias": "fixed",
            "bias_k": "fixed",
            "bias_v": "fixed",
            "out_proj.weight": "filter axis 0",
            "out_proj.bias": "fixed",
        },
    ),
]


@pytest.mark.parametrize(("module", "expected"), RULES, ids=lambda m: type(m).__name__)
def test_rule_of_each_kind(module, expected):
    assert {name: rule.describe() for name, rule in unit_rules(module).items()} == expected


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 4))
        self.cls_token = nn.Parameter(torch.randn(1, 1, 4))
        self.wpe = nn.Embedding(5, 4)
        self.relative_position_bias_table = nn.Parameter(torch.randn(9, 2))
        self.position_embeddings = nn.Embedding(5, 4)
        self.layer_scale = nn.Parameter(torch.ones(4))
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.mixing = nn.Parameter(torch.randn(3, 3))
        self.composer = nn.Linear(2, 2)


def test_tables_tokens_and_bare_parameters():
    found = {name: rule.kind for name, rule in unit_rules(Odd()).items()}
    assert found == {
        "pos_embed": "tensor",
        "cls_token": "tensor",
        "wpe.weight": "tensor",
        "relative_position_bias_table": "tensor",
        "position_embeddings.weight": "tensor",
        "layer_scale": "tensor",
        "scale": "fixed",
        "mixing": "tensor",
        "composer.weight": "filter",
        "composer.bias": "fixed",
    }


def test_hugging_face_conv1d_keeps_inputs_first():
    conv = pytest.importorskip("transformers.pytorch_utils").Conv1D(6, 4)
    rule = unit_rules(conv)["weight"]
    assert torch.allclose(rule.norms(conv.weight), conv.weight.norm(dim=0))


@pytest.mark.parametrize("groups", [1, 2])
def test_units_of_a_transposed_convolution_are_its_output_channels(groups):
    conv = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
    rule = unit_rules(conv)["weight"]
    assert torch.equal(rule.join(rule.split(conv.weight), conv.weight.shape), conv.weight)
    units = rule.split(conv.weight)
    assert units.shape == (6, 4 // groups * 9)
    for channel in range(6):  # zeroing unit j must silence output channel j and no other
        with torch.no_grad():
            kept = units.clone()
            kept[channel] = 0
            twin = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
            twin.weight.copy_(rule.join(kept, conv.weight.shape))
            out = twin(torch.randn(1, 4, 5, 5))
        assert not out[:, channel].any()
        assert all(out[:, c].any() for c in range(6) if c != channel)


def test_rules_may_be_replaced():
    model = nn.Linear(3, 2)
    assert ParameterSpace(model, rules={"bias": UnitRule("tensor")}).rules[1].kind == "tensor"
    with pytest.raises(InputError, match="`rules` must name parameters"):
        ParameterSpace(model, rules={"weights": UnitRule("tensor")})


def test_weight_norm_is_seen_as_its_effective_weight_and_comes_back():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    model = nn.Sequential(layer, nn.Linear(2, 1))
    x = torch.randn(4, 3)
    before, names, expected = (
        [p.clone() for p in model.parameters()],
        [n for n, _ in model.named_parameters()],
        model(x),
    )
    with effective_weights(model):
        space = ParameterSpace(model)
        assert set(space.names) == {"0.weight", "0.bias", "1.weight", "1.bias"}
        assert torch.allclose(model(x), expected, atol=1e-6)
        with torch.no_grad():
            model[0].weight.mul_(2)
        assert not torch.allclose(model(x), expected)
    assert [n for n, _ in model.named_parameters()] == names
    assert same_bits(list(model.parameters()), before)
    assert torch.equal(model(x), expected)
    assert (
        model.state_dict().keys()
        == nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.Linear(2, 1)).state_dict().keys()
    )


class Counted(nn.Module):
    """A parametrization with a buffer that every use of the weight changes, in any mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("uses", torch.zeros(()))

    def forward(self, weight):
        self.uses += 1
        return weight * 2


def test_looking_at_a_weight_changes_no_buffer_of_its_parametrization():
    layer = nn.utils.parametrize.register_parametrization(nn.Linear(3, 2), "weight", Counted())
    before = layer.parametrizations.weight[0].uses.clone()
    with effective_weights(layer):
        pass
    assert torch.equal(layer.parametrizations.weight[0].uses, before)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", amount=0.5),
    ],
    ids=["weight_norm", "spectral_norm", "pruned"],
)
def test_weights_made_by_hooks_are_plain_inside_and_back_afterwards(wrap):
    layer = wrap(nn.Linear(3, 2))
    model, x = nn.Sequential(layer, nn.Softplus()).eval(), torch.randn(5, 3)
    state, hooks, expected = (
        {n: t.clone() for n, t in model.state_dict().items()},
        len(layer._forward_pre_hooks),
        model(x),
    )
    with effective_weights(model):
        assert set(dict(model.named_parameters())) == {"0.weight", "0.bias"}
        assert torch.equal(model(x), expected)
        with torch.no_grad():
            layer.weight.add_(1.0)
        assert not torch.allclose(model(x), expected)
    assert len(layer._forward_pre_hooks) == hooks
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items()) and len(state) == len(
        model.state_dict()
    )
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_global_norm(dtype):
    parts = [torch.full((3,), 2.0, dtype=dtype), torch.full((2, 2), 1.0, dtype=dtype)]
    assert global_norm(parts).item() == pytest.approx(4.0, rel=1e-15)
    assert global_norm([]).item() == 0.0


def test_half_precision_norm_does_not_overflow():
    assert global_norm([torch.full((100,), 6e4, dtype=torch.float16)]).item() == pytest.approx(6e5, rel=1e-3)


@pytest.mark.parametrize(("norm", "expected"), [(0.0, 0.0), (math.inf, 0.0), (math.nan, 0.0), (4.0, 0.0125)])
def test_scale_is_zero_where_the_norm_is_unusable(norm, expected):
    assert normalized_scale(torch.tensor(norm, dtype=torch.float64), 0.05).item() == expected


def test_scale_does_not_depend_on_the_loss_scale():
    gradient = [torch.randn(100) * 1e-3]
    steps = [normalized_scale(global_norm([g * s for g in gradient]), 0.05) * gradient[0] * s for s in (1.0, 2.0**16)]
    assert torch.equal(*steps)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_layers_have_the_units_of_what_was_scripted():
    layers = (nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 4, 2, groups=1), nn.GroupNorm(1, 4))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3))
    assert unit_rules(torch.jit.script(model)) == unit_rules(model)
    assert len(norm_parameters(torch.jit.script(model))) == len(norm_parameters(model)) == 4


def test_a_subclass_keeps_the_layout_of_its_base():
    class Conv1D(nn.Module):  # as of transformers: [in, out]
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 5))

    made = type("FSDPConv1D", (Conv1D,), {})()
    assert unit_rules(made)["weight"] == unit_rules(Conv1D())["weight"] == UnitRule("filter", axis=1)
