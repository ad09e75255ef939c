"""Every kind of batch, loss and batching gives the number of a direct computation in float64, or `InputError`."""

from __future__ import annotations

import contextlib
from collections import namedtuple
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import lowland as ll
from lowland.core.errors import InputError, NotDeterministic
from lowland.core.params import ParameterSpace

Pair = namedtuple("Pair", "input target")
N, D = 7, 3


class Graph:
    """Like a batch of graphs: neither tensor, tuple nor mapping."""

    def __init__(self, x: Any, y: Any = None) -> None:
        self.x, self.y, self.num_graphs = x, y, len(x)

    def to(self, device: Any) -> Graph:
        return Graph(self.x.to(device), None if self.y is None else self.y.to(device))


class Foreign:
    def __init__(self, x: Any, y: Any) -> None:
        self.pair = x, y


class Net(nn.Module):
    """Reads the same numbers out of every kind of input."""

    def __init__(self, out: int = 1) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(D, 4), nn.Linear(4, out)

    def forward(self, x: Any, scale: Any = None) -> Any:
        if isinstance(x, Graph):
            x = x.x
        elif isinstance(x, nn.utils.rnn.PackedSequence):
            x = pad_packed_sequence(x, batch_first=True)[0][:, 0]
        elif isinstance(x, list | tuple):
            x = torch.stack([sample.mean((1, 2)) for sample in x])
        elif x.is_nested:
            x = torch.stack([sample[0] for sample in x.unbind()])
        result = self.head(torch.tanh(self.hidden(x)))
        return result if scale is None else result * scale


def images(x: Any) -> list[Any]:
    return [row[:, None, None].expand(D, 2 + k % 2, 3).clone() for k, row in enumerate(x)]


def sequences(x: Any) -> list[Any]:
    return [row.repeat(3 - k % 2, 1) for k, row in enumerate(x)]


KINDS: dict[str, Any] = {
    "tuple": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "with ids": lambda x, y: (x, y, torch.arange(len(x))),
    "namedtuple": Pair,
    "batch": lambda x, y: ll.Batch(x, y),
    "mapping": lambda x, y: {"x": x, "target": y},
    "mapping with a setting": lambda x, y: {"x": x, "scale": 1.0, "target": y},
    "two inputs": lambda x, y: ((x, torch.ones(len(x), 1, dtype=x.dtype)), y),
    "packed": lambda x, y: (pack_sequence(sequences(x), enforce_sorted=False), y),
    "nested": lambda x, y: (torch.nested.nested_tensor(sequences(x), layout=torch.jagged), y),
    "graph": lambda x, y: Graph(x, y),
    "graph and target": lambda x, y: (Graph(x), y),
    "images": lambda x, y: (images(x), y),
    "images and boxes": lambda x, y: (tuple(images(x)), tuple({"boxes": row} for row in y)),
    "target in a dict": lambda x, y: (x, {"a": y, "b": y}),
    "target in a tuple": lambda x, y: (x, (y, y)),
    "no target": lambda x, y: (x, None),
    "adapted": Foreign,
}


def target_of(target: Any, output: Any) -> Any:
    if target is None:
        return output.detach() * 0 + 0.5
    if isinstance(target, tuple) and isinstance(target[0], dict):
        return torch.stack([entry["boxes"] for entry in target])
    return target["a"] if isinstance(target, dict) else target[0] if isinstance(target, tuple | list) else target


def squares(output: Any, target: Any) -> Any:
    return (output - target_of(target, output)) ** 2


LOSSES: dict[str, Any] = {
    "torch": nn.MSELoss(),
    "torch sum": nn.MSELoss(reduction="sum"),
    "function": F.mse_loss,
    "scalar": lambda o, t: squares(o, t).mean(),
    "per sample": lambda o, t: squares(o, t).squeeze(1),
    "per entry": squares,
    "weighted": lambda o, t: (3 * squares(o, t).squeeze(1), torch.full((len(o),), 3.0, dtype=o.dtype)),
}
BATCHINGS = {"whole": [N], "ragged": [4, 2, 1], "one by one": [1] * N}


def data() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, D, generator=generator).double(), torch.randn(N, 1, generator=generator).double()


def model_of(out: int = 1) -> Net:
    torch.manual_seed(0)
    return Net(out).double()


