"""What a survey must get right for every kind of model: the classes of bugs of existing tools, one test each.

Every kind holds the rules of `lowland.testing`, and what the rules leave to each tool. A new kind of model joins by one
line in `MODELS`. The eigenvalue class belongs to the curvature suite.
"""

import copy
import functools
import json

import numpy as np
import pytest
import torch
from torch import nn

from lowland.core.contexts import same_bits
from lowland.core.effective import effective_weights
from lowland.core.errors import InputError
from lowland.core.params import ParameterSpace
from lowland.core.risk import EmpiricalRisk
from lowland.landscape import Grid, evaluate, grid, project_trajectory, random_plane, user_plane
from lowland.testing import check, rules
from lowland.testing.own import OwnLandscape

N, CLASSES = 11, 3


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, CLASSES)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 5, 8) * 0.1)
        self.embed = nn.Linear(4, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.layer(self.embed(x) + self.position).mean(1))


class Tied(nn.Module):
    """The embedding is the head too; one parameter is never used and one is frozen."""

    def __init__(self):
        super().__init__()
        self.embedding, self.middle = nn.Embedding(7, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.unused, self.frozen = nn.Linear(2, 2), nn.Linear(6, 6)
        self.frozen.requires_grad_(False)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.scale * self.head(torch.tanh(self.frozen(self.middle(self.embedding(x).mean(1)))))


def hugging_face():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=13,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        num_labels=CLASSES,
    )
    return transformers.BertForSequenceClassification(config)


def series(generator):
    return torch.randn(N, 5, 4, generator=generator)


def images(generator):
    return torch.randn(N, 2, 6, 6, generator=generator)


def tokens(generator):
    return torch.randint(7, (N, 5), generator=generator)


def sentences(generator):
    mask = torch.ones(N, 5, dtype=torch.long)
    mask[::3, 3:] = 0
    return {"input_ids": torch.randint(13, (N, 5), generator=generator), "attention_mask": mask}


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, CLASSES)), series),
    "batch norm": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 3, 2),
            nn.Flatten(),
            nn.Linear(75, CLASSES),
        ),
        images,
    ),
    "group norm": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES)
        ),
        images,
    ),
    "attention": (Attention, series),
    "lstm": (Recurrent, series),
    "hugging face": (hugging_face, sentences),
    "tied": (Tied, tokens),
}
each_model = pytest.mark.parametrize("kind", MODELS)


def build(kind, seed=0):
    torch.manual_seed(seed)
    model = MODELS[kind][0]()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
            elif name.endswith("running_mean"):
                buffer.normal_()
    if kind == "tied":
        model.frozen.load_state_dict(FROZEN)
    return model.train()


FROZEN = nn.Linear(6, 6).state_dict()


def part(value, places):
    return {k: v[places] for k, v in value.items()} if isinstance(value, dict) else value[places]


@functools.cache
def samples(kind):
    generator = torch.Generator().manual_seed(1)
    inputs = MODELS[kind][1](generator)
    return inputs, torch.randint(CLASSES, (N,), generator=generator)


def batches(kind, sizes=(4, 4, 3)):
    inputs, targets = samples(kind)
    result, start = [], 0
    for size in sizes:
        places = slice(start, start + size)
        taken = part(inputs, places)
        result.append({**taken, "labels": targets[places]} if isinstance(taken, dict) else (taken, targets[places]))
        start += size
    return result


def risk_of(kind, model, sizes=(4, 4, 3), loss=None, **options):
    return EmpiricalRisk(model, loss or nn.CrossEntropyLoss(), batches(kind, sizes), **options)


def output(model, kind):
    inputs = samples(kind)[0]
    found = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return getattr(found, "logits", found)


def naive(kind, plane, at, loss):
    """The loss at a point: a fresh model, moved tensor by tensor through its state dict, all data at once."""
    model = build(kind).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for axis, coordinate in zip(plane.axes, at, strict=True):
        for name, value in axis.values.items():
            state[name] = state[name] + coordinate * value
    if kind == "tied":
        state["head.weight"] = state["embedding.weight"]
    model.load_state_dict(state)
    with torch.no_grad():
        return loss(output(model, kind), samples(kind)[1]).item()


LOSSES = {
    "mean": nn.CrossEntropyLoss(),
    "weighted": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0, 0.2])),
    "ignoring": nn.CrossEntropyLoss(ignore_index=1, label_smoothing=0.1),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
}


class Kind(OwnLandscape):
    """Lets the rules survey a kind of model."""

    def __init__(self, kind):
        self.kind = kind

    def network(self, seed=0):
        model, inputs = build(self.kind, seed).eval(), samples(self.kind)[0]
        torch.manual_seed(1)
        return model, inputs, torch.randn_like(model(inputs).detach())


@pytest.mark.parametrize("rule", rules("landscape"), ids=lambda rule: rule.name)
@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "hugging face"])  # rules know no dictionaries
def test_every_kind_holds_every_rule(kind, rule):
    (found,) = check(Kind(kind), rule)
    assert found.status == "holds", found.detail


@pytest.mark.parametrize(("kind", "loss"), [*((kind, "mean") for kind in MODELS), *(("mlp", loss) for loss in LOSSES)])
def test_1_batches_do_not_matter_and_2_points_lie_where_they_say(kind, loss):
    criterion = LOSSES[loss]
    model = build(kind)
    plane = random_plane(model, seed=3)
    where = grid(3, 2, extent=((-1, 1), (-0.5, 1)))
    found = [evaluate(risk_of(kind, model, sizes, criterion), plane, where) for sizes in ((11,), (4, 4, 3), (1, 10))]
    for other in found[1:]:
        np.testing.assert_allclose(other.loss, found[0].loss, rtol=2e-6)
        np.testing.assert_array_equal(other.accuracy, found[0].accuracy)
    plain = copy.copy(criterion)
    plain.reduction = "mean"
    for x in where.x:
        for y in where.y:
            assert float(found[1].loss.sel(x=x, y=y)) == pytest.approx(naive(kind, plane, (x, y), plain), rel=1e-5)


