"""Compiled models under two-pass optimizers: the eager loop's numbers, within what fused kernels round otherwise."""

from __future__ import annotations

import shutil

import pytest
import torch
from tests.integration.test_transformers_options import bert, by_hand, tuned
from tests.trainer_cases import network, plain_loop, wrapped
from torch import nn

import lowland.optim as optim
from lowland.losses import MESA

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _compiler(tmp_path, monkeypatch):
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("the inductor backend needs a C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_near(first: nn.Module, second: nn.Module) -> None:
    """Floats within rounding, counters of batch norm exactly."""
    pairs = zip(first.state_dict().items(), second.state_dict().values(), strict=True)
    for (name, one), other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)
        assert one.is_floating_point() or torch.equal(one, other), name


@pytest.mark.parametrize("method", ["SAM", "LookSAM", "SALA"])
def test_a_plain_loop_has_the_numbers_of_the_eager_one(method):
    first, second = network(), network()
    eager = plain_loop(first, wrapped(first, method), epochs=2)
    compiled = plain_loop(torch.compile(second), wrapped(second, method), epochs=2)
    assert compiled == pytest.approx(eager, rel=1e-4)
    assert_near(first, second)


def test_a_teacher_of_a_compiled_model_is_that_of_the_eager_one(tmp_path):
    nets, losses = [bert(), bert()], [MESA(nn.CrossEntropyLoss(), start=0, half_life=1.0) for _ in range(2)]
    for net, loss, compiled in zip(nets, losses, (False, True), strict=True):
        tuned(net, tmp_path / str(compiled), loss=loss, torch_compile=compiled, epochs=2)
    logs = [loss.epoch_log() for loss in losses]
    assert logs[0]["mesa_kl"] > 0 and logs[1] == pytest.approx(logs[0], rel=1e-3)
    assert_near(*nets)
    assert_near(*(loss.teacher for loss in losses))


def test_the_trainer_has_the_numbers_of_the_eager_loop(tmp_path):
    first, second, start = bert(), bert(), []
    trainer = tuned(first, tmp_path / "run", start=start, torch_compile=True)
    assert trainer.args.torch_compile_backend == "inductor"
    torch.set_rng_state(start[0])
    by_hand(second)
    assert_near(first, second)


@pytest.mark.parametrize("rng", ["replay", "fresh"])
def test_random_numbers_are_replayed_in_compiled_graphs_too(rng):
    dropped = []

    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 64)

        def forward(self, x):
            return nn.functional.dropout(self.layer(x), 0.5, training=True)

    model = Dropping()
    compiled = torch.compile(model)
    optimizer = optim.SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=1e-3, rng=rng)

    def closure():
        optimizer.zero_grad()
        output = compiled(torch.ones(4, 6))
        dropped.append(output.detach() == 0)
        loss = output.square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    first, again, second, _ = dropped
    assert torch.equal(first, again) is (rng == "replay") and not torch.equal(first, second)