def risk_of(kind: str, loss: str, sizes: list[int], **options: Any) -> tuple[ll.EmpiricalRisk, Any, Any]:
    x, y = data()
    batches = [KINDS[kind](*part) for part in zip(x.split(sizes), y.split(sizes), strict=True)]
    adapt = (lambda raw: ll.Batch(*raw.pair)) if kind == "adapted" else None
    risk = ll.EmpiricalRisk(model_of(), LOSSES[loss], batches, adapt=adapt, **options)
    return risk, x, torch.full_like(y, 0.5) if kind == "no target" else y


def direct(risk: ll.EmpiricalRisk, x: Any, y: Any) -> tuple[float, Any, Any]:
    """Value, gradient and dense Hessian by torch alone."""
    named = dict(risk.model.named_parameters())
    shapes = {name: p.shape for name, p in named.items()}
    flat = torch.cat([p.detach().reshape(-1) for p in named.values()])

    def value(vector: Any) -> Any:
        parts = torch.split(vector, [shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}
        return F.mse_loss(torch.func.functional_call(risk.model, weights, (x,)), y)

    flat.requires_grad_()
    (gradient,) = torch.autograd.grad(value(flat), flat)
    return float(value(flat)), gradient, torch.autograd.functional.hessian(value, flat.detach())


def assert_close(found: Any, expected: Any, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(
        torch.as_tensor(found).double(), torch.as_tensor(expected).double(), rtol=tolerance, atol=tolerance
    )


def check_direct(risk: ll.EmpiricalRisk, x: Any, y: Any, count: int = N) -> None:
    """Everything that measures, against the direct computation."""
    value, gradient, hessian = direct(risk, x, y)
    before = [p.detach().clone() for p in risk.model.parameters()]
    found = risk.evaluate()["loss"]
    assert_close(found.value, value)
    assert found.samples in (0, count)
    assert_close(torch.cat([g.reshape(-1) for g in risk.gradient().values()]), gradient)
    assert_close(ll.curvature.Hessian(risk) @ torch.ones(len(gradient)), hessian.sum(1))
    ends = ll.curvature.extreme_eigenvalues(risk, max_products=len(gradient))
    exact = torch.linalg.eigvalsh(hessian)
    assert_close(ends.lambda_max, exact[-1], 1e-4)
    assert_close(ll.curvature.trace(risk, products=3 * len(gradient)).value, hessian.trace(), 1e-5)
    line = ll.landscape.random_line(risk.model, seed=0)
    surface = ll.landscape.evaluate(risk, line, ll.landscape.grid(3, extent=0.5))
    assert_close(surface.loss.values[1], value)
    space = ParameterSpace(risk.model)
    space.move(before, [[line.axes[0].values[name] for name in space.names]], [0.5])
    moved = float(F.mse_loss(risk.model(x), y))
    space.write(before)
    assert_close(surface.loss.values[2], moved)
    sharp = ll.curvature.sam_sharpness(risk, rho=0.1)
    assert_close(sharp.loss, value)
    space.move(before, [[g * 0.1 / gradient.norm() for g in space.unflatten(gradient)]], [1.0])
    risen = float(F.mse_loss(risk.model(x), y)) - value
    space.write(before)
    assert_close(sharp.raw, risen)
    assert all(torch.equal(a, b) for a, b in zip(before, risk.model.parameters(), strict=True))


STRUCTURED = {"images and boxes", "target in a dict", "target in a tuple", "no target"}
AMBIENT: dict[str, Any] = {
    "plain": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def cases() -> list[Any]:
    found = []
    for kind in KINDS:
        for loss in LOSSES:
            if kind in STRUCTURED and loss in ("torch", "torch sum", "function"):
                continue  # torch's losses take tensors: refused below
            found += [
                pytest.param(
                    kind,
                    loss,
                    sizes,
                    id=f"{kind}-{loss}-{name}",
                    marks=()
                    if loss == "scalar" or (kind in ("tuple", "images") and name != "whole")
                    else pytest.mark.slow,
                )
                for name, sizes in BATCHINGS.items()
            ]
    return found


@pytest.mark.parametrize(("kind", "loss", "sizes"), cases())
def test_equals_a_direct_computation(kind, loss, sizes):
    check_direct(*risk_of(kind, loss, sizes))


@pytest.mark.parametrize("ambient", AMBIENT)
@pytest.mark.parametrize(
    "kind", [kind if kind in ("tuple", "mapping") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_ambient_state_is_no_input(kind, ambient):
    risk, x, y = risk_of(kind, "scalar", [4, 3])
    plain = risk.evaluate()["loss"].value, ll.curvature.extreme_eigenvalues(risk).lambda_max
    line, grid = ll.landscape.random_line(risk.model, seed=0), ll.landscape.grid(3)
    surface = ll.landscape.evaluate(risk, line, grid).loss.values
    sharp = ll.curvature.sam_sharpness(risk).raw
    with AMBIENT[ambient]():
        assert (risk.evaluate()["loss"].value, ll.curvature.extreme_eigenvalues(risk).lambda_max) == plain
        again = ll.landscape.random_line(risk.model, seed=0)
        assert (ll.landscape.evaluate(risk, again, grid).loss.values == surface).all()
        assert ll.curvature.sam_sharpness(risk).raw == sharp
    check_direct(risk, x, y)


@pytest.mark.parametrize("default", [torch.float16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_default_type_is_no_input(kind, default):
    risk, *_ = risk_of(kind, "per entry", [4, 3])
    expected, trace = risk.evaluate(), ll.curvature.trace(risk, products=6)
    torch.set_default_dtype(default)
    try:
        assert risk.evaluate() == expected
        assert ll.curvature.trace(risk, products=6) == trace
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_subset_takes_its_samples_of_every_kind_or_refuses(kind):
    x, _ = data()
    try:
        risk, _, target = risk_of(kind, "scalar", [4, 3], samples=2)
    except InputError as error:
        assert kind.startswith("graph"), error
        return
    assert sum(batch.size for batch in risk.batches()) == 2
    values = (risk.model(x) - target).squeeze(1) ** 2
    pairs = [values[list(rows)].mean().item() for rows in torch.combinations(torch.arange(N), 2).tolist()]
    assert min(abs(risk.evaluate()["loss"].value - value) for value in pairs) < 1e-9


@pytest.mark.parametrize("kind", sorted(STRUCTURED))
def test_torchs_losses_refuse_structured_targets(kind):
    for loss in ("torch", "torch sum", "function"):
        with pytest.raises(InputError, match="a tensor as the target for a loss of torch"):
            risk_of(kind, loss, [4, 3])[0].evaluate()


OF_TORCH = {
    "classes as floats": (nn.CrossEntropyLoss(), torch.zeros(N).double()),
    "other shape": (nn.BCEWithLogitsLoss(), torch.zeros(N).double()),
    "three arguments": (nn.MarginRankingLoss(), torch.ones(N, 1).double()),
    "class out of range": (nn.CrossEntropyLoss(), torch.full((N,), 5)),
    "hinge": (nn.HingeEmbeddingLoss(), torch.ones(N).double()),
    "many labels": (nn.MultiLabelSoftMarginLoss(), torch.ones(N).double()),
    "a class of it": (type("Own", (nn.MSELoss,), {})(), torch.ones(N).double()),
    "function": (F.l1_loss, torch.ones(N).double()),
}


@pytest.mark.parametrize("kind", OF_TORCH)
def test_what_does_not_fit_a_loss_of_torch_is_refused_in_one_line(kind):
    x, _ = data()
    loss, target = OF_TORCH[kind]
    with pytest.raises(InputError, match="`loss` must") as caught:
        ll.EmpiricalRisk(model_of(), loss, [(x, target)]).evaluate()
    assert "\n" not in str(caught.value)


class Two(nn.Module):
    """Returns a mean and a share of it, or a distribution."""

    def __init__(self, distribution: bool = False) -> None:
        super().__init__()
        self.net, self.distribution = model_of(), distribution

    def forward(self, x: Any) -> Any:
        mean = self.net(x)
        return torch.distributions.Normal(mean, 1.0) if self.distribution else (mean, 0.1 * mean)


MIXING: dict[str, Any] = {
    "difference": lambda o, t: ((o - t) ** 2).mean(),
    "from the target": lambda o, t: ((t - o) ** 2).mean(),
    "after changes": lambda o, t: (torch.sigmoid(2 * o.float()) - t.exp().detach()).abs().mean(),
    "per entry": lambda o, t: (o - t) ** 2,
    "function of torch": lambda o, t: F.mse_loss(o, t),
    "module in a lambda": lambda o, t: nn.SmoothL1Loss()(o, t),
    "product": lambda o, t: (F.softplus(o) - o * (t > 0)).mean(),
    "two outputs": (Two(), lambda o, t: F.gaussian_nll_loss(o[0], t, torch.ones(N, 1))),
    "distribution": (Two(True), lambda o, t: -o.log_prob(t).mean()),
    "weights": (model_of(), lambda o, t: (t.abs() * (o - t[:, None]) ** 2).mean()),
    "as wide as long": (nn.Linear(D, N).double(), lambda o, t: ((o - t) ** 2).mean()),
}


@pytest.mark.parametrize("kind", MIXING)
@pytest.mark.filterwarnings("ignore:Using a (target|input) size")
def test_samples_are_not_compared_all_with_all(kind):
    x, y = data()
    model, loss = MIXING[kind] if isinstance(MIXING[kind], tuple) else (model_of(), MIXING[kind])
    batches = [(x, y.squeeze(1))]
    for risk in (
        ll.EmpiricalRisk(model, loss, batches),
        ll.EmpiricalRisk(
            model, evaluate=lambda net, batch: {"loss": loss(net(batch.input), batch.target)}, batches=batches
        ),
    ):
        for act in (risk.evaluate, risk.gradient, risk.evaluate):
            with pytest.raises(InputError, match="all with all"):
                act()


def test_pairs_that_are_written_out_are_meant():
    x, y = data()
    pairs = ll.EmpiricalRisk(model_of(), lambda o, t: ((o[:, :1] - t[None]) ** 2).mean(), [(x, y.squeeze(1))])
    assert_close(pairs.evaluate()["loss"].value, ((model_of()(x) - y.squeeze(1)[None]) ** 2).mean())


def refused(match: str, build: Any) -> None:
    with pytest.raises(InputError, match=match):
        build()


def test_what_is_refused_and_why():
    x, y = data()

    def risk(batches: Any, loss: Any = None, **options: Any) -> Any:
        return ll.EmpiricalRisk(model_of(), loss or nn.MSELoss(), batches, **options).evaluate()

    refused("third entry", lambda: risk([(x, y, torch.rand(N))]))
    refused("one shape", lambda: risk([(x, y.squeeze(1))]))
    for pair in ((x, y), (x, y.numpy()), (x.numpy(), y.numpy()), (x, {"labels": y}), (x, (y, y)), (x, y.tolist())):
        refused("not be one", lambda pair=pair: risk(pair))
    refused("not be one", lambda: risk(x))
    refused("DataLoader", lambda: risk(torch.utils.data.TensorDataset(x, y)))
    refused("adapt=", lambda: risk([Foreign(x, y)]))
    refused("how many samples", lambda: risk([(x, y[:4])], loss=lambda o, t: o.mean()))
    assert risk([(x, y[:4])], loss=lambda o, t: o.mean(), samples_of=lambda b: N)["loss"].weight == N
    refused("one entry per sample", lambda: risk([(x, y)], loss=lambda o, t: torch.ones(3)))
    made = ll.EmpiricalRisk(model_of(), nn.MSELoss(), [(x, y)])
    refused("outside torch.func", lambda: torch.func.vmap(lambda v: made.evaluate()["loss"].value + v)(torch.ones(2)))
    for name, build in {
        "complex": lambda: nn.Linear(D, 1, dtype=torch.cfloat),
        "lazy": lambda: nn.LazyLinear(1),
        "meta": lambda: nn.Linear(D, 1, device="meta"),
    }.items():
        refused(name, lambda build=build: ll.EmpiricalRisk(build(), nn.MSELoss(), [(x, y)]))
        refused(name, lambda build=build: ll.landscape.random_plane(build()))
    tied = nn.Sequential(nn.Linear(D, D), nn.Linear(D, D))
    tied[1].weight.data = tied[0].weight.data
    refused("same memory", lambda: ll.landscape.random_plane(tied))


class Sampler:
    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, data: Any) -> Any:
        from torch.utils import data as tools

        if self.kind == "subset":
            return {"sampler": tools.SubsetRandomSampler([1, 3, 4]), "batch_size": 2}, [1, 3, 4]
        if self.kind == "batch sampler":
            return {"batch_sampler": [[5, 0], [2]]}, [5, 0, 2]
        if self.kind == "rank":
            return {"sampler": tools.DistributedSampler(data, 2, 1), "batch_size": 3}, None
        return {"sampler": tools.WeightedRandomSampler([1.0] * N, 5), "batch_size": 3}, None


@pytest.mark.parametrize("kind", ["subset", "batch sampler", "rank", "weighted"])
@pytest.mark.filterwarnings("ignore::lowland.core.errors.LowlandWarning")
def test_a_loaders_sampler_decides(kind):
    x, y = data()
    pairs = torch.utils.data.TensorDataset(x, y)
    options, rows = Sampler(kind)(pairs)
    risks = [ll.EmpiricalRisk(model_of(), nn.MSELoss(), torch.utils.data.DataLoader(pairs, **options)) for _ in (1, 2)]
    found = [risk.evaluate()["loss"] for risk in risks]
    assert found[0] == found[1] == risks[0].evaluate()["loss"]
    assert found[0].samples == {"rank": 4, "weighted": 5}.get(kind, 3)
    if rows:
        assert_close(found[0].value, F.mse_loss(model_of()(x[rows]), y[rows]))


def test_noise_is_named_and_can_be_fixed():
    x, y = data()
    noisy = lambda o, t: ((o + 0.1 * torch.randn_like(o) - t) ** 2).mean()
    risk = ll.EmpiricalRisk(model_of(), noisy, [(x, y)])
    for act in (ll.curvature.sam_sharpness, ll.curvature.worst_case_sharpness, ll.curvature.trace):
        with pytest.raises(NotDeterministic, match="on the same output"):
            act(risk)
    dropping = nn.Sequential(
        nn.Linear(D, 1).double(),
        *[type("Drop", (nn.Module,), {"forward": lambda self, v: F.dropout(v, 0.5, training=True)})()],
    )
    with pytest.raises(NotDeterministic, match="`model` gives another output"):
        ll.curvature.sam_sharpness(ll.EmpiricalRisk(dropping, nn.MSELoss(), [(x, y)]))
    seeded = ll.EmpiricalRisk(model_of(), noisy, [(x[:4], y[:4]), (x[4:], y[4:])], seeded=True)
    assert seeded.evaluate() == seeded.evaluate()
    line = ll.landscape.evaluate(seeded, ll.landscape.random_line(seeded.model, seed=0), ll.landscape.grid(3))
    assert_close(line.loss.values[1], seeded.evaluate()["loss"].value)
    ll.curvature.trace(seeded, products=6)


class Layer(nn.Module):
    """A linear layer with something beside it that forward touches."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.linear, self.kind, self.calls = nn.Linear(D, 1), kind, torch.zeros(1)
        self.register_buffer("running_mean", torch.zeros(D))
        self.register_buffer("expanded", torch.ones(1).expand(D))
        self.register_buffer("sparse", torch.eye(2).to_sparse())

    def forward(self, x: Any) -> Any:
        if self.kind == "rebinds":
            self.running_mean = 0.9 * self.running_mean + 0.1 * x.mean(0).detach()
        elif self.kind == "counts":
            self.calls += 1
        elif self.kind == "creates":
            self.register_buffer("made", torch.ones(2))
        elif self.kind == "writes":
            self.linear.weight.data.clamp_(-0.1, 0.1)
        return self.linear(x) * self.expanded.sum()


@pytest.mark.parametrize("kind", ["rebinds", "counts", "creates", "writes"])
def test_the_model_keeps_its_bits_whatever_forward_touches(kind):
    x, y = data()
    model = Layer(kind).double()
    before = {name: tensor.to_dense().clone() for name, tensor in model.state_dict().items()}
    risk = ll.EmpiricalRisk(model, nn.MSELoss(), [(x, y)])
    with contextlib.suppress(InputError) if kind == "writes" else contextlib.nullcontext():
        risk.evaluate(), risk.gradient()
        ll.landscape.evaluate(risk, ll.landscape.random_line(model, seed=0), ll.landscape.grid(3))
        ll.curvature.trace(risk, products=6)
    after = model.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[name].to_dense(), before[name]) for name in before)
    assert float(model.calls) == 0


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(sorted(KINDS)),
    loss=st.sampled_from(sorted(LOSSES)),
    cuts=st.sets(st.integers(1, N - 1)),
    ambient=st.sampled_from(sorted(AMBIENT)),
)
def test_no_silent_difference(kind, loss, cuts, ambient):
    edges = [0, *sorted(cuts), N]
    sizes = [b - a for a, b in zip(edges, edges[1:], strict=False)]
    try:
        risk, x, y = risk_of(kind, loss, sizes)  # a model made in inference mode is refused, and a test of its own
        with AMBIENT[ambient]():
            found, gradient = risk.evaluate()["loss"], risk.gradient()
    except InputError:
        assert kind in STRUCTURED and loss in ("torch", "torch sum", "function")
        return
    value, expected, _ = direct(risk, x, y) if not next(risk.model.parameters()).is_inference() else (None, None, None)
    if value is not None:
        assert_close(found.value, value)
        assert_close(torch.cat([g.reshape(-1) for g in gradient.values()]), expected)
