"""Batch norm as part of the convolution before it: the same values, everything put back, and nothing but plain pairs."""

import json
import signal
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lowland import landscape, models
from lowland.core.risk import EmpiricalRisk
from lowland.landscape import autotune, evaluate, grid, random_plane
from lowland.landscape.folding import foldable, folded
from lowland.landscape.surface_task import ComputeSettings, Request, SurfaceTask

MODULE = sys.modules["lowland.landscape.evaluate"]  # the name in the package is the function


def used(model, *shape):
    """A model whose statistics and affine parameters are not those of the beginning."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for value in (module.weight, module.bias, module.running_mean):
                if value is not None:
                    nn.init.normal_(value)
            if module.running_var is not None:
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval().to(torch.float64), torch.randn(3, *shape, dtype=torch.float64)


def pair(**options):
    return nn.Sequential(nn.Conv2d(2, 4, 3, **options), nn.BatchNorm2d(4), nn.Flatten())


CASES = {
    "resnet8": (lambda: models.create("resnet8", width=4, channels=1, seed=0), (1, 8, 8), 7),
    "vgg": (lambda: models.create("vgg9", narrow=8, size=8, channels=3, seed=0), (3, 8, 8), 7),
    "plain": (pair, (2, 6, 6), 1),
    "no bias, strided, grouped": (lambda: pair(bias=False, stride=2, groups=2, padding="valid"), (2, 6, 6), 1),
    "1d": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4)), (2, 6), 1),
    "3d": (lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4, affine=False)), (2, 4, 4, 4), 1),
    "norm before": (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3)), (2, 6, 6), 0),
    "own statistics": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), (2, 6, 6), 0),
    "other padding": (lambda: pair(padding=1, padding_mode="circular"), (2, 6, 6), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_plain_network(name):
    make, shape, count = CASES[name]
    model, x = used(make(), *shape)
    assert len(foldable(model)) == count
    parameters = list(model.parameters())
    plain = model(x)
    wanted = torch.autograd.grad(plain.square().sum(), parameters, allow_unused=True)
    with folded(model) as renew:
        found = model(x)
        gradients = torch.autograd.grad(found.square().sum(), parameters, allow_unused=True)
        with torch.no_grad():
            torch._foreach_mul_(parameters, 1.5)
            renew()
            moved = model(x)
    torch.testing.assert_close(moved, model(x), rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch._foreach_div_(parameters, 1.5)
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(model(x), plain, rtol=1e-10, atol=1e-12)
    assert not any("forward" in vars(module) for module in model.modules())


class Twice(nn.Module):
    """A convolution whose output goes two ways, is used twice, or is normed twice."""

    def __init__(self, how):
        super().__init__()
        self.how, self.conv, self.norm = how, nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x):
        y = self.conv(x)
        if self.how == "skip":
            return self.norm(y) + y
        if self.how == "applied twice":
            return self.norm(self.conv(y))
        if self.how == "normed twice":
            return self.norm(self.norm(y))
        if self.how == "noted":
            self.last = y
            return self.norm(y)
        if self.how == "noted later":
            self.last = self.norm(y)
            return self.last
        if self.how == "changed":
            self.conv.weight.data.clamp_(-0.1, 0.1)
            return self.norm(y)
        if self.how == "adapted":
            self.norm.running_mean.copy_(x.mean((0, 2, 3)))
            return self.norm(y)
        if self.how == "set":
            self.norm.eps = 0.125
            return self.norm(y)
        if self.how == "emptied":
            self.norm.running_mean.zero_()
            return self.norm(y)
        if self.how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return self.norm(self.conv(x))
        return self.norm(y) if y.sum() > 0 else y  # branches


@pytest.mark.parametrize(
    "how",
    ["skip", "applied twice", "normed twice", "noted", "changed", "adapted", "emptied", "set", "autocast", "branch"],
)
def test_a_convolution_that_somebody_else_needs_is_left(how):
    model, _ = used(Twice(how), 2, 4, 4)
    assert foldable(model) == []


def test_hooks_parametrizations_subclasses_own_forwards_and_training_are_left():
    def watched():
        model = pair()
        model[0].register_forward_hook(lambda *a: None)
        return model

    def spectral():
        model = pair()
        nn.utils.parametrizations.weight_norm(model[0])
        return model

    def replaced():
        model = pair()
        model[1].forward = lambda x: 2 * x
        return model

    class Own(nn.Conv2d):
        pass

    for model in (watched(), spectral(), replaced(), nn.Sequential(Own(2, 4, 3), nn.BatchNorm2d(4))):
        assert foldable(model.eval()) == []
    assert foldable(pair().train()) == [] and len(foldable(pair().eval())) == 1


def test_what_forward_notes_on_the_model_is_put_back():
    model, x = used(Twice("noted later"), 2, 4, 4)
    model(x)
    last = model.last
    assert len(foldable(model)) == 1 and model.last is last


class Noting(nn.Module):
    """A model with a list, a dict and a count of its own, and a switch."""

    def __init__(self):
        super().__init__()
        self.pair, self.seen, self.kept = pair(), [], {}
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x, also=None):
        self.count += 1
        self.seen.append(x)
        self.kept.setdefault("first", x)
        y = self.pair[0](x)
        return self.pair[1](y) if also is not None else self.pair[1](y) + y


def test_a_model_is_called_with_its_defaults_and_gets_none_of_the_symbols():
    model, _ = used(Noting(), 2, 6, 6)
    assert foldable(model) == [] and model.seen == [] and model.kept == {} and model.count == 0


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair = pair()

    def forward(self, *, image, labels=None):
        return self.pair(image) if labels is None else None


class Several(Named):
    def forward(self, image, weight, other=1.0):
        return self.pair(image) * weight * other


@pytest.mark.parametrize("kind", [Named, Several])
def test_models_of_several_or_named_inputs_are_followed(kind):
    assert len(foldable(kind().eval())) == 1


def test_hooks_of_containers_forwards_of_the_object_half_types_and_compiled_ones_are_left():
    seen, models_ = [], [nn.Sequential(pair()) for _ in range(4)]
    models_[0][0].register_forward_hook(lambda *a: seen.append(a))
    plain = models_[1][0]
    models_[1].forward = lambda x: plain[2](plain[1](plain[0](x)) + plain[0](x))
    models_[2].to(torch.bfloat16)
    models_[3].compile(backend="eager")
    assert [foldable(model.eval()) for model in models_] == [[]] * 4 and seen == []


def test_an_exception_inside_puts_everything_back():
    model, x = used(pair(), 2, 6, 6)
    plain = model(x)
    with pytest.raises(KeyboardInterrupt), folded(model):
        raise KeyboardInterrupt
    assert torch.equal(model(x), plain)


class Interrupted(Noting):
    def forward(self, x):
        signal.raise_signal(signal.SIGINT)
        return self.pair(x)


def test_an_interrupt_during_the_look_comes_after_it():
    model = Interrupted().eval()
    with pytest.raises(KeyboardInterrupt) as caught:
        foldable(model)
    assert "forward" not in {entry.name for entry in caught.traceback}  # torch was put back before
    assert isinstance(nn.Linear(2, 2)(torch.ones(2)), torch.Tensor)


def survey(batch_norm="running", **options):
    model = used(models.create("resnet8", width=4, channels=1, seed=0))[0].float()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(96, 1, 8, 8, generator=generator), torch.randint(10, (96,), generator=generator)
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), [(x, y)], batch_norm=batch_norm, **options)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_folded_survey_measures_what_a_plain_one_does(layout, monkeypatch):
    chosen = ComputeSettings(batch_size=40, memory_format=layout, folded=True)
    plain = evaluate(survey(), random_plane(survey().model), grid(3, 3))
    risk = survey()
    before = [p.detach().clone() for p in risk.model.parameters()]
    monkeypatch.setattr(MODULE, "autotune", lambda *a, **k: (chosen, {}, {}))
    found = evaluate(risk, random_plane(risk.model), grid(3, 3))
    np.testing.assert_allclose(found.loss, plain.loss, rtol=2e-6)
    assert json.loads(found.attrs["kernel"])["folded"]
    assert all(torch.equal(a, b) for a, b in zip(before, risk.model.parameters(), strict=True))


@pytest.mark.parametrize("how", ["auto", "none", "batch", "recalibrated", "probe", "loss"])
def test_the_trial_folds_where_bits_are_free_and_nothing_else_looks(how, monkeypatch):
    tried = set()
    monkeypatch.setattr(autotune, "_seconds", lambda risk, kernel: tried.add(kernel.folded) or 2.0 - kernel.folded)
    risk = survey(how if how in ("batch", "recalibrated") else "running")
    if how == "loss":  # it takes what the norm gives from the side
        norm = risk.model.bn1
        risk = EmpiricalRisk(
            risk.model, evaluate=lambda m, b: {"loss": (m.conv1(b.input) - norm.running_mean.mean()).flatten(1).mean(1)},
            batches=list(risk.batches()),
        )  # fmt: skip
    plane, probes = random_plane(risk.model), (landscape.GradientNorm(),) if how == "probe" else ()
    task = SurfaceTask({"": risk}, (plane,), probes)
    kernel, _, _ = autotune.autotune(task, grid(3, 3), Request(batch_size=None if how == "none" else "auto"))
    assert kernel.folded == (how == "auto") and (True in tried) == (how == "auto")


def outputs(model, batch):
    return nn.functional.cross_entropy(model(batch.input), batch.target, reduction="none")


def with_gradient(model, batch):
    with torch.enable_grad():
        loss = outputs(model, batch)
        return {"loss": loss.detach(), "slope": torch.autograd.grad(loss.sum(), model.conv1.weight)[0].norm()}


def failing(model, batch):
    if model.conv1.weight.ne(model.start).any():
        raise RuntimeError("diverged")
    return {"loss": outputs(model, batch)}


def unknown(model, batch):
    return {"loss": outputs(model, batch) + torch.where(model.conv1.weight.ne(model.start).any(), torch.nan, 0.0)}


@pytest.mark.parametrize("custom", [with_gradient, failing, unknown])
def test_what_cannot_be_compared_is_not_folded_and_ends_no_survey(custom, monkeypatch):
    monkeypatch.setattr(autotune, "_seconds", lambda risk, kernel: 2.0 - kernel.folded)
    risk = survey()
    risk.model.start = risk.model.conv1.weight.detach().clone()
    risk = EmpiricalRisk(risk.model, evaluate=custom, batches=list(risk.batches()))
    found = evaluate(risk, random_plane(risk.model), grid(3, 3), batch_size="auto")
    assert not json.loads(found.attrs["kernel"])["folded"]
    assert int((found.status == 1).sum()) == (1 if custom is failing else 9)
