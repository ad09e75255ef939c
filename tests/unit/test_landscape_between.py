"""Lines and planes through models, with their batch-norm statistics; eigenvectors; adapters; weight matching."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lowland import curvature, landscape
from lowland.core.contexts import same_bits
from lowland.core.errors import InputError
from lowland.core.risk import EmpiricalRisk
from lowland.core.settings import RobustnessOptions
from lowland.landscape import Curve, evaluate, grid, line_between, plane_through
from lowland.models import resnet
from lowland.robustness import card


def network(seed, **options):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                module.weight.normal_(1.0, 0.2)
    return model.double()


def images(n=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 6, 6, generator=generator, dtype=torch.float64)
    return [(x, torch.randint(3, (n,), generator=generator))]


def loss_of(model):
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), images()).evaluate()["loss"].value


def test_the_ends_of_a_line_are_the_models_with_their_statistics():
    first, second = network(0), network(1)
    before = {n: t.clone() for n, t in first.state_dict().items()}
    line = line_between(first, second)
    surface = evaluate(EmpiricalRisk(first, nn.CrossEntropyLoss(), images()), line, grid(5, extent=(0, 1)))
    assert float(surface.loss[0]) == loss_of(first)
    assert float(surface.loss[-1]) == pytest.approx(loss_of(second), rel=1e-12)
    assert surface.attrs["batch_norm"] == "interpolated" and line.markers == {"other": (1.0,)}
    assert all(torch.equal(before[n], t) for n, t in first.state_dict().items())
    half = copy.deepcopy(first)
    with torch.no_grad():
        for (_, a), b in zip(half.state_dict().items(), second.state_dict().values(), strict=True):
            if a.is_floating_point():
                a.copy_((a + b) / 2)
    assert float(surface.loss[2]) == pytest.approx(loss_of(half), rel=1e-10)


def test_statistics_can_stay_or_be_recalibrated_and_are_never_mixed():
    first, second = network(0), network(1)
    kept = line_between(first, second, move_statistics=False)
    surface = evaluate(EmpiricalRisk(first, nn.CrossEntropyLoss(), images()), kept, grid(2, extent=(0, 1)))
    hybrid = copy.deepcopy(first)
    hybrid.load_state_dict({**second.state_dict(), **dict(first.named_buffers())})
    assert float(surface.loss[-1]) == pytest.approx(loss_of(hybrid), rel=1e-12)
    risk = EmpiricalRisk(first, nn.CrossEntropyLoss(), images(), batch_norm="recalibrated")
    surface = evaluate(risk, kept, grid(2, extent=(0, 1)))
    other = EmpiricalRisk(second, nn.CrossEntropyLoss(), images(), batch_norm="recalibrated")
    assert float(surface.loss[-1]) == pytest.approx(other.evaluate()["loss"].value, rel=1e-12)
    with pytest.raises(InputError, match="moves the statistics"):
        evaluate(risk, line_between(first, second), grid(2, extent=(0, 1)))


def test_variances_never_become_negative():
    first, second = network(0), network(1)
    risk = EmpiricalRisk(first, nn.CrossEntropyLoss(), images())
    surface = evaluate(risk, line_between(first, second), grid(9, extent=(-20, 20)))
    assert np.isfinite(surface.loss).all()


@pytest.mark.parametrize("orthogonal", [True, False])
def test_a_plane_holds_all_three_models_at_its_markers(orthogonal):
    models = [network(seed) for seed in range(3)]
    plane = plane_through(*models, orthogonal=orthogonal)
    if orthogonal:
        assert plane.cosine == pytest.approx(0, abs=1e-12) and plane.norms[0] == pytest.approx(plane.norms[1])
    else:
        assert plane.markers == {"second": (1.0, 0.0), "third": (0.0, 1.0)}
    risk = EmpiricalRisk(models[0], nn.CrossEntropyLoss(), images())
    for name, model in zip(("second", "third"), models[1:], strict=True):
        x, y = plane.markers[name]
        place = landscape.Grid(np.array([x]), np.array([y]))
        assert float(evaluate(risk, plane, place).loss[0, 0]) == pytest.approx(loss_of(model), rel=1e-9)


def test_models_that_do_not_fit_or_lie_on_a_line_are_refused():
    first, second = network(0), network(1)
    with pytest.raises(InputError, match="architecture"):
        line_between(first, nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(InputError, match="norms above 0"):
        line_between(first, copy.deepcopy(first))
    middle = copy.deepcopy(first)
    with torch.no_grad():
        for m, a, b in zip(middle.parameters(), first.parameters(), second.parameters(), strict=True):
            m.copy_((a + b) / 2)
    with pytest.raises(InputError, match="must not lie on the line"):
        plane_through(first, second, middle)


def test_parametrized_weights_move_in_the_space_of_effective_ones():
    torch.manual_seed(0)
    first = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))
    second = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))
    batches = [(torch.randn(9, 4), torch.randint(3, (9,)))]
    before = [p.detach().clone() for p in first.parameters()]
    line = line_between(first, second)
    assert set(line.rules) == {"0.weight", "0.bias"}
    surface = evaluate(EmpiricalRisk(first, nn.CrossEntropyLoss(), batches), line, grid(2, extent=(0, 1)))
    expected = EmpiricalRisk(second, nn.CrossEntropyLoss(), batches).evaluate()["loss"].value
    assert float(surface.loss[-1]) == pytest.approx(expected, rel=1e-6)
    assert same_bits(before, list(first.parameters()))


def test_the_curvature_along_an_eigenvector_is_its_eigenvalue():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    batches = [(torch.randn(40, 4, dtype=torch.float64), torch.randint(3, (40,)))]
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), batches)
    plane = landscape.eigenvector_plane(risk)
    assert plane.norms == pytest.approx((1.0, 1.0)) and plane.cosine == pytest.approx(0, abs=1e-6)
    surface = evaluate(risk, plane, grid(3, 3, extent=1e-3))
    found = landscape.numbers(surface).curvature.values
    np.testing.assert_allclose(found, plane.recipe["arguments"]["eigenvalues"], rtol=1e-4)
    assert curvature.top_eigenvalues(risk, 2).values[0] == pytest.approx(found[0], rel=1e-4)


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, with the interface of the package peft."""

    def __init__(self, size=6, rank=2):
        super().__init__()
        self.base_layer = nn.Linear(size, size)
        self.base_layer.requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(size, rank, bias=False), nn.Linear(rank, size, bias=False)

    def get_delta_weight(self, adapter):
        return 0.5 * self.lora_B.weight @ self.lora_A.weight

    def forward(self, x):
        return self.base_layer(x) + 0.5 * self.lora_B(self.lora_A(x))