def state(model):
    return (
        [t.detach().clone() for t in (*model.parameters(), *model.buffers())],
        [(t.data_ptr(), t.stride(), t.requires_grad) for t in model.parameters()],
        [module.training for module in model.modules()],
        torch.get_rng_state(),
    )


@each_model
@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("mode", ["batch", "recalibrated"])  # "running" is the rules'
def test_3_the_model_is_restored_bit_for_bit(kind, failing, mode):
    model, calls = build(kind), []

    def metric(result, batch):
        calls.append(1)
        if failing and len(calls) == 26:  # 44 calls: 17 before the points, then three a point
            raise RuntimeError("mine")
        return result.detach().reshape(len(result), -1)[:, 0]

    first = next(p for p in model.parameters() if p.requires_grad)
    first.grad = torch.full_like(first, 2.0)
    before = state(model)
    found = evaluate(risk_of(kind, model, metrics={"m": metric}, batch_norm=mode), random_plane(model), grid(3, 3))
    after = state(model)
    assert int((found.status == 3).sum()) == failing
    assert same_bits(before[0], after[0]) and before[1:3] == after[1:3] and torch.equal(before[3], after[3])
    assert (first.grad == 2.0).all() and all(p.grad is None for p in model.parameters() if p is not first)


@each_model
def test_4_nan_and_infinity_stay_what_they_are(kind, tmp_path):
    model = build(kind)

    def metric(result, batch):
        values = result.detach().reshape(len(result), -1)[:, 0].clone()
        values[:] = float("nan") if values.mean() > 0 else float("inf")
        return values

    plane = random_plane(model)
    for _ in range(2):  # the second time from the store
        found = evaluate(risk_of(kind, model, metrics={"m": metric}), plane, grid(3, 3), store=tmp_path / "s.zarr")
        assert not np.isfinite(found.m).any() and np.isfinite(found.loss).all() and (found.status == 1).all()


@each_model
def test_5_every_unit_of_a_direction_has_the_norm_of_the_weights_unit(kind):
    model = build(kind)
    plane = random_plane(model)
    with effective_weights(model):
        space = ParameterSpace(model)
        assert set(plane.rules) == set(space.names)
        for name, parameter, rule in space:
            for axis in plane.axes:
                direction = axis.values[name]
                if rule.kind == "fixed":
                    assert not direction.any()
                else:
                    torch.testing.assert_close(rule.norms(direction), rule.norms(parameter.detach()))
    recipe = json.loads(evaluate(risk_of(kind, model), plane, grid(1, 1)).attrs["recipe"])["planes"][0]
    assert recipe["rules"] == dict(plane.rules) and "fixed" in recipe["rules"].values()


@each_model
def test_7_the_angle_between_the_axes_is_stored(kind):
    model = build(kind)
    plane = random_plane(model, seed=5)
    flat = [torch.cat([v.reshape(-1) for v in axis.values.values()]).double() for axis in plane.axes]
    assert plane.cosine == pytest.approx(float(flat[0] @ flat[1] / flat[0].norm() / flat[1].norm()), abs=1e-9)
    assert plane.norms == pytest.approx([float(v.norm()) for v in flat])
    assert json.loads(evaluate(risk_of(kind, model), plane, grid(1, 1)).attrs["recipe"])["planes"][0]["cosine"]


@each_model
def test_9_frozen_and_unused_parameters_do_no_harm_and_tied_ones_move_once(kind):
    model = build(kind)
    frozen = next(iter(model.parameters())) if kind != "tied" else model.frozen.weight
    frozen.requires_grad_(False)
    plane = random_plane(model)
    assert len(plane.rules) == len([p for p in model.parameters() if p.requires_grad])
    seen = []

    def metric(result, batch):
        seen.append(frozen.detach().clone())
        return result.detach().reshape(len(result), -1)[:, 0]

    evaluate(risk_of(kind, model, metrics={"m": metric}), plane, grid(3, 3))
    assert all(torch.equal(value, frozen) for value in seen)
    if kind == "tied":
        assert "head.weight" not in plane.rules and model.head.weight is model.embedding.weight


@each_model
def test_11_projected_coordinates_are_those_of_the_surface_on_skew_axes(kind):
    model = build(kind)
    space = ParameterSpace(model)
    first = [torch.randn_like(p) * 0.1 for p in space.tensors]
    second = [0.6 * a + 0.1 * torch.randn_like(a) for a in first]
    plane = user_plane(model, [first, second])
    at = (0.7, -1.3)
    moved = {n: p.detach() + at[0] * a + at[1] * b for (n, p, _), a, b in zip(space, first, second, strict=True)}
    here = {n: p.detach() for n, p, _ in space}
    risk = risk_of(kind, model)
    path = project_trajectory(model, [(0, moved), (1, here)], plane, risk=risk)
    np.testing.assert_allclose(path.coordinate, [at, (0, 0)], atol=1e-4)
    np.testing.assert_allclose(path.loss, path.plane_loss, rtol=1e-4)
    surface = evaluate(risk, plane, Grid(np.array([at[0]]), np.array([at[1]])))
    assert float(surface.loss[0, 0]) == pytest.approx(float(path.loss[0]), rel=1e-4)


def test_arguments_in_the_wrong_order_are_named():
    plane = random_plane(nn.Linear(2, 2), seed=0)
    with pytest.raises(InputError, match=r"`risk` must be an EmpiricalRisk.*'Plane'"):
        evaluate(plane, plane, grid(3, 3))
