"""Contexts restore what they touched, also after an exception or Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

import lowland as ll
from lowland.core import contexts
from lowland.core.errors import InputError
from lowland.core.interrupts import held_interrupts
from lowland.core.params import ParameterSpace
from lowland.core.types import Batch


def test_pass_flag_nests_and_survives_an_exception():
    assert contexts.current_pass() == "clean"
    with pytest.raises(ValueError, match="inside"), contexts.perturbed_pass():
        assert contexts.current_pass() == "perturbed"
        raise ValueError("inside")
    assert contexts.current_pass() == "clean"


def test_interrupt_is_held_back_and_then_delivered():
    done = []
    with pytest.raises(KeyboardInterrupt), held_interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the write goes on")
    assert done == ["the write goes on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_that_ends_the_process_does_so_after_the_write():
    code = (
        "import signal; from lowland.core.interrupts import held_interrupts; signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "with held_interrupts(): signal.raise_signal(signal.SIGINT); print('written', flush=True)\n"
        "print('lost')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "written\n")


def test_weights_come_back_after_an_interrupt():
    model = nn.Linear(3, 3)
    space = ParameterSpace(model)
    before = space.copy()
    with pytest.raises(KeyboardInterrupt), contexts.weights_restored(space):
        space.write(space.zeros())
        raise KeyboardInterrupt
    assert contexts.same_bits(space.tensors, before)


def test_buffers_come_back_even_when_rebound():
    norm = nn.BatchNorm1d(3)
    address = norm.running_mean.data_ptr()
    with contexts.buffers_restored(norm):
        norm(torch.randn(8, 3))
        norm.running_mean = torch.ones(3)
    assert norm.running_mean.data_ptr() == address
    assert not norm.running_mean.any()
    assert norm.num_batches_tracked.item() == 0


def test_buffers_and_attributes_made_inside_are_gone_afterwards():
    model = nn.Sequential(nn.Linear(2, 2))
    with contexts.buffers_restored(model):
        model[0].register_buffer("seen", torch.ones(2))
        model[0].count = 1
    assert dict(model.named_buffers()) == {} and not hasattr(model[0], "seen") and not hasattr(model[0], "count")


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, lambda n: nn.BatchNorm1d(n, momentum=None)], ids=["momentum", "none"])
def test_recalibration_is_the_cumulative_average(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), kind(4)).double()
    momentum = model[1].momentum
    batches = [Batch(torch.randn(n, 3).double()) for n in (8, 8, 5)]
    assert contexts.recalibrate(model, batches) == 3
    hidden = [model[0](b.input) for b in batches]
    assert torch.allclose(model[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0), rtol=1e-12)
    assert torch.allclose(model[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0), rtol=1e-12)
    assert (model[1].running_var >= 0).all()
    assert model.training and model[1].training and model[1].momentum == momentum


def test_recalibration_without_batches_is_an_error_and_without_norms_does_nothing():
    with pytest.raises(InputError, match="at least one batch"):
        contexts.recalibrate(nn.BatchNorm1d(3), [])
    assert contexts.recalibrate(nn.Linear(2, 2), []) == 0


def test_unknown_batch_norm_mode():
    with pytest.raises(InputError, match="`batch_norm`"), contexts.batch_norm_mode(nn.Linear(1, 1), "eval"):  # type: ignore[arg-type]
        pass


def test_attention_and_recurrent_layers_have_second_derivatives_inside():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    recurrent = nn.LSTM(4, 3, batch_first=True)
    for model, x in ((layer, torch.randn(2, 5, 8)), (recurrent, torch.randn(2, 5, 4))):
        with contexts.differentiable_kernels(model):
            output = model(x)
            loss = (output[0] if isinstance(output, tuple) else output).square().sum()
            parameters = list(model.parameters())
            first = torch.autograd.grad(loss, parameters, create_graph=True)
            second = torch.autograd.grad(sum((g * g.detach()).sum() for g in first), parameters, allow_unused=True)
        assert any(g is not None and g.any() for g in second)
    assert torch.backends.mkldnn.enabled
    assert torch.backends.mha.get_fastpath_enabled()


def test_random_state_is_forked():
    before = torch.get_rng_state()
    with contexts.forked_rng(seed=3):
        first = torch.rand(2)
    with contexts.forked_rng(seed=3):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(before, torch.get_rng_state())


def test_bits_tell_zero_signs_and_types_apart():
    assert contexts.same_bits([torch.tensor([float("nan")])], [torch.tensor([float("nan")])])
    assert not contexts.same_bits([torch.tensor([0.0])], [torch.tensor([-0.0])])
    assert not contexts.same_bits([torch.zeros(1)], [torch.zeros(1, dtype=torch.float64)])
    assert not contexts.same_bits([torch.zeros(1)], [])


def test_reentrant_checkpoints_recompute_again_afterwards():
    layer, x, runs = nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True), []

    def counted(value):
        runs.append(1)
        return layer(value)

    def passes():
        runs.clear()
        torch.utils.checkpoint.checkpoint(counted, x, use_reentrant=True).sum().backward()
        return len(runs)

    with contexts.checkpoints_kept():
        with contexts.checkpoints_kept():
            pass
        assert passes() == 1
    assert passes() == 2


def test_backward_hooks_change_no_number_and_are_back_afterwards():
    x, y, calls = torch.randn(6, 3), torch.randn(6, 1), []
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    risk = ll.EmpiricalRisk(model, nn.MSELoss(), [(x, y)])
    expected = risk.gradient()
    model[0].weight.register_hook(lambda gradient: calls.append("tensor") or 2 * gradient)
    model[1].register_full_backward_hook(lambda module, inputs, outputs: calls.append("module") or (3 * inputs[0],))
    model[2].register_full_backward_pre_hook(lambda module, outputs: calls.append("pre") or (5 * outputs[0],))
    model[0].register_forward_hook(lambda module, inputs, output: calls.append("forward"))
    found = risk.gradient()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert set(calls) == {"forward"}
    nn.functional.mse_loss(model(x), y).backward()
    assert {"tensor", "module", "pre"} < set(calls)
    torch.testing.assert_close(model[0].weight.grad, 30 * expected["0.weight"])


def test_an_interrupt_while_modes_are_put_back_comes_after_it():
    class Slow(nn.Linear):
        def __setattr__(self, name, value):
            if name == "training" and value and "weight" in self._parameters:
                signal.raise_signal(signal.SIGINT)
            super().__setattr__(name, value)

    model = nn.Sequential(Slow(2, 2), nn.Linear(2, 2))
    with pytest.raises(KeyboardInterrupt), contexts.evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())