def test_adapters_move_in_the_space_of_weight_changes():
    torch.manual_seed(0)
    model = nn.Sequential(Adapted(), nn.Tanh(), nn.Linear(6, 3)).double()
    merged = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        merged[0].weight.copy_(model[0].base_layer.weight + model[0].get_delta_weight("default"))
        merged[0].bias.copy_(model[0].base_layer.bias)
        merged[2].load_state_dict(model[2].state_dict())
    batches = [(torch.randn(20, 6, dtype=torch.float64), torch.randint(3, (20,)))]
    plane = landscape.lora_plane(model, seed=1)
    assert list(plane.rules) == ["0.base_layer.weight", "0.base_layer.bias"]
    axis = plane.axes[0].values["0.base_layer.weight"]
    torch.testing.assert_close(axis.norm(dim=1), merged[0].weight.norm(dim=1))
    surface = evaluate(EmpiricalRisk(model, nn.CrossEntropyLoss(), batches), plane, grid(3, 3))
    twin = landscape.user_plane(
        merged,
        [{"0.weight": a.values["0.base_layer.weight"], "0.bias": torch.zeros(6)} for a in plane.axes],
        modules=["0"],
    )
    expected = evaluate(EmpiricalRisk(merged, nn.CrossEntropyLoss(), batches), twin, grid(3, 3))
    np.testing.assert_allclose(surface.loss, expected.loss, rtol=1e-10)
    rescaled = copy.deepcopy(model)
    with torch.no_grad():
        rescaled[0].lora_A.weight.mul_(7)
        rescaled[0].lora_B.weight.div_(7)
    again = EmpiricalRisk(rescaled, nn.CrossEntropyLoss(), batches)
    found = evaluate(again, landscape.lora_plane(rescaled, seed=1, stored=False), grid(3, 3))
    np.testing.assert_allclose(found.loss, surface.loss, rtol=1e-10)
    weight = model[0].base_layer.weight + model[0].get_delta_weight("default")  # with its graph
    given = landscape.lora_plane(model, seed=1, effective={"0.base_layer.weight": weight}, stored=False)
    assert weight.requires_grad and not any(w.requires_grad for axis in given.axes for w in axis.norms_from.values())
    with pytest.raises(InputError, match="adapted layers"):
        landscape.lora_plane(merged)


