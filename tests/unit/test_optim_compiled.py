"""Steps under `torch.compile` (graph breaks, and both passes in one graph; no compiler needed), and around fused bases."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from lowland import optim
from lowland.core.contexts import same_bits


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        # a bias in front of the norm has no gradient but rounding, which AdamW would make a step of
        self.first, self.norm, self.last = nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu())


METHODS = {
    "SAM": lambda base, model: optim.SAM(base, model=model),
    "GSAM": lambda base, model: optim.GSAM(base, rho=0.05, rho_min=None, model=model),
    "EMA of SAM": lambda base, model: optim.EMA(optim.SAM(base, model=model)),
}


def trained(method: str, *, compiled: str, steps: int = 3) -> tuple[list[torch.Tensor], list[int], int]:
    """Return the weights, how many graphs ran in each step, and how many graphs there are."""
    torch._dynamo.reset()
    counters.clear()
    made, ran, per_step = [], [], []

    def backend(graph, inputs):
        made.append(graph)

        def run(*arguments):
            ran.append(graph)
            return graph.forward(*arguments)

        return run

    model = Network()
    optimizer = METHODS[method](torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model)
    x, y = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3
    called = torch.compile(model, backend=backend) if compiled == "model" else model

    def loss():
        return nn.functional.cross_entropy(called(x), y)

    def step():
        optimizer.zero_grad()
        loss().backward()
        with optimizer.first_pass():
            pass
        if optimizer.needs_perturbation():
            with optimizer.perturb():
                loss().backward()
        optimizer.step()

    if compiled == "whole step":
        step = torch.compile(step, backend=backend)
    for _ in range(steps):
        before = len(ran)
        step()
        per_step.append(len(ran) - before)
    return [*model.state_dict().values()], per_step, len(made)


@pytest.fixture(autouse=True)
def _fresh():
    yield
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_model_keeps_one_graph_for_both_passes(method):
    expected, _, _ = trained(method, compiled="nothing")
    found, per_step, graphs = trained(method, compiled="model")
    assert same_bits(expected, found)
    assert (per_step, graphs, counters["graph_break"].total()) == ([2, 2, 2], 1, 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_step_breaks_at_the_optimizer_and_nowhere_inside_it(method):
    expected, _, _ = trained(method, compiled="nothing")
    found, per_step, graphs = trained(method, compiled="whole step")
    assert same_bits(expected, found)
    assert per_step == [2, 2, 2] and graphs <= 2  # of forward and loss: the passes differ at most in what calls them
    reasons = list(counters["graph_break"])
    assert len(reasons) <= 3, reasons
    assert all("backward" in reason or "Wrapper." in reason for reason in reasons), reasons


FUSED = [(method, kind) for method in METHODS for kind in (torch.optim.SGD, torch.optim.AdamW)]


@pytest.mark.parametrize(("method", "kind"), [*FUSED, ("MSAM", torch.optim.SGD)])
def test_a_fused_base_takes_the_step_of_any_other(method, kind):
    x, y = torch.randn(16, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.arange(16) % 3
    found = []
    for implementation in ({"foreach": False}, {"foreach": True}, {"fused": True}):
        model = Network().double()
        more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        base = kind(model.parameters(), lr=0.05, weight_decay=0.01, **more, **implementation)
        optimizer = optim.MSAM(base, rho=0.1) if method == "MSAM" else METHODS[method](base, model)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        losses = [optimizer.step(closure).item() for _ in range(4)]
        assert losses[-1] < losses[0]
        optimizer.eval()
        found.append([p.detach().clone() for p in model.parameters()])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-12, atol=1e-13)
