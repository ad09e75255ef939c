"""Losses that have a value for every batch and none for the data: refused, whatever the model returns."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointFunction, checkpoint

import lowland as ll
from lowland.core.errors import InputError, NotDeterministic

GENERATOR = torch.Generator().manual_seed(0)
X, Y = (torch.randn(10, size, generator=GENERATOR).double() for size in (4, 1))
KNOWN = (torch.arange(10) % 3 > 0)[:, None]
PARTS = [slice(0, 4), slice(4, 8), slice(8, 10)]


@dataclass
class Result:
    value: Any


class Returning(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.head, self.kind = nn.Linear(4, 1).double(), kind

    def forward(self, x: Any) -> Any:
        value = self.head(x)
        kinds = {"tuple": (value, x), "dict": {"value": value}, "dataclass": Result(value), "tensor": value}
        return kinds[self.kind]


def value_of(output: Any) -> Any:
    found = output.value if isinstance(output, Result) else output
    return found["value"] if isinstance(found, dict) else found[0] if isinstance(found, tuple) else found


def masked(output: Any, target: Any) -> Any:
    value, known = target
    return ((value_of(output) - value)[known] ** 2).mean()


def plain(output: Any, target: Any) -> Any:
    return ((value_of(output) - target[0]) ** 2).mean()


def risk_of(kind: str, loss: Any, **options: Any) -> ll.EmpiricalRisk:
    batches = [(X[part], (Y[part], KNOWN[part])) for part in PARTS]
    torch.manual_seed(0)
    return ll.EmpiricalRisk(Returning(kind), loss, batches, **options)


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict", "dataclass"])
def test_means_over_some_entries(kind):
    risk = risk_of(kind, plain)
    assert risk.evaluate()["loss"].value == pytest.approx(F.mse_loss(risk.model.head(X), Y).item(), rel=1e-12)
    with pytest.raises(InputError, match="mean over samples"):
        risk_of(kind, masked).evaluate()


@pytest.mark.parametrize("right", [True, False])
def test_means_of_a_measure_of_ones_own(right):
    loss = plain if right else masked
    risk = risk_of("tuple", None, evaluate=lambda model, batch: {"loss": loss(model(batch.input), batch.target)})
    if right:
        assert risk.evaluate()["loss"].value == pytest.approx(F.mse_loss(risk.model.head(X), Y).item(), rel=1e-12)
        return
    with pytest.raises(InputError, match="mean over samples"):
        risk.gradient()


@pytest.mark.parametrize(
    "second", [lambda o, t: (o - t[0]).abs().mean(), lambda o, t: float((o > t[0]).double().mean())]
)
def test_a_loss_and_something_to_log(second):
    with pytest.raises(InputError, match="two means"):
        risk_of("tensor", lambda o, t: (plain(o, t), second(o, t))).evaluate()
    with pytest.raises(InputError, match="numbers as its weights"):
        risk_of("tensor", lambda o, t: (plain(o, t), {"mae": second(o, t)})).evaluate()
    totals = risk_of("tensor", lambda o, t: (((o - t[0]) ** 2).sum(), len(o)))
    assert totals.evaluate()["loss"].value == pytest.approx(F.mse_loss(totals.model.head(X), Y).item(), rel=1e-12)


def test_a_random_sum_beside_a_steady_mean_is_refused_as_random():
    with pytest.raises(NotDeterministic):
        risk_of("tensor", lambda o, t: (plain(o, t) * torch.rand(()), t[0].abs().mean())).evaluate()


@pytest.mark.parametrize("counted", [True, False])
def test_samples_on_the_second_axis(counted):
    steps = [(torch.stack([X[part]] * 6), torch.stack([Y[part]] * 6)) for part in PARTS]
    options: Any = {"samples_of": lambda batch: batch.input.shape[1]} if counted else {}
    risk = ll.EmpiricalRisk(Returning("tensor"), lambda o, t: ((o - t) ** 2).mean(), steps, **options)
    if counted:
        assert risk.evaluate()["loss"].value == pytest.approx(F.mse_loss(risk.model.head(X), Y).item(), rel=1e-12)
        return
    with pytest.raises(InputError, match="share two axes"):
        risk.evaluate()


class Dropping(Returning):
    def forward(self, x: Any) -> Any:
        return self.head(F.dropout(x))


class Remembering(Returning):
    state: Any = None

    def forward(self, x: Any) -> Any:
        self.state = x.mean() if self.state is None else self.state + x.mean()
        return self.head(x) + self.state


@pytest.mark.parametrize("kind", [Dropping, Remembering])
@pytest.mark.parametrize("measure", [lambda risk: risk.evaluate(), lambda risk: risk.gradient()])
def test_noise_is_refused_by_every_measurement(kind, measure):
    with pytest.raises(NotDeterministic, match="gives another output"):
        measure(ll.EmpiricalRisk(kind("tensor"), nn.MSELoss(), [(X[part], Y[part]) for part in PARTS]))


def test_hits_may_be_truth_values():
    risk = risk_of("tensor", plain, metrics={"above": lambda o, b: (o > b.target[0]).squeeze(1)})
    expected = (risk.model.head(X) > Y).double().mean().item()
    assert risk.evaluate()["above"].value == pytest.approx(expected)
    surface = ll.landscape.evaluate(risk, ll.landscape.random_plane(risk.model), ll.landscape.grid(3, 3))
    assert float(surface.above[1, 1]) == pytest.approx(expected)


class Logits(Returning):
    def forward(self, x: Any) -> Any:
        return {"logits": self.head(x), "loss": x.sum()}


def test_a_loss_that_takes_another_field():
    with pytest.raises(InputError, match="logits"):
        ll.EmpiricalRisk(Logits("dict"), lambda o, t: o.loss, [(X, Y)]).evaluate()
    with pytest.raises(InputError, match="logits"):
        ll.EmpiricalRisk(Logits("dict"), lambda o, t: o["loss"], [(X, Y)]).evaluate()


class Recomputing(Returning):
    def forward(self, x: Any) -> Any:
        hidden = checkpoint(self.head, x, use_reentrant=True)
        return checkpoint(torch.tanh, hidden, use_reentrant=True)


def test_reentrant_checkpoints_have_derivatives():
    risk, same = Recomputing("tensor"), Returning("tensor")
    same.load_state_dict(risk.state_dict())
    first, second = (
        ll.EmpiricalRisk(model, loss, [(X, Y)])
        for model, loss in ((risk, nn.MSELoss()), (same, lambda o, t: ((torch.tanh(o) - t) ** 2).squeeze(1)))
    )
    assert all(map(torch.allclose, first.gradient().values(), second.gradient().values()))
    assert first.gradient()["head.weight"].abs().sum() > 0
    torch.testing.assert_close(ll.curvature.Hessian(first).dense(), ll.curvature.Hessian(second).dense())
    assert "apply" not in vars(CheckpointFunction)


class Taking(Returning):
    def forward(self, x: Any) -> Any:
        return self.head(x)


def test_labels_that_forward_does_not_take():
    batches = [{"x": X[part], "label": Y[part]} for part in PARTS]
    risk = ll.EmpiricalRisk(Taking("tensor"), nn.MSELoss(), batches)
    assert risk.evaluate()["loss"].value == pytest.approx(F.mse_loss(risk.model(X), Y).item(), rel=1e-12)
    with pytest.raises(InputError, match="takes by name"):
        ll.EmpiricalRisk(Taking("tensor"), nn.MSELoss(), [{**batch, "file": "a"} for batch in batches]).evaluate()


def ignoring() -> tuple[ll.EmpiricalRisk, Any]:
    target = torch.arange(10) % 3
    target[4:8] = -100
    target[0] = -100
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    return ll.EmpiricalRisk(model, nn.CrossEntropyLoss(), [(X[part], target[part]) for part in PARTS]), target


def test_batches_count_in_sharpness_as_in_the_loss():
    risk, target = ignoring()
    total, count = 0.0, 0
    for part in (PARTS[0], PARTS[2]):  # the second batch has no target
        moved, kept = copy.deepcopy(risk.model), int((target[part] >= 0).sum())
        loss = F.cross_entropy(moved(X[part]), target[part])
        gradients = torch.autograd.grad(loss, list(moved.parameters()))
        length = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        with torch.no_grad():
            for parameter, gradient in zip(moved.parameters(), gradients, strict=True):
                parameter.add_(0.05 * gradient / length)
            total += kept * float(F.cross_entropy(moved(X[part]), target[part]) - loss)
        count += kept
    found = ll.curvature.sam_sharpness(risk, rho=0.05, per_batch=True)
    assert found.value == pytest.approx(total / count, rel=1e-9) and found.samples == 2
    assert found.loss == pytest.approx(risk.evaluate()["loss"].value, rel=1e-12)
    worst = ll.curvature.worst_case_sharpness(risk, rho=0.05, steps=3)
    assert worst.loss == pytest.approx(found.loss) and worst.value >= found.value and worst.balls == 2


@pytest.mark.parametrize(
    "measure",
    [
        ll.curvature.sam_sharpness,
        lambda risk: ll.curvature.sam_sharpness(risk, per_batch=True),
        lambda risk: ll.curvature.average_case_sharpness(risk, draws=2),
        lambda risk: ll.curvature.worst_case_sharpness(risk, steps=2, eigenvector=False),
    ],
)
@pytest.mark.parametrize("ignored", [True, False])
def test_sharpness_of_no_number_is_none(measure, ignored):
    risk = risk_of("tensor", lambda o, t: (o * torch.nan).squeeze(1))
    if ignored:
        model = ignoring()[0].model
        risk = ll.EmpiricalRisk(model, nn.CrossEntropyLoss(), [(X, torch.full((10,), -100))])
    found = measure(risk)
    assert math.isnan(found.value) and math.isnan(found.loss)


@pytest.mark.parametrize("operator", [ll.curvature.Hessian, ll.curvature.GaussNewton])
def test_a_loss_without_a_graph_has_no_curvature(operator):
    risk = risk_of("tensor", lambda o, t: torch.tensor(plain(o, t).item()))
    with pytest.raises(InputError, match="differentiable"):
        ll.curvature.trace(operator(risk), products=12)


def share_of_hits(output: Any, batch: Any) -> Any:
    """F1, of counts of the batch."""
    above, known = output[:, 0] > 0, batch.target[1][:, 0]
    return 2 * (above & known).sum() / (above.sum() + known.sum())


@pytest.mark.parametrize(
    "metric",
    [
        share_of_hits,
        lambda o, b: float(share_of_hits(o, b)),
        lambda o, b: share_of_hits(o, b).numpy()[()],
        lambda o, b: int((o > 0).sum()),
    ],
)
def test_metrics_that_are_no_means(metric):
    with pytest.raises(InputError, match="mean over samples"):
        risk_of("tensor", plain, metrics={"hits": metric}).evaluate()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("samples", {"samples": 2.5}),
        ("samples", {"samples": True}),
        ("resident", {"resident": "yes"}),
        ("device", {"device": "nope"}),
        ("device", {"device": "meta"}),
        ("samples_of", {"samples_of": lambda batch: 2.7}),
        ("samples_of", {"samples_of": lambda batch: "x"}),
    ],
)
def test_options_of_a_wrong_kind(name, options):
    with pytest.raises(InputError, match=f"`{name}`"):
        risk_of("tensor", plain, **options).evaluate()


@pytest.mark.parametrize("rho", [math.nan, math.inf, -1.0])
@pytest.mark.parametrize("measure", ["sam_sharpness", "average_case_sharpness", "worst_case_sharpness"])
def test_a_radius_is_a_finite_number(measure, rho):
    with pytest.raises(InputError, match="`rho`"):
        getattr(ll.curvature, measure)(risk_of("tensor", plain), rho=rho)


def contrast(output: Any, target: Any) -> Any:
    # each sample against the others of its batch
    return F.cross_entropy(output @ output.T, torch.arange(len(output)), reduction="none")


class Contrast(nn.Module):
    reduction = "mean"

    def forward(self, output: Any, target: Any) -> Any:
        each = contrast(output, target)
        return each if self.reduction == "none" else each.mean()


@pytest.mark.parametrize("kind", ["loss", "own reduction", "metric", "hits"])
def test_entries_that_follow_the_rest_of_the_batch(kind):
    x, y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    torch.manual_seed(0)
    model, plain = nn.Linear(4, 3), nn.CrossEntropyLoss()
    hits = lambda output, batch: (output @ output.T).argmax(1) == torch.arange(len(output))
    loss, metrics = {
        "loss": (contrast, {}),
        "own reduction": (Contrast(), {}),
        "metric": (plain, {"contrast": lambda output, batch: contrast(output, batch.target)}),
        "hits": (plain, {"hits": hits}),
    }[kind]
    ll.EmpiricalRisk(model, loss, [(x, y)], metrics=metrics).evaluate()  # one batch is what it is measured on
    with pytest.raises(InputError, match="two parts"):
        ll.EmpiricalRisk(model, loss, [(x[:6], y[:6]), (x[6:], y[6:])], metrics=metrics).evaluate()


def test_totals_of_batches_are_taken_as_they_are():
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    totals = lambda output, target: (contrast(output, target).sum(), len(output))
    found = ll.EmpiricalRisk(nn.Identity(), totals, [(x[:6], x[:6]), (x[6:], x[6:])]).evaluate()["loss"].value
    assert found == pytest.approx(float(contrast(x[:6], x).mean() + contrast(x[6:], x).mean()) / 2)


def test_a_divergence_of_a_batch_is_that_of_its_samples():
    x, target = torch.randn(7, 4).log_softmax(1), torch.rand(7, 4)
    loss = functools.partial(F.kl_div, reduction="batchmean")
    found = ll.EmpiricalRisk(nn.Identity(), loss, [(x[:2], target[:2]), (x[2:], target[2:])]).evaluate()["loss"].value
    assert found == pytest.approx(float(loss(x, target)), rel=1e-5)


def test_features_of_inference_mode_have_gradients():
    with torch.inference_mode():
        x, y = torch.randn(6, 4), torch.arange(6) % 3
    model = nn.Linear(4, 3)
    found = ll.EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x, y)]).gradient()
    (wanted,) = torch.autograd.grad(F.cross_entropy(model(x.clone()), y.clone()), [model.weight])
    torch.testing.assert_close(found["weight"], wanted)


@pytest.mark.parametrize("mode", ["batch", "recalibrated"])
def test_a_norm_over_one_sample(mode):
    model, x, y = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), torch.randn(5, 4), torch.arange(5) % 3
    with pytest.raises(InputError, match="more than one sample"):
        batches = [(x[:4], y[:4]), (x[4:], y[4:])]
        ll.EmpiricalRisk(model, nn.CrossEntropyLoss(), batches, batch_norm=mode).evaluate()


class Adapted(nn.Module):
    """A linear layer with an adapter, with the interface of the package peft."""

    def __init__(self, merged: bool) -> None:
        super().__init__()
        self.base_layer, self.down, self.merged = nn.Linear(4, 3), nn.Linear(4, 3, bias=False), merged

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        return self.down.weight

    def forward(self, x: Any) -> Any:
        return self.base_layer(x) if self.merged else self.base_layer(x) + self.down(x)


@pytest.mark.parametrize("plane", [ll.landscape.random_plane, ll.landscape.lora_plane])
def test_merged_adapters_move_nothing(plane):
    plane(nn.Sequential(Adapted(False)), seed=0)
    with pytest.raises(InputError, match="merged"):
        plane(nn.Sequential(Adapted(True)), seed=0)


def test_a_model_without_modes():
    x = torch.randn(5, 4)
    exported = torch.export.export(nn.Linear(4, 3), (x,)).module()
    with pytest.raises(InputError, match="evaluation mode"):
        ll.EmpiricalRisk(exported, nn.MSELoss(), [(x, torch.zeros(5, 3))]).evaluate()