def shuffled(model, seed=5):
    """The same function with its hidden units in another order, written by hand for `network`."""
    result, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for conv, norm, following, repeat in ((0, 1, 3, 1), (3, 4, 7, 16)):
            order = torch.randperm(result[conv].out_channels, generator=generator)
            for tensor in (result[conv].weight, result[conv].bias, *result[norm].state_dict().values()):
                if tensor.ndim:
                    tensor.copy_(tensor[order].clone())
            wide = (order[:, None] * repeat + torch.arange(repeat)).reshape(-1)
            result[following].weight.copy_(result[following].weight[:, wide].clone())
        order = torch.randperm(8, generator=generator)
        result[7].weight.copy_(result[7].weight[order].clone())
        result[7].bias.copy_(result[7].bias[order].clone())
        result[9].weight.copy_(result[9].weight[:, order].clone())
    return result


def test_matching_undoes_a_permutation_exactly():
    model = network(0)
    other = shuffled(model)
    x = images()[0][0]
    torch.testing.assert_close(model.eval()(x), other.eval()(x))
    found = landscape.match_weights(model, other, images()[0])
    assert found.similarity_before < 0.9 and found.similarity_after == pytest.approx(1.0, abs=1e-12)
    assert same_bits(list(found.model.parameters()), list(model.parameters()))
    assert same_bits(list(found.model.buffers()), list(model.buffers()))
    assert [len(p) for p in found.permutations] == [4, 6, 8]


def test_matching_lowers_the_barrier_of_a_noisy_copy_and_keeps_the_function():
    model = network(0)
    other = shuffled(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    found = landscape.match_weights(model, other, images()[0])
    x = images()[0][0]
    torch.testing.assert_close(found.model.eval()(x), other.eval()(x), rtol=1e-9, atol=1e-9)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), images())
    barriers = []
    for second in (other, found.model):
        surface = evaluate(risk, line_between(model, second), grid(11, extent=(0, 1)))
        barriers.append(float(landscape.numbers(surface).barrier))
    assert barriers[1] < 0.1 * barriers[0]


@pytest.mark.parametrize(("shortcut", "groups"), [("projection", 6), ("padding", 3)])
def test_residual_networks_are_matched_by_tracing(shortcut, groups):
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(resnet(8, channels=1, width=4, shortcut=shortcut).double())
    found = landscape.match_weights(*models, (torch.randn(2, 1, 8, 8, dtype=torch.float64), torch.zeros(2)))
    assert found.similarity_after > found.similarity_before + 0.02
    assert len(found.permutations) == groups  # one inside each block, and the chain of each stage where it is free
    again = landscape.match_weights(models[0], models[0], (torch.randn(2, 1, 8, 8).double(), torch.zeros(2)))
    assert again.similarity_after == pytest.approx(1.0) and again.sweeps == 1


class _Flattening(nn.Module):
    """Images become rows by a method of the tensor."""

    def __init__(self, way):
        super().__init__()
        self.way, self.first, self.second, self.last = way, nn.Conv2d(1, 4, 3), nn.Linear(64, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.first(x).relu()
        x = x.flatten(1) if self.way == "flatten" else getattr(x, self.way)(-1, 64)
        return self.last(self.second(x).tanh())


@pytest.mark.parametrize("way", ["flatten", "view", "reshape"])
def test_units_are_followed_through_tensors_that_are_flattened(way):
    models = [_Flattening(way).double() for _ in range(2)]
    found = landscape.match_weights(*models, images()[0])
    assert [len(order) for order in found.permutations] == [4, 8]
    torch.testing.assert_close(found.model(images()[0][0]), models[1](images()[0][0]))


def test_models_that_cannot_be_traced_are_refused():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else x

    with pytest.raises(InputError, match="traceable"):
        landscape.match_weights(Branch(), Branch(), (torch.randn(2, 3), torch.zeros(2)))
    with pytest.raises(InputError, match="units that can be reordered"):
        landscape.match_weights(nn.Linear(3, 3), nn.Linear(3, 3), (torch.randn(2, 3), torch.zeros(2)))
    with pytest.raises(InputError, match="architecture"):
        landscape.match_weights(network(0), nn.Linear(3, 3), images()[0])


class _Weights(nn.Module):
    """Tied to itself, added by broadcasting, or used twice."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, width = kind, 8 if kind == "tied" else 16
        self.first, self.gate = nn.Linear(8, width, bias=False), nn.Linear(8, 1)
        self.hidden, self.last = nn.Linear(width, width), nn.Linear(width, 8, bias=False)
        if kind == "tied":
            self.last.weight = self.first.weight

    def forward(self, x):
        y = self.first(x) + self.gate(x) if self.kind == "broadcast" else self.first(x)
        y = torch.relu(y)
        for _ in range(2 if self.kind == "shared" else 0):
            y = torch.relu(self.hidden(y))
        return self.last(y)


@pytest.mark.parametrize("kind", ["tied", "broadcast", "shared"])
@pytest.mark.parametrize("seed", range(5))
def test_tied_broadcast_and_shared_layers_keep_their_function_or_are_refused(kind, seed):
    torch.manual_seed(seed)
    model, other = _Weights(kind).double().eval(), _Weights(kind).double().eval()
    x = torch.randn(6, 8).double()
    if kind == "tied":
        with pytest.raises(InputError, match="reordered"):
            landscape.match_weights(model, other, (x, torch.zeros(6)))
        return
    found = landscape.match_weights(model, other, (x, torch.zeros(6)))
    torch.testing.assert_close(found.model(x), other(x), rtol=1e-12, atol=1e-12)
    assert found.similarity_after > found.similarity_before


@pytest.mark.parametrize("way", ["line", "plane", "curve", "card"])
def test_other_frozen_weights_are_refused_since_the_end_would_be_neither_network(way):
    def half_frozen(seed):
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        made[0].requires_grad_(False)
        return made

    first, second, third = (half_frozen(seed) for seed in range(3))
    risk = EmpiricalRisk(first, nn.CrossEntropyLoss(), [(torch.randn(9, 4), torch.arange(9) % 3)])
    ways = {
        "line": lambda: line_between(first, second),
        "plane": lambda: plane_through(first, second, third),
        "curve": lambda: Curve.through(first, [second]),
        "card": lambda: card(risk, RobustnessOptions(parts=["merging"]), second=second),
    }
    with pytest.raises(InputError, match=r"frozen weights.*0\.weight"):
        ways[way]()
    for one in (second, third):
        one[0].load_state_dict(first[0].state_dict())
    assert ways[way]() is not None
    second[0].bias.data.add_(1.0)
    assert line_between(first, second, modules=["2"]) is not None  # named: the rest stays where it is
